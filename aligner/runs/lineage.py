"""Where a model came from: its run, the run of the model that this one started from, and so on.
Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligner.runs.files import read_json

MERGE_FILE = "merge.json"
"""What `aligner merge` writes beside a merged model."""

DEEPEST = 6
"""How many folders a model or a data file may lie below the run that made it."""


def lineage(run_dir: str | Path, manifest: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The run and the runs its model came from, newest first; a model that no run of ours made ends
    the list.

    A model that `aligner merge` made stands between the run that started from it and the run of its
    adapter, with the kind `merged model`. `manifest` stands in for the run's own while that is not
    written yet.
    """
    found: list[dict[str, Any]] = []
    seen: set[Path] = set()
    walked: set[str] = set()
    folder: Path | None = Path(run_dir)
    while folder is not None and folder.resolve() not in seen:
        seen.add(folder.resolve())
        entry = _lineage_entry(folder, manifest if not found else None)
        found.append(entry)
        models = [each["path"] for each in entry["parents"] if each.get("kind") in ("model", "run")]
        parent: str | None = models[0] if models else entry["model"]
        start = entry["working_directory"]
        while parent and (merged := merge_of(parent, start)) is not None:
            found.append({"kind": "merged model", "path": parent})
            parent = merged["adapter"] if merged["adapter"] not in walked else None
            walked.add(str(parent))
        folder = run_around(parent, start) if parent else None
        if parent and folder is None:
            found.append({"kind": "model", "path": parent})
    return found


def merge_of(model: str, working_directory: str) -> dict[str, Any] | None:
    """Return what `aligner merge` says of a folder; None for one that it did not write."""
    for place in (Path(working_directory) / model, Path(model)):
        if (place / MERGE_FILE).is_file():
            record: dict[str, Any] = read_json(place, MERGE_FILE)
            return record
    return None


def _lineage_entry(folder: Path, manifest: dict[str, Any] | None) -> dict[str, Any]:
    recipe = (read_json(folder, "resolved.json") or {}).get("recipe", {})
    environment = read_json(folder, "environment.json") or {}
    manifest = manifest or read_json(folder, "manifest.json") or {}
    return {
        "kind": "run",
        "path": str(folder),
        "method": recipe.get("method"),
        "model": recipe.get("model", {}).get("name_or_path"),
        "working_directory": environment.get("working_directory", ""),
        **{
            key: manifest.get(key)
            for key in ("created", "finished", "results", "recipe_hash", "data_fingerprint")
        },
        "parents": manifest.get("parents", []),
    }


def run_around(name: str, working_directory: str | Path) -> Path | None:
    """Return the run directory that a folder or file lies in, if it does. Relative paths are those
    of the run's own start."""
    for place in (Path(working_directory) / name, Path(name)):
        if place.exists():
            around = (place, *place.parents[:DEEPEST])
            inside = (folder for folder in around if (folder / "resolved.json").is_file())
            return next(inside, None)
    return None
