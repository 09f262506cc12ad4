"""Votes from every form of file, and what is said of rows that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from fakes import write_jsonl

from aligner.arena.merging import INCONSISTENT, ONE_ORDER, UNREAD
from aligner.arena.readers import REPEATED, Reading, read_games, read_votes
from aligner.arena.records import Battle, Game, Style, append
from aligner.arena.votes import Votes
from aligner.errors import DataError

GAME = Game("g1", "b1", "p1", "x", "y", "judge", "ok", 8.0, 6.0, category="math")


def game(number: int, first: str, scores: tuple[Any, Any], battle: str = "b1", **more: Any) -> Game:
    second = "y" if first == "x" else "x"
    return replace(
        GAME,
        game_id=f"g{number}",
        battle_id=battle,
        model_first=first,
        model_second=second,
        score_first=scores[0],
        score_second=scores[1],
        **more,
    )


def read(path: Path, **how: Any) -> Votes:
    return read_votes([path], Reading(**how))


def rows(votes: Votes) -> list[tuple[str, str, float]]:
    names = votes.models
    return [(names[a], names[b], y) for a, b, y in zip(votes.a, votes.b, votes.outcome.tolist())]


def problems(path: Path, rows: Iterable[dict[str, Any]], **how: Any) -> list[str]:
    write_jsonl(path, rows)
    with pytest.raises(DataError) as caught:
        read(path, **how)
    return [str(problem).removeprefix(str(path)) for problem in caught.value.problems]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three battles: x is better in both orders; the orders disagree; a reply was unreadable."""
    path = tmp_path / "games.jsonl"
    games = [
        game(1, "x", (8.0, 6.0)),
        game(2, "y", (5.0, 7.0)),
        game(3, "x", (9.0, 3.0), "b2", style_first=Style(10), style_second=Style(30)),
        game(4, "y", (6.0, 5.0), "b2"),
        game(5, "x", (8.0, 6.0), "b3"),
        game(6, "y", (None, None), "b3", parse_status="failed"),
    ]
    append(path, games)
    return path


def test_the_mean_of_both_orders_is_the_verdict(log: Path) -> None:
    votes = read(log)
    assert rows(votes) == [("x", "y", 1.0), ("x", "y", 1.0)]
    assert votes.seat.tolist() == [0.0, 0.0]
    assert votes.left_out == {UNREAD: 1}
    assert votes.categories == ["math"]
    assert votes.judges == ["judge"]
    assert (votes.style_a[1, 0], votes.style_b[1, 0]) == (10, 30)


def test_games_that_disagree_are_a_tie_or_left_out_or_two_votes(log: Path) -> None:
    assert rows(read(log, merge="inconsistent_is_tie"))[1] == ("x", "y", 0.5)
    dropped = read(log, merge="drop_inconsistent")
    assert rows(dropped) == [("x", "y", 1.0)]
    assert dropped.left_out[INCONSISTENT] == 1
    single = read(log, merge="votes")
    assert rows(single)[2:] == [("x", "y", 1.0), ("y", "x", 1.0)]
    assert single.seat.tolist() == [1.0] * 4


def test_scores_within_the_margin_are_a_tie(log: Path) -> None:
    assert rows(read(log, tie_margin=2.0))[0] == ("x", "y", 0.5)


def test_a_battle_in_one_order_counts_only_as_a_vote(tmp_path: Path) -> None:
    append(tmp_path / "one.jsonl", [GAME])
    assert read(tmp_path / "one.jsonl").left_out == {ONE_ORDER: 1}
    assert rows(read(tmp_path / "one.jsonl", merge="votes")) == [("x", "y", 1.0)]


def test_a_game_that_was_played_again_counts_once_by_its_last_attempt(tmp_path: Path) -> None:
    path = tmp_path / "games.jsonl"
    first = [game(1, "x", (None, None), parse_status="failed"), game(2, "y", (5.0, 7.0))]
    append(path, [*first, game(1, "x", (8.0, 6.0), attempt=2)])
    assert rows(read(path)) == [("x", "y", 1.0)]


def test_a_line_that_a_kill_cut_off_is_passed_over_and_then_replaced(log: Path) -> None:
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"game_id": "g7", "batt')
    votes = read(log)
    assert len(votes) == 2
    assert "cut off by a kill" in votes.notes[0]
    append(log, [game(7, "x", (1.0, 2.0), "b9")])
    assert log.read_bytes().startswith(whole)
    assert [json.loads(line)["game_id"] for line in log.read_text().splitlines()][-1] == "g7"


def test_a_broken_line_in_the_middle_is_an_error(log: Path) -> None:
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*lines[:2], "{broken\n", *lines[2:]]))
    with pytest.raises(DataError, match=r"games.jsonl:3: broken JSON"):
        read(log)


@pytest.mark.parametrize("score", [None, float("nan"), "high", True])
def test_a_score_that_is_none_is_an_error_and_no_tie(tmp_path: Path, score: Any) -> None:
    row = asdict(GAME) | {"score_first": score}
    text = json.dumps(row)
    (tmp_path / "g.jsonl").write_text(text + "\n")
    with pytest.raises(DataError, match=r"g.jsonl:1: score_first: .* is not a finite number"):
        read(tmp_path / "g.jsonl")


def test_several_answers_or_judges_of_one_name_are_said(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    same = {"judge_rev": "r1", "answer_first_sha": "a", "answer_second_sha": "b"}
    turned = {**same, "answer_first_sha": "b", "answer_second_sha": "a"}
    append(path, [game(1, "x", (8.0, 6.0), **same), game(2, "y", (6.0, 8.0), **turned)])
    assert read(path).notes == []
    other = {**same, "answer_second_sha": "c"}
    append(path, [game(3, "x", (8.0, 6.0), "b2", **other)])
    (note,) = read(path).notes
    assert note.startswith("y has several answers to 1 prompt in these games, and all of them")
    append(path, [game(4, "x", (8.0, 6.0), "b3", **{**same, "judge_rev": "r2"})])
    assert "games of 2 versions of the judge judge" in read(path).notes[1]
    assert read_games([path], Reading())[1] == read(path).notes


def test_our_battles(tmp_path: Path) -> None:
    battle = Battle("b1", "p1", "x", "y", "judge", "tie", style_a=Style(5), style_b=Style(7, 1))
    again = replace(battle, winner="model_a")
    append(tmp_path / "b.jsonl", [battle, again, replace(battle, battle_id="c", winner="model_b")])
    votes = read(tmp_path / "b.jsonl")
    assert rows(votes) == [("x", "y", 0.5), ("x", "y", 0.0)]
    assert votes.style_b[0].tolist() == [7, 1, 0, 0]
    assert votes.left_out == {REPEATED: 1}


def test_our_battles_name_a_seat_whatever_models_are_called(tmp_path: Path) -> None:
    names = (("base", "model_a"), ("model_b", "other"), ("tie", "yes"), ("A", "a"))
    for number, (a, b) in enumerate(names):
        won = Battle(f"b{number}", "p1", a, b, "judge", "model_a")
        append(tmp_path / "b.jsonl", [won, replace(won, battle_id=f"c{number}", winner="tie")])
    found = rows(read(tmp_path / "b.jsonl"))
    assert found == [(a, b, won) for a, b in names for won in (1.0, 0.5)]
    line = json.dumps(asdict(won) | {"winner": "a"})
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match="'a' is none of model_a, model_b and tie"):
        read(tmp_path / "bad.jsonl")


def test_a_margin_makes_no_tie_of_what_a_rule_decided(tmp_path: Path) -> None:
    ruled = {"decoding": {"rule": "empty"}}
    append(tmp_path / "g.jsonl", [game(1, "x", (10.0, 1.0), **ruled)])
    append(tmp_path / "g.jsonl", [game(2, "y", (1.0, 10.0), **ruled)])
    append(tmp_path / "g.jsonl", [game(3, "x", (30.0, 20.0), "b2")])
    append(tmp_path / "g.jsonl", [game(4, "y", (20.0, 30.0), "b2")])
    for merge in ("mean", "inconsistent_is_tie"):
        votes = read(tmp_path / "g.jsonl", tie_margin=20.0, merge=merge)
        assert votes.outcome.tolist() == [1.0, 0.5]
    votes = read(tmp_path / "g.jsonl", tie_margin=20.0, merge="votes")
    assert votes.outcome.tolist() == [1.0, 0.0, 0.5, 0.5]


def test_turns_of_several_parts_are_as_long_as_their_texts(tmp_path: Path) -> None:
    said = [{"type": "text", "text": "**Yes**", "image": None}, {"type": "image", "text": None}]
    talk = [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
    row = {"model_a": "x", "model_b": "y", "winner": "both_bad", "conversation_a": talk}
    write_jsonl(tmp_path / "v.jsonl", [row])
    assert read(tmp_path / "v.jsonl").style_a[0].tolist() == [7, 0, 0, 1]


def test_rows_of_a_public_arena(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "# Yes\n- **a**"}]
    counted = {
        "sum_assistant_a_tokens": 9,
        "sum_assistant_b_tokens": 4,
        "header_count_a": {"h1": 1, "h2": 2},
    }
    common = {"model_a": "x", "model_b": "y", "question_id": 7}
    words = ("model_a", "b", "tie (bothbad)", "y", "A>>B", "B+")
    found = [{**common, "winner": word} for word in words]
    found[0] |= {"conversation_a": talk, "conversation_b": talk}
    found[1] |= {"conv_metadata": counted, "weight": 2.5}
    write_jsonl(tmp_path / "arena.jsonl", found)
    votes = read(tmp_path / "arena.jsonl")
    assert votes.outcome.tolist() == [1.0, 0.0, 0.5, 0.0, 1.0, 0.0]
    assert votes.style_a[0].tolist() == [13, 1, 1, 1]
    assert votes.style_a[1, :2].tolist() == [9, 3]
    assert votes.weight.tolist()[:2] == [1.0, 2.5]
    assert votes.grade.tolist()[4:] == [2.0, -1.0]
    assert votes.prompts == ["7"]


def test_csv_without_prompts_says_what_that_means(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text("model_a,model_b,winner,len_a,len_b\nx,y,x,10,20\ny,x,tie,,\n")
    votes = read(tmp_path / "v.csv")
    assert rows(votes) == [("x", "y", 1.0), ("y", "x", 0.5)]
    assert len(votes.prompts) == 2
    assert "2 rows name no prompt" in votes.notes[0]
    assert votes.style_a[0, 0] == 10


def test_a_winner_that_is_none_of_the_two_names_its_row(tmp_path: Path) -> None:
    row = {"model_a": "x", "model_b": "y", "prompt_id": "p"}
    found = problems(
        tmp_path / "v.jsonl",
        [{**row, "winner": "x"}, {**row, "winner": "z"}, {**row, "winner": ""}, row],
    )
    assert found == [
        ":2: winner: 'z' is neither 'x' nor 'y' "
        "(write model_a, model_b, tie, or one of the two names)",
        ":3: winner: is empty",
        ":4: winner: is missing",
    ]


def test_other_rows_that_cannot_be_used(tmp_path: Path) -> None:
    row = {"model_a": "x", "model_b": "y", "winner": "x"}
    bad = [{"model_b": "x"}, {"weight": 0}, {"weight": "a"}, {"model_a": 3}, {"len_a": "long"}]
    bad.append({"len_b": -1})
    found = problems(tmp_path / "v.jsonl", ({**row, **part} for part in bad))
    assert found == [
        ":1: model_b: 'x' meets itself",
        ":2: weight: 0 is not above 0",
        ":3: weight: 'a' is not a finite number",
        ":4: model_a: is a number, not a text",
        ":5: len_a: 'long' is not a finite number",
        ":6: len_b: -1 is below 0",
    ]


def test_a_word_that_means_two_things_is_refused(tmp_path: Path) -> None:
    row = {"model_a": "b", "model_b": "y", "winner": "b"}
    (found,) = problems(tmp_path / "v.jsonl", [row])
    assert "is a word for one outcome and a model's name" in found


def test_many_problems_are_counted_and_the_first_are_listed(tmp_path: Path) -> None:
    rows = [{"model_a": "x", "model_b": "y", "winner": "?"}] * 30
    write_jsonl(tmp_path / "v.jsonl", rows)
    with pytest.raises(DataError, match="30 rows cannot be used, the first 20") as caught:
        read(tmp_path / "v.jsonl")
    assert len(caught.value.problems) == 20


def test_annotations_of_alpaca_eval(tmp_path: Path) -> None:
    row = {"generator_1": "base", "generator_2": "new", "output_1": "abc", "output_2": "abcdef"}
    preferences = (1, 2.0, 1.5, 0, 1.75, None)
    rows_ = [
        {**row, "preference": one, "instruction": "i" * 100, "annotator": "j"}
        for one in preferences
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(rows_))
    votes = read(tmp_path / "annotations.json")
    assert votes.outcome.tolist() == [1.0, 0.0, 0.5, 0.5, 0.25]
    assert votes.left_out == {"annotations without a preference": 1}
    assert (votes.style_a[0, 0], votes.style_b[0, 0]) == (3, 6)
    assert len(votes.prompts) == 1
    assert problems(tmp_path / "a.jsonl", [{**row, "preference": 3}]) == [
        ":1: preference: 3 is neither 0 nor from 1 to 2"
    ]


def test_judgments_of_arena_hard(tmp_path: Path) -> None:
    row = {"uid": "q1", "model": "new", "baseline": "base", "judge": "j"}
    games = [{"score": "B>>A"}, {"score": "A>B"}]
    other = [{"score": "A=B"}, {"score": None}]
    write_jsonl(tmp_path / "j.jsonl", [{**row, "games": games}, {**row, "games": other}])
    votes = read(tmp_path / "j.jsonl", merge="votes")
    assert rows(votes) == [("base", "new", 0.0), ("new", "base", 1.0)]
    assert votes.grade.tolist() == [-2.0, 1.0]
    assert votes.left_out == {UNREAD: 1}
    merged = read(tmp_path / "j.jsonl")
    assert rows(merged) == [("base", "new", 0.0)]
    assert merged.grade.tolist() == [-1.5]


def test_judgments_without_a_baseline_need_its_name(tmp_path: Path) -> None:
    row = {"question_id": "q1", "model": "new", "games": [{"score": "A>B"}, {"score": "B>A"}]}
    (found,) = problems(tmp_path / "j.jsonl", [row])
    assert found == ":1: baseline: is missing (name the baseline with --baseline)"
    assert rows(read(tmp_path / "j.jsonl", baseline="base")) == [("base", "new", 1.0)]
    (found,) = problems(
        tmp_path / "j.jsonl", [{**row, "games": [{"score": "A?"}]}], baseline="base"
    )
    assert found == ":1: games[0].score: 'A?' is no verdict such as A>B"


def test_a_file_of_no_known_form_or_kind_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match="no form of votes has the columns text"):
        read(tmp_path / "x.jsonl")
    (tmp_path / "x.txt").write_text("a\n")
    with pytest.raises(DataError, match="of no known kind"):
        read(tmp_path / "x.txt")
    with pytest.raises(DataError, match="is not a file"):
        read(tmp_path / "none.csv")


def test_several_files_are_read_as_one(tmp_path: Path, log: Path) -> None:
    write_jsonl(tmp_path / "v.jsonl", [{"model_a": "y", "model_b": "z", "winner": "y"}])
    assert read_votes([log, tmp_path / "v.jsonl"], Reading()).models == ["x", "y", "z"]
