"""One thing that is wrong with a recipe, at a path in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from aligner.config.yaml_lines import KeyPath, dotted
from aligner.errors import Problem

Where = Callable[[KeyPath], str]


@dataclass(frozen=True)
class RecipeProblem:
    """One thing that is wrong, at a path. `expected` is set when it is about the type or the choice
    of a value."""

    path: KeyPath
    message: str
    hint: str = ""
    expected: str = ""

    def problem(self, where: Where) -> Problem:
        return Problem(self.message, where(self.path), dotted(self.path), self.hint)


def show(value: Any) -> str:
    """A value as it may stand in a sentence."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return f"`{text if len(text) <= 60 else text[:57] + '...'}`"


RecipeProblems = Iterator[RecipeProblem]


def problem_at(key: str, message: str, hint: str = "") -> RecipeProblem:
    return RecipeProblem(tuple(key.split(".")), message, hint)
