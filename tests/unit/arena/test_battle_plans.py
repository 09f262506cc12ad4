"""Plans that look at what was judged, and the win rate that a gate stands on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from battles import FakeJudge, answers_of, items_of

from aligner.arena.battle.adaptive import chance, play_adaptively
from aligner.arena.battle.bracket import play_bracket, seeded
from aligner.arena.battle.log import GAMES, GameLog
from aligner.arena.battle.play import Table
from aligner.arena.battle.recipe import Arena, ArenaRecipe
from aligner.arena.battle.win_rate import gate, refuse_closed, upper_end, win_rate_of
from aligner.arena.records import Battle
from aligner.errors import DataError, GateError
from aligner.events import Notice


def recipe(names: list[str], **arena: Any) -> ArenaRecipe:
    contestants = [{"name": name, "answers": f"{name}.jsonl"} for name in names]
    arena = {"contestants": contestants, "judges": [{"scorer": "toy"}], **arena}
    return ArenaRecipe(output_dir="run", arena=Arena.model_validate(arena))


def table(folder: Path, judge: FakeJudge, told: list[Any] | None = None) -> Table:
    folder.mkdir(exist_ok=True)
    on_event = None if told is None else told.append
    return Table([judge], GameLog(folder / GAMES), on_event=on_event)


def battle(prompt: int, winner: str, other: str = "old") -> Battle:
    a, b = sorted(("new", other))
    name = {"new": "new", "old": other}.get(winner)
    side = {a: "model_a", b: "model_b"}.get(name or "", "tie")
    return Battle(f"{prompt}{other}", f"p{prompt}", a, b, "j", side)  # type: ignore[arg-type]


# --- adaptive -------------------------------------------------------------------------------------


def test_chance_is_the_two_sided_tail_of_a_fair_coin() -> None:
    assert chance(0, 0) == 1.0
    assert chance(1, 1) == 1.0
    assert chance(6, 0) == pytest.approx(2 / 64)
    assert chance(1, 5) == pytest.approx(2 * (6 + 1) / 64)
    assert chance(60, 40) == pytest.approx(
        2 * sum(math.comb(100, count) for count in range(60, 101)) / 2**100
    )
    assert 0.0 < chance(5200, 4800) < 1e-4


def test_a_pair_meets_until_it_is_told_apart(tmp_path: Path) -> None:
    items = items_of(100)
    answers = answers_of(items, best=lambda n: 9, fair=lambda n: n % 2 * 4 + 1, even=lambda n: 3)
    told: list[Any] = []
    judge = FakeJudge()
    played, stopped = play_adaptively(
        recipe(["best", "fair", "even"], plan="adaptive"),
        items,
        answers,
        table(tmp_path, judge, told),
    )
    assert stopped is None
    state = {tuple(pair["models"]): pair for pair in played.plan["pairs"]}
    assert state["best", "even"]["separated"]
    assert state["best", "even"]["looks"] == 1
    assert state["best", "even"]["prompts"] == 20
    assert not state["even", "fair"]["separated"]
    assert state["even", "fair"]["prompts"] == 100
    assert len(judge.asked) == 2 * (20 + 20 + 100)
    assert len(played.battles) == played.wanted == 140
    said = [event.text for event in told if isinstance(event, Notice)]
    assert said == ["best is above even after 20 prompts", "best is above fair after 20 prompts"]


def test_an_adaptive_run_that_is_stopped_takes_the_same_looks_again(tmp_path: Path) -> None:
    items = items_of(60)
    random = np.random.default_rng(0)
    scores = random.normal(size=60)
    answers = answers_of(items, a=lambda n: scores[n] + 0.8, b=lambda n: 0.0, c=lambda n: 0.1)
    how = recipe(["a", "b", "c"], plan="adaptive", adaptive={"prompts_per_look": 10})
    whole, _ = play_adaptively(how, items, answers, table(tmp_path / "x", FakeJudge()))
    asked = 0
    for most in (7, 30, 61, 10**9):
        judge = FakeJudge(most=most)
        part, stopped = play_adaptively(how, items, answers, table(tmp_path / "y", judge))
        assert (stopped is None) == (most == 10**9)
        asked += len(judge.asked)
    assert part.plan == whole.plan
    assert len(part.battles) == len(whole.battles)
    assert asked <= 2 * len(whole.battles) + 3, "a game whose battle was not whole is asked again"


@pytest.mark.slow
def test_equals_are_rarely_told_apart(tmp_path: Path) -> None:
    """Of 200 pairs of equals at most 1 in 20 and its chance; looking without sharing is worse."""
    items = items_of(100)
    how = recipe(["a", "b"], plan="adaptive", adaptive={"prompts_per_look": 10})
    separated = shared = 0
    for seed in range(200):
        wins = (np.random.default_rng(seed).random(100) < 0.5).tolist()
        answers = answers_of(items, a=[int(won) for won in wins].__getitem__, b=lambda n: 0.5)
        where = table(tmp_path / str(seed), FakeJudge())
        found, _ = play_adaptively(how.model_copy(update={"seed": seed}), items, answers, where)
        separated += found.plan["pairs"][0]["separated"]
        looks = [sum(wins[:end]) for end in range(10, 101, 10)]
        shared += any(chance(won, 10 * k - won) <= 0.05 for k, won in enumerate(looks, 1))
    assert separated <= 18
    assert shared > 18


# --- bracket --------------------------------------------------------------------------------------


def test_the_best_meet_last_and_byes_go_to_the_first() -> None:
    assert seeded(list("abcdefgh")) == list("ahdebgcf")
    assert seeded(list("abc")) == ["a", None, "b", "c"]
    assert seeded(list("ab")) == ["a", "b"]


def test_a_bracket_is_won_by_the_winner_of_every_match(tmp_path: Path) -> None:
    items = items_of(10)
    answers = answers_of(
        items,
        first=lambda n: 5,
        second=lambda n: 7,
        third=lambda n: 9 if n else 1,
        fourth=lambda n: 3,
        fifth=lambda n: 5,
    )
    told: list[Any] = []
    judge = FakeJudge()
    how = recipe(["first", "second", "third", "fourth", "fifth"], plan="bracket")
    played, stopped = play_bracket(how, items, answers, table(tmp_path, judge, told))
    assert stopped is None
    names = [[match["models"] for match in one] for one in played.plan["rounds"]]
    assert names == [
        [["fourth", "fifth"]],
        [["first", "fifth"], ["second", "third"]],
        [["first", "third"]],
    ]
    assert played.plan["winner"] == "third"
    assert played.plan["rounds"][1][0]["by_seed"]
    assert played.plan["rounds"][2][0]["win_rate"]["rate"] == pytest.approx(0.1)
    said = [event.text for event in told if isinstance(event, Notice)]
    assert said == ["first and fifth are even: the better seed, first, advances"]
    assert len(played.battles) == played.wanted == 40
    assert len(judge.asked) == 2 * 30, "first and fifth answer the same"


# --- win rates and the gate -----------------------------------------------------------------------


def test_a_win_rate_counts_ties_as_half_and_draws_prompts() -> None:
    battles = [battle(0, "new"), battle(0, "new", "odd"), battle(1, "tie"), battle(2, "old")]
    rate = win_rate_of(battles, "new", 2000, seed=0)
    assert (rate.rate, rate.wins, rate.ties, rate.losses, rate.prompts) == (0.625, 2, 1, 1, 3)
    assert rate.low == 0.0
    assert rate.high == 1.0
    assert win_rate_of(battles[:1], "new", 2000, seed=0).low is None
    assert win_rate_of([], "new", 2000, seed=0).rate is None


def test_an_interval_by_prompt_is_wider_than_one_of_games() -> None:
    same = [battle(n, "new" if n % 2 else "old", f"o{k}") for n in range(40) for k in range(8)]
    own = [
        battle(8 * n + k, "new" if (8 * n + k) % 2 else "old", f"o{k}")
        for n in range(40)
        for k in range(8)
    ]
    wide, narrow = (win_rate_of(some, "new", 1000, seed=0) for some in (same, own))
    assert wide.low is not None
    assert narrow.low is not None
    assert 0.5 - wide.low > 2 * (0.5 - narrow.low)


def test_a_gate_closes_where_the_target_is_shown_to_be_worse() -> None:
    worse = [battle(n, "new" if n % 4 == 0 else "old") for n in range(100)]
    found = gate(worse, "new", 0.5, 0.95, seed=0)
    assert not found["passed"]
    assert found["win_rate"] == 0.25
    # normal approximation: 0.25 + 1.645 * sqrt(0.25 * 0.75 / 100)
    assert found["upper"] == pytest.approx(0.321, abs=0.01)
    with pytest.raises(GateError, match=r"new is worse: it wins 25.0%"):
        refuse_closed(found)
    assert GateError.exit_code == 6
    assert gate(worse, "new", 0.3, 0.95, seed=0)["passed"], "not shown to win less than 30%"


def test_few_prompts_show_nothing() -> None:
    lost = [battle(n, "old") for n in range(4)]
    assert upper_end(lost, "new", 0.95, seed=0) == pytest.approx(1 - 0.05 ** (1 / 4))
    assert gate(lost, "new", 0.5, 0.95, seed=0)["passed"]
    assert not gate([battle(n, "old") for n in range(5)], "new", 0.5, 0.95, seed=0)["passed"]
    with pytest.raises(DataError, match="on two prompts at least"):
        gate(lost[:1], "new", 0.5, 0.95, seed=0)
