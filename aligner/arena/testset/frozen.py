"""A test set on disk: its items, and the manifest that freezes them.

    items.jsonl    all items: prompt_id, prompt, answer, subset, split, cluster, difficulty, ...
    dev.jsonl      those to choose models by
    test.jsonl     those to report
    clusters.json  the cluster of every prompt of the pool
    manifest.json  SHA-256 of these, settings, sources, shortfalls
    decontamination/    a report for each dataset that was checked against it

The manifest is written first, which says whose folder it is, and `items.jsonl` last: a folder that
has it is whole. What changed since is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from aligner.arena.testset.pool import Prompt
from aligner.errors import DataError, UsageError
from aligner.runs.files import dumps, file_sha256, json_line, parse_json, write_atomically

ITEMS, DEV, TEST = "items.jsonl", "dev.jsonl", "test.jsonl"
CLUSTERS, MANIFEST, REPORTS = "clusters.json", "manifest.json", "decontamination"
SCHEMA_VERSION = 1
AGAIN = "restore it from a copy, or build the test set again; what was measured on it is another's"


@dataclass(frozen=True, slots=True)
class TestItem:
    """An item as far as overlaps are concerned."""

    __test__ = False  # not a test of pytest

    id: str
    prompt: Prompt
    answer: str | None


@dataclass(frozen=True)
class TestSet:
    """A test set whose files are what was frozen. `sha256`: that of its items."""

    __test__ = False  # not a test of pytest

    folder: Path
    items: list[TestItem]
    sha256: str
    manifest: dict[str, Any]


def refuse_other_folder(folder: Path) -> None:
    """Refuse a folder that holds something else than a test set under the names of its files.

    Raises: UsageError.
    """
    ours = {ITEMS, DEV, TEST, CLUSTERS, MANIFEST}
    there = sorted(name for name in ours if (folder / name).exists())
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        if ours - {MANIFEST} <= set(files):
            return
    if there:
        raise UsageError(
            f"{folder} holds {there[0]}, which is not of a test set", "choose another folder"
        )


def freeze(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    labels: Mapping[str, int],
    facts: Mapping[str, Any],
) -> list[str]:
    """Write all but the items, and return the lines of those, which the caller writes last."""
    lines = [json_line(row) for row in rows]
    texts = {
        DEV: [line for line, row in zip(lines, rows) if row["split"] == "dev"],
        TEST: [line for line, row in zip(lines, rows) if row["split"] == "test"],
        CLUSTERS: [dumps(labels)],
    }
    digests = {ITEMS: _digest(lines), **{name: _digest(parts) for name, parts in texts.items()}}
    manifest = {"schema_version": SCHEMA_VERSION, "sha256": digests[ITEMS], "files": digests}
    write_atomically(folder / MANIFEST, dumps({**manifest, **facts}, indent=2))
    for name, parts in texts.items():
        write_atomically(folder / name, "".join(parts))
    return lines


def read_testset(folder: Path) -> TestSet:
    """Read a test set. Raises: DataError for one that is not whole, or whose files changed."""
    if not (folder / MANIFEST).is_file():
        raise DataError(
            f"{folder} holds no test set: it has no {MANIFEST}",
            "name the folder that `aligner arena testset build` wrote",
        )
    manifest = parse_json(folder / MANIFEST, AGAIN, needed=("sha256", "files"))
    for name, digest in manifest["files"].items():
        if not (folder / name).is_file():
            raise DataError(f"{folder / name} is missing", AGAIN)
        if file_sha256(folder / name) != digest:
            raise DataError(f"{folder / name} is not what was frozen: its SHA-256 changed", AGAIN)
    if manifest["files"].get(ITEMS) != manifest["sha256"]:
        raise DataError(f"{folder / MANIFEST} is damaged: it names two SHA-256 of {ITEMS}", AGAIN)
    with open(folder / ITEMS, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    items = [TestItem(row["prompt_id"], row["prompt"], row.get("answer")) for row in rows]
    return TestSet(folder, items, manifest["sha256"], manifest)


def clusters_of(tests: TestSet) -> dict[str, int]:
    """Return the cluster of every prompt of the pool that a test set was drawn from, by its id."""
    path = tests.folder / CLUSTERS
    return parse_json(path, AGAIN) if path.is_file() else {}


def _digest(parts: Sequence[str]) -> str:
    return sha256("".join(parts).encode()).hexdigest()
