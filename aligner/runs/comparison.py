"""Several runs beside each other: what differs in their recipes, data and environments, and what
came out. Read from the run directories alone. Imports no torch.

A key that only some of the recipes have is listed where somebody wrote it; defaults of other
methods are counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from aligner.config.defaults import is_default
from aligner.runs.changes import TRACKING
from aligner.runs.files import dumps, flatten, read_json, read_metrics

Record = dict[str, Any]
Curve = list[tuple[float, float]]

OF_PLACE = ("output_dir", *(f"trainer.{key}" for key in TRACKING), "report_to")
"""Keys that say where a run is kept and shown, which differ without a difference."""

OF_LINE = ("step", "split", "epoch", "time_s")
"""Of a line of `metrics.jsonl`: what is no curve."""


def compare(folders: Sequence[Path]) -> Record:
    """Return what differs between runs, and their results, in the order of `folders`.

    `recipe`: key, and for each run its value and origin. `data`: file, or what a key of the recipe
    names, and for each run its fingerprint or None. `environment`: what differs of versions and
    commit. `results`: name, and for each run its value or None.
    """
    runs = [_run(folder) for folder in folders]
    recipes = [_recipe(folder) for folder in folders]
    differing, hidden = _differences(recipes)
    versions = _table([_versions(folder) for folder in folders])
    return {
        "runs": runs,
        "recipe": differing,
        "hidden_defaults": hidden,
        "data": _table([_data(folder) for folder in folders]),
        "environment": [row for row in versions if not row["is_same"]],
        "results": _table([_results(folder) for folder in folders]),
    }


def curves(folders: Sequence[Path]) -> dict[str, list[Curve]]:
    """Return what runs logged, by name with the split before it: for each run its points, none
    where it logged nothing of that name."""
    found: dict[str, list[Curve]] = {}
    for place, folder in enumerate(folders):
        for record in read_metrics(folder):
            for key, value in record.items():
                if key in OF_LINE or isinstance(value, bool) or not isinstance(value, int | float):
                    continue
                lines = found.setdefault(
                    f"{record.get('split', 'train')}/{key}", [[] for _ in folders]
                )
                lines[place].append((float(record["step"]), float(value)))
    return found


def _run(folder: Path) -> Record:
    manifest = read_json(folder, "manifest.json") or {}
    recipe = (read_json(folder, "resolved.json") or {}).get("recipe", {})
    return {
        "dir": str(folder),
        "method": recipe.get("method", "?"),
        "state": "done" if manifest else "unfinished",
        "finished": manifest.get("finished"),
        "seconds": manifest.get("seconds"),
        "parents": manifest.get("parents", []),
    }


def _recipe(folder: Path) -> dict[str, tuple[Any, str]]:
    """Each value of a recipe with its origin."""
    resolved = read_json(folder, "resolved.json") or {}
    origins = resolved.get("origins", {})
    return {
        key: (value, origin_of(origins, key))
        for key, value in flatten(resolved.get("recipe", {})).items()
    }


def origin_of(origins: Mapping[str, str], key: str) -> str:
    """Return where a value of a recipe came from; a section that was given as a whole answers for
    its parts."""
    while key:
        if key in origins:
            return origins[key]
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return "default"


def _differences(recipes: Sequence[Mapping[str, tuple[Any, str]]]) -> tuple[list[Record], int]:
    """The keys whose values differ, and how many defaults that not all recipes have are left
    out."""
    found, hidden = [], 0
    for key in dict.fromkeys(key for recipe in recipes for key in recipe):
        cells = [recipe.get(key, (None, "absent")) for recipe in recipes]
        if key in OF_PLACE or all(value == cells[0][0] for value, _ in cells):
            continue
        if any(key not in recipe for recipe in recipes) and not any(map(_is_written, cells)):
            hidden += 1
            continue
        values, origins = [value for value, _ in cells], [origin for _, origin in cells]
        found.append({"key": key, "values": values, "origins": origins})
    return found, hidden


def _is_written(cell: tuple[Any, str]) -> bool:
    return cell[1] != "absent" and not is_default(cell[1])


def _data(folder: Path) -> dict[str, Any]:
    """Rows and tokens of each split, the fingerprint of each data file by its place, and one of the
    files behind each key that names something: a model, a reward model."""
    inputs = read_json(folder, "inputs.json") or {}
    splits = (read_json(folder, "data.json") or {}).get("splits", {})
    found: dict[str, Any] = {
        f"{split}: {what}": counts[what]
        for split, counts in splits.items()
        for what in ("rows", "tokens")
        if counts.get(what)
    }
    found |= inputs.get("sources", {})
    named = inputs.get("named", {})
    return found | {key: fingerprint_of(parts) for key, parts in named.items() if parts}


def fingerprint_of(parts: Mapping[str, str]) -> str:
    """Return one fingerprint of files, by their names and without their folder."""
    listed = sorted((Path(name).name, digest) for name, digest in parts.items())
    return sha256(dumps(listed).encode()).hexdigest()


def _versions(folder: Path) -> dict[str, Any]:
    environment = read_json(folder, "environment.json") or {}
    git = environment.get("git") or {}
    found = dict(environment.get("versions", {}))
    found |= {"commit": git.get("commit"), "uncommitted changes": git.get("dirty")}
    found |= {"machine": environment.get("machine"), **flatten(environment.get("devices", {}))}
    return {key: value for key, value in found.items() if key}


def _results(folder: Path) -> dict[str, Any]:
    return (read_json(folder, "manifest.json") or {}).get("results", {})


def _table(columns: Sequence[Mapping[str, Any]]) -> list[Record]:
    """A row for each name that any of the columns has."""
    rows = []
    for name in dict.fromkeys(name for column in columns for name in column):
        values = [column.get(name) for column in columns]
        rows.append(
            {"name": name, "values": values, "is_same": all(map(_same, values, values[1:]))}
        )
    return rows


def _same(one: Any, other: Any) -> bool:
    both_nan = all(isinstance(each, float) and math.isnan(each) for each in (one, other))
    return bool(one == other) or both_nan


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return short names for runs: as many of the last parts of their paths as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        names = ["/".join(part[-count:]).lstrip("/") for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def curves_in_order(found: Mapping[str, list[Curve]]) -> Iterator[tuple[str, list[Curve]]]:
    """Yield curves that several runs have first, losses before all others, timings last."""

    def rank(name: str) -> tuple[bool, bool, bool, str]:
        is_shared = sum(bool(line) for line in found[name]) > 1
        return (is_timing(name), not is_shared, not name.endswith("/loss"), name)

    for name in sorted(found, key=rank):
        yield name, found[name]


def is_timing(name: str) -> bool:
    """Say whether a result or a logged number is how long something took."""
    return any(word in name for word in ("runtime", "per_second", "seconds", "time_s"))
