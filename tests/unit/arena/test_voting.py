"""What people are shown to vote on, in which order, and what becomes of their votes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from answer_files import write_answers, write_rows

from aligner.arena.voting.ballot import Ballot, OutOfTurn
from aligner.arena.voting.plan import Plan, make_plan
from aligner.arena.voting.reading import read_answered
from aligner.errors import DataError, UsageError

THREE = {
    "x": ["a0", "a1", "same", "", "a4"],
    "y": ["b0", "b1", "same", "b3", "b4"],
    "z": ["c0", "c1", "c2", "c3", "c4"],
}


def plan_of(folder: Path, name: str = "ann", **how: int) -> Plan:
    return make_plan(read_answered(write_answers(folder, THREE)), name=name, **how)


def shown(plan: Plan) -> list[tuple[str, str, str]]:
    return [(sheet.item.id, sheet.first.model, sheet.second.model) for sheet in plan.sheets]


def games(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_every_pair_is_shown_in_one_order_and_then_in_the_other(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    seen = shown(plan)
    assert (plan.pairs, plan.identical, plan.empty) == (12, 1, 2)
    assert len(seen) == len(set(seen)) == 24
    assert seen[12:] == [(item, second, first) for item, first, second in seen[:12]]


def test_people_see_the_same_pairs_in_the_same_sequence_in_orders_of_their_own(
    tmp_path: Path,
) -> None:
    one, other = (shown(plan_of(tmp_path, name)) for name in ("ann", "bob"))
    assert one != other
    pairs = [[(row[0], frozenset(row[1:])) for row in rows[:12]] for rows in (one, other)]
    assert pairs[0] == pairs[1]
    few = shown(plan_of(tmp_path, pairs=3))
    assert few == [*one[:3], *one[12:15]]
    assert shown(plan_of(tmp_path, seed=1)) != one


def test_either_answer_stands_first_about_as_often(tmp_path: Path) -> None:
    many = {name: [f"{name}{number}" for number in range(400)] for name in "xy"}
    plan = make_plan(read_answered(write_answers(tmp_path, many)), name="ann")
    first = sum(sheet.first.model == "x" for sheet in plan.sheets[:400])
    assert 160 <= first <= 240


def test_votes_are_games_and_go_on_where_they_stopped(tmp_path: Path) -> None:
    plan, log = plan_of(tmp_path), tmp_path / "votes.jsonl"
    ballot = Ballot(plan.sheets, "ann", log)
    for verdict in ("first", "second", "tie", "bothbad"):
        ballot.vote(ballot.turn, verdict, seconds=1.5)
    written = games(log)
    scores = [(game["score_first"], game["score_second"]) for game in written]
    assert scores == [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.5, 0.5)]
    assert [game["decoding"]["verdict"] for game in written][2:] == ["tie", "bothbad"]
    assert written[0]["model_first"] == plan.sheets[0].first.model
    assert written[0]["answer_first_sha"] == plan.sheets[0].first.sha
    assert written[0]["latency_ms"] == 1500.0
    assert {game["judge_id"] for game in written} == {"ann"}
    again = Ballot(plan.sheets, "ann", log)
    assert (again.turn, len(again.cast)) == (4, 4)
    assert Ballot(plan.sheets, "bob", log).turn == 0


def test_both_orders_are_games_of_one_battle(tmp_path: Path) -> None:
    plan, log = plan_of(tmp_path, pairs=1), tmp_path / "votes.jsonl"
    ballot = Ballot(plan.sheets, "ann", log)
    ballot.vote(0, "first")
    ballot.vote(1, "second")
    one, two = games(log)
    assert one["battle_id"] == two["battle_id"]
    assert one["game_id"] != two["game_id"]
    assert ballot.turn is None


def test_other_answers_are_another_battle(tmp_path: Path) -> None:
    plan, log = plan_of(tmp_path, pairs=1), tmp_path / "votes.jsonl"
    Ballot(plan.sheets, "ann", log).vote(0, "first")
    sheet = plan.sheets[0]
    changed = replace(sheet, first=replace(sheet.first, text="written later"))
    assert Ballot([changed], "ann", log).turn == 0


def test_a_vote_is_changed_by_going_back(tmp_path: Path) -> None:
    plan, log = plan_of(tmp_path), tmp_path / "votes.jsonl"
    ballot = Ballot(plan.sheets, "ann", log)
    assert not ballot.can_go_back
    for _ in range(3):
        ballot.vote(ballot.turn, "first")
    ballot.back()
    ballot.back()
    assert ballot.turn == 1
    ballot.vote(1, "second")
    assert ballot.turn == 3
    ballot.back()
    assert ballot.turn == 1, "what was voted on last is what comes back first"
    ballot.skip(1)
    assert ballot.turn == 3
    attempts = [(game["attempt"], game["decoding"]["verdict"]) for game in games(log)]
    assert attempts == [(1, "first")] * 3 + [(2, "second")]
    assert Ballot(plan.sheets, "ann", log).cast[1].verdict == "second"


def test_what_is_left_for_later_comes_last_and_again_after_a_start(tmp_path: Path) -> None:
    plan, log = plan_of(tmp_path, pairs=2), tmp_path / "votes.jsonl"
    ballot = Ballot(plan.sheets, "ann", log)
    ballot.skip(0)
    for turn in (1, 2, 3, 0):
        assert ballot.turn == turn
        ballot.vote(turn, "tie")
    assert ballot.turn is None


def test_a_vote_on_what_is_not_shown_is_none(tmp_path: Path) -> None:
    plan, log = plan_of(tmp_path), tmp_path / "votes.jsonl"
    ballot = Ballot(plan.sheets, "ann", log)
    ballot.vote(0, "first")
    for act in (lambda: ballot.vote(0, "second"), lambda: ballot.skip(5)):
        with pytest.raises(OutOfTurn):
            act()
    assert len(games(log)) == 1


def test_a_log_that_a_kill_cut_off_loses_that_vote_alone(tmp_path: Path) -> None:
    plan, log = plan_of(tmp_path), tmp_path / "votes.jsonl"
    ballot = Ballot(plan.sheets, "ann", log)
    ballot.vote(0, "first")
    ballot.vote(1, "first")
    log.write_bytes(log.read_bytes()[:-20])
    again = Ballot(plan.sheets, "ann", log)
    assert again.turn == 1
    again.vote(1, "second")
    assert [game["decoding"]["verdict"] for game in games(log)] == ["first", "second"]


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"rows": 1}\n', "is no game"), ("not json\n", "broken JSON"), ("[1]\n", "is a JSON list")],
)
def test_a_log_of_other_things_is_refused(tmp_path: Path, content: str, message: str) -> None:
    log = tmp_path / "votes.jsonl"
    log.write_text(content)
    with pytest.raises(DataError, match=message):
        Ballot(plan_of(tmp_path).sheets, "ann", log)


def test_a_damaged_vote_is_said(tmp_path: Path) -> None:
    plan, log = plan_of(tmp_path), tmp_path / "votes.jsonl"
    Ballot(plan.sheets, "ann", log).vote(0, "first")
    row = {**games(log)[0], "attempt": "twice", "game_id": games(log)[0]["game_id"]}
    write_rows(log, [{**row, "game_id": ["x"]}, row])
    with pytest.raises(DataError, match="is damaged: invalid literal"):
        Ballot(plan.sheets, "ann", log)


def test_nothing_to_vote_on_is_said(tmp_path: Path) -> None:
    same = read_answered(write_answers(tmp_path, {"x": ["a", ""], "y": ["a", "b"]}))
    with pytest.raises(DataError, match="identical or empty"):
        make_plan(same, name="ann")
    apart = read_answered(
        [
            str(write_rows(tmp_path / f"{name}.jsonl", [{"prompt": name, "answer": "a"}]))
            for name in "vw"
        ]
    )
    with pytest.raises(DataError, match="no two models answered the same prompt"):
        make_plan(apart, name="ann")


def test_the_answers_of_a_battle_come_from_its_run(tmp_path: Path) -> None:
    for name in ("one/a", "two"):
        folder = tmp_path / "run" / "stages" / "answers" / name.replace("/", "-")
        folder.mkdir(parents=True)
        row = {"prompt_id": "p", "prompt": "q", "answer": name, "model": name}
        write_rows(folder / "answers.jsonl", [row])
    assert list(read_answered([str(tmp_path / "run")]).answers) == ["one/a", "two"]
    with pytest.raises(DataError, match="is a folder, and none of a battle"):
        read_answered([str(tmp_path)])


def test_names_of_models(tmp_path: Path) -> None:
    rows = [{"instruction": "q", "output": "a", "generator": "gpt"}]
    first = write_rows(tmp_path / "one.jsonl", rows)
    second = write_rows(
        tmp_path / "two.v1.jsonl", [{"prompt": "q", "completions": [{"text": "b"}]}]
    )
    assert list(read_answered([str(first), str(second)]).answers) == ["gpt", "two"]
    assert list(read_answered([f"me={first}", str(second)]).answers) == ["me", "two"]
    with pytest.raises(UsageError, match="two files are of gpt"):
        read_answered([str(first), f"gpt={second}"])
