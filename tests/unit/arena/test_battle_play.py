"""Matches are judged in both orders and logged as whole battles; nothing is asked twice."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from battles import FakeJudge, answers_of, by_number, items_of

from aligner.arena.battle.log import GAMES, GameLog, battle_id, read_log
from aligner.arena.battle.merged import battle_of, votes_of
from aligner.arena.battle.plan import Match, matches, pairs_of
from aligner.arena.battle.play import Table, play
from aligner.arena.battle.sheets import Answer, Item, Judged, Sheet
from aligner.arena.battle.spend import Spend, in_words, totals
from aligner.arena.merging import UNREAD
from aligner.arena.readers import Reading, read_games, read_votes
from aligner.config.battles import Rating
from aligner.errors import DataError
from aligner.events import Notice, StageProgress

ITEMS = items_of(6)
ANSWERS = answers_of(ITEMS, new=lambda n: n + 2, old=lambda n: n + 1, best=lambda n: 9)
ALL = matches(ITEMS, ANSWERS, pairs_of(ANSWERS), seed=0)


def table(folder: Path, *judges: FakeJudge) -> Table:
    return Table(judges, GameLog(folder / GAMES))


def test_a_plan_is_all_pairs_or_those_of_the_target_in_an_order_of_the_seed() -> None:
    assert pairs_of(["c", "a", "b"]) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert pairs_of(["c", "a", "b"], "b") == [("a", "b"), ("b", "c")]
    assert len(ALL) == 18
    assert matches(ITEMS[::-1], ANSWERS, pairs_of(ANSWERS), seed=0) == ALL
    other = matches(ITEMS, ANSWERS, pairs_of(ANSWERS), seed=1)
    assert other != ALL
    assert sorted(map(repr, other)) == sorted(map(repr, ALL))


def test_both_orders_are_judged_and_both_games_logged(tmp_path: Path) -> None:
    judge = FakeJudge()
    where = table(tmp_path, judge)
    assert play(ALL, where) is None
    assert len(judge.asked) == 36
    games = list(read_log(tmp_path / GAMES))
    assert len(games) == 36
    first, second = games[0], games[1]
    assert (first.model_first, first.model_second) == (second.model_second, second.model_first)
    assert first.battle_id == second.battle_id
    assert first.game_id != second.game_id
    assert first.raw_text == "seen"
    assert first.style_first is not None
    assert first.style_first.length == 1


def test_a_log_is_read_by_rate(tmp_path: Path) -> None:
    where = table(tmp_path, FakeJudge())
    play(ALL, where)
    read = read_votes([tmp_path / GAMES], Reading())
    mine = votes_of([games for match in ALL for games in where.games(match)], Rating())
    assert sorted(zip(mine.a, mine.b, mine.outcome)) == sorted(zip(read.a, read.b, read.outcome))


def test_what_is_in_the_log_is_not_judged_again(tmp_path: Path) -> None:
    play(ALL[:7], table(tmp_path, FakeJudge()))
    told: list[object] = []
    judge = FakeJudge()
    again = Table([judge], GameLog(tmp_path / GAMES), on_event=told.append)
    play(ALL, again)
    assert len(judge.asked) == 22
    assert [event.text for event in told if isinstance(event, Notice)] == [
        "resuming battles: 7 of 18 are there"
    ]
    progress = [event for event in told if isinstance(event, StageProgress)]
    assert (progress[-1].done, progress[-1].total) == (18, 18)
    assert progress[-1].text == "22 calls, 220 tokens, $0.22"


@pytest.mark.parametrize("most", range(0, 36, 5))
def test_a_run_that_is_stopped_holds_whole_battles_and_goes_on(tmp_path: Path, most: int) -> None:
    stopped = play(ALL, table(tmp_path, FakeJudge(most=most)))
    assert stopped is not None
    games = list(read_log(tmp_path / GAMES)) if (tmp_path / GAMES).exists() else []
    assert len(games) == most // 2 * 2
    where = table(tmp_path, FakeJudge())
    assert play(ALL, where) is None
    assert all(where.is_played(match) for match in ALL)
    assert len(list(read_log(tmp_path / GAMES))) == 36


def test_a_line_that_a_kill_cut_is_dropped_with_its_battle(tmp_path: Path) -> None:
    play(ALL, table(tmp_path, FakeJudge()))
    path = tmp_path / GAMES
    content = path.read_bytes()
    path.write_bytes(content[:-50])
    judge = FakeJudge()
    play(ALL, table(tmp_path, judge))
    assert len(judge.asked) == 2
    lines = path.read_text().splitlines()
    assert len(lines) == 37
    assert len({line.split('"game_id": "')[1][:24] for line in lines}) == 36


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    play(ALL, table(tmp_path, FakeJudge()))
    path = tmp_path / GAMES
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]) + "\n")
    with pytest.raises(DataError, match=r"games.jsonl:2 is damaged"):
        table(tmp_path, FakeJudge())


def test_identical_answers_tie_and_empty_ones_lose_without_a_call(tmp_path: Path) -> None:
    item = Item("p", "ask")
    texts = {"same": "1 ", "also": "1", "none": " ", "void": ""}
    answers = {name: {"p": Answer(name, text)} for name, text in texts.items()}
    judge = FakeJudge()
    plan = matches([item], answers, pairs_of(answers), 0)
    where = table(tmp_path, judge)
    play(plan, where)
    assert judge.asked == []
    battles = {
        match.pair: battle_of(next(where.games(match)), Rating(tie_margin=20.0)) for match in plan
    }
    winners = {pair: battle.winner for pair, battle in battles.items() if battle is not None}
    assert winners == {
        ("also", "same"): "tie",
        ("none", "void"): "tie",
        ("also", "none"): "model_a",
        ("also", "void"): "model_a",
        ("none", "same"): "model_b",
        ("same", "void"): "model_a",
    }
    assert all(battle is not None and battle.s_a is None for battle in battles.values())
    rules = [game.decoding["rule"] for game in read_log(tmp_path / GAMES)]
    assert sorted(rules) == ["empty"] * 8 + ["identical"] * 4


def test_a_battle_is_another_one_when_anything_that_decides_it_changes() -> None:
    judge, match = FakeJudge(), ALL[0]
    known = battle_id(match, judge)
    assert battle_id(replace(match), FakeJudge()) == known
    item = match.item
    others = [
        battle_id(match, FakeJudge(id="other")),
        battle_id(match, FakeJudge(rev="2")),
        battle_id(match, FakeJudge(template_sha="u")),
        battle_id(replace(match, item=replace(item, prompt="another")), judge),
        battle_id(replace(match, item=replace(item, reference="r")), judge),
        battle_id(replace(match, a=replace(match.a, text="another")), judge),
        battle_id(replace(match, a=replace(match.a, model="another")), judge),
    ]
    assert len({known, *others}) == 8
    assert battle_id(replace(match, item=replace(item, category="c")), judge) == known


def test_each_judge_of_a_panel_has_a_vote(tmp_path: Path) -> None:
    def against(sheet: Sheet) -> Judged:
        return Judged("ok", 1.0 / float(sheet.first.text), 1.0 / float(sheet.second.text))

    where = table(tmp_path, FakeJudge(), FakeJudge(against, id="contrary"))
    play(ALL, where)
    votes = votes_of([games for match in ALL for games in where.games(match)], Rating())
    assert len(votes) == 36
    assert votes.judges == ["contrary", "fake"]
    assert float(votes.outcome.mean()) == 0.5


def test_replies_that_cannot_be_read_are_no_ties(tmp_path: Path) -> None:
    def half(sheet: Sheet) -> Judged:
        return Judged("failed") if sheet.first.model == "old" else by_number(sheet)

    where = table(tmp_path, FakeJudge(half))
    play(ALL, where)
    games = [games for match in ALL for games in where.games(match)]
    votes = votes_of(games, Rating())
    assert votes.left_out == {UNREAD: 12}
    assert {votes.models[number] for number in [*votes.a, *votes.b]} == {"best", "new"}
    assert sum(battle_of(one, Rating()) is None for one in games) == 12
    judge = FakeJudge()
    play(ALL, table(tmp_path, judge))
    assert judge.asked == [], "a reply that failed for good is not asked for again"


def test_games_are_merged_by_the_rule(tmp_path: Path) -> None:
    def seated(sheet: Sheet) -> Judged:
        return Judged("ok", 7.0, 5.0 if sheet.first.model == "new" else 6.0)

    item = Item("p", "ask", category="sums")
    match = Match(item, Answer("new", "1", is_cut=True), Answer("old", "22"))
    where = table(tmp_path, FakeJudge(seated))
    play([match], where)
    games = next(where.games(match))
    battle = battle_of(games, Rating())
    assert battle is not None
    assert (battle.winner, battle.s_a, battle.s_b, battle.margin) == ("model_a", 6.5, 6.0, 0.5)
    assert (battle.consistent, battle.category) == (False, "sums")
    assert battle.style_a is not None
    assert battle.style_a.length == 1
    tied = battle_of(games, Rating(merge="inconsistent_is_tie"))
    assert tied is not None
    assert tied.winner == "tie"
    assert battle_of(games, Rating(merge="drop_inconsistent")) is None
    within = battle_of(games, Rating(tie_margin=0.5))
    assert within is not None
    assert within.winner == "tie"
    assert [game.decoding for game in games] == [{"cut": ["first"]}, {"cut": ["second"]}]


def test_spend_is_kept_over_sessions(tmp_path: Path) -> None:
    judge = FakeJudge(most=10)
    play(ALL, replace(table(tmp_path, judge), spend=Spend(tmp_path)))
    spend = Spend(tmp_path)
    play(ALL, replace(table(tmp_path, FakeJudge()), spend=spend))
    total = totals(Spend(tmp_path).to_json())
    assert (total["calls"], round(total["usd"], 2)) == (36, 0.36)
    assert in_words(spend.to_json()) == "36 calls, 360 tokens, $0.36"
    assert in_words({}) == ""


def test_what_is_spent_is_told_while_a_judge_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligner.arena.battle.play.TICK_S", 0.01)
    told: list[object] = []

    def waits(sheet: Sheet) -> Judged:
        limit = time.monotonic() + 120
        while len(told) < min(len(judge.asked), 4):
            assert time.monotonic() < limit
            time.sleep(0.005)
        return by_number(sheet)

    judge = FakeJudge(waits)
    where = Table([judge], GameLog(tmp_path / GAMES), on_event=told.append)
    play(ALL, where)
    texts = [event.text for event in told if isinstance(event, StageProgress)]
    assert len(texts) > 3
    assert texts[-1] == "36 calls, 360 tokens, $0.36"
    assert "aligner-battles" not in {thread.name for thread in threading.enumerate()}


def test_games_of_a_rule_say_nothing_about_a_judge(tmp_path: Path) -> None:
    item = Item("p", "ask")
    texts = {"a": "1", "b": "", "c": "2"}
    answers = {name: {"p": Answer(name, text)} for name, text in texts.items()}
    play(matches([item], answers, pairs_of(answers), 0), table(tmp_path, FakeJudge()))
    games, notes = read_games([tmp_path / GAMES], Reading())
    assert len(games) == 2
    assert notes == ["4 games were decided by a rule and not by a judge: left out"]
    assert len(read_votes([tmp_path / GAMES], Reading())) == 3
