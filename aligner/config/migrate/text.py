"""A migrated recipe as text: what changed as comments, then the recipe."""

from __future__ import annotations

from typing import Any

import yaml

from aligner.config.migrate.migration import Kind, Migration, Note

HEADINGS: dict[Kind, str] = {
    "changed": "Changed in meaning",
    "filled": "Written out, since the defaults differ",
    "lost": "Lost: no counterpart here",
    "not here": "Left out, as this machine refuses it; add it where it is wanted",
    "renamed": "Renamed",
    "needless": "Left out, as nothing is lost",
}
"""Kind of a note -> the heading that it stands below, most important first."""

ORDER = ("method", "output_dir", "seed", "model", "data")


def comments(notes: list[Note]) -> list[str]:
    """Return what changed, in lines."""
    lines = []
    for kind, heading in HEADINGS.items():
        found = [note for note in notes if note.kind == kind]
        if found:
            lines += ["", heading, *(f"  {_line(note)}" for note in found)]
    return lines


def _line(note: Note) -> str:
    what = " -> ".join(part for part in (note.old, note.new) if part)
    return f"{what}  ({note.text})" if note.text else what


def recipe_text(migration: Migration, tool: str, name: str) -> str:
    """Return the file: a head of comments, and the values in the order of our own recipes."""
    head = [f"From {name}, a recipe of {tool}.", *comments(migration.notes)]
    values = migration.values
    last = [key for key in ("trainer", "launch") if key in values]
    keys = [*ORDER, *(key for key in values if key not in (*ORDER, *last)), *last]
    parts = ["\n".join(f"# {line}".rstrip() for line in head)]
    plain = {key: values[key] for key in keys if key in values and not _is_section(values[key])}
    parts.append(_yaml(plain))
    parts += [_yaml({key: values[key]}) for key in keys if _is_section(values.get(key))]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _is_section(value: Any) -> bool:
    return isinstance(value, dict)


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
