"""Keys of a recipe whose value is a name, and what stands behind it: a model, a file, a scorer.
Imports no torch.

A run is resumed only with what it was started with. The recipe says so of values; of what their
names lead to, the fingerprints do that are taken of every key that is marked here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

Kind = Literal[
    "model",
    "tokenizer",
    "template",
    "scorer",
    "verifier",
    "objective",
    "function",
    "file",
    "testset",
    "script",
    "data",
    "recipe",
]


@dataclass(frozen=True, slots=True)
class Names:
    """Mark of a key, `Annotated[str, Names("file")]`: what its value, or each of its values,
    names."""

    kind: Kind


@dataclass(frozen=True, slots=True)
class Named:
    """A name in a recipe: its key (`data.train[0].function`), its kind, and the section that it
    stands in."""

    key: str
    kind: Kind
    name: str
    section: BaseModel


def names_in(section: BaseModel, prefix: str = "") -> Iterator[Named]:
    """Yield every name in a recipe, in the order of its keys."""
    for field, about in type(section).model_fields.items():
        key = f"{prefix}{field}"
        value = getattr(section, field)
        marks = [mark for mark in about.metadata if isinstance(mark, Names)]
        values = value if isinstance(value, list | tuple) else [value]
        for number, item in enumerate(values):
            place = f"{key}[{number}]" if isinstance(value, list | tuple) else key
            if isinstance(item, BaseModel):
                yield from names_in(item, f"{place}.")
            elif marks:
                yield from (Named(place, marks[0].kind, name, section) for name in _texts(item))


def _texts(value: Any) -> list[str]:
    """A text, or the keys of a table, whose values are weights; nothing where there is none."""
    if isinstance(value, dict):
        return list(value)
    return [value] if isinstance(value, str) and value else []
