"""Reports of decontamination: what says that a training may use a dataset.

A report is about one test set and one dataset, each by its SHA-256, and lies with the test set. It
*passes* when no row overlaps. `require_reports` is what a training asks that must not have seen the
test set: the key `data.test_set`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from aligner.arena.testset.frozen import REPORTS, TestSet, read_testset
from aligner.arena.testset.training_rows import digest_of
from aligner.errors import DataError
from aligner.runs.files import dumps, parse_json, write_atomically
from aligner.runs.journal import Journal


def write_report(tests: TestSet, report: dict[str, Any]) -> Path:
    """Write a report to the test set, and return its place."""
    path = report_path(tests.folder, report["data_sha256"])
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, dumps(report, indent=2))
    return path


def report_path(folder: Path, data_sha256: str) -> Path:
    """Where the report on a dataset lies."""
    return folder / REPORTS / f"{data_sha256[:16]}.json"


def part_journal(tests: TestSet, data_sha256: str, what: Any) -> Journal:
    """Open the journal of a dataset that is being looked at; without a file where `what`, all that
    decides the result, is None."""
    if what is None:
        return Journal(None)
    digest = sha256(dumps(what).encode()).hexdigest()[:16]
    return Journal(tests.folder / REPORTS / f"{data_sha256[:16]}-{digest}.part", digest)


def require_reports(folder: Path, sources: Mapping[str, Sequence[str]]) -> None:
    """Refuse what was not held against a test set. `sources`: the name of each source -> the
    SHA-256 of its files. One report on all of them counts, and so does one on each.

    Raises: DataError for a source without a passing report, and for a test set that changed.
    """
    tests = read_testset(folder)
    every = digest_of([digest for digests in sources.values() for digest in digests])
    if report_path(folder, every).is_file():
        require_report(folder, tests.sha256, every, " ".join(sources))
        return
    for name, digests in sources.items():
        require_report(folder, tests.sha256, digest_of(digests), name)


def require_report(
    folder: Path, testset_sha256: str, data_sha256: str, data: str = "DATA"
) -> dict[str, Any]:
    """Return the passing report on a dataset. `folder`: the test set, whose items have
    `testset_sha256` (`frozen.read_testset`); `data_sha256`: see `training_rows.digest_of`; `data`:
    how an error calls it.

    Raises: DataError where there is none, it is about another test set, or rows overlapped.
    """
    path = report_path(folder, data_sha256)
    again = f"run `aligner arena testset verify {folder} --against {data}`"
    if not path.is_file():
        what = "the data do" if data == "DATA" else f"{data} does"
        raise DataError(f"nothing says that {what} not overlap with {folder}", again)
    needed = ("testset_sha256", "data_sha256", "passes", "overlapping")
    report: dict[str, Any] = parse_json(path, again, needed=needed)
    if (report["testset_sha256"], report["data_sha256"]) != (testset_sha256, data_sha256):
        raise DataError(f"{path} is about another test set, or other data", again)
    if not report["passes"]:
        count = report["overlapping"]
        of = "the data" if data == "DATA" else data
        rows = f"row of {of} overlaps" if count == 1 else f"rows of {of} overlap"
        raise DataError(f"{count:,} {rows} with {folder}", f"{again} --drop-to CLEAN.jsonl")
    return report
