"""Texts that no recipe and no card may hold, wherever they stand: characters that no path and no
name has, homes of nobody."""

from __future__ import annotations

import json
import os
from typing import Any

from aligner.config.recipe_problem import RecipeProblem, show
from aligner.config.yaml_lines import KeyPath


def check_texts(values: Any, path: KeyPath = ()) -> list[RecipeProblem]:
    """What is wrong with the texts in these values, each with its place."""
    if isinstance(values, dict | list):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        return [finding for key, value in items for finding in check_texts(value, (*path, key))]
    if not isinstance(values, str):
        return []
    if "\0" in values:
        return [
            RecipeProblem(
                path, f"holds a NUL character: {values[:60]!r}", "no path and no name may hold one"
            )
        ]
    if any("\ud800" <= character <= "\udfff" for character in values):
        return [
            RecipeProblem(path, f"holds bytes that are not UTF-8: {values[:60]!r}", "rename it")
        ]
    home = values.split("/", 1)[0]
    if home.startswith("~") and "/" in values and os.path.expanduser(home) == home:
        return [
            RecipeProblem(
                path,
                f"there is no user called `{home[1:]}`, whose home {show(values)} names",
                "write it out",
            )
        ]
    return []


def as_json(values: Any) -> bytes:
    """The values for pydantic, which refuses a whole document for one text that is not Unicode;
    `check_texts` says where that is."""
    return json.dumps(values, default=str, ensure_ascii=False).encode(errors="replace")
