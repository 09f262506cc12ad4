"""Resolve the recipe that a command line describes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aligner.config.load import Resolved


def resolve(
    method: str, arguments: list[str], num_processes: int | None = None
) -> tuple[Resolved, list[str], dict[str, bool]]:
    """The recipe that the command line describes, checked, without loading torch; notes; options
    said by flags."""
    from aligner.config.flags import parse_arguments
    from aligner.config.load import load_recipe

    parsed = parse_arguments(arguments, method)
    flags: dict[str, Any] = dict(parsed.flags)
    if num_processes is not None:
        flags["launch.num_processes"] = (num_processes, "--num-processes")
    return load_recipe(method, parsed.ref, parsed.overrides, flags), parsed.notes, parsed.options
