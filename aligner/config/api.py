"""What `aligner` hands out of this room: recipes from Python.

A recipe is named by its path, by a shipped name (`tiny/dpo`), or by a method alone (`dpo`), whose
values then all come from `overrides`; or it is an object (`DpoRecipe(...)`). Whichever it is, the
same rules are applied as on the command line, and all problems are reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from aligner.config import load
from aligner.config.defaults import as_given, is_default, unfilled
from aligner.config.hints import did_you_mean
from aligner.config.load import Resolved, Unsettled, read_text, settle
from aligner.config.overrides import Draft, FlagValue
from aligner.config.recipe import Recipe, Section
from aligner.config.yaml_lines import read_document
from aligner.errors import RecipeError
from aligner.methods.catalogue import METHODS

GivenRecipe = str | Path | Recipe | Resolved
"""A path, a shipped name, a method's name, a recipe object, or what `load_recipe` returned."""


def load_recipe(recipe: GivenRecipe, overrides: Mapping[str, Any] | None = None) -> Resolved:
    """Return the recipe with the overrides laid over it, checked and frozen (`.recipe`), and where
    each value came from (`.origins`).

    `overrides` maps dotted keys to values: `{"trainer.max_steps": 20}`.

    Raises: RecipeError with every problem found.
    """
    return resolve(recipe, labelled(overrides))


def labelled(overrides: Mapping[str, Any] | None) -> dict[str, FlagValue]:
    """Return the overrides as plain values, with the origin that records give to each.

    Raises: RecipeError for a value that no recipe can hold.
    """
    if not isinstance(overrides, Mapping | None):
        raise RecipeError(
            f"overrides are a `{type(overrides).__name__}`, not a mapping",
            'write dotted keys with their values: {"trainer.max_steps": 20}',
        )
    return {
        key: FlagValue(_plain(value, key), f"overrides[{key!r}]")
        for key, value in (overrides or {}).items()
    }


def _plain(value: Any, key: str) -> Any:
    """The value as YAML has it: paths as text, sections (`Lora(r=8)`) as mappings."""
    if isinstance(value, Section):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return {str(name): _plain(inner, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, key) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or type(value) in (str, bool, int, float):
        return value
    raise RecipeError(
        f"`{key}` is of the type `{type(value).__name__}`, which no recipe holds",
        "give a number, a text, true or false, a list, or a mapping",
    )


def resolve(recipe: GivenRecipe, laid_over: Mapping[str, FlagValue]) -> Resolved:
    """Return a recipe with values laid over it, each with its origin."""
    if isinstance(recipe, Resolved):
        return _again(recipe, laid_over) if laid_over else recipe
    if isinstance(recipe, Recipe):
        return _from_object(recipe, laid_over)
    if not _is_method(recipe):
        return load.load_recipe(method_of(recipe), recipe, (), laid_over)
    draft = Draft({})
    hint = 'give at least overrides={"model.name_or_path": ..., "data.train": ...}'
    given = Unsettled(str(recipe), f"the overrides of `{recipe}`", draft, hint=hint)
    settled, origins = settle(given, (), laid_over)
    return Resolved(settled, origins, yaml.safe_dump(draft.values, sort_keys=False), None)


def _again(resolved: Resolved, laid_over: Mapping[str, FlagValue]) -> Resolved:
    given = as_given(resolved.recipe, resolved.origins)
    values = given.model_dump(mode="json", exclude_unset=True)
    origins = {key: place for key, place in resolved.origins.items() if not is_default(place)}
    draft = Draft(values, {tuple(key.split(".")): place for key, place in origins.items()})
    unsettled = Unsettled(resolved.recipe.method, "the recipe", draft, resolved.path)
    recipe, origins = settle(unsettled, (), laid_over)
    return Resolved(recipe, origins, resolved.text, resolved.path)


def _from_object(recipe: Recipe, laid_over: Mapping[str, FlagValue]) -> Resolved:
    values = unfilled(recipe).model_dump(mode="json", exclude_unset=True)
    name = f"the {type(recipe).__name__}"
    draft = Draft(values, {(key,): name for key in values})
    text = yaml.safe_dump({"method": recipe.method, **values}, sort_keys=False)
    settled, origins = settle(Unsettled(recipe.method, name, draft), (), laid_over)
    return Resolved(settled, origins, text, None)


def method_of(recipe: GivenRecipe) -> str:
    """Return the method that a recipe is for.

    Raises: RecipeError where its text names none.
    """
    if isinstance(recipe, Resolved):
        return str(recipe.recipe.method)
    if isinstance(recipe, Recipe):
        return recipe.method
    if _is_method(recipe):
        return str(recipe)
    try:
        name, text, _ = read_text(recipe)
    except RecipeError as error:
        hint = did_you_mean(str(recipe), METHODS) or error.hint
        raise RecipeError(error.message, hint) from None
    document = read_document(text, name)
    if document.problems:
        raise RecipeError(f"{name} cannot be read", problems=document.problems)
    found = document.values.get("method")
    if found not in METHODS:
        problem = "names no method" if found is None else f"has no known method: `{found}`"
        hint = (
            did_you_mean(str(found), METHODS) or f"write `method:` and one of {', '.join(METHODS)}"
        )
        raise RecipeError(f"{name} {problem}", hint)
    return str(found)


def _is_method(ref: str | Path) -> bool:
    return str(ref) in METHODS and not Path(ref).is_file()
