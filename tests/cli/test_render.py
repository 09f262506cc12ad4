"""Events on the screen: plain lines where there is no terminal, nothing from other ranks."""

from __future__ import annotations

import re

import pytest

from aligner import events
from aligner.cli import render


def test_without_a_terminal_there_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with render.Screen() as screen:
        screen.on_event(events.StageStarted("training"))
        screen.on_event(events.Metrics(1, 20, {"loss": 2.0, "grad_norm": 1.0}))
        screen.on_event(events.Metrics(20, 20, {"loss": 1.23456}))
        screen.on_event(events.Metrics(20, 20, {"loss": 1.5}, "eval"))
        screen.on_event(events.Notice("packing is off"))
        screen.on_event(events.Warned("3 rows were dropped"))
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "training ..."
    assert lines[1].startswith("training: 1/20  loss 2")
    assert lines[2].startswith("training: 20/20  loss 1.235")
    assert lines[3:] == [
        "step 20: held out  loss 1.5",
        "packing is off",
        "warning: 3 rows were dropped",
    ]


def test_after_a_part_with_progress_of_its_own_training_has_its_name_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with render.Screen() as screen:
        screen.on_event(events.StageStarted("training"))
        screen.on_event(events.StageProgress("arena: answers of step-1", 8, 8))
        screen.on_event(events.Metrics(1, 2, {"loss": 2.0, "arena_win_rate": 0.5}, "eval"))
        screen.on_event(events.Metrics(2, 2, {"loss": 1.0}))
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "arena: answers of step-1: 8/8"
    assert lines[2] == "step 1: held out  loss 2  arena_win_rate 0.5"
    assert lines[3].startswith("training: 2/2  loss 1")


def test_lines_come_at_most_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    with render.Screen() as screen:
        for step in range(1, 101):
            screen.on_event(events.Metrics(step, 100, {"loss": 1.0}))
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with render.Screen(silent=True) as screen:
        screen.on_event(events.StageStarted("training"))
        screen.on_event(events.Warned("x"))
        screen.on_event(events.Metrics(1, 1, {"loss": 1.0}))
        screen.summary([("a", "b", "c")])
        screen.share("x")(0.5, "y")
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_live_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with render.Screen() as screen:
        screen.on_event(events.StageStarted("training"))
        screen.on_event(events.Metrics(1, 2, {"loss": 1.5}))
        screen.on_event(events.Notice("a word above the bar"))
        screen.on_event(events.Metrics(2, 2, {"loss": 1.25}))
    err = capsys.readouterr().err
    assert "loss 1.25" in err
    assert "2/2" in err
    assert "a word above the bar" in err


def test_a_summary_stands_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    render.Screen().summary([("model", "toy", ""), ("  dpo.beta", "0.05", "recipe.yaml:7")])
    assert capsys.readouterr().err == "model       toy\n  dpo.beta  0.05  recipe.yaml:7\n\n"


def test_a_table_is_as_wide_as_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    render.columns(("recipe", "what"), [("tiny/dpo", "small"), ("x", "a longer one")])
    assert capsys.readouterr().out == "recipe    what\ntiny/dpo  small\nx         a longer one\n"
    render.columns(("model", ""), [("\u65e5\u672c", "wide"), ("e\u0301t", "x")])
    wide, accent = capsys.readouterr().out.splitlines()[1:]
    assert (wide, accent) == ("\u65e5\u672c   wide", "e\u0301t     x")


class Clock:
    """Stands for the time."""

    now = 1000.0

    def __iadd__(self, seconds: float) -> Clock:
        self.now += seconds
        return self


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(render.time, "monotonic", lambda: clock.now)
    return clock


def test_a_new_stage_has_its_own_clock(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with render.Screen() as screen:
        screen.on_event(events.StageStarted("loading the model"))
        screen.on_event(events.StageProgress("loading the model", 1, 2))
        clock += 100
        screen.on_event(events.StageProgress("tokenizing", 10, 10))
    assert capsys.readouterr().err.splitlines()[-1] == "tokenizing: 10/10"


def test_what_was_done_before_counts_for_no_rate(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resumed run begins at step 501: that it is there after a second says nothing about its
    speed."""
    with render.Screen() as screen:
        screen.on_event(events.StageStarted("training"))
        clock += 1
        for step in range(501, 521):
            screen.on_event(events.Metrics(step, 1000, {"loss": 1.0}))
            clock += 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "training: 503/1000  loss 1  (0.5/s, 16:34 left)"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0512345, "0.05123"), (26348.0, "26,348"), (3, "3"), ("", ""), (-1e-7, "-1e-07")],
)
def test_numbers_have_the_digits_that_matter(value: object, text: str) -> None:
    assert render.number(value) == text


def row(number: int, *, best: bool = False, line: str = "") -> events.TableRow:
    cells = {"round": str(number), "gold": f"0.{number}"}
    return events.TableRow(f"best so far: {number}", cells, line or f"round {number}", is_best=best)


def test_rows_are_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with render.Screen() as screen:
        screen.on_event(row(0, line="start: gold 0.0"))
        screen.on_event(row(1, line="round 1: gold 0.1", best=True))
    assert capsys.readouterr().err.splitlines() == ["start: gold 0.0", "round 1: gold 0.1"]


def test_rows_are_a_table_on_a_terminal_and_progress_stands_below_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with render.Screen() as screen:
        screen.on_event(events.StageProgress("rounds/00/eval", 1, 2))  # a bar, which has to end
        screen.on_event(row(0))
        screen.on_event(events.StageStarted("training"))
        screen.on_event(events.Metrics(1, 2, {"loss": 1.5}))
        screen.on_event(events.Notice("a word above the table"))
        screen.on_event(events.Metrics(2, 2, {"loss": 1.25}))
        screen.on_event(events.Metrics(2, 2, {"loss": 1.75}, "eval"))
        screen.on_event(row(1, best=True))
    err = capsys.readouterr().err
    assert "training: 2/2  loss 1.25" in err
    last = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", err).rsplit("best so far: 1", 1)[1]
    assert [line.split() for line in last.split("\n")[1:4]] == [
        ["round", "gold"],
        ["0", "0.0"],
        ["1", "0.1"],
    ]
    assert "training" not in last, "nothing is being done any more"


def test_a_table_shows_the_latest_rows_and_marks_the_best() -> None:
    from io import StringIO

    from rich.console import Console

    from aligner.cli.live_table import MOST_ROWS, LiveTable

    table = LiveTable(Console(file=StringIO()))
    for number in range(MOST_ROWS + 2):
        table.add(row(number, best=number in (3, 5)))
    table.stop()
    drawn = table.table()
    assert drawn.row_count == MOST_ROWS
    assert [style.style for style in drawn.rows].count("bold green") == 1
    assert drawn.rows[5 - 2].style == "bold green"
    assert str(table.drawn().renderables[0]) == f"best so far: {MOST_ROWS + 1}"
