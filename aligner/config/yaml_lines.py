"""YAML read with the line of every key, so that a problem can be reported where it was written.

Differs from PyYAML's safe loader in three ways. Numbers follow YAML 1.2: `5e-6` is a float, not a text. Only `true` and
`false` are booleans, so `save_strategy: no` keeps its `no`. And a key given twice is a problem instead of a silent
overwrite. Dates stay text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from aligner.errors import Problem, RecipeError

KeyPath = tuple[str | int, ...]
"""Where a value stands in a recipe: `("data", "train", 0, "path")`."""

_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {}

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


@dataclass
class Document:
    """A YAML mapping, the line of each of its keys and items, and what was wrong with it."""

    values: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read_value(text: str) -> Any:
    """One value, as on a command line: `5e-6`, `true`, `[a, b]`, `{r: 8}`. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def read_document(text: str, name: str) -> Document:
    """Parse a recipe. Broken YAML raises at once, since nothing after it can be trusted."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        values = {} if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name} is not valid YAML", _BROKEN_HINT, [_broken(error, text, name)]) from None
    if not isinstance(values, dict):
        problem = Problem(f"expected `key: value` lines, found {_kind(values)}", where=f"{name}:1")
        raise RecipeError(
            f"{name} is not a recipe", "`aligner recipes show tiny/sft` prints one to start from", [problem]
        )
    document = Document(values)
    if node is not None:
        _walk(node, (), name, document)
    return document


_BROKEN_HINT = "indent with spaces, put a space after each colon, and quote texts that hold `: ` or `#`"


def _broken(error: yaml.YAMLError, text: str, name: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if mark is None:
        return Problem(what, where=name)
    lines = text.splitlines()
    found = lines[mark.line].strip() if mark.line < len(lines) else "the end of the file"
    if "\\t" in what or (mark.line < len(lines) and lines[mark.line].lstrip(" ").startswith("\t")):
        what = "a tab, where YAML allows only spaces"
    return Problem(f"{what}, at column {mark.column + 1} of `{found[:80]}`", where=f"{name}:{mark.line + 1}")


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"`{value}`"


def _walk(node: yaml.Node, path: KeyPath, name: str, document: Document) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            document.lines[(*path, index)] = item.start_mark.line + 1
            _walk(item, (*path, index), name, document)
    elif isinstance(node, yaml.MappingNode):
        _walk_mapping(node, path, name, document)


def _walk_mapping(node: yaml.MappingNode, path: KeyPath, name: str, document: Document) -> None:
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        here = (*path, key)
        if key in seen:
            message = f"is given twice, here and in line {seen[key]}"
            document.problems.append(Problem(message, f"{name}:{line}", dotted(here), "remove one of them"))
        seen.setdefault(key, line)
        document.lines.setdefault(here, line)
        _walk(value_node, here, name, document)


def dotted(path: KeyPath) -> str:
    """`("data", "train", 0, "path")` -> `data.train[0].path`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")
