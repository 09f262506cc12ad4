"""Override values of a recipe with `key=value` and with flags. Which value came from where is
remembered.

A value replaces what was there, lists and mappings whole. One convenience: a key below `data.train`
or `data.eval` (`data.train.max_rows=100`) goes into the source, as long as there is exactly one.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from aligner.config.introspect import is_text
from aligner.config.recipe import Recipe
from aligner.config.yaml_lines import KeyPath, dotted, read_value
from aligner.errors import Problem
from aligner.methods.catalogue import trainer_fields

_KEY = re.compile(r"^[A-Za-z_][\w-]*(\.[\w-]+)*$")


class FlagValue(NamedTuple):
    """What a flag says, and its name as it was typed."""

    value: Any
    name: str


@dataclass
class Draft:
    """A recipe being put together: plain values, and the place that each was written at."""

    values: dict[str, Any]
    marks: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """The place of a key, or of the section that it stands in."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.marks:
                return self.marks[path[:length]]
        return ""

    def holds(self, path: KeyPath) -> bool:
        """Whether somebody wrote this key."""
        here: Any = self.values
        for part in path:
            if not isinstance(here, dict) or part not in here:
                return False
            here = here[part]
        return True

    def put(self, path: KeyPath, value: Any, label: str) -> None:
        """Set a key, making the sections above it, and forget the places of what it replaces."""
        here: dict[Any, Any] = self.values
        for part in path[:-1]:
            if not isinstance(here.get(part), dict):
                here[part] = {}
            here = here[part]
        here[path[-1]] = value
        for old in [mark for mark in self.marks if mark[: len(path)] == path]:
            del self.marks[old]
        self.marks[path] = label


@dataclass(frozen=True)
class Assignment:
    """One `key=value` or flag."""

    path: KeyPath
    value: Any
    label: str
    is_flag: bool = False


def split_override(text: str, recipe_class: type[Recipe]) -> Assignment | Problem:
    """`trainer.learning_rate=5e-6` -> an assignment, the value read as YAML. Split at the first
    `=`."""
    key, equals, raw = text.partition("=")
    if not equals:
        return Problem(
            f"`{text}` is not an override", hint="write `key=value`, for example `model.lora.r=8`"
        )
    if not _KEY.match(key):
        hint = (
            "write a list whole: `data.train=[a.jsonl, b.jsonl]`"
            if re.search(r"[\[\]]", key)
            else ""
        )
        return Problem(f"`{key}` is not a dotted key", where=text, hint=hint)
    path = tuple(key.split("."))
    if any(part.isdigit() for part in path):
        where_list = ".".join(path[: next(i for i, part in enumerate(path) if part.isdigit())])
        hint = (
            f"lists are replaced whole: `{where_list}=[...]`; a single source takes "
            f"`{where_list}.key=value`"
        )
        return Problem("items of a list cannot be set by number", text, key, hint)
    try:
        return Assignment(path, read_shell_value(recipe_class, path, raw), text)
    except yaml.YAMLError as error:
        return Problem(
            f"the value is not valid YAML: {getattr(error, 'problem', error)}",
            text,
            key,
            "quote it in the shell",
        )


def read_shell_value(recipe_class: type[Recipe], path: KeyPath, raw: str) -> Any:
    """A value typed in a shell. Keys that hold text take it as it stands; the others read it as
    YAML."""
    if raw in ("null", "~", ""):
        return None
    holds_text = is_text(recipe_class, path)
    if not holds_text and len(path) == 2 and path[0] == "trainer":
        method = recipe_class.model_fields["method"].default
        spec = trainer_fields(method).get(str(path[1]), {"type": ""})
        holds_text = set(spec["type"].split(" | ")) <= {"str", "None"}
    if holds_text:
        return raw[1:-1] if len(raw) > 1 and raw[0] == raw[-1] and raw[0] in "'\"" else raw
    return read_value(raw)


def lay_over(draft: Draft, assignments: list[Assignment]) -> list[Problem]:
    """Apply overrides and flags. Both beat the file; the same key from both, with two values, is a
    problem."""
    problems = [*_contradictions(assignments)]
    # Sections before the keys in them, and evaluation sources after the training source that they
    # may copy.
    ordered = sorted(
        assignments, key=lambda item: (item.path[:2] == ("data", "eval"), len(item.path))
    )
    for item in ordered:
        problem = _apply(draft, item)
        if problem:
            problems.append(problem)
    return problems


def _contradictions(assignments: list[Assignment]) -> list[Problem]:
    problems = []
    flags = {item.path: item for item in assignments if item.is_flag}
    for path, item in {item.path: item for item in assignments if not item.is_flag}.items():
        other = flags.get(path)
        if other is not None and other.value != item.value:
            message = f"is set twice, by `{item.label}` and by `{other.label}`, to different values"
            problems.append(Problem(message, key=dotted(path), hint="keep one of them"))
    return problems


def _apply(draft: Draft, item: Assignment) -> Problem | None:
    if item.path[:1] == ("data",) and len(item.path) > 2 and item.path[1] in ("train", "eval"):
        return _apply_to_source(draft, item)
    if item.is_flag and item.value == {} and isinstance(_get(draft.values, item.path), dict):
        return None
    draft.put(item.path, item.value, item.label)
    return None


def _apply_to_source(draft: Draft, item: Assignment) -> Problem | None:
    kind, key = str(item.path[1]), str(item.path[2])
    name = f"data.{kind}"
    if len(item.path) > 3 and key != "columns":
        return Problem("a source has no such section", item.label, dotted(item.path))
    source = _single_source(draft, kind)
    if source is None and kind == "eval" and key == "split":
        source = copy.deepcopy(_single_source(draft, "train"))
        name = "data.train"
    if source is None:
        hint = f"name the sources whole: `{name}=[{{path: ..., {key}: ...}}]`"
        return Problem(f"needs exactly one source in `{name}`", item.label, dotted(item.path), hint)
    if len(item.path) > 3:
        source["columns"] = {
            **source.get("columns", {}),
            ".".join(map(str, item.path[3:])): item.value,
        }
    else:
        source[key] = item.value
    marks = {path: label for path, label in draft.marks.items() if path[:2] == ("data", kind)}
    draft.put(("data", kind), [source], item.label)
    draft.marks.update(marks)
    draft.marks[("data", kind, 0, key)] = item.label
    return None


def _single_source(draft: Draft, kind: str) -> dict[str, Any] | None:
    value = _get(draft.values, ("data", kind))
    items = value if isinstance(value, list) else [value]
    if len(items) != 1 or not isinstance(items[0], str | dict):
        return None
    return {"path": items[0]} if isinstance(items[0], str) else items[0]


def _get(values: Any, path: KeyPath) -> Any:
    for part in path:
        if not isinstance(values, Mapping) or part not in values:
            return None
        values = values[part]
    return values
