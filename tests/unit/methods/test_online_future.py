"""Future-guided chosen: which response of a temporary policy takes the place of the chosen one."""

from __future__ import annotations

import pytest

from aligner.config.load import load_recipe
from aligner.errors import RecipeError
from aligner.methods.online.pairing import FUTURE, Pair, Scored, guided
from aligner.methods.online.recipe import Pairing

GOOD = Scored("good", [1, 2], True, 2.0)
BAD = Scored("bad", [3], True, 0.0)
PAIR = Pair(GOOD, BAD, 2.0)


def future(text: str, score: float | None, *, ids: int = 2, is_finished: bool = True) -> Scored:
    return Scored(text, [7] * ids, is_finished, score, FUTURE)


def test_the_best_response_that_scores_above_the_chosen_one_takes_its_place() -> None:
    better, best = future("better", 3.0), future("best", 4.0)
    made = guided(PAIR, [better, best, future("worse", 1.0)], Pairing())
    assert made == Pair(best, BAD, 4.0)


@pytest.mark.parametrize(
    "one",
    [
        future("the same", 2.0),
        future("cut off", 5.0, is_finished=False),
        future("without a score", None),
        future("bad", 5.0),
        future("not a number", float("nan")),
    ],
    ids=lambda one: one.text,
)
def test_a_response_that_is_no_better_or_cannot_be_chosen_changes_nothing(one: Scored) -> None:
    assert guided(PAIR, [one], Pairing()) == PAIR
    assert guided(PAIR, [], Pairing()) == PAIR


def test_the_penalty_for_length_is_taken_off_these_scores_too() -> None:
    long = future("long", 3.0, ids=12)  # 3 - 1.2 against 2 - 0.2 of the chosen one
    settings = Pairing(length_penalty=0.1)
    pair = Pair(GOOD, BAD, 1.9)
    assert guided(pair, [long], settings) == pair
    made = guided(pair, [future("short", 3.0, ids=2)], settings)
    assert made.margin == pytest.approx(3.0 - 0.2 - (0.0 - 0.1))


def test_one_that_differs_too_much_in_length_is_passed_over() -> None:
    long, short = future("long", 9.0, ids=4), future("short", 3.0, ids=3)
    assert guided(PAIR, [long, short], Pairing(max_length_ratio=3.5)).chosen == short


RULES = {
    "top_bottom": "replaces the best response of a prompt",
    "random": "replaces the best response of a prompt",
}


@pytest.mark.parametrize("rule", RULES)
def test_rules_that_do_not_choose_the_best_alone_are_refused(rule: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe("online", "tiny/online-future", [f"online.pairing.rule={rule}"])
    assert RULES[rule] in str(error.value) + str(error.value.problems)


def test_next_token_training_makes_no_pairs_to_guide() -> None:
    changes = ["online.train=sft", "online.pairing.rule=max_min", "dpo={}"]
    with pytest.raises(RecipeError) as error:
        load_recipe("online", "tiny/online", ["online.future=true", *changes])
    assert any(problem.key == "online.future" for problem in error.value.problems)
