"""Selections as files: rows with their provenance, what was dropped, and the test set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aligner import __version__
from aligner.arena.battle.sheets import Answer, Item
from aligner.arena.records import Battle, append, read_battles
from aligner.arena.selection.contests import Contest, contests_of
from aligner.arena.selection.rows import Origins
from aligner.arena.selection.rules import Limits, Rules
from aligner.arena.selection.select import (
    DECONTAMINATION,
    DROPPED,
    OVERLAPS,
    ROWS,
    Selection,
    write_selection,
)
from aligner.arena.selection.summary import false_loss_rate, loss_rate
from aligner.arena.testset.frozen import CLUSTERS, TestItem, TestSet
from aligner.config.recipe import Data, Source
from aligner.data.loading import load_rows
from aligner.errors import DataError
from aligner.runs.files import file_sha256

MODELS = ("t", "x", "y")


def contests(
    count: int, *, plain: bool = True, prompts: dict[int, str] | None = None
) -> list[Contest]:
    """Prompts on which x beats t by one point more each time, and y is worse than both."""
    items, answers, battles = [], {name: {} for name in MODELS}, []
    for number in range(count):
        text = (prompts or {}).get(number, f"question number {number} about something of its own")
        prompt: Any = text if plain else [{"role": "user", "content": text}]
        name = f"p{number:02}"
        items.append(
            Item(name, prompt, "even" if number % 2 == 0 else "odd", origin=f"pool:{number}")
        )
        for model in MODELS:
            answers[model][name] = Answer(model, f"{model} says {number} " + "word " * number)
        scores = {"t": 5.0, "x": 5.0 + number, "y": 1.0}
        for a, b in (("t", "x"), ("t", "y"), ("x", "y")):
            winner: Any = "tie" if scores[a] == scores[b] else "model_a"
            if scores[a] < scores[b]:
                winner = "model_b"
            margin = scores[a] - scores[b]
            given = (f"{name}-{a}{b}", name, a, b, "judge", winner, scores[a], scores[b], margin)
            battles.append(Battle(*given, True, judge_rev="2d"))
    difficulties = {f"p{number:02}": float(number) for number in range(count)}
    return contests_of(items, answers, battles, difficulties)


def written(
    folder: Path, selection: Selection, tests: TestSet | None = None, count: int = 6
) -> Any:
    summary = write_selection(folder, selection, contests(count), tests)
    rows = [json.loads(line) for line in (folder / ROWS).read_text().splitlines()]
    dropped = [json.loads(line) for line in (folder / DROPPED).read_text().splitlines()]
    return summary, rows, dropped


def frozen(folder: Path, *items: TestItem) -> TestSet:
    return TestSet(folder, list(items), "the sha of the test set", {})


def test_rows_say_where_they_come_from(tmp_path: Path) -> None:
    selection = Selection(
        "sft",
        Rules("t", Limits(3.0)),
        origins=Origins({"x": "apache-2.0"}, {"x": "0f", "t": "1e"}, more={"round": 2}),
    )
    summary, rows, dropped = written(tmp_path, selection)
    assert [row["prompt_id"] for row in rows] == ["p03", "p04", "p05"]
    assert rows[0] == {
        "prompt": "question number 3 about something of its own",
        "completion": "x says 3 word word word ",
        "prompt_id": "p03",
        "source": "pool:3",
        "winner": "x",
        "winner_rev": "0f",
        "loser": "t",
        "loser_rev": "1e",
        "target": "t",
        "score_winner": 8.0,
        "score_loser": 5.0,
        "margin": 3.0,
        "consistent": True,
        "k": 3.0,
        "battle_ids": ["p03-tx"],
        "judges": ["judge"],
        "judge_revs": ["2d"],
        "category": "odd",
        "difficulty": 3.0,
        "cluster": None,
        "length_winner": 24,
        "length_loser": 24,
        "is_refusal": False,
        "license": "apache-2.0",
        "tool_version": __version__,
        "test_set_sha256": None,
        "round": 2,
    }
    assert [row["reason"] for row in dropped] == [
        "the target lost to nobody",
        "margin below k",
        "margin below k",
    ]
    assert summary["rows"] == 3
    assert summary["winners"] == {"x": 3}
    assert summary["licenses"] == {"apache-2.0": 3}
    assert summary["lost_to"] == {"x": {"battles": 6, "lost": 5}, "y": {"battles": 6, "lost": 0}}
    assert summary["difficulty"] == {"prompts": 2.5, "rows": 4.0}
    assert summary["categories"] == {
        "even": {"prompts": 3, "rows": 1},
        "odd": {"prompts": 3, "rows": 2},
    }


@pytest.mark.parametrize(("purpose", "task"), [("sft", "sft"), ("dpo", "preference")])
@pytest.mark.parametrize("plain", [True, False])
def test_trainers_read_the_rows_and_none_of_their_provenance(
    tmp_path: Path, purpose: Any, task: Any, plain: bool
) -> None:
    selection = Selection(purpose, Rules("t", Limits(0.0)))
    write_selection(tmp_path, selection, contests(6, plain=plain), None)
    data = Data(train=[Source(path=str(tmp_path / ROWS))])
    loaded = load_rows(data, task, 0)
    assert len(loaded.train) == {"sft": 5, "dpo": 6}[purpose]
    assert not loaded.ledger.remarks()


def test_a_margin_without_end_is_null(tmp_path: Path) -> None:
    lost = Battle("b", "p", "t", "x", "j", "model_b")
    answers = {"t": {"p": Answer("t", "")}, "x": {"p": Answer("x", "an answer")}}
    found = contests_of([Item("p", "a question")], answers, [lost])
    write_selection(tmp_path, Selection("sft", Rules("t", Limits(3.0))), found, None)
    (row,) = [json.loads(line) for line in (tmp_path / ROWS).read_text().splitlines()]
    assert row["margin"] is None
    assert row["score_winner"] is None


@pytest.mark.parametrize(
    ("prompt", "item"),
    [
        ("What is the tallest mountain of the moon?", "What is the tallest mountain of the MOON"),
        (
            "Please say, and be brief: one two three four five six seven eight nine ten eleven "
            "twelve thirteen fourteen",
            "one two three four five six seven eight nine ten eleven twelve thirteen and more",
        ),
    ],
)
def test_a_row_that_is_in_the_test_set_is_dropped_and_the_report_passes(
    tmp_path: Path, prompt: str, item: str
) -> None:
    tests = frozen(tmp_path, TestItem("test-1", item, None))
    found = contests(6, prompts={4: prompt})
    selection = Selection("sft", Rules("t", Limits(3.0)))
    summary = write_selection(tmp_path, selection, found, tests)
    rows = [json.loads(line) for line in (tmp_path / ROWS).read_text().splitlines()]
    assert [row["prompt_id"] for row in rows] == ["p03", "p05"]
    assert summary["rows"] == 2
    assert summary["dropped"][OVERLAPS] == 1
    dropped = [json.loads(line) for line in (tmp_path / DROPPED).read_text().splitlines()]
    assert len(rows) + len(dropped) == 6
    assert [row["prompt_id"] for row in dropped if row["reason"] == OVERLAPS] == ["p04"]
    assert {row["test_set_sha256"] for row in rows} == {tests.sha256}
    report = json.loads((tmp_path / DECONTAMINATION).read_text())
    assert report["passes"]
    assert report["testset_sha256"] == tests.sha256
    assert report["data_sha256"] == file_sha256(tmp_path / ROWS)
    assert report["cleaned"]["dropped"] == 1


def test_an_answer_that_recites_the_test_set_is_dropped(tmp_path: Path) -> None:
    right = "the quick brown fox jumps over the lazy dog and then it runs far away from here"
    tests = frozen(tmp_path, TestItem("test-1", "Tell me of the fox", right))
    found = contests(6)
    answer = Answer("x", f"Here it is: {right}.")
    told = [*found[:5], _with_answer(found[5], answer)]
    selection = Selection("sft", Rules("t", Limits(3.0)))
    write_selection(tmp_path, selection, told, tests)
    rows = [json.loads(line) for line in (tmp_path / ROWS).read_text().splitlines()]
    assert [row["prompt_id"] for row in rows] == ["p03", "p04"]


def _with_answer(contest: Contest, answer: Answer) -> Contest:
    answers = {**contest.answers, answer.model: answer}
    return Contest(contest.item, answers, contest.battles, contest.difficulty)


def test_rows_say_the_cluster_of_their_prompt_and_whether_the_winner_refused(
    tmp_path: Path,
) -> None:
    tests = frozen(tmp_path, TestItem("test-1", "of something else", None))
    (tmp_path / CLUSTERS).write_text(json.dumps({"p03": 7, "p05": 2}))
    found = contests(6)
    refusal = Answer("x", "I'm sorry, but I cannot help with that.")
    told = [*found[:5], _with_answer(found[5], refusal)]
    write_selection(tmp_path, Selection("sft", Rules("t", Limits(3.0))), told, tests)
    rows = [json.loads(line) for line in (tmp_path / ROWS).read_text().splitlines()]
    said = [(row["prompt_id"], row["cluster"], row["is_refusal"]) for row in rows]
    assert said == [("p03", 7, False), ("p04", None, False), ("p05", 2, True)]


# --- rules to compare with ------------------------------------------------------------------------


def test_random_takes_as_many_prompts_as_were_lost_with_the_best_answer(tmp_path: Path) -> None:
    selection = Selection("sft", Rules("t", Limits(3.0)), rule="random", seed=1)
    _, rows, dropped = written(tmp_path, selection, count=20)
    assert len(rows) == 17
    assert {row["winner"] for row in rows} == {"x"}
    assert {row["reason"] for row in dropped} == {"not drawn"}
    again = Selection("sft", Rules("t", Limits(18.0)), rule="random", seed=2)
    few, other = (written(tmp_path, one, count=20)[1] for one in (again, again))
    assert [row["prompt_id"] for row in few] == [row["prompt_id"] for row in other]
    assert len(few) == 2


def test_any_opponent_may_be_taken_and_all_prompts(tmp_path: Path) -> None:
    rules = Rules("t", Limits(3.0))
    _, rows, _ = written(tmp_path, Selection("sft", rules, rule="random_opponent"), count=20)
    assert {row["winner"] for row in rows} == {"x", "y"}
    _, rows, _ = written(tmp_path, Selection("sft", rules, rule="all"), count=20)
    assert len(rows) == 20
    assert {row["winner"] for row in rows} == {"x"}


# --- losses by chance -----------------------------------------------------------------------------


def test_loss_rates_count_battles_that_were_lost_by_k() -> None:
    found = contests(6)
    assert loss_rate(found, "t", ["x", "y"], 3.0) == (3 / 12, 12)
    assert false_loss_rate(found, "t", "x", 3.0) == (3 / 6, 6)
    assert false_loss_rate(found, "t", "nobody", 3.0) == (None, 0)


# --- files of battles -----------------------------------------------------------------------------


def test_battles_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "battles.jsonl"
    battles = [Battle("b", "p", "a", "c", "j", "tie", 5.0, 5.0, 0.0, True)]
    append(path, battles)
    assert read_battles(path) == battles


def test_a_line_that_is_no_battle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "battles.jsonl"
    path.write_text('{"battle_id": "b"}\n')
    with pytest.raises(DataError, match=r"battles.jsonl:1 is not the record of a battle"):
        read_battles(path)
