"""Segments that a run has found by the entropies of its reference, looked up by the answer: for
people who look at its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from aligner.runs.files import read_json
from aligner.tokenization.dataset import load_tokenized

SPLITS = ("train", "eval")


def segments_of_run(run_dir: Path) -> Callable[[Sequence[int]], Sequence[int]] | None:
    """Return what finds the ends of an answer's segments, from the ids of the answer; none of an
    answer that the run does not have. None where the run has found no segments yet.

    Raises: DataError where its tokenized rows are damaged.
    """
    prepared = run_dir / "prepared"
    if not (prepared / f"segments-{SPLITS[0]}.json").is_file():
        return None
    rows = load_tokenized(prepared)
    known: dict[tuple[int, ...], list[int]] = {}
    for split, name in zip((rows.train, rows.eval), SPLITS):
        ends = read_json(prepared, f"segments-{name}.json")
        if split is None or ends is None:
            continue
        for side in ("chosen", "rejected"):
            for answer, found in zip(split[f"{side}_ids"], ends[side]):
                known[tuple(answer)] = found
    return lambda ids: known.get(tuple(ids), [])
