"""Where rows come from in a migrated recipe: sources, and what is held out of them."""

from __future__ import annotations

from typing import Any

from aligner.config.migrate.migration import Migration


def source(path: str, **more: Any) -> dict[str, Any]:
    """Return a source, without the keys that say nothing. A configuration that is called `default`
    is the one that is read where none is named."""
    said = {key: value for key, value in more.items() if value is not None}
    if said.get("subset") == "default":
        del said["subset"]
    return {"path": path, **said}


def hold_out(migration: Migration, key: str, size: Any) -> None:
    """Hold out a share of the rows, below 1, or a number of them."""
    if size:
        migration.rename(key, "data.eval", size if size < 1 else int(size))
