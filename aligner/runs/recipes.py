"""The recipe of a run directory, for commands that look at the runs of one method. Imports no
torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligner.errors import UsageError
from aligner.methods.catalogue import METHODS, command_of
from aligner.runs.files import read_json


def recipe_of(run_dir: Path, method: str) -> dict[str, Any]:
    """Return the recipe of a run.

    Raises: UsageError where this is no run of the method.
    """
    hint = "give the output_dir of one; `aligner runs list` finds them"
    if not (run_dir / "resolved.json").is_file():
        what = "has no resolved.json" if run_dir.is_dir() else "is not there"
        raise UsageError(
            f"{run_dir} is not a run of `aligner {command_of(method)}`: it {what}", hint
        )
    recipe: dict[str, Any] = (read_json(run_dir, "resolved.json") or {}).get("recipe") or {}
    if recipe.get("method") != method:
        raise UsageError(f"{run_dir} is a run of `aligner {_command(recipe.get('method'))}`", hint)
    return recipe


def _command(method: Any) -> str:
    return command_of(method) if method in METHODS else str(method)
