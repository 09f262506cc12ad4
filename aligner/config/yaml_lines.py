"""Read YAML with the line of every key, so that a problem is reported where it was written.

Differs from PyYAML's safe loader in five ways. Numbers follow YAML 1.2: `5e-6` is a float, not a
text. Only `true` and `false` are booleans, so `save_strategy: no` keeps its `no`. A key is a text,
as it is written: `1: x` has the key "1". A key given twice is a problem instead of a silent
overwrite. Dates stay text, and so does whatever else YAML 1.1 knew.

And there are limits, kept while the document is composed, before any value is made of it: on the
characters that it has once every alias is written out, on its depth, and on the digits of a number.
An alias may not stand inside what it names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
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


LARGEST = 1_000_000
"""Characters of a document, its aliases written out."""

DEEPEST = 40
"""Levels of a document; a recipe needs seven."""

LONGEST_NUMBER = 100
"""Characters of a number; the longest that a float can hold has 309 digits before its point."""

TAG = "tag:yaml.org,2002:"


class _Beyond(yaml.MarkedYAMLError):
    """A document beyond a limit."""


def _beyond(problem: str, place: Any) -> _Beyond:
    return _Beyond(None, None, problem, place.start_mark)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2, and with limits."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._characters = 0
        self._depth = 0
        self._sizes: dict[str | None, int | None] = {}
        """Anchor -> characters of what it names; None while that is being read."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, or take that of an alias, and count what it comes to."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            size = self._sizes.get(event.anchor, 0)  # an unknown one is refused by the composer
            if size is None:
                raise _beyond(f"the alias `*{event.anchor}` stands inside what it names", event)
            self._count(size, event)
            return super().compose_node(parent, index)
        anchor, before = event.anchor, self._characters
        if anchor is not None:
            self._sizes[anchor] = None
        self._count(1 + len(event.value if isinstance(event, yaml.ScalarEvent) else ""), event)
        self._depth += 1
        if self._depth > DEEPEST:
            raise _beyond(f"more than {DEEPEST} levels deep", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None:
            self._sizes[anchor] = self._characters - before
        return node

    def _count(self, characters: int, event: yaml.Event) -> None:
        self._characters += characters
        if self._characters > LARGEST:
            problem = f"more than {LARGEST:,} characters, with every alias written out"
            raise _beyond(problem, event)

    def construct_mapping(self, node: Any, deep: bool = True) -> dict[Any, Any]:
        """Build a mapping whose keys are the texts that stand there."""
        if not isinstance(node, yaml.MappingNode):
            return super().construct_mapping(node, deep=deep)  # says what it expected
        self.flatten_mapping(node)
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a text", key.start_mark
                )
        return {
            self._text(key): self.construct_object(value, deep=True) for key, value in node.value
        }

    def _text(self, node: yaml.ScalarNode) -> str:
        """Two halves of a surrogate pair, as JSON writes them, become the character that they
        mean."""
        try:
            return self.construct_scalar(node).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            problem = "half a surrogate pair, which is not a character"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        kind, text = node.tag.removeprefix(TAG), self.construct_scalar(node)
        if not _SCALARS[kind].match(text):
            raise yaml.constructor.ConstructorError(
                None, None, f"no {kind}: `{text[:40]}`", node.start_mark
            )
        if kind in ("int", "float") and len(text) > LONGEST_NUMBER:
            raise _beyond(f"a number of {len(text):,} characters", node)
        construct: Any = yaml.SafeLoader.yaml_constructors[node.tag]
        return construct(self, node)


_SCALARS = {
    "bool": re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
    "int": _INT,
    "float": _FLOAT,
    "null": re.compile(r"^(?:~|null|Null|NULL|)$"),
}
"""Kind of scalar -> how it is written."""

_Loader.yaml_constructors = {
    **{f"{TAG}{kind}": _Loader._scalar for kind in _SCALARS},
    f"{TAG}str": _Loader._text,
    f"{TAG}seq": lambda loader, node: loader.construct_sequence(node, deep=True),
    f"{TAG}map": _Loader.construct_mapping,
    None: yaml.SafeLoader.construct_undefined,
}
_Loader.yaml_implicit_resolvers = {}

for _kind_of, _first in {
    "bool": "tTfF",
    "int": "-+0123456789",
    "float": "-+0123456789.",
    "null": "~nN",
}.items():
    _Loader.add_implicit_resolver(
        f"{TAG}{_kind_of}", _SCALARS[_kind_of], [*_first, *([""] if _kind_of == "null" else [])]
    )
_Loader.add_implicit_resolver(f"{TAG}merge", re.compile(r"^<<$"), ["<"])


@dataclass
class Document:
    """A YAML mapping, the line of each of its keys and items, and what was wrong with it."""

    values: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read_value(text: str) -> Any:
    """One value, as on a command line: `5e-6`, `true`, `[a, b]`, `{r: 8}`. Raises
    yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def text_of(path: Path, name: str, kind: str = "a recipe") -> str:
    """The text of a file that is to be parsed. Raises RecipeError for one that is too large, or not
    UTF-8."""
    if (size := path.stat().st_size) > 4 * LARGEST:  # a character has four bytes at most
        what = kind.removeprefix("a ")
        raise RecipeError(f"{name} is {size:,} bytes large, and no {what}", _PAGE_HINT)
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{name} is not text: byte {error.start} is not UTF-8", _PAGE_HINT
        ) from None


def read_document(text: str, name: str, kind: str = "a recipe") -> Document:
    """Parse a recipe, or another `kind` of file. Broken YAML raises at once, since nothing after it
    can be trusted."""
    document = Document({})
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _walk(
                node, (), name, document
            )  # before merged keys are put among those of the mapping itself
            document.values = loader.construct_document(node)
    except yaml.YAMLError as error:
        problems = [_broken(error, text, name)]
        if isinstance(error, _Beyond):
            raise RecipeError(f"{name} is beyond what is read", _LIMITS_HINT, problems) from None
        raise RecipeError(f"{name} is not valid YAML", _BROKEN_HINT, problems) from None
    if not isinstance(document.values, dict):
        found = "a list" if isinstance(document.values, list) else f"`{document.values}`"
        problem = Problem(f"expected `key: value` lines, found {found}", where=f"{name}:1")
        hint = (
            "`aligner recipes show tiny/sft` prints one to start from"
            if kind == "a recipe"
            else "fix the file"
        )
        raise RecipeError(f"{name} is not {kind}", hint, [problem])
    return document


_LIMITS_HINT = (
    f"the limits are {LARGEST:,} characters, {DEEPEST} levels and {LONGEST_NUMBER} characters of "
    "a number; "
    "an alias counts for all that it names, and many files can be named by a glob"
)
_PAGE_HINT = "name a file that holds a page or two of text"
_BROKEN_HINT = (
    "indent with spaces, put a space after each colon, and quote texts that hold `: ` or `#`"
)


def _broken(error: yaml.YAMLError, text: str, name: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if mark is None:
        return Problem(what, where=name)
    lines = text.splitlines()
    found = lines[mark.line].strip() if mark.line < len(lines) else "the end of the file"
    if "\\t" in what or (mark.line < len(lines) and lines[mark.line].lstrip(" ").startswith("\t")):
        what = "a tab, where YAML allows only spaces"
    return Problem(
        f"{what}, at column {mark.column + 1} of `{found[:80]}`", where=f"{name}:{mark.line + 1}"
    )


def _walk(node: yaml.Node, path: KeyPath, name: str, document: Document) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            document.lines[(*path, index)] = item.start_mark.line + 1
            _walk(item, (*path, index), name, document)
    elif isinstance(node, yaml.MappingNode):
        _walk_mapping(node, path, name, document)


def _walk_mapping(node: yaml.MappingNode, path: KeyPath, name: str, document: Document) -> None:
    seen: dict[str, int] = {}
    merged: list[yaml.Node] = []
    for key_node, value_node in node.value:
        if key_node.tag == f"{TAG}merge":
            merged += (
                value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            )
            continue
        key, line = str(key_node.value), key_node.start_mark.line + 1
        here = (*path, key)
        if key in seen:
            message = f"is given twice, here and in line {seen[key]}"
            document.problems.append(
                Problem(message, f"{name}:{line}", dotted(here), "remove one of them")
            )
        seen.setdefault(key, line)
        document.lines.setdefault(here, line)
        _walk(value_node, here, name, document)
    for inner in merged:
        brought = Document({})
        _walk(inner, path, name, brought)
        for place, line in brought.lines.items():
            begins = range(len(path) + 1, len(place))
            # the keys that the mapping gives itself keep their lines
            if not any(place[:length] in document.lines for length in begins):
                document.lines.setdefault(place, line)


def dotted(path: KeyPath) -> str:
    """`("data", "train", 0, "path")` -> `data.train[0].path`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")
