"""Validate the values of a recipe against the schema and against the trainer's keys, and report all
problems.

pydantic decides what is valid; this module turns what it says into sentences about the user's file.
Values are checked strictly: a quoted number is a text, and `yes` is not a boolean.
"""

from __future__ import annotations

import difflib
import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from aligner.config import hints, trainer_keys
from aligner.config.flag_table import all_flags
from aligner.config.introspect import choices_at, dotted_keys, section_at
from aligner.config.recipe import Recipe
from aligner.config.recipe_problem import RecipeProblem, show
from aligner.config.texts import as_json
from aligner.config.yaml_lines import KeyPath, dotted
from aligner.methods.catalogue import (
    METHODS,
    command_of,
    trainer_fields,
    trainer_of,
    trainer_settings,
    trainings,
)


def build(
    recipe_class: type[Recipe], values: dict[str, Any]
) -> tuple[Recipe | None, list[RecipeProblem]]:
    """The recipe, or everything that the schema has against it."""
    try:
        return recipe_class.model_validate_json(as_json(values), strict=True), []
    except ValidationError as error:
        raw = [
            (_clean(item["loc"], item["type"], values), item)
            for item in error.errors(include_url=False)
        ]
        return None, _merge([_explain(recipe_class, path, item, values) for path, item in raw])


def _clean(loc: tuple[str | int, ...], kind: str, values: Any) -> KeyPath:
    """pydantic's location without the names of union members, which are not keys of anybody's
    file."""
    path: list[str | int] = []
    here = values
    for position, part in enumerate(loc):
        is_last = position == len(loc) - 1
        if isinstance(here, dict) and (part in here or (is_last and kind == "missing")):
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            continue
        path.append(part)
    return tuple(path)


def _merge(findings: list[RecipeProblem]) -> list[RecipeProblem]:
    """One finding for each place: the alternatives of a union are joined, or give way to what is
    wrong deeper inside."""
    by_path: dict[KeyPath, list[RecipeProblem]] = defaultdict(list)
    for finding in findings:
        by_path[finding.path].append(finding)
    merged = []
    for path, group in by_path.items():
        if group[0].message == _IS_MISSING:
            siblings = [other for other in by_path if other[:-1] == path[:-1] and other != path]
            if any(hints.closest(str(other[-1]), [str(path[-1])]) for other in siblings):
                continue  # a name that comes close is reported already
        is_deeper = any(len(other) > len(path) and other[: len(path)] == path for other in by_path)
        if is_deeper and all(finding.expected for finding in group):
            continue
        merged.append(_join(group))
    return merged


_IS_MISSING = "is missing"


def _join(group: list[RecipeProblem]) -> RecipeProblem:
    typed = [finding for finding in group if finding.expected]
    plain = [finding for finding in group if not finding.expected]
    if plain:
        return plain[0]
    first = typed[0]
    expected = " or ".join(dict.fromkeys(finding.expected for finding in typed))
    hint = next((finding.hint for finding in typed if finding.hint), "")
    return RecipeProblem(
        first.path, first.message.replace(first.expected, expected), hint, expected
    )


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "finite_number": "a finite number",
    "list_type": "a list",
    "dict_type": "a section of `key: value` lines",
    "model_type": "a section of `key: value` lines",
}

_BOUNDS = {
    "greater_than": ("gt", "must be greater than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}


def _explain(
    recipe_class: type[Recipe], path: KeyPath, error: Any, values: dict[str, Any]
) -> RecipeProblem:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return RecipeProblem(path, _IS_MISSING, _MISSING.get(dotted(path), ""))
    found = path[-1] if error["loc"][-1] == "[key]" else _at(values, path)
    if kind == "extra_forbidden":
        return RecipeProblem(
            path,
            "is not a key of a recipe" if len(path) == 1 else "unknown key",
            key_hint(recipe_class, path),
        )
    if kind == "literal_error":
        offered = choices_at(recipe_class, path)
        expected = "one of " + ", ".join(offered)
        return RecipeProblem(
            path,
            f"expected {expected}, found {show(found)}",
            hints.did_you_mean(str(found), offered),
            expected,
        )
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        message = f"{words} {context[name]}, found {show(found)}"
        return RecipeProblem(path, message, _OTHER_FORMS.get(dotted(path), ""))
    if kind in ("too_short", "too_long") and isinstance(found, list) and found:
        number = context.get("min_length") or context["max_length"]
        return RecipeProblem(path, f"expected {number} values, found {len(found)}")
    if kind == "too_short":
        return RecipeProblem(path, "is empty", "give at least one")
    if kind in _EXPECTED:
        expected = _EXPECTED[kind]
        return RecipeProblem(
            path,
            f"expected {expected}, found {show(found)}",
            _value_hint(expected, found),
            expected,
        )
    return RecipeProblem(path, f"{error['msg']}, found {show(found)}")


_MISSING = {
    "endpoint": "the language model that proposes, for example `endpoint: {base_url: "
    "http://127.0.0.1:8000/v1, model: NAME}`",
    "model": "give `model.name_or_path` in the recipe, or `--model` on the command line",
    "model.name_or_path": "a hub id or a folder; `--model` on the command line",
    "data": "give `data.train` in the recipe, or `--data` on the command line",
    "data.train": "a file, a folder, a glob or a hub id; `--data` on the command line",
}


_OTHER_FORMS = {
    "data.eval": "a share is below 1 (0.05); a number of rows is whole and has no point (1000)",
}
"""What else a number may be, at a key whose number is out of bounds."""


def _at(values: Any, path: KeyPath) -> Any:
    for part in path:
        values = values[part]
    return values


def _value_hint(expected: str, found: Any) -> str:
    if (
        isinstance(found, str)
        and expected in ("a whole number", "a number")
        and trainer_keys.number_in(found) is not None
    ):
        return "write it without quotes"
    if expected == "true or false" and str(found).lower() in ("yes", "on", "y", "no", "off", "n"):
        return f"write `{'true' if str(found).lower() in ('yes', 'on', 'y') else 'false'}`"
    if expected == "a text" and isinstance(found, int | float):
        return "put it in quotes"
    return ""


def key_hint(recipe_class: type[Recipe], path: KeyPath) -> str:
    """Where an unknown key belongs, or what it was probably meant to be."""
    name, parent = str(path[-1]), path[:-1]
    section = section_at(recipe_class, parent)
    here = list(section.model_fields) if section else []
    if place := place_of(recipe_class, name):
        return place
    if near := hints.closest(name, here):
        return f"did you mean `{dotted((*parent, near))}`?"
    everywhere = {key.rsplit(".", 1)[-1]: key for key in dotted_keys(recipe_class)}
    everywhere |= {key: f"trainer.{key}" for key in trainer_settings(_method(recipe_class))}
    near_name = hints.closest(name, everywhere)
    if near_name:
        return f"did you mean `{everywhere[near_name]}`?"
    return "it takes: " + ", ".join(here) if here else ""


def place_of(recipe_class: type[Recipe], name: str) -> str:
    """Where the thing of exactly this name is set, for a name that the field knows; empty for one
    that nobody knows."""
    method = _method(recipe_class)
    if name in hints.GONE:
        return hints.GONE[name]
    if name in METHODS and name != method:
        return f"that section belongs to `aligner {command_of(name)}`"
    flag = all_flags().get(name)
    if flag is not None and flag.key:
        return _place(recipe_class, flag.write or flag.key)
    if name in trainer_keys.RESERVED and name in trainer_fields(method):
        return trainer_keys.RESERVED[name]
    if name in trainer_fields(method):
        return f"set `trainer.{name}`"
    elsewhere = hints.ELSEWHERE.get(name, "")
    if elsewhere.split(".", 1)[0] in {*METHODS, *recipe_class.model_fields}:
        return _place(recipe_class, elsewhere)
    keys = [key for key in dotted_keys(recipe_class) if key.rsplit(".", 1)[-1] == name]
    return f"set `{keys[0]}`" if len(keys) == 1 else ""


def _place(recipe_class: type[Recipe], key: str) -> str:
    section = key.split(".", 1)[0].split(":")[0]
    if section in METHODS and section != _method(recipe_class):
        return f"a setting of `aligner {command_of(section)}`: `{key}`"
    return f"set `{key}`"


def _method(recipe_class: type[Recipe]) -> str:
    return str(recipe_class.model_fields["method"].default)


def check_trainer(
    recipe_class: type[Recipe], trainer: Any
) -> tuple[dict[str, Any], list[RecipeProblem]]:
    """The trainer's values in the types of its class, and what is wrong with them."""
    if not isinstance(trainer, dict):
        return {}, []
    method = _method(recipe_class)
    known, allowed = trainer_fields(method), trainer_settings(method)
    values, findings = {}, []
    for key, value in trainer.items():
        path = ("trainer", key)
        if key in allowed:
            try:
                values[key] = trainer_keys.read(known[key], _written_out(known[key], value))
            except trainer_keys.Mismatch as mismatch:
                findings.append(_mismatch(path, str(mismatch), value, known[key]))
        else:
            findings.append(_unknown_trainer_key(recipe_class, key, known, allowed))
    return values, findings


def _written_out(spec: dict[str, Any], value: Any) -> Any:
    """The mapping that a text stands for, as `{"num_cycles": 2}` in a flag, where the field holds a
    mapping."""
    if not isinstance(value, str) or "dict" not in spec["type"].split(" | "):
        return value
    try:
        mapping = json.loads(value)
    except (ValueError, RecursionError):
        mapping = None
    if not isinstance(mapping, dict):
        raise trainer_keys.Mismatch("expected a section of `key: value` lines")
    return mapping


def _mismatch(path: KeyPath, expected: str, value: Any, spec: dict[str, Any]) -> RecipeProblem:
    hint = _value_hint(expected.removeprefix("expected "), value)
    if "choices" in spec:
        near = hints.closest(
            str(value), [choice for choice in spec["choices"] if isinstance(choice, str)]
        )
        hint = f"did you mean `{near}`?" if near else hint
        if len(spec["choices"]) > 12:
            nearest = sorted(
                spec["choices"],
                key=lambda choice: -difflib.SequenceMatcher(None, str(value), choice).ratio(),
            )
            expected = f"expected one of {', '.join(nearest[:6])}, ..."
    return RecipeProblem(path, f"{expected}, found {show(value)}", hint)


def _unknown_trainer_key(
    recipe_class: type[Recipe], key: str, known: Mapping[str, Any], allowed: list[str]
) -> RecipeProblem:
    path = ("trainer", key)
    method = _method(recipe_class)
    if key in trainer_keys.RESERVED and key in known:
        return RecipeProblem(path, "is not set here", trainer_keys.RESERVED[key])
    if meant := trainer_of(method).other_names.get(key):
        return RecipeProblem(path, "is not a key of the trainer", f"set `{meant}`")
    if place := place_of(recipe_class, key):
        return RecipeProblem(path, "is not a key of the trainer", place)
    others = [other for other in trainings() if other != method and key in trainer_fields(other)]
    if others:
        return RecipeProblem(
            path, f"is a key of the `{others[0]}` trainer, not of `{method}`", "drop it"
        )
    hint = hints.did_you_mean(key, [*allowed, *trainer_keys.RESERVED])
    return RecipeProblem(path, f"is not a field of {trainer_of(method).trainer_class}", hint)
