"""The view of a recipe that rules read: values by dotted key, defaults filled in, known mistakes
skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic_core import PydanticUndefined

from aligner.config.introspect import section_in
from aligner.config.recipe import Recipe, Section
from aligner.config.recipe_problem import RecipeProblem, RecipeProblems
from aligner.config.yaml_lines import KeyPath


class SkipRule(Exception):
    """A rule reads a key that is already reported, or malformed."""


class RecipeView:
    """The values of a recipe by dotted key, defaults included, whether or not the recipe is valid
    as a whole."""

    def __init__(
        self, recipe_class: type[Recipe], values: dict[str, Any], broken: set[KeyPath]
    ) -> None:
        self._class = recipe_class
        self._values = values
        self._broken = broken

    def __getitem__(self, key: str) -> Any:
        path = tuple(key.split("."))
        if any(path[: len(broken)] == broken for broken in self._broken):
            raise SkipRule
        here: Any = self._values
        section: type[Section] | None = self._class
        for part in path:
            here, section = _step(here, section, part)
        if (
            isinstance(here, list | dict)
            and section is None
            and any(b[: len(path)] == path for b in self._broken)
        ):
            raise SkipRule  # one of its items is not a number, say
        return here

    def unless_broken(self, key: str) -> Any:
        """The value of a key, or None where it is known to be wrong: for rules that look at many
        keys, one by one."""
        try:
            return self[key]
        except SkipRule:
            return None

    def given(self, key: str) -> bool:
        """Whether somebody wrote the key, rather than leaving it to its default."""
        here: Any = self._values
        for part in key.split("."):
            if not isinstance(here, dict) or part not in here:
                return False
            here = here[part]
        return True

    def sources(self, key: str) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
        """The sources under `data.train` or `data.eval`."""
        value = self[key]
        path: KeyPath = tuple(key.split("."))
        places: list[tuple[KeyPath, Any]] = [(path, value)]
        if isinstance(value, list):
            places = [((*path, index), item) for index, item in enumerate(value)]
        for place, item in places:
            is_broken = any(broken[: len(place)] == place for broken in self._broken)
            if isinstance(item, dict) and not is_broken:
                yield place, item


def _step(here: Any, section: type[Section] | None, part: str) -> tuple[Any, type[Section] | None]:
    if here is None:
        return None, None
    if isinstance(here, Section):
        return getattr(here, part), None
    if not isinstance(here, dict):
        raise SkipRule
    field = section.model_fields.get(part) if section else None
    inner = section_in(field.annotation) if field else None
    if part in here:
        return here[part], inner
    default = field.get_default(call_default_factory=True) if field else None
    if default is PydanticUndefined:
        raise SkipRule
    return default, inner


Rule = Callable[[RecipeView], RecipeProblems]
"""One short function that yields what it has against the values."""


def refuse_formats(
    view: RecipeView, usable: tuple[str, ...], method: str, hint: str, verb: str = "train on"
) -> RecipeProblems:
    """Report the sources whose `format` the method cannot use."""
    for path, source in [*view.sources("data.train"), *view.sources("data.eval")]:
        found = source.get("format", "auto")
        if found not in usable:
            yield RecipeProblem((*path, "format"), f"`{method}` cannot {verb} `{found}` rows", hint)
