"""The archive of a search on disk: one folder for each objective, numbered in the order in which
they came.

    archive/0007/reply.json      what the language model answered (absent for the objectives that
                                 the search began with)
    archive/0007/objective.py    the source, as soon as it could be read
    archive/0007/record.json     last: everything that is known of it; its presence means done

An objective whose `record.json` is missing was under way when the process died: it is measured
again, and its reply is not asked for again.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from aligner.events import TableRow
from aligner.runs.files import dumps, parse_json, write_atomically


@dataclass(frozen=True)
class Record:
    """One objective of a search, whether it worked or not. `fitness` and `held_out` hold one number
    for each seed."""

    index: int
    name: str
    origin: str
    """`start` for one that the search began with, `proposal` for one of the language model's."""
    thought: str = ""
    source: str = ""
    hash: str = ""
    parents: list[int] = field(default_factory=list)
    """Indices of the objectives that the language model saw when it proposed this one."""
    error: str = ""
    fitness: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    finished: str = ""

    @property
    def valid(self) -> bool:
        """Whether it was measured."""
        return not self.error and bool(self.fitness)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and its standard error; the error of a single seed is not known (NaN)."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def shown(values: Sequence[float]) -> str:
    """`2.413 +/- 0.021`."""
    mean, error = mean_and_error(values)
    return f"{mean:.4g}" if math.isnan(error) else f"{mean:.4g} +/- {error:.2g}"


class Archive:
    """The records below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: list[Record] = []
        for path in sorted(folder.glob("[0-9]*/record.json")):
            cure = f"delete {path.parent}: the objective is measured again"
            known = {each.name for each in fields(Record)}
            needed = ("index", "name", "origin", "fitness", "held_out")
            values = parse_json(path, cure, needed=needed)
            kept = {key: item for key, item in values.items() if key in known}
            for key in ("fitness", "held_out"):  # NaN and infinities were written as texts
                kept[key] = list(map(float, values[key]))
            self.records.append(Record(**kept))

    def place(self, index: int) -> Path:
        """Return the folder of an objective, made if it is not there."""
        place = self.folder / f"{index:04d}"
        place.mkdir(parents=True, exist_ok=True)
        return place

    def add(self, record: Record) -> None:
        """Write a record; from now on it is done."""
        write_atomically(
            self.place(record.index) / "record.json", dumps(asdict(record), indent=2) + "\n"
        )
        self.records.append(record)

    def __getitem__(self, index: int) -> Record | None:
        return next((record for record in self.records if record.index == index), None)

    def same_as(self, hash_: str) -> Record | None:
        """Return the earlier objective that says the same, whatever it is called."""
        return next((record for record in self.records if record.hash == hash_), None)

    def best(self, origin: str | None = None) -> Record | None:
        """Return the valid record with the highest mean fitness, of one origin or of all."""
        of = [record for record in self.records if record.valid and origin in (None, record.origin)]
        return max(of, key=lambda record: mean_and_error(record.fitness)[0], default=None)


def metrics_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return lines for `metrics.jsonl`: of each objective that was measured its means over seeds,
    at its number as the step, and the best fitness so far."""
    lines: list[dict[str, Any]] = []
    for record in sorted(records, key=lambda record: record.index):
        if not record.valid:
            continue
        fitness = mean_and_error(record.fitness)[0]
        line = {"step": record.index, "split": "eval", "fitness": fitness}
        if record.held_out:
            line["held_out"] = mean_and_error(record.held_out)[0]
        earlier = lines[-1]["best_fitness"] if lines else -math.inf
        lines.append({**line, "best_fitness": max(earlier, fitness)})
    return lines


def table_row(record: Record, archive: Archive) -> TableRow:
    """The event that tells of a record."""
    best = archive.best()
    fitness = shown(record.fitness) if record.valid else ""
    held_out = shown(record.held_out) if record.valid else ""
    title = "nothing measured yet"
    if best is not None:
        title = f"best so far: {best.name}, fitness {shown(best.fitness)}"
    result = record.error or f"fitness {fitness}, held out {held_out}"
    end = "  (best so far)" if best is record else ""
    return TableRow(
        title=title,
        cells={
            "": str(record.index),
            "objective": record.name,
            "fitness": fitness,
            "held out": held_out,
            "what went wrong": record.error,
        },
        line=f"{record.index}  {record.name}: {result}{end}",
        is_best=best is record,
        is_failed=bool(record.error),
    )
