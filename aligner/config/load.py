"""Resolve a recipe, overrides and flags to one frozen recipe, or report everything that is wrong at
once.

Order of strength: flags and `key=value` overrides beat the file, the file beats the defaults. A
flag and an override that say different things about one key are a problem, since neither order
would be anybody's obvious choice. The trainer's defaults (`defaults.py`) are filled in last.
Nothing is loaded but pydantic and yaml, so a wrong recipe is answered at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from aligner.config.defaults import fill
from aligner.config.hints import did_you_mean
from aligner.config.overrides import Assignment, Draft, FlagValue, lay_over, split_override
from aligner.config.recipe import Recipe
from aligner.config.recipe_problem import show
from aligner.config.rules import check_rules
from aligner.config.shipped import find_shipped, shipped_recipes
from aligner.config.texts import check_texts
from aligner.config.validate import build, check_trainer
from aligner.config.yaml_lines import KeyPath, dotted, read_document, text_of
from aligner.errors import Problem, RecipeError
from aligner.methods.catalogue import METHODS, command_of, method_of


@dataclass(frozen=True)
class Resolved:
    """A recipe that can be run, and where each of its values came from.

    `recipe` is of the class of its method. `origins` maps a dotted key to a
    place: `recipe.yaml:12`, the flag or the override as it was typed, `default`, or in `trainer`
    `default of dpo`, `default of aligner`, `default of TRL`, `default of transformers`. `text` is
    the recipe as the user wrote it (or what the flags amount to, when there was no file).
    """

    recipe: Any
    origins: dict[str, str]
    text: str
    path: Path | None

    def as_json(self) -> dict[str, Any]:
        """Values, origins and hash, for `resolved.json`."""
        values = self.recipe.model_dump(mode="json")
        return {
            "recipe": values,
            "origins": dict(self.origins),
            "recipe_hash": recipe_hash(self.recipe),
        }

    def filled(self) -> Resolved:
        """Return the same with the trainer's defaults written out; for a recipe that was not
        loaded, but made."""
        recipe, origins = fill(self.recipe)
        kept = {key: origin for key, origin in self.origins.items() if key != "trainer"}
        return replace(self, recipe=recipe, origins={**kept, **origins})

    @classmethod
    def from_json(
        cls, record: Mapping[str, Any], text: str = "", path: Path | None = None
    ) -> Resolved:
        """What `as_json` wrote, read back."""
        values = record["recipe"]
        recipe = method_of(values["method"]).recipe.model_validate_json(
            json.dumps(values), strict=True
        )
        return cls(recipe, dict(record["origins"]), text, path)


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of what is run: every value except `output_dir`, which only says where the result is
    put."""
    values = recipe.model_dump(mode="json", exclude={"output_dir"})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


FILES_OF_ROWS = (".jsonl", ".csv", ".parquet", ".jsonl.gz", ".csv.gz", ".json.gz")
"""How names end of files that cannot be recipes."""


def load_recipe(
    method: str,
    ref: str | Path | None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] = {},
) -> Resolved:
    """Resolve a recipe for a method. `ref` is a file or the name of a shipped recipe; `flags` maps
    dotted keys to values.

    Raises RecipeError with every problem found: in the file, in the overrides, in the flags, and
    between them.
    """
    name, text, path = read_text(ref)
    document = read_document(text, name)
    marks = {path: f"{name}:{line}" for path, line in document.lines.items()}
    draft = Draft(document.values, marks)
    hint = (
        f"give a recipe (`aligner {command_of(method)} RECIPE`), or at least `--model` and `--data`"
    )
    recipe, origins = settle(
        Unsettled(method, name, draft, path, document.problems, "" if ref else hint),
        overrides,
        flags,
    )
    given = text if ref is not None else yaml.safe_dump(draft.values, sort_keys=False)
    return Resolved(recipe, origins, given, path)


@dataclass(frozen=True)
class Unsettled:
    """A recipe as it was given, before anything is laid over it.

    `name` is what messages call it, `problems` what is wrong with its text already, `hint` what to
    do where it says nothing at all.
    """

    method: str
    name: str
    draft: Draft
    path: Path | None = None
    problems: Sequence[Problem] = ()
    hint: str = ""


def settle(
    given: Unsettled, overrides: Sequence[str] = (), flags: Mapping[str, Any] = {}
) -> tuple[Any, dict[str, str]]:
    """Lay overrides and flags over a draft and check all of it; return the recipe, and the origin
    of each value.

    Raises: RecipeError with every problem found.
    """
    recipe_class, draft = method_of(given.method).recipe, given.draft
    assignments, problems = _assignments(overrides, flags, recipe_class)
    problems = [*given.problems, *problems, *lay_over(draft, assignments)]
    problems += _settle_method(draft, given.method)
    derived = _derive_output_dir(draft, given.method, given.path)
    recipe, more = _validate(recipe_class, draft)
    problems += more
    if problems or recipe is None:
        raise _error(given, problems)
    filled, origins = fill(recipe)
    return filled, {**_origins(filled, draft, derived), **origins}


def read_text(ref: str | Path | None) -> tuple[str, str, Path | None]:
    """Name for messages, text, and path of a recipe."""
    if ref is None:
        return "the command line", "", None
    path = Path(ref).expanduser()
    if path.is_file():
        if path.name.endswith(FILES_OF_ROWS):
            raise RecipeError(
                f"{ref} is a file of rows, and what is named here is a recipe",
                f"in a recipe it is `data: {{train: {ref}}}`; without one, --dataset_name {ref}",
            )
        return str(ref), text_of(path, str(ref)), path
    shipped = find_shipped(str(ref))
    if shipped is not None:
        return f"{shipped.name}.yaml", shipped.path.read_text("utf-8"), shipped.path
    raise _not_found(ref, path)


def _not_found(ref: str | Path, path: Path) -> RecipeError:
    if path.is_dir():
        return RecipeError(f"{ref} is a folder, not a recipe", "name the .yaml file in it")
    beside = [str(file) for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    names = [*beside, *(recipe.name for recipe in shipped_recipes())]
    hint = did_you_mean(str(ref), names) or "`aligner recipes list` names the shipped ones"
    return RecipeError(f"there is no file and no shipped recipe called `{ref}`", hint)


def _assignments(
    overrides: Sequence[str], flags: Mapping[str, Any], recipe_class: type[Recipe]
) -> tuple[list[Assignment], list[Problem]]:
    assignments: list[Assignment] = []
    problems = []
    for text in overrides:
        outcome = split_override(text, recipe_class)
        if isinstance(outcome, Problem):
            problems.append(outcome)
        else:
            assignments.append(outcome)
    for key, given in flags.items():
        value, label = given if isinstance(given, tuple) else FlagValue(given, key)
        assignments.append(Assignment(tuple(key.split(".")), value, label, is_flag=True))
    return assignments, problems


def _settle_method(draft: Draft, method: str) -> list[Problem]:
    """The command says what is done; a recipe for something else is a mistake, an absent `method`
    is filled in."""
    found = draft.values.get("method", method)
    draft.values["method"] = method
    if found == method:
        return []
    if str(found) in METHODS:
        message = f"the recipe is for `{found}`, the command is `{command_of(method)}`"
        hint = f"run `aligner {command_of(str(found))}` with it"
    else:
        message, hint = (
            f"no method is called {show(found)}",
            did_you_mean(str(found), METHODS) or f"write `method: {method}`",
        )
    return [Problem(message, draft.where(("method",)), "method", hint)]


def _derive_output_dir(draft: Draft, method: str, path: Path | None) -> str:
    """Name the run after the recipe, or the model, when the user did not. Returns where the name
    came from."""
    if "output_dir" in draft.values:
        return ""
    model = draft.values.get("model")
    model_name = model.get("name_or_path") if isinstance(model, dict) else None
    stem, source = (
        (path.stem, "the recipe's name")
        if path
        else (Path(str(model_name or "")).name, "the model's name")
    )
    name = stem if stem.endswith(method) else "-".join(part for part in (stem, method) if part)
    draft.values["output_dir"] = f"runs/{name}"
    return f"derived from {source}"


def _validate(recipe_class: type[Recipe], draft: Draft) -> tuple[Recipe | None, list[Problem]]:
    trainer, findings = check_trainer(recipe_class, draft.values.get("trainer"))
    values = dict(draft.values)
    if isinstance(values.get("trainer"), dict):
        values["trainer"] = trainer
    findings += check_texts(values)
    recipe, more = build(recipe_class, values)
    findings += more
    findings += check_rules(recipe_class, values, {finding.path for finding in findings})
    return recipe, [finding.problem(draft.where) for finding in findings]


def _error(given: Unsettled, problems: list[Problem]) -> RecipeError:
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    is_empty = any(problem.key == "model" for problem in problems) and any(
        problem.key == "data" for problem in problems
    )
    return RecipeError(
        f"{count} in {given.name}", given.hint if is_empty else "", sorted(problems, key=_line)
    )


def _line(problem: Problem) -> int:
    match = re.search(r":(\d+)$", problem.where)
    return int(match.group(1)) if match else 1_000_000


def _origins(recipe: Recipe, draft: Draft, derived: str) -> dict[str, str]:
    origins: dict[str, str] = {}
    _collect(recipe.model_dump(mode="json"), (), draft, origins)
    origins["method"] = draft.where(("method",)) or "the command"
    if derived:
        origins["output_dir"] = derived
    return origins


def _collect(value: Any, path: KeyPath, draft: Draft, origins: dict[str, str]) -> None:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            _collect(inner, (*path, key), draft, origins)
        return
    place = draft.where(path) if draft.holds(path) else "default"
    inside = {
        mark
        for key, mark in draft.marks.items()
        if key[: len(path)] == path and mark != place and not re.search(r":\d+$", mark)
    }
    origins[dotted(path)] = " + ".join([place, *sorted(inside)])
