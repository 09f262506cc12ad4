"""Which rows battles give, on tables made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aligner.arena.battle.sheets import Answer, Item
from aligner.arena.records import Battle
from aligner.arena.selection.contests import Contest, contests_of
from aligner.arena.selection.loops import is_looping
from aligner.arena.selection.rules import (
    INCONSISTENT,
    LENGTH,
    MARGIN,
    MINORITY,
    NO_PAIR,
    NOBODY,
    NOT_LOST,
    NOT_MET,
    SCORE,
    TARGET_NOT_IN,
    VERIFIER,
    Chosen,
    Dropped,
    Limits,
    Rules,
)


def battle(
    a: str, b: str, s_a: float, s_b: float, prompt: str = "p", judge: str = "j", **more: Any
) -> Battle:
    """A battle by hand; models in any order."""
    if a > b:
        a, b, s_a, s_b = b, a, s_b, s_a
    winner: Any = "tie" if s_a == s_b else "model_a" if s_a > s_b else "model_b"
    name = f"{prompt} {a} {b} {judge}"
    given: dict[str, Any] = {"winner": winner, "s_a": s_a, "s_b": s_b, "margin": s_a - s_b}
    return Battle(name, prompt, a, b, judge, **{**given, "consistent": True, **more})


def contest(
    *battles: Battle, texts: dict[str, str] | None = None, cut: Sequence[str] = ()
) -> Contest:
    """The contest of a prompt, in which everybody who fights has answered."""
    names = {one.model_a for one in battles} | {one.model_b for one in battles} | set(texts or {})
    said = {name: (texts or {}).get(name, f"the answer of {name}") for name in names}
    answers = {name: {"p": Answer(name, text, name in cut)} for name, text in said.items()}
    (found,) = contests_of([Item("p", "a question")], answers, battles)
    return found


def table(**scores: float) -> list[Battle]:
    """A round robin in which each model gets the same score against everybody."""
    pairs = combinations(sorted(scores), 2)
    return [battle(a, b, scores[a], scores[b]) for a, b in pairs]


def sft(found: Contest, k: float = 1.0, **limits: Any) -> Any:
    return Rules("t", Limits(k, **limits)).sft(found)


def pair(found: Contest, k: float = 1.0, **limits: Any) -> Any:
    return Rules("t", Limits(k, **limits)).pair(found)


def reason(found: Any) -> str:
    assert isinstance(found, Dropped)
    return found.reason


def sides(found: Any) -> tuple[str, str, float]:
    assert isinstance(found, Chosen)
    return found.winner, found.loser, found.margin


# --- what is known of a prompt --------------------------------------------------------------------


def test_a_score_is_the_mean_over_battles_and_judges_and_a_margin_that_over_judges() -> None:
    found = contest(
        battle("t", "x", 4, 8),
        battle("t", "y", 6, 5),
        battle("t", "x", 5, 6, judge="k"),
    )
    assert found.scores == {"t": 5.0, "x": 7.0, "y": 5.0}
    assert found.margin("x", "t") == 2.5
    assert found.margin("t", "x") == -2.5
    assert found.margin("x", "y") is None


def test_a_battle_that_is_there_twice_counts_once() -> None:
    found = contest(battle("t", "x", 4, 8), battle("t", "x", 9, 1))
    assert found.margin("x", "t") == 4.0


# --- sft ------------------------------------------------------------------------------------------


def test_the_winner_with_the_best_mean_score_is_learned() -> None:
    # y beats t by more, and x is better over all
    battles = [battle("t", "x", 5, 8), battle("t", "y", 3, 7), battle("x", "y", 9, 4)]
    assert sides(sft(contest(*battles))) == ("x", "t", 3.0)


@pytest.mark.parametrize(("k", "is_kept"), [(2.99, True), (3.0, True), (3.01, False)])
def test_the_margin_is_at_least_k(k: float, is_kept: bool) -> None:
    found = sft(contest(*table(t=5, x=8)), k)
    assert isinstance(found, Chosen) == is_kept
    assert is_kept or reason(found) == MARGIN


def test_a_prompt_that_the_target_won_or_tied_gives_nothing() -> None:
    assert reason(sft(contest(*table(t=8, x=5, y=3)))) == NOT_LOST
    assert reason(sft(contest(*table(t=8, x=8)), k=0)) == NOT_LOST


def test_a_target_whose_battles_were_not_judged_gives_nothing() -> None:
    assert reason(sft(contest(battle("x", "y", 8, 3), texts={"t": "an answer"}))) == NOT_MET


def test_equal_scores_go_to_the_name_that_sorts_first() -> None:
    battles = table(t=3, y=8, x=8)
    assert sides(sft(contest(*battles)))[0] == "x"
    assert sides(sft(contest(*reversed(battles))))[0] == "x"


def test_a_winner_that_is_bad_itself_is_not_learned() -> None:
    assert reason(sft(contest(*table(t=1, x=3)), min_winner_score=6.0)) == SCORE
    assert sides(sft(contest(*table(t=1, x=6)), min_winner_score=6.0)) == ("x", "t", 5.0)


def test_a_win_in_one_order_alone_can_be_refused() -> None:
    found = contest(battle("t", "x", 5, 8, consistent=False))
    assert sft(found).consistent is False
    assert reason(sft(found, consistent_only=True)) == INCONSISTENT


def test_a_loss_to_one_of_several_can_be_refused() -> None:
    lost_to_one = contest(*table(t=6, x=9, y=4, z=3))
    assert sides(sft(lost_to_one)) == ("x", "t", 3.0)
    assert reason(sft(lost_to_one, majority_only=True)) == MINORITY
    lost_to_half = contest(*table(t=6, x=9, y=3))
    assert reason(sft(lost_to_half, majority_only=True)) == MINORITY
    lost_to_most = contest(*table(t=4, x=9, y=6, z=3))
    assert sides(sft(lost_to_most, majority_only=True)) == ("x", "t", 5.0)
    # who may not be learned from still counts, and who is no rival does not
    assert sides(sft(lost_to_most, majority_only=True, barred=frozenset(["x"])))[0] == "y"
    two = frozenset(["x", "z"])
    assert reason(sft(lost_to_most, majority_only=True, rivals=two)) == MINORITY


def test_the_majority_is_asked_of_a_pair_s_loser_by_those_whom_it_met() -> None:
    found = contest(*table(t=6, x=9, y=3))
    assert sides(pair(found, majority_only=True)) == ("x", "y", 6.0)
    # y has the least mean, of a single heavy loss, and beat one of the two whom it met
    battles = [battle("t", "y", 9, 1), battle("x", "y", 5, 6), battle("t", "x", 6, 7)]
    assert sides(pair(contest(*battles))) == ("t", "y", 8.0)
    assert reason(pair(contest(*battles), majority_only=True)) == MINORITY


def test_an_answer_that_is_cut_empty_or_a_loop_is_not_learned_but_the_next_best_is() -> None:
    loop = "It goes on and on. " * 30
    for texts, cut in (({}, ["x"]), ({"x": " "}, []), ({"x": loop}, [])):
        assert sides(sft(contest(*table(t=2, y=6, x=9), texts=texts, cut=cut)))[0] == "y"
    assert reason(sft(contest(*table(t=2, x=9), cut=["x"]))) == NOBODY


def test_a_model_whose_licence_forbids_it_is_not_learned_from() -> None:
    found = contest(*table(t=2, y=6, x=9))
    assert sides(sft(found, barred=frozenset(["x"])))[0] == "y"


def test_battles_against_others_than_the_rivals_do_not_count() -> None:
    found = contest(*table(t=2, again=6, y=5))
    assert sides(sft(found, rivals=frozenset(["y"])))[0] == "y"


def test_a_winner_may_be_so_many_times_as_long() -> None:
    found = contest(*table(t=2, x=9), texts={"t": "a" * 10, "x": "ab" * 10})
    assert isinstance(sft(found, max_length_ratio=2.0), Chosen)
    assert reason(sft(found, max_length_ratio=1.9)) == LENGTH


def test_a_verifier_is_asked_about_the_winner_alone() -> None:
    asked = []

    def accepts(found: Contest, winner: str) -> bool:
        asked.append(winner)
        return False

    found = Rules("t", Limits(1.0), accepts).sft(contest(*table(t=2, x=9, y=8)))
    assert reason(found) == VERIFIER
    assert asked == ["x"]


def test_an_empty_answer_lost_by_any_margin() -> None:
    lost = Battle("b", "p", "t", "x", "j", "model_b")
    found = contest(lost, battle("x", "y", 8, 5), texts={"t": ""})
    assert sides(sft(found, k=5)) == ("x", "t", math.inf)


# --- pairs ----------------------------------------------------------------------------------------


def test_a_pair_is_the_best_and_the_worst_and_the_target_may_be_chosen() -> None:
    assert sides(pair(contest(*table(t=9, x=5, y=3)))) == ("t", "y", 6.0)
    assert sides(pair(contest(*table(t=6, x=9, y=3)))) == ("x", "y", 6.0)


def test_scopes_ask_for_the_target() -> None:
    between, best = contest(*table(t=6, x=9, y=3)), contest(*table(t=9, x=5, y=3))
    assert reason(pair(between, scope="involves_target")) == TARGET_NOT_IN
    assert sides(pair(best, scope="involves_target")) == ("t", "y", 6.0)
    assert sides(pair(between, scope="target_loses")) == ("x", "t", 3.0)
    assert reason(pair(best, scope="target_loses")) == NOT_LOST


def test_a_tie_is_never_a_pair() -> None:
    assert reason(pair(contest(*table(t=5, x=5)), k=0)) == NO_PAIR


def test_the_best_by_score_that_lost_to_the_worst_is_no_pair() -> None:
    battles = [battle("t", "x", 9, 8), battle("t", "y", 9, 2), battle("x", "y", 1, 3)]
    # means: t 9, x 4.5, y 2.5
    assert sides(pair(contest(*battles))) == ("t", "y", 7.0)
    turned = [battle("t", "x", 9, 1), battle("x", "y", 9, 1), battle("t", "y", 2, 3)]
    # means: t 5.5, x 5, y 2, and y beat t
    assert reason(pair(contest(*turned))) == NO_PAIR


def test_an_empty_answer_is_in_no_pair() -> None:
    lost = Battle("b", "p", "t", "x", "j", "model_b")
    found = contest(lost, battle("x", "y", 8, 5), texts={"t": ""})
    assert sides(pair(found)) == ("x", "y", 3.0)
    assert reason(pair(found, scope="target_loses")) == NO_PAIR


def test_a_barred_model_is_on_neither_side() -> None:
    found = contest(*table(t=5, x=9, y=1))
    assert reason(pair(found, barred=frozenset(["x", "y"]))) == NO_PAIR
    assert sides(pair(found, barred=frozenset(["x"]))) == ("t", "y", 4.0)


# --- what holds for all tables --------------------------------------------------------------------

SCORES = st.lists(st.integers(2, 20).map(lambda half: half / 2), min_size=6, max_size=6)


@settings(max_examples=200, deadline=None)
@given(scores=SCORES, low=st.floats(0, 5), more=st.floats(0, 5))
def test_a_larger_k_never_adds_a_row(scores: list[float], low: float, more: float) -> None:
    names = ("t", "x", "y")
    pairs = list(combinations(names, 2))
    given_ = zip(pairs, scores[::2], scores[1::2])
    found = contest(*(battle(*pair, one, two) for pair, one, two in given_))
    majorities = (partial(select, majority_only=True) for select in (sft, pair))
    for select in (sft, pair, *majorities):
        if isinstance(select(found, low + more), Chosen):
            chosen = select(found, low)
            assert isinstance(chosen, Chosen)
            assert chosen.margin >= low + more


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("A short answer.", False),
        ("ha " * 30, False),
        ("-" * 500, False),
        ("one two three four five " * 6, True),
        ("one two three four five " * 4, False),
        ("It begins well. " + "and then we add the numbers " * 8 + "\n\n", True),
        ("and then we add the numbers " * 8 + "and this is the end of the answer.", False),
    ],
)
def test_a_loop_is_at_least_a_hundred_characters_of_the_same(text: str, loops: bool) -> None:
    assert is_looping(text) is loops
