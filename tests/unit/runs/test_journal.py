"""Work in parts: what was done stays done, whoever else writes, wherever a kill cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aligner.errors import UsageError
from aligner.events import Notice, StageProgress
from aligner.runs.journal import Journal, run_resumable

PARTS = [["a", "b"], ["c"], ["d", "e"]]


def done(
    path: Path, *, key: str = "model", dies_at: str = "", told: list[Any] | None = None
) -> tuple[Any, list[str]]:
    """The results, each the part in capitals, and the parts that were worked on; it stops before
    the part `dies_at`."""
    worked: list[str] = []

    def work(part: list[str]) -> list[str]:
        if dies_at in part and dies_at:
            raise KeyboardInterrupt
        worked.append("".join(part))
        return [item.upper() for item in part]

    on_event = told.append if told is not None else None
    try:
        return run_resumable(path, "working", PARTS, lambda: (key, work), on_event, len), worked
    except KeyboardInterrupt:
        return None, worked


WHOLE = [["A", "B"], ["C"], ["D", "E"]]


def test_parts_are_done_once_in_order_and_told(tmp_path):
    told: list[Any] = []
    path = tmp_path / "not" / "there" / "yet.jsonl"
    assert done(path, told=told) == (WHOLE, ["ab", "c", "de"])
    assert told == [StageProgress("working", count, 5) for count in (2, 3, 5)]
    assert done(path, key="whatever: nothing is asked of it") == (WHOLE, [])


def test_what_a_kill_left_is_gone_on_with(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert done(path, dies_at="d") == (None, ["ab", "c"])
    told: list[Any] = []
    assert done(path, told=told) == (WHOLE, ["de"])
    assert told == [
        Notice("resuming working: 2 of 3 parts are there already"),
        StageProgress("working", 5, 5),
    ]


def test_wherever_a_kill_cuts_a_line_only_its_part_is_done_again(tmp_path):
    whole = tmp_path / "whole.jsonl"
    done(whole, dies_at="d", key="ключ")  # letters of two bytes, which a cut may divide
    content = whole.read_bytes()
    first = content.index(b"\n") + 1
    for cut in range(len(content)):
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(content[:cut])
        ready = (cut >= first - 1) + (
            cut >= len(content) - 1
        )  # a line may lack its end and nothing else
        assert done(path, key="ключ") == (WHOLE, ["ab", "c", "de"][ready:])
        assert done(path) == (WHOLE, [])
        assert Journal(path).recorded_fingerprint == "ключ"


def test_two_that_write_side_by_side_do_no_harm(tmp_path):
    """The second begins while the first has one part, and both write all that was missing then."""
    path = tmp_path / "journal.jsonl"

    def first() -> tuple[str, Any]:
        def work(part: list[str]) -> list[str]:
            if part == ["c"]:
                assert done(path, dies_at="d") == (None, ["c"])
            return [item.upper() for item in part]

        return "model", work

    assert run_resumable(path, "working", PARTS, first, None, len) == WHOLE
    numbers = [json.loads(line)["part"] for line in path.read_text().splitlines()]
    assert numbers == [0, 1, 1, 2]
    assert done(path) == (WHOLE, [])


def test_parts_of_two_models_are_not_mixed(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert Journal(path).recorded_fingerprint is None
    done(path, dies_at="c")
    before = path.read_bytes()
    with pytest.raises(
        UsageError, match="started with a different model: working would be partly of one"
    ):
        done(path, key="other")
    assert path.read_bytes() == before
    assert Journal(path).recorded_fingerprint == "model"
    with path.open("a") as file:
        file.write("5\n{}\n")
    Journal(path, "other").add(1, ["c"])
    with pytest.raises(UsageError, match="started with a different model"):
        done(path)


def test_parts_that_are_kept_together_are_read_one_by_one(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, "model")
    journal.add_all([(2, ["ж"]), (0, {"a": 1})])
    with path.open("a") as file:
        file.write('{"part": 7, "cut')
    journal.add_all([])
    journal.add_all([(1, "b")])
    for opened in (journal, Journal(path, "model")):
        assert [opened[part] for part in range(3)] == [{"a": 1}, "b", ["ж"]]
        assert 7 not in opened
    assert Journal(path).damaged == 0
