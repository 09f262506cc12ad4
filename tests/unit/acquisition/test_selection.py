"""Active labelling on plain lists: what reward models believe, how unsure they are, vectors, picks,
and hostile input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from aligner.acquisition.ngrams import WIDTH, ngram_vectors
from aligner.acquisition.picks import (
    at_random,
    draw,
    k_center,
    k_means_seeding,
    most_uncertain,
)
from aligner.acquisition.selection import Selection, pair_id, select
from aligner.acquisition.win_probabilities import (
    MEASURES,
    entropy,
    judge,
    pairs_of,
    sigmoid,
    win_rates,
)
from aligner.errors import DataError
from aligner.reward_models.base import UNBOUNDED, Preferences, Scores

LN2 = math.log(2.0)


class Lengths:
    """A reward model that likes long answers: the score is `scale` times the number of letters."""

    name, range = "lengths", UNBOUNDED

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def score(
        self, prompts: Sequence[Any], completions: Sequence[str], references: Any = None
    ) -> Scores:
        return Scores(self.scale * len(text) for text in completions)

    def fingerprint(self) -> str:
        return f"lengths {self.scale}"


class Alphabet(Lengths):
    """One that compares: the answer that comes first in the alphabet is better, surely."""

    def prefer(
        self, prompts: Sequence[Any], first: Sequence[str], second: Sequence[str]
    ) -> Preferences:
        return Preferences([0.9 if a < b else 0.1 for a, b in zip(first, second)])


class Broken(Lengths):
    def score(
        self, prompts: Sequence[Any], completions: Sequence[str], references: Any = None
    ) -> Scores:
        return Scores([float("nan")] * len(prompts))


def pair_matrix(*probabilities: float) -> np.ndarray:
    """Win probabilities of two answers by some models: shape (M, 2, 2)."""
    return np.array([[[0.5, p], [1.0 - p, 0.5]] for p in probabilities])


def ids(selection: Selection) -> list[str]:
    return [pair.id for pair in selection.picked]


# --- win probabilities ----------------------------------------------------------------------------


def test_a_score_becomes_a_probability_by_the_sigmoid_of_the_difference() -> None:
    ((found,),) = judge([Lengths()], ["p"], [["a", "aaa", ""]])
    assert found[1, 0] == pytest.approx(1 / (1 + math.exp(-2)))
    assert found[0, 2] == pytest.approx(1 / (1 + math.exp(-1)))
    assert np.allclose(found + found.T, 1.0)
    assert np.diag(found).tolist() == [0.5] * 3


def test_prompts_with_any_number_of_answers_are_judged_together() -> None:
    found = judge([Lengths(), Lengths(2.0)], ["p", "q", "r"], [["a", "bb"], [], ["c"]])
    assert [one.shape for one in found] == [(2, 2, 2), (2, 0, 0), (2, 1, 1)]
    assert found[0][1, 1, 0] == pytest.approx(1 / (1 + math.exp(-2)))
    assert judge([Lengths()], [], []) == []


def test_one_that_compares_is_asked_for_every_pair_once() -> None:
    ((found,),) = judge([Alphabet()], ["p"], [["c", "a", "b"]])
    assert found.tolist() == [[0.5, 0.1, 0.1], [0.9, 0.5, 0.9], [0.9, pytest.approx(0.1), 0.5]]


def test_a_score_that_is_no_number_is_an_error_that_names_the_prompt() -> None:
    with pytest.raises(DataError, match=r"the prompt 'who am I': lengths gave nan"):
        judge([Broken()], ["who am I"], [["a", "b"]])


def test_large_differences_overflow_nowhere() -> None:
    with np.errstate(all="raise"):
        assert sigmoid(np.array([-1e9, 0.0, 1e9])).tolist() == [0.0, 0.5, 1.0]
        assert entropy(np.array([0.0, 1.0, 0.5])).tolist() == [0.0, 0.0, pytest.approx(LN2)]
        (found,) = judge([Lengths(1e6)], ["p"], [["a", "bb"]])
        assert all(np.isfinite(measure(found)).all() for measure in MEASURES.values())


def test_the_measures_are_what_their_formulas_give() -> None:
    p = np.array([0.9, 0.2])
    mean = 0.55
    whole = -mean * math.log(mean) - (1 - mean) * math.log(1 - mean)
    single = [-x * math.log(x) - (1 - x) * math.log(1 - x) for x in (0.9, 0.2)]
    assert MEASURES["entropy"](p) == pytest.approx(whole)
    assert MEASURES["variance"](p) == pytest.approx(0.1225)
    assert MEASURES["bald"](p) == pytest.approx(whole - sum(single) / 2)


def test_disagreement_tells_a_tie_from_what_is_not_understood() -> None:
    tie, contradiction = np.array([0.5, 0.5]), np.array([0.0, 1.0])
    assert MEASURES["entropy"](tie) == MEASURES["entropy"](contradiction) == pytest.approx(LN2)
    assert MEASURES["bald"](tie) == MEASURES["variance"](tie) == 0.0
    assert MEASURES["bald"](contradiction) == pytest.approx(LN2)
    assert MEASURES["variance"](contradiction) == 0.25


def test_win_rates_order_answers_as_their_scores_do() -> None:
    (found,) = judge([Lengths(40.0)], ["p"], [["aaa", "a", "aaaaa", "aa"]])
    rates = win_rates(found, [0, 1, 2, 3])
    assert np.argsort(rates).tolist() == [1, 3, 0, 2]
    assert win_rates(found, [0, 1]).tolist() == [1.0, 0.0]


# --- vectors --------------------------------------------------------------------------------------


def test_texts_that_share_words_are_nearer_than_texts_that_do_not() -> None:
    rows = [
        ("How do I bake bread?", "Knead the dough.", "Buy it."),
        ("How do I bake a cake?", "Mix the dough.", "Buy one."),
        ("Prove that pi is irrational", "Assume a/b", "It is known"),
    ]
    vectors = ngram_vectors(rows)
    assert vectors.shape == (3, WIDTH)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1


def test_a_vector_does_not_depend_on_which_answer_stands_first() -> None:
    one, other = ngram_vectors([("p", "first", "second"), ("p", "second", "first")])
    assert np.array_equal(one, other)


def test_a_text_falls_into_the_same_columns_on_every_machine() -> None:
    vector = ngram_vectors([("sort: dbca", "abcd", "dbca"), ("é😀", "ß", "漢字")])[1]
    assert np.flatnonzero(np.abs(vector) > 1e-6)[:6].tolist() == [9, 44, 46, 56, 61, 75]


@pytest.mark.parametrize(
    "text", ["", " ", "\x00", "\ud83d", "e\u0301", "漢字" * 1000, "\u202eabc", "a" * 100_000]
)
def test_any_text_has_a_vector(text: str) -> None:
    vectors = ngram_vectors([(text, text + "x", text), ("other", "a", "b")])
    assert np.isfinite(vectors).all()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


# --- picks ----------------------------------------------------------------------------------------

LINE = np.array([[0.0], [1.0], [2.0], [10.0], [11.0]], dtype=np.float32)
NONE = LINE[:0]


def test_k_center_takes_the_farthest_point_again_and_again() -> None:
    assert k_center(LINE, 3, NONE, first=0) == [0, 4, 2]
    assert k_center(LINE, 5, NONE, first=1) == [1, 4, 0, 2, 3]


def test_k_center_begins_far_from_what_is_labelled() -> None:
    assert k_center(LINE, 2, LINE[4:], first=4) == [0, 2]


def test_every_row_is_picked_once_even_where_all_are_the_same() -> None:
    same = np.ones((4, 3), dtype=np.float32)
    assert sorted(k_center(same, 9, same[:1], first=0)) == [0, 1, 2, 3]
    assert sorted(k_means_seeding(same, 9, same[:1], first=0, seed=1)) == [0, 1, 2, 3]
    assert k_center(same[:0], 3, same[:0], first=0) == []


def test_k_means_seeding_draws_by_squared_distance() -> None:
    picks = [k_means_seeding(LINE, 2, LINE[:1], first=0, seed=seed)[0] for seed in range(400)]
    shares = [picks.count(place) / 400 for place in range(5)]
    expected = np.array([0.0, 1.0, 4.0, 100.0, 121.0]) / 226
    assert shares == pytest.approx(expected.tolist(), abs=0.08)
    assert picks.count(0) == 0


def test_chance_depends_on_seed_and_name_alone() -> None:
    names = [f"id {number}" for number in range(200)]
    order = at_random(names, 3)
    assert [names[place] for place in order] == [
        names[::-1][place] for place in at_random(names[::-1], 3)
    ]
    assert order != at_random(names, 4)
    assert 0.4 < sum(draw(0, "x", name) for name in names) / 200 < 0.6


def test_equally_uncertain_pairs_come_in_a_random_order() -> None:
    names = [f"id {number}" for number in range(50)]
    order = most_uncertain(names, [0.5] * 49 + [0.6], 0)
    assert order[0] == 49
    assert order[1:] != list(range(49))


# --- the choice -----------------------------------------------------------------------------------

PROMPTS = [f"question {number}" for number in range(8)]
ANSWERS = [["yes", "no"]] * 8
PROBABILITIES = [pair_matrix(0.5 + number / 20) for number in range(8)]


def test_the_most_uncertain_prompts_are_picked_first() -> None:
    found = select(PROMPTS, ANSWERS, 3, win_probabilities=PROBABILITIES, strategy="uncertainty")
    assert [pair.row for pair in found.picked] == [0, 1, 2]
    assert sorted(pair.row for pair in found.rest) == [3, 4, 5, 6, 7]
    assert (found.measure, found.pair) == ("entropy", "max_min")
    assert found.picked[0].uncertainty == pytest.approx(LN2)


def test_both_spreads_over_the_most_uncertain_ones_only() -> None:
    found = select(
        PROMPTS, ANSWERS, 2, win_probabilities=PROBABILITIES, strategy="both", pool_factor=2.0
    )
    assert found.picked[0].row == 0
    assert {pair.row for pair in found.picked} <= {0, 1, 2, 3}
    narrow = select(
        PROMPTS, ANSWERS, 2, win_probabilities=PROBABILITIES, strategy="both", pool_factor=1.0
    )
    assert {pair.row for pair in narrow.picked} == {0, 1}


def test_diversity_leaves_near_copies_for_last() -> None:
    prompts = ["apples and pears", "apples and pears!", "apples and pears?", "the moon landing"]
    for seed in range(5):
        found = select(prompts, [["yes", "no"]] * 4, 2, strategy="diversity", seed=seed)
        assert 3 in {pair.row for pair in found.picked}


@pytest.mark.parametrize("spread", ["k_center", "k_means"])
def test_what_is_labelled_is_never_picked_and_pushes_picks_away(spread: str) -> None:
    prompts = ["apples and pears", "apples and pears!", "the moon landing"]
    answers = [["yes", "no"]] * 3
    labelled = [(prompts[0], "no", " yes")]
    found = select(prompts, answers, 1, strategy="diversity", labelled=labelled, spread=spread)
    assert found.counts["prompts whose pairs are labelled already"] == 1
    assert {pair.row for pair in [*found.picked, *found.rest]} == {1, 2}
    if spread == "k_center":
        assert [pair.row for pair in found.picked] == [2]


def test_another_pair_of_a_prompt_is_asked_when_its_first_is_labelled() -> None:
    answers = [["a", "bbb", "ccccc"]]
    probabilities = judge([Lengths()], ["p"], answers)
    first = select(
        ["p"], answers, 1, win_probabilities=probabilities, strategy="uncertainty"
    ).picked[0]
    assert {first.a, first.b} == {"a", "ccccc"}
    second = select(
        ["p"],
        answers,
        1,
        win_probabilities=probabilities,
        strategy="uncertainty",
        labelled=[first.triple],
    ).picked[0]
    assert {second.a, second.b} != {first.a, first.b}


def test_the_pair_of_a_prompt_follows_the_rule() -> None:
    answers = [["a", "aaaa", "aaaaa"]]
    probabilities = judge([Lengths()], ["p"], answers)

    def chosen(pair: str) -> set[str]:
        (one,) = select(
            ["p"], answers, 1, win_probabilities=probabilities, strategy="uncertainty", pair=pair
        ).picked
        return {one.a, one.b}

    assert chosen("max_min") == {"a", "aaaaa"}
    assert chosen("most_uncertain") == {"aaaa", "aaaaa"}
    assert chosen("random") <= set(answers[0])


def test_the_probability_is_that_of_the_first_answer() -> None:
    found = select(
        PROMPTS, ANSWERS, 8, win_probabilities=[pair_matrix(0.8)] * 8, strategy="uncertainty"
    )
    firsts = {pair.a for pair in found.picked}
    assert firsts == {"yes", "no"}, "the order is random"
    for pair in found.picked:
        assert pair.probability == pytest.approx(0.8 if pair.a == "yes" else 0.2)


def test_the_position_of_an_answer_says_nothing() -> None:
    prompts = [f"q{number}" for number in range(400)]
    found = select(prompts, [["good", "bad"]] * 400, 400, strategy="random", seed=5)
    assert 0.42 < sum(pair.a == "good" for pair in found.picked) / 400 < 0.58


@pytest.mark.parametrize("strategy", ["random", "uncertainty", "diversity", "both"])
def test_the_choice_is_the_same_again_and_another_with_another_seed(strategy: str) -> None:
    prompts = [
        f"question {number} about {'tea' if number % 3 else 'coffee'}" for number in range(40)
    ]
    answers = [[f"a{number}", f"b{number}", f"c{number}"] for number in range(40)]
    probabilities = [np.full((1, 3, 3), 0.5) for _ in prompts]

    def chosen(seed: int) -> list[str]:
        return ids(
            select(
                prompts, answers, 10, win_probabilities=probabilities, strategy=strategy, seed=seed
            )
        )

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)
    assert len(set(chosen(1))) == 10


@pytest.mark.parametrize("spread", ["k_center", "k_means"])
@pytest.mark.parametrize("strategy", ["random", "uncertainty", "diversity", "both"])
def test_the_order_of_the_rows_does_not_matter(strategy: str, spread: str) -> None:
    prompts = [
        f"question {number} about {'tea' if number % 3 else 'coffee'}" for number in range(40)
    ]
    answers = [[f"a{number}", f"b{number * 7 % 40}"] for number in range(40)]
    probabilities = [pair_matrix(0.5 + number / 100) for number in range(40)]
    forward = select(
        prompts, answers, 10, win_probabilities=probabilities, strategy=strategy, spread=spread
    )
    backward = select(
        prompts[::-1],
        answers[::-1],
        10,
        win_probabilities=probabilities[::-1],
        strategy=strategy,
        spread=spread,
    )
    assert ids(forward) == ids(backward)


def test_pairs_without_a_verdict_are_never_picked_and_count_for_no_win_rate() -> None:
    nan = float("nan")
    one = np.array([[0.5, 0.9, nan], [0.1, 0.5, 0.2], [nan, 0.8, 0.5]])
    assert win_rates(one[None], [0, 1, 2]).tolist() == pytest.approx([0.9, 0.15, 0.8])
    answers = [["a", "b", "c"], ["d", "e"]]
    probabilities = [np.stack([one, np.full((3, 3), 0.5)]), pair_matrix(nan, 0.4)]
    for pair in ("max_min", "most_uncertain", "random"):
        for seed in range(8):
            found = select(
                ["p", "q"],
                answers,
                9,
                win_probabilities=probabilities,
                strategy="uncertainty",
                pair=pair,
                seed=seed,
            )
            (picked,) = found.picked
            assert {picked.a, picked.b} in ({"a", "b"}, {"b", "c"})
            assert picked.uncertainty is not None
            assert math.isfinite(picked.uncertainty)
            assert found.counts == {
                "pairs without a verdict": 2,
                "prompts without a verdict on any pair": 1,
            }


# --- hostile input --------------------------------------------------------------------------------


def test_a_budget_larger_than_the_pool_takes_all() -> None:
    for strategy in ("random", "diversity", "uncertainty", "both"):
        found = select(PROMPTS, ANSWERS, 10**6, win_probabilities=PROBABILITIES, strategy=strategy)
        assert len(found.picked) == 8
        assert found.rest == []


def test_nothing_to_choose_from_is_no_error() -> None:
    for strategy in ("random", "diversity"):
        assert select([], [], 5, strategy=strategy).picked == []
        assert select(["p"], [["same", "same "]], 5, strategy=strategy).picked == []
    assert select([], [], 5, win_probabilities=[], strategy="both").picked == []


def test_prompts_without_a_pair_are_counted() -> None:
    prompts = ["", "  \n", "one", "two", "two", " two ", "three", "four"]
    answers = [
        ["a", "b"],
        ["a", "b"],
        ["a", "a ", "\ta"],
        ["a", "b"],
        ["c", "d"],
        ["e", "f"],
        [],
        ["", " ", "x"],
    ]
    found = select(prompts, answers, 9, strategy="random")
    assert [pair.prompt for pair in found.picked] == ["two"]
    assert found.counts == {
        "empty prompts": 2,
        "prompts that came before": 2,
        "prompts with fewer than two different responses": 3,
        "responses given twice": 2,
        "empty responses": 2,
    }


def test_a_plain_prompt_and_the_turn_that_asks_the_same_are_one() -> None:
    turns = [{"role": "user", "content": "why?"}]
    assert pair_id("why?", "a", "b") == pair_id(turns, "b ", "a")
    found = select(["why?", turns], [["a", "b"], ["c", "d"]], 5, strategy="random")
    assert len(found.picked) == 1
    assert pair_id([{"role": "system", "content": "x"}, *turns], "a", "b") != pair_id(
        turns, "a", "b"
    )


def test_unicode_of_every_kind_passes() -> None:
    prompts = ["née", "ne\u0301e", "😀😀", "\u202eright to left", "\ud83d", "\x00\x01"]
    found = select(
        prompts,
        [["ß", "ẞ"], ["👍", "👎"], ["", "\u200b", "a"], ["ا", "ب"], ["1", "2"], ["\ud800", "y"]],
        9,
        strategy="diversity",
    )
    assert len(found.picked) == 6
    assert len(set(ids(found))) == 6


def test_equal_scores_everywhere_still_give_a_choice_without_nan() -> None:
    answers = [["aa", "bb", "cc"]] * 8
    probabilities = judge([Lengths(), Lengths(3.0)], PROMPTS, answers)
    for measure in MEASURES:
        found = select(
            PROMPTS,
            answers,
            3,
            win_probabilities=probabilities,
            uncertainty=measure,
            strategy="both",
        )
        assert len(found.picked) == 3
        assert all(
            pair.uncertainty is not None and math.isfinite(pair.uncertainty)
            for pair in found.picked
        )
    assert {
        frozenset((p.a, p.b))
        for p in select(PROMPTS, answers, 8, win_probabilities=probabilities).picked
    } != {frozenset(("aa", "bb"))}


def test_uncertainty_without_a_model_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="needs win probabilities"):
        select(PROMPTS, ANSWERS, 3)


def test_pairs_of_counts_every_pair_once() -> None:
    assert pairs_of(3) == [(0, 1), (0, 2), (1, 2)]
    assert pairs_of(1) == pairs_of(0) == []
