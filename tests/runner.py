"""The command line in this process, for tests."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner, Result

from aligner.cli.app import app


def aligner(*arguments: object, **options: Any) -> Result:
    """Run `aligner ARGUMENTS` and return what it printed and its exit code."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
