"""Commands that start fast: typer's defaults without those that cost time unused.

typer loads pydantic to convert a switch that was not given (its value is None and not False); that
is a third of the time of `aligner recipes list`. It also names `-h` and `--help` in an order that
changes from run to run.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class _Quick:
    def get_params(self, ctx: Any) -> list[Any]:
        """Parameters, with every switch off by default instead of unknown."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in params:
            if getattr(parameter, "is_flag", False) and parameter.default is None:
                parameter.default = False
        return params

    def get_help_option_names(self, ctx: Any) -> list[str]:
        """`-h`, then `--help`."""
        return sorted(super().get_help_option_names(ctx), key=len)  # type: ignore[misc]


class QuickCommand(_Quick, TyperCommand):
    """A command; give it as `cls=`."""


class QuickGroup(_Quick, TyperGroup):
    """A group of commands; give it as `cls=`."""
