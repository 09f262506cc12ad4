"""Items of a checklist, as cards and rows hold them. Imports no torch, and nothing of judges.

An item is a text, or a text with a weight: `{text: The answer names its sources., weight: 2}`. What
is done with them stands in `rubric.py`, how a card holds them in `card.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from aligner.config.recipe import Section


class Item(Section):
    """One thing that an answer shall meet."""

    text: str = Field(min_length=1)
    """A sentence that is true of a good answer, or a question that is answered with yes."""
    weight: float = Field(1.0, gt=0.0, le=1_000_000.0)
    """What it counts for, beside the others."""


def _as_items(value: Any) -> Any:
    """Allow a text in place of `{text: ...}`."""
    if isinstance(value, list):
        return [{"text": item} if isinstance(item, str) else item for item in value]
    return value


Items = Annotated[list[Item], BeforeValidator(_as_items)]


class Write(Section):
    """How a language model writes a checklist for each prompt."""

    items: int = Field(6, ge=1, le=20)
    """Items of each list."""


def fault_of(texts: Sequence[str]) -> tuple[int, str] | None:
    """The first text that is blank or a repetition, counted from 1, and which it is."""
    for place, text in enumerate(texts):
        if not text.strip():
            return place + 1, "is there without a word"
        if text in texts[:place]:
            return place + 1, "is there twice"
    return None


def read_items(text: str) -> list[Item]:
    """The items of a JSON list. Raises: ValueError that says what is wrong with it."""
    try:
        items = _adapter().validate_json(text, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in found["loc"])
        message = found["msg"][0].lower() + found["msg"][1:]
        raise ValueError(f"{where.lstrip('.')}: {message}" if where else message) from error
    if not items:
        raise ValueError("the list is empty")
    if fault := fault_of([item.text for item in items]):
        raise ValueError(f"item {fault[0]} {fault[1]}")
    return items


@functools.cache
def _adapter() -> TypeAdapter[list[Item]]:
    return TypeAdapter(Items)
