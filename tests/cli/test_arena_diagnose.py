"""`aligner arena diagnose` as it is typed: tables, JSON, exit codes, and votes by people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import write_jsonl
from runner import aligner
from simulated_games import Games, simulate_games

from aligner.arena.records import Game, append

DIAGNOSE = ("arena", "diagnose")
MODELS = ("acme-1", "birch-1", "cedar-1")


def write(path: Path, games: Games) -> None:
    records = []
    for number, (battle, game) in enumerate(games):
        records.append(
            Game(
                f"{game.judge} {number}",
                f"{game.judge} {battle}",
                game.prompt,
                game.first,
                game.second,
                game.judge,
                "ok" if game.score_first is not None else "failed",
                game.score_first,
                game.score_second,
            )
        )
    append(path, records)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fair judge in `fair.jsonl`, one that prefers the first seat in `seat.jsonl`."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "fair.jsonl", simulate_games(MODELS, 40, judge="fair", noise=0.5))
    write(tmp_path / "seat.jsonl", simulate_games(MODELS, 40, judge="seated", seat=2.0))
    return tmp_path


def test_a_judge_within_the_limits_passes(folder: Path) -> None:
    done = aligner(*DIAGNOSE, "fair.jsonl", "--resamples", 50)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0].startswith("fair, of family fair (from its name)")
    for words in ("verdict changes with the order", "no answer's length", "cycles: 0 of three"):
        assert words in done.stdout
    assert "agreement between judges: there is one judge alone" in done.stdout


def test_a_judge_beyond_a_limit_fails_and_the_others_do_not(folder: Path) -> None:
    done = aligner(*DIAGNOSE, "fair.jsonl", "seat.jsonl", "--resamples", 50)
    assert done.exit_code == 3
    assert "error: 1 judge fails" in done.stderr
    assert "seated: the flip rate is" in done.stderr
    assert "seated prefers the first answer: " in done.stdout
    assert "fair and seated" in done.stdout
    assert "Krippendorff's alpha: 0." in done.stdout
    moved = ("--max-flip-rate", 1, "--max-seat-share", 1)
    assert aligner(*DIAGNOSE, "seat.jsonl", *moved, "--resamples", 50).exit_code == 0


def test_json_is_whole_where_a_judge_fails(folder: Path) -> None:
    done = aligner(*DIAGNOSE, "seat.jsonl", "--json", "--family", "seated=acme", "--resamples", 50)
    assert done.exit_code == 3
    record = json.loads(done.stdout)
    assert record["passed"] is False
    assert record["families"]["seated"] == {"family": "acme", "from": "option"}
    assert record["judges"]["seated"]["games"] == 240
    again = aligner(*DIAGNOSE, "seat.jsonl", "--json", "--family", "seated=acme", "--resamples", 50)
    assert again.stdout == done.stdout


def test_failures_are_shown_by_model_and_seat(folder: Path) -> None:
    append(folder / "fair.jsonl", [Game("f", "b", "p", "acme-1", "birch-1", "fair", "refused")])
    done = aligner(*DIAGNOSE, "fair.jsonl", "--resamples", 20)
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("acme-1")]
    assert rows == [["acme-1", "1", "of", "81", "0", "of", "80"]]


def test_peoples_votes_stand_beside_a_judge(folder: Path) -> None:
    people = []
    for n in range(20):
        people.append(
            {
                "model_a": "acme-1",
                "model_b": "birch-1",
                "winner": "tie" if n == 0 else "model_a",
                "prompt_id": f"p{n}",
                "judge": "people",
            }
        )
    write_jsonl(folder / "people.jsonl", people)
    done = aligner(*DIAGNOSE, "fair.jsonl", "people.jsonl", "--json", "--resamples", 20)
    record = json.loads(done.stdout)
    assert record["agreement"]["pairs"][0]["battles"] == 20
    missing = record["judges"]["people"]["missing"]
    assert missing["flip_rate"] == "no battle was judged in both orders"


def test_judgments_of_arena_hard_have_both_orders(folder: Path) -> None:
    games = [{"score": "A>B"}, {"score": "A>>B"}]
    rows = [{"uid": f"u{n}", "model": "m", "judge": "gpt", "games": games} for n in range(3)]
    write_jsonl(folder / "hard.jsonl", rows)
    done = aligner(*DIAGNOSE, "hard.jsonl", "--baseline", "b", "--json", "--resamples", 0)
    row = json.loads(done.stdout)["judges"]["gpt"]
    assert row["flip_rate"]["value"] == row["reversed"]["value"] == 1.0
    assert row["missing"]["score_shift"] == "verdicts have no scores"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("none.jsonl",), 3, "none.jsonl is not a file"),
        (("fair.jsonl", "--family", "fair"), 2, "--family fair is no NAME=FAMILY"),
        (("fair.jsonl", "--family", "q=z"), 3, "no judge and no model is named 'q'"),
        (("merged.jsonl",), 3, "rows of the form battles do not say in which order"),
    ],
)
def test_what_is_wrong_is_said(
    folder: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    merged = {"battle_id": "b", "model_a": "x", "model_b": "y", "winner": "tie", "prompt_id": "p"}
    write_jsonl(folder / "merged.jsonl", [merged])
    done = aligner(*DIAGNOSE, *arguments)
    assert done.exit_code == code, done.output
    assert said in done.output
