"""The leaderboard as a record, and as files."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from simulated_arena import simulate, votes_of

from aligner.arena.consistency import consistency, read_table
from aligner.arena.leaderboard import FILES, PNG, interval_text, leaderboard, rating_text, write
from aligner.arena.rating import Settings, rate
from aligner.arena.votes import Votes

HOW = Settings(resamples=40)


def board(votes: Votes, how: Settings = HOW) -> dict:
    return leaderboard(votes, rate(votes, how), how)


def test_the_best_stands_first_with_everything_about_it(tmp_path: Path) -> None:
    votes = replace(simulate((-1.0, 0.0, 1.0), 40), judges=["m2"])
    record = board(votes)
    best = record["models"][0]
    assert best["model"] == "m2"
    assert best["rank"] == 1
    assert best["low"] < best["rating"] < best["high"]
    assert best["wins"] + best["ties"] + best["losses"] == best["votes"] == 160
    assert best["flags"] == ["is a judge"]
    assert record["pairs"]["models"] == ["m0", "m1", "m2"]


def test_a_bound_has_an_open_end_and_says_why() -> None:
    record = board(votes_of(*[("x", "y", 1.0)] * 5))
    first, last = record["models"]
    assert (first["high"], last["low"]) == (None, None)
    assert rating_text(first).startswith(">= ")
    assert rating_text(last).startswith("<= ")
    assert interval_text(first).endswith(" to ...")
    assert first["flags"] == ["never lost to the rest: a lower bound"]


def test_a_picture_as_png_shows_every_model(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="matplotlib is not installed")
    names = {"m0": "$\\frac{1}{2}$", "m1": "two\nlines", "m2": "x" * 90}
    votes = simulate((-1.0, 0.0, 1.0), 40)
    votes = replace(votes, models=[names[name] for name in votes.models])
    record = board(votes, replace(HOW, anchor=names["m1"]))
    with_png = write(record, tmp_path, png=True)
    assert [path.name for path in with_png] == [*FILES, PNG]
    width, height = pillow.open(tmp_path / PNG).size
    assert width > 1000
    few = board(votes_of(*[("x", "y", 1.0)] * 5))
    write(few, tmp_path, png=True)
    assert pillow.open(tmp_path / PNG).size[1] < height
    write(few, tmp_path)
    assert not (tmp_path / PNG).exists(), "it would show the table before"


def test_files_hold_the_same_numbers(tmp_path: Path) -> None:
    how = replace(HOW, anchor="m1")
    record = board(simulate((-1.0, 0.0, 1.0), 40), how)
    paths = write(record, tmp_path / "out")
    assert [path.name for path in paths] == list(FILES)
    assert json.loads(paths[1].read_text())["models"] == record["models"]
    with paths[0].open() as file:
        lines = list(csv.DictReader(file))
    assert [line["model"] for line in lines] == ["m2", "m1", "m0"]
    assert float(lines[0]["rating"]) == pytest.approx(record["models"][0]["rating"])
    same = consistency(read_table(paths[0]), read_table(paths[1]))
    assert (same["spearman"], same["agreement"]) == (pytest.approx(1.0), 1.0)


@pytest.mark.parametrize("resamples", [0, 20])
def test_pages_need_nothing_else_and_escape_names(tmp_path: Path, resamples: int) -> None:
    rows = [("<b>x</b>", "y", 1.0), ("y", "<b>x</b>", 1.0), ("y", "<b>x</b>", 0.5)]
    how = replace(HOW, resamples=resamples, anchor="y")
    *_, svg, page = write(board(votes_of(*rows), how), tmp_path)
    for text in (svg.read_text(), page.read_text()):
        assert "<b>x</b>" not in text
        assert "&lt;b&gt;x&lt;/b&gt;" in text
    html = page.read_text()
    assert not re.search(r'(?:src|href)="', html)
    assert "Share won" in html
    assert ("Above in how many resamples" in html) == (resamples > 0)
    assert html.count("<svg") == 1


def test_a_picture_shows_an_open_end_as_an_arrow(tmp_path: Path) -> None:
    closed = write(board(votes_of(("x", "y", 1.0), ("y", "x", 1.0))), tmp_path / "a")[2]
    opened = write(board(votes_of(("x", "y", 1.0), ("x", "y", 1.0))), tmp_path / "b")[2]
    assert opened.read_text().count("l5,4") == 1
    assert opened.read_text().count("l-5,4") == 1
    assert "5,4" not in closed.read_text()
