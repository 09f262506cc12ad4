"""Look up the schema: which section or type a dotted key has. No recipe values here."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from aligner.config.recipe import Section
from aligner.config.yaml_lines import KeyPath


def members(hint: Any) -> list[Any]:
    """The alternatives of a type, without `Annotated` and without nesting: `str | None` -> [str,
    NoneType]."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return members(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return [inner for member in typing.get_args(hint) for inner in members(member)]
    return [hint]


def section_in(hint: Any) -> type[Section] | None:
    """The section that a key of this type holds, directly or as items of a list."""
    for member in members(hint):
        if isinstance(member, type) and issubclass(member, Section):
            return member
        if typing.get_origin(member) is list and (inner := section_in(typing.get_args(member)[0])):
            return inner
    return None


def section_at(recipe: type[Section], path: KeyPath) -> type[Section] | None:
    """The section below a path: `("data", "train", 0)` -> Source."""
    section: type[Section] | None = recipe
    for part in path:
        if isinstance(part, int):
            continue
        if section is None or part not in section.model_fields:
            return None
        section = section_in(section.model_fields[part].annotation)
    return section


def type_at(recipe: type[Section], path: KeyPath) -> list[Any]:
    """The alternatives of the type of a key; empty when there is no such key."""
    if not path:
        return []
    section = section_at(recipe, path[:-1])
    if section is None or path[-1] not in section.model_fields:
        return []
    return members(section.model_fields[str(path[-1])].annotation)


def _inside(kinds: list[Any]) -> list[Any]:
    """What the items of a list may be, or the keys of a mapping."""
    return [
        inner
        for kind in kinds
        if typing.get_origin(kind) in (list, dict)
        for inner in members(typing.get_args(kind)[0])
    ]


def is_text(recipe: type[Section], path: KeyPath) -> bool:
    """Whether a key holds text and nothing else, so that a value typed in a shell is taken as it
    stands."""
    kinds = [kind for kind in type_at(recipe, path) if kind is not type(None)]
    return bool(kinds) and all(kind is str or _is_text_choice(kind) for kind in kinds)


def _is_text_choice(kind: Any) -> bool:
    return typing.get_origin(kind) is Literal and all(
        isinstance(choice, str) for choice in typing.get_args(kind)
    )


def is_switch(recipe: type[Section], path: KeyPath) -> bool:
    """Whether a key can be true or false."""
    return bool in type_at(recipe, path)


def choices_at(recipe: type[Section], path: KeyPath) -> list[str]:
    """The texts that a key offers, if it offers a choice; so do the items of a list, and the keys
    of a mapping. One item may stand for a list."""
    kinds = type_at(recipe, path) or type_at(recipe, path[:-1])
    kinds = [*kinds, *_inside(kinds)]
    found = [kind for kind in kinds if typing.get_origin(kind) is Literal]
    return [
        str(choice) for kind in found for choice in typing.get_args(kind) if isinstance(choice, str)
    ]


def walk(section: type[Section], prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Every dotted key below a section, with the section that it stands in."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", section
        inner = section_in(field.annotation)
        if inner is not None:
            is_list = any(typing.get_origin(member) is list for member in members(field.annotation))
            yield from walk(inner, f"{prefix}{name}{'[]' if is_list else ''}.")


@functools.cache
def dotted_keys(recipe: type[Section]) -> tuple[str, ...]:
    """Every dotted key of a recipe, sources' keys as `data.train[].path`."""
    return tuple(key for key, _ in walk(recipe))
