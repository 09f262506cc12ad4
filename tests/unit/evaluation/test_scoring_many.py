"""Scoring many answers: work in proportion to their number, and memory for numbers alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from fakes import write_jsonl

from aligner.config.recipe import Source
from aligner.errors import DataError
from aligner.evaluation.answer_rows import read_answers, with_scores
from aligner.evaluation.scoring import score_answers, summary
from aligner.reward_models.catalogue import load_scorer
from aligner.reward_models.verdicts import Verdict, Verdicts
from aligner.runs.journal import Journal


def single(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"q{n}", "completion": f"{n}", "answer": "7"} for n in range(count)]


def pairs(count: int) -> list[dict[str, Any]]:
    rows = range(0, count, 2)
    return [{"prompt": f"q{n}", "chosen": f"{n}", "rejected": "7", "answer": "7"} for n in rows]


def one_prompt(count: int) -> list[dict[str, Any]]:
    return [{**row, "prompt": "q"} for row in single(count)]


def one_row(count: int) -> list[dict[str, Any]]:
    return [{"prompt": "q", "completions": [f"{n}" for n in range(count)], "answer": "7"}]


def score(
    data: Path, journal: Journal | None = None, drawn: int | None = None
) -> list[dict[str, Any]]:
    """What `aligner score` does, up to the rows that it writes; the last `drawn` of them."""
    source = Source(path=str(data))
    rows = read_answers(source, 0)
    scored = score_answers(load_scorer("verifier:exact"), rows, journal=journal, at_once=16)
    assert summary(rows, scored)["answers"] == len(rows)
    return list(deque(with_scores(source, rows, scored, ""), drawn))


def lines_run(data: Path) -> int:
    """How many lines of Python a scoring takes."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        score(data, Journal(data.with_suffix(".journal")))
    finally:
        sys.settrace(None)
    return count


def lines_of(files: list[Path]) -> list[int]:
    """The same of several files, in a process of its own: tracing has hung in one that had run
    thousands of tests."""
    score_all = "from test_scoring_many import *; score(Path(sys.argv[1]))\n"
    score_all += "print(*(lines_run(Path(name)) for name in sys.argv[1:]))"
    path = os.pathsep.join(str(Path(__file__).parents[place]) for place in (0, 2))
    done = subprocess.run(
        [sys.executable, "-c", score_all, *map(str, files)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(map(int, done.stdout.split()))


@pytest.mark.parametrize("rows", [single, pairs, one_prompt, one_row])
def test_twice_the_answers_take_twice_the_work(rows: Any, tmp_path: Path) -> None:
    counts = [100, 200, 400]
    files = [write_jsonl(tmp_path / f"{count}.jsonl", rows(count)) for count in counts]
    few, more, most = lines_of(files)
    assert most - more < 2.2 * (more - few)
    journals = [file.with_suffix(".journal").stat().st_size for file in files]
    assert journals[2] < 2.2 * journals[1]


def test_texts_are_not_held_in_memory(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        rows = ({**row, "completion": "a " * 2_500} for row in single(count))
        data = write_jsonl(tmp_path / f"{count}.jsonl", rows)
        tracemalloc.start()
        try:
            assert len(score(data, None, drawn=10)) == 10
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(200)  # what is imported and compiled once
    assert peak(1_000) - peak(200) < 800 * 5_000 / 8


def test_a_journal_holds_places_and_not_results(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for part in range(50):
        Journal(path).add(part, {"text": f"{part} " * 10_000})
    tracemalloc.start()
    try:
        journal = Journal(path)
        assert [journal[part]["text"][:3] for part in (7, 49, 0)] == ["7 7", "49 ", "0 0"]
        assert tracemalloc.get_traced_memory()[0] < path.stat().st_size / 10
    finally:
        tracemalloc.stop()


def test_rows_that_changed_while_they_were_scored_are_not_given_old_scores(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", single(3))
    source = Source(path=str(data))
    rows = read_answers(source, 0)
    scored = score_answers(load_scorer("verifier:number"), rows)
    write_jsonl(data, single(3)[::-1])
    with pytest.raises(DataError, match="was changed while its answers were scored"):
        list(with_scores(source, rows, scored, ""))


def test_verdicts_come_back_as_they_were_put() -> None:
    said = [
        Verdict(0.5, {"a": 1.0}, "odd"),
        Verdict(None, error="no reply"),
        Verdict(1.0, {"b": float("inf"), "a": 0.0}, flipped=True),
    ]
    verdicts = Verdicts(3)
    for row in (2, 0, 1):
        verdicts.put(row, said[row])
    assert list(verdicts) == said
    assert (verdicts.silent, verdicts.remarks, verdicts.flips) == ({1: "no reply"}, {0: "odd"}, {2})
    assert verdicts.attribute("a") == [1.0, 0.0]
