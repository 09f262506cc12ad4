"""Records of games and battles on disk, and the style of answers."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from aligner.arena.records import Battle, Game, Style, append, style_of


def test_records_are_lines_that_hold_all_that_is_known(tmp_path: Path) -> None:
    game = Game("g", "b", "p", "x", "y", "j", "ok", 7.5, 3.0, style_first=Style(4, 1, 2, 3))
    battle = Battle("b", "p", "x", "y", "j", "model_a", 7.5, 3.0, 4.5, True)
    for _ in range(2):
        append(tmp_path / "log.jsonl", [game, battle])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert lines[0]["style_first"] == {"length": 4, "headers": 1, "list_items": 2, "bold": 3}
    assert lines[1]["margin"] == 4.5
    assert {line["schema_version"] for line in lines} == {1}


def test_a_log_of_one_torn_line_starts_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("x" * 200_000)
    append(path, [Battle("b", "p", "x", "y", "j", "tie")])
    assert len(path.read_text().splitlines()) == 1
    assert json.loads(path.read_text())["winner"] == "tie"


def test_a_log_waits_for_another_process_that_adds_to_it(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl", reason="Windows has no such locks")
    path = tmp_path / "log.jsonl"
    record = Battle("b", "p", "x", "y", "j", "tie")
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = threading.Thread(target=append, args=(path, [record]))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        other.write(b"x" * 10 + b"\n")
    waiting.join(120)
    assert [line[:1] for line in path.read_text().splitlines()] == ["x", "{"]


def test_style_counts_markdown_outside_of_code() -> None:
    text = (
        "# Title\n\nSome **bold** and __more__.\n\n- one\n* two\n3. three\n```\n# no\n- no\n```\n"
    )
    assert style_of(text) == Style(len(text), 1, 3, 2)
    assert style_of("") == Style(0)
    assert style_of("\n\n \n  - one\n\n\t* two") == Style(19, 0, 2)
    assert style_of("#hash 2*3*4 -not") == Style(16)


def test_an_answer_of_blank_lines_alone_is_counted_at_once() -> None:
    for loop in ("\n", " \n", "```\n"):
        assert style_of(loop * 200_000) == Style(len(loop) * 200_000)
