"""The recipes that ship with the package: listed, found by name, read."""

from __future__ import annotations

import importlib.resources
import re
from dataclasses import dataclass
from pathlib import Path

from aligner.config.hints import did_you_mean
from aligner.errors import RecipeError
from aligner.methods.catalogue import command_of


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe of ours: `tiny/dpo`, what it trains, and the first line of its comment."""

    name: str
    method: str
    summary: str
    path: Path


def recipes_folder() -> Path:
    """The installed `recipes/` folder."""
    return Path(str(importlib.resources.files("aligner.recipes")))


def shipped_recipes() -> list[ShippedRecipe]:
    """Every recipe on disk, by name."""
    folder = recipes_folder()
    names = sorted(
        path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/*.yaml")
    )
    found = []
    for name in names:
        path = folder / f"{name}.yaml"
        text = path.read_text("utf-8")
        method = re.search(r"^method:\s*(\w+)", text, re.MULTILINE)
        summary = text.splitlines()[0].lstrip("# ").strip() if text.startswith("#") else ""
        found.append(ShippedRecipe(name, method.group(1) if method else "", summary, path))
    return found


def find_shipped(name: str) -> ShippedRecipe | None:
    """The recipe of that name, with or without `.yaml`."""
    wanted = name.removesuffix(".yaml").removesuffix(".yml")
    return next((recipe for recipe in shipped_recipes() if recipe.name == wanted), None)


def recipe_text(name: str) -> str:
    """The text of a shipped recipe, comments and all."""
    recipe = find_shipped(name)
    if recipe is None:
        hint = did_you_mean(name, [item.name for item in shipped_recipes()])
        raise RecipeError(
            f"no shipped recipe is called `{name}`", hint or "`aligner recipes list` names them"
        )
    return recipe.path.read_text("utf-8")


def markdown_table() -> str:
    """The table of `recipes/README.md`; a test compares it with the folder."""
    rows = [
        f"| [`{recipe.name}`]({recipe.name}.yaml) | `{command_of(recipe.method)}` | "
        f"{recipe.summary} |"
        for recipe in shipped_recipes()
    ]
    return "\n".join(["| Recipe | Command | What it does |", "| --- | --- | --- |", *rows])


if __name__ == "__main__":
    print(markdown_table())
