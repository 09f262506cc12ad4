"""Recipes of any method: which one a command line means, for commands that take all of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .resolve import resolve

if TYPE_CHECKING:
    from aligner.config.load import Resolved


def is_recipe(name: str) -> bool:
    """Say whether a name is that of a recipe or a run, and not of data."""
    path = Path(name).expanduser()
    if path.is_dir():
        return (path / "resolved.json").is_file()
    if path.suffix in (".yaml", ".yml"):
        return True
    from aligner.config.shipped import find_shipped

    return not path.exists() and find_shipped(name) is not None


def resolve_any(ref: str, settings: list[str]) -> tuple[Resolved, list[str]]:
    """Resolve a recipe of any method, or that of a run directory, with settings laid over it;
    return it and notes for the user."""
    from aligner.config.load import Resolved
    from aligner.errors import UsageError
    from aligner.runs.files import read_json

    folder = Path(ref).expanduser()
    if not folder.is_dir() or not (folder / "resolved.json").is_file():
        resolved, notes, _ = resolve(method_in(ref, settings), [ref, *settings])
        return resolved, notes
    if settings:
        raise UsageError(
            f"{ref} is a run, whose recipe is settled: `{settings[0]}` cannot change it",
            "name its recipe.yaml to change values",
        )
    return Resolved.from_json(read_json(folder, "resolved.json"), path=folder), []


def method_in(ref: str, settings: list[str]) -> str:
    """The method that a recipe names, or `method=...` on the command line."""
    from aligner.config.hints import did_you_mean
    from aligner.config.load import read_text
    from aligner.config.yaml_lines import read_document
    from aligner.errors import RecipeError
    from aligner.methods.catalogue import METHODS

    name, text, _ = read_text(ref)
    given = [setting.partition("=")[2] for setting in settings if setting.startswith("method=")]
    method = str([read_document(text, name).values.get("method", ""), *given][-1])
    if method in METHODS:
        return method
    if not method:
        raise RecipeError(
            f"{name} does not say which method it is for", "write `method: sft`, or add method=sft"
        )
    raise RecipeError(
        f"{name}: no method is called `{method}`",
        did_you_mean(method, METHODS) or f"one of {', '.join(METHODS)}",
    )
