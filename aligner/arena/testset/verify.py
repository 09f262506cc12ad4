"""Hold training data against a test set: look at every row, make the report, and write the rows
that do not overlap, which then have a passing report of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from aligner.arena.testset.embedding import Embedding
from aligner.arena.testset.frozen import TestItem, TestSet
from aligner.arena.testset.layers import LAYERS, Hit, Layer, Nearest, Part, SharedWords
from aligner.arena.testset.pool import user_turns
from aligner.arena.testset.training_rows import TrainingRows
from aligner.config.recipe import Source
from aligner.data.ledger import FileRecord, Ledger
from aligner.data.loading import read_source
from aligner.data.rows import PromptRow
from aligner.events import OnEvent, StageProgress, tell
from aligner.runs.files import (
    file_sha256,
    json_line,
    write_parts_atomically,
)
from aligner.runs.journal import Journal

EXAMPLES = 5
AT_ONCE = 1024
FORM = 1

Found = dict[int, dict[Layer, Hit]]
"""Number of a row -> what each layer found in it."""


@dataclass(frozen=True)
class Checks:
    """What is looked for. `ngram`: words in a row; `near_duplicates`: Jaccard similarity, or None;
    `nearest`: rows of each test that are dropped however near they are; `cosine`: similarity of
    vectors, or None."""

    ngram: int = 13
    near_duplicates: float | None = 0.8
    nearest: int = 0
    cosine: float | None = None

    @property
    def needs_vectors(self) -> bool:
        """Whether prompts are embedded."""
        return bool(self.nearest) or self.cosine is not None


def with_benchmarks(tests: TestSet, sources: Sequence[Source]) -> tuple[TestSet, list[FileRecord]]:
    """Return the test set with the prompts of files as further items, called by file and row, and
    the files. Raises: DataError for rows without a prompt."""
    ledger = Ledger()
    items = [*tests.items]
    for source in sources:
        for row in read_source(source, "prompts", "error", ledger):
            assert isinstance(row, PromptRow), "rows with prompts are read"
            items.append(TestItem(row.origin, row.prompt, row.answer))
    files = [file for entry in ledger.sources for file in entry.files]
    return replace(tests, items=items), files


def look(
    tests: TestSet,
    data: TrainingRows,
    checks: Checks,
    embedding: Embedding,
    on_event: OnEvent | None = None,
    journal: Journal | None = None,
) -> tuple[Found, list[str]]:
    """Return what overlaps, by the number of the row, and the origins of all rows. `journal` keeps
    what vectors say, so that the same call resumes after a kill."""
    words = SharedWords(tests.items, checks.ngram, checks.near_duplicates)
    found: Found = {}
    origins = []
    for number, row in enumerate(data):
        origins.append(row.origin)
        if hits := words.hits(row):
            found[number] = hits
        if number % AT_ONCE == AT_ONCE - 1:
            tell(on_event, StageProgress("comparing words", number + 1, len(data)))
    if checks.needs_vectors:
        near = _near(tests, data, checks, embedding, on_event, journal or Journal(None))
        for number, hits in near.items():
            found.setdefault(number, {}).update(hits)
    return found, origins


def _near(
    tests: TestSet,
    data: TrainingRows,
    checks: Checks,
    embedding: Embedding,
    on_event: OnEvent | None,
    journal: Journal,
) -> Found:
    asked = ["\n".join(user_turns(item.prompt)) for item in tests.items]

    def every() -> Iterator[str]:
        yield from asked
        yield from (row.whole for row in data)

    vectors_of = embedding.measure(every())
    ids = [item.id for item in tests.items]
    near = Nearest(ids, vectors_of(asked), checks.nearest, checks.cosine)

    def work(part: Sequence[tuple[int, str]]) -> Part | None:
        few = [(number, text) for number, text in part if text.strip()]
        if not few:
            return None
        return near.look([number for number, _ in few], vectors_of([text for _, text in few]))

    parts = _parts((number, row.whole) for number, row in enumerate(data))
    done = 0
    for found, _ in journal.results(parts, work):
        if found is not None:
            near.take(found)
        done = min(done + AT_ONCE, len(data))
        tell(on_event, StageProgress("comparing vectors", done, len(data)))
    return near.hits()


def report_of(
    tests: TestSet,
    data: TrainingRows,
    checks: Checks,
    embedding: Embedding,
    found: Found,
    origins: Sequence[str],
) -> dict[str, Any]:
    """Return the report: counts and examples by layer. `alone`: rows that no other layer found."""
    layers: dict[str, Any] = {}
    for layer in _looked_for(checks):
        rows = {number: hits for number, hits in sorted(found.items()) if layer in hits}
        layers[layer] = {
            "rows": len(rows),
            "alone": sum(len(hits) == 1 for hits in rows.values()),
            "items": len({hits[layer].item for hits in rows.values()}),
            "examples": [
                {"row": origins[number], **asdict(hits[layer])}
                for number, hits in list(rows.items())[:EXAMPLES]
            ],
        }
    return {
        "form": FORM,
        "testset_sha256": tests.sha256,
        "data_sha256": data.sha256,
        "passes": not found,
        "items": len(tests.items),
        "rows": len(data),
        "overlapping": len(found),
        "items_found": len({hit.item for hits in found.values() for hit in hits.values()}),
        "layers": layers,
        "settings": {
            **asdict(checks),
            "embedding": embedding.name if checks.needs_vectors else None,
            "columns": {source.path: source.columns for source in data.sources if source.columns},
        },
        "files": [asdict(file) for file in data.files],
    }


def _looked_for(checks: Checks) -> list[Layer]:
    left_out = {
        "near": checks.near_duplicates is None,
        "nearest": not checks.nearest,
        "cosine": checks.cosine is None,
    }
    return [layer for layer in LAYERS if not left_out.get(layer)]


def write_without(
    data: TrainingRows, found: Found, origins: Sequence[str], path: Path, report: dict[str, Any]
) -> dict[str, Any]:
    """Write the rows that do not overlap, and return the report on them, which passes."""
    dropped = {origins[number] for number in found}
    rows = data.without(dropped)
    write_parts_atomically(path, (json_line(row, default=str) for row in rows))
    kept = len(data) - len(found)
    cleaned = {"from": report["data_sha256"], "dropped": len(found), "layers": report["layers"]}
    return {
        **report,
        "data_sha256": file_sha256(path),
        "passes": True,
        "rows": kept,
        "overlapping": 0,
        "items_found": 0,
        "layers": {},
        "cleaned": cleaned,
        "files": [{"path": str(path), "sha256": file_sha256(path), "bytes": path.stat().st_size}],
    }


def _parts(rows: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    left = iter(rows)
    while part := list(islice(left, AT_ONCE)):
        yield part
