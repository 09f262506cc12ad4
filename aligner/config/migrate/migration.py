"""A recipe of another tool on its way to be one of ours: values that are placed, and notes on each
key.

A table says where a tool's key goes: to a key of ours (a text), nowhere because nothing is lost
(`Needless`), nowhere although something is (`Lost`), or through a function. Keys that neither
the table nor the trainer knows are lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aligner.methods.catalogue import trainer_settings

FILE = "(the file)"
"""Stands for the name of a file beside the recipe, until that name is known."""

Kind = Literal["renamed", "changed", "filled", "needless", "lost", "not here"]


@dataclass(frozen=True)
class Note:
    """What became of a key: `old` there, `new` here, and why."""

    kind: Kind
    old: str
    new: str = ""
    text: str = ""


@dataclass(frozen=True)
class Needless:
    """A key that is left out and that nobody will miss; the text says why."""

    text: str


@dataclass(frozen=True)
class Lost:
    """A key that has no counterpart; the text says what is nearest."""

    text: str


@dataclass
class Migration:
    """The old values, the new ones, and what is to be said of each key.

    `files` are texts that stand beside the recipe: ending of the name -> (key that names it, text).
    """

    method: str
    old: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    files: dict[str, tuple[str, str]] = field(default_factory=dict)
    objective: str = ""
    """What its command there is called after, where that is an objective here: orpo, simpo."""

    def put(self, key: str, value: Any) -> None:
        """Set a dotted key of the new recipe."""
        *sections, last = key.split(".")
        here = self.values
        for name in sections:
            here = here.setdefault(name, {})
        here[last] = value

    def get(self, key: str) -> Any:
        """Return the value of a dotted key of the new recipe; None where it has none."""
        here: Any = self.values
        for name in key.split("."):
            here = here.get(name) if isinstance(here, dict) else None
        return here

    def drop(self, key: str) -> None:
        """Take a dotted key out of the new recipe."""
        section, _, last = key.rpartition(".")
        here = self.get(section) if section else self.values
        if isinstance(here, dict):
            here.pop(last, None)

    def rename(self, old: str, new: str, value: Any) -> None:
        """Set a key that means the same under another name."""
        self.put(new, value)
        if old.split(".")[0] not in self.old:
            text = f"what {old} is there when it is left out"
            self.notes.append(Note("filled", "", f"{new}: {short(value)}", text))
        elif old != new and new != f"trainer.{old}":
            self.notes.append(Note("renamed", old, new))

    def change(self, old: str, new: str, value: Any, text: str) -> None:
        """Set a key that is close to the old one, and say what is different."""
        self.put(new, value)
        self.notes.append(
            Note("changed", f"{old}: {short(self.old.get(old))}", f"{new}: {short(value)}", text)
        )

    def said(self, kind: Kind, old: str, new: str, text: str) -> Note:
        """Return a note on a key of the old recipe."""
        return Note(kind, f"{old}: {short(self.old.get(old))}", new, text)

    def fill(self, new: str, value: Any, text: str) -> None:
        """Set a key that the old recipe leaves to a default that is not ours."""
        if self.get(new) is None:
            self.put(new, value)
            self.notes.append(Note("filled", "", f"{new}: {short(value)}", text))

    def needless(self, old: str, text: str) -> None:
        """Leave a key out that nobody will miss."""
        self.notes.append(Note("needless", f"{old}: {short(self.old.get(old))}", "", text))

    def lose(self, old: str, text: str, value: Any = None) -> None:
        """Leave a key out whose effect is lost."""
        shown = self.old.get(old) if value is None else value
        self.notes.append(Note("lost", f"{old}: {short(shown)}", "", text))

    @property
    def lost(self) -> list[Note]:
        """What has no counterpart."""
        return [note for note in self.notes if note.kind == "lost"]


Move = str | Needless | Lost | Callable[[Migration, str, Any], None]
"""Where a key goes."""

Table = Mapping[str, Move]
"""Keys of a tool -> where each goes."""


def apart(migration: Migration, key: str, value: Any) -> None:
    """A key that is read together with others, after the table."""


def move(migration: Migration, table: Table) -> None:
    """Place every key of the old recipe that says something."""
    trainer = trainer_settings(migration.method)
    for key, value in migration.old.items():
        target = table.get(key)
        if callable(target):
            target(migration, key, value)
        elif value is None:
            continue
        elif isinstance(target, str):
            migration.rename(key, target, value)
        elif isinstance(target, Needless):
            migration.needless(key, target.text)
        elif isinstance(target, Lost):
            migration.lose(key, target.text)
        elif key in trainer:
            migration.rename(key, f"trainer.{key}", value)
        else:
            migration.lose(key, "nothing of this name is known")


def only(value: Any, target: Move, otherwise: str) -> Move:
    """A key that goes to `target` unless it has the value with which it does nothing."""

    def placed(migration: Migration, key: str, found: Any) -> None:
        if found is None or found == value:
            return
        if isinstance(target, Lost):
            migration.lose(key, target.text)
        else:
            migration.needless(key, otherwise)

    return placed


def off_or_lost(text: str) -> Move:
    """A switch that may be off, and is lost where it is on."""
    return only(False, Lost(text), "")


def short(value: Any) -> str:
    """A value in a line of its own that is not too long."""
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    shown = " ".join(str(shown).split())
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
