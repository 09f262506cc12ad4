"""From scored responses to pairs: every rule and every loss, against tables worked out by hand."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest

from aligner.methods.online import pairing
from aligner.methods.online.pairing import (
    POLICY,
    START,
    STRONGER,
    WEAKER,
    Pair,
    Scored,
    best_of,
    pairs_of,
    worth,
)
from aligner.methods.online.recipe import Pairing


def said(
    name: str,
    score: float | None,
    tokens: int = 3,
    *,
    cut: bool = False,
    source: str = POLICY,
    text: str | None = None,
) -> Scored:
    """A response whose name is its text and tells its tokens from others'."""
    ids = [ord(name[0]), *range(tokens - 1)]
    return Scored(name if text is None else text, ids, not cut, score, source)


def table(*responses: Scored, draw: int = 0, **settings: Any) -> tuple[list[str], dict[str, int]]:
    """The pairs as "chosen>rejected", and what was lost."""
    pairs, lost = pairs_of(responses, Pairing(**settings), random.Random(draw))
    for pair in pairs:
        assert pair.chosen.is_finished
    return [f"{pair.chosen.text}>{pair.rejected.text}" for pair in pairs], dict(lost)


FOUR = (said("a", 0.5), said("b", 2.0), said("c", -1.0), said("d", 1.0))


# --- rules ----------------------------------------------------------------------------------------


def test_max_min_takes_the_best_and_the_worst() -> None:
    assert table(*FOUR) == (["b>c"], {})
    (pair,), _ = pairs_of(FOUR, Pairing(), random.Random(0))
    assert pair == Pair(FOUR[1], FOUR[2], 3.0)


def test_top_bottom_takes_each_of_the_top_with_each_of_the_bottom() -> None:
    """By margin: b-c 3.0, d-c 2.0, b-a 1.5, d-a 0.5."""
    assert table(*FOUR, rule="top_bottom", top=2) == (["b>c", "d>c", "b>a", "d>a"], {})
    assert table(*FOUR, rule="top_bottom", top=1) == (["b>c"], {})


def test_where_top_and_bottom_overlap_each_pair_comes_once_and_nothing_is_lost() -> None:
    """b > d > a: the two best are b, d and the two worst d, a; d-d and d-b are no pairs."""
    three = (FOUR[0], FOUR[1], FOUR[3])
    assert table(*three, rule="top_bottom", top=2) == (["b>a", "b>d", "d>a"], {})
    assert table(*three[:2], rule="top_bottom", top=8) == (["b>a"], {})


def test_max_pairs_keeps_those_with_the_largest_margin() -> None:
    found = table(*FOUR, rule="top_bottom", top=2, max_pairs=3)
    assert found == (["b>c", "d>c", "b>a"], {pairing.SURPLUS: 1})


def test_of_equal_margins_the_first_in_the_order_of_the_ranks_stays() -> None:
    even = (said("a", 0.0), said("b", 1.0), said("c", 1.0), said("d", 0.0))
    found, _ = table(*even, rule="top_bottom", top=2, max_pairs=2)
    assert found == ["b>a", "b>d"]


def test_max_random_draws_every_other_one() -> None:
    """The published code takes the first one always."""
    counts = Counter(table(*FOUR, rule="max_random", draw=seed)[0][0] for seed in range(600))
    assert counts.keys() == {"b>a", "b>c", "b>d"}
    assert min(counts.values()) > 150  # 200 expected, standard deviation 12


def test_random_draws_every_pair_in_its_right_order() -> None:
    counts = Counter(table(*FOUR, rule="random", draw=seed)[0][0] for seed in range(1200))
    assert counts.keys() == {"b>a", "b>c", "b>d", "d>a", "d>c", "a>c"}
    assert min(counts.values()) > 140  # 200 expected, standard deviation 13


def test_what_is_drawn_follows_from_the_random_numbers() -> None:
    for rule in ("random", "max_random"):
        first = [table(*FOUR, rule=rule, draw=seed) for seed in range(20)]
        assert first == [table(*FOUR, rule=rule, draw=seed) for seed in range(20)]


def test_anchored_rejects_the_worse_of_the_policys_and_the_starts_worst() -> None:
    own = (said("a", 3.0), said("b", 1.0))
    worse, better = said("w", 0.0, source=START), said("x", 2.0, source=START)
    best = said("y", 9.0, source=START)
    assert table(*own, worse, best, rule="anchored") == (["a>w"], {})
    assert table(*own, better, best, rule="anchored") == (["a>b"], {})
    assert table(*own, rule="anchored") == (["a>b"], {})


def test_anchored_never_chooses_what_the_start_wrote() -> None:
    start = (said("y", 9.0, source=START), said("z", 8.0, source=START))
    assert table(said("a", 3.0), *start, rule="anchored") == ([], {pairing.NONE_BELOW: 1})
    cut = said("a", 9.5, cut=True)
    assert table(cut, *start, rule="anchored") == ([], {pairing.NONE_FINISHED: 1})


def test_two_models_pairs_the_first_with_the_first_and_asks_for_no_score() -> None:
    strong = [said(name, None, source=STRONGER) for name in "ab"]
    weak = [said(name, None, source=WEAKER) for name in "cd"]
    assert table(*weak, *strong, rule="two_models") == (["a>c", "b>d"], {})
    assert table(*weak, *strong, rule="two_models", max_pairs=1) == (
        ["a>c"],
        {pairing.SURPLUS: 1},
    )
    (pair, _), _ = pairs_of([*strong, *weak], Pairing(rule="two_models"), random.Random(0))
    assert pair.margin == 0.0


def test_two_models_that_say_the_same_are_a_tie_and_each_loss_is_counted() -> None:
    rows = (
        said("a", None, source=STRONGER),
        said("b", None, source=STRONGER, cut=True),
        said("c", None, source=STRONGER),
        said("c", None, source=STRONGER),
        said("a", None, source=WEAKER),
        said("d", None, source=WEAKER),
    )
    assert table(*rows, rule="two_models") == (
        [],
        {pairing.TIES: 1, pairing.CUT_CHOSEN: 1, pairing.ALONE: 1, pairing.DUPLICATES: 1},
    )


# --- what is lost ---------------------------------------------------------------------------------


@pytest.mark.parametrize("none", [None, math.nan])
def test_responses_without_a_score_are_left_out_and_counted(none: float | None) -> None:
    """The arg max of numbers with a NaN among them is the NaN."""
    rows = (said("n", none), *FOUR, said("m", none))
    assert table(*rows) == (["b>c"], {pairing.NO_SCORE: 2})
    only = {pairing.NO_SCORE: 1, pairing.TOO_FEW: 1}
    assert table(said("n", none), FOUR[0]) == ([], only)


def test_an_infinite_score_is_a_score() -> None:
    assert table(said("a", -math.inf), FOUR[1], FOUR[0])[0] == ["b>a"]


def test_equal_texts_count_once_and_the_first_stays() -> None:
    """Whatever their tokens are: they have one score, and nothing tells them apart."""
    rows = (said("a", 1.0), said("a", 5.0), said("b", 0.0))
    assert table(*rows) == (["a>b"], {pairing.DUPLICATES: 1})
    assert table(*rows[:2]) == ([], {pairing.DUPLICATES: 1, pairing.TOO_FEW: 1})


def test_a_response_that_was_cut_is_not_the_same_as_one_that_ended() -> None:
    """Else the first of the two, which was cut, would stand for the one that may be chosen."""
    rows = (said("a", 1.0, 3, cut=True), said("a", 1.0, 4), said("b", 0.0))
    assert table(*rows) == (["a>b"], {})


def test_ties_are_dropped_and_counted() -> None:
    level = [said(name, 1.0) for name in "abc"]
    assert table(*level) == ([], {pairing.TIES: 1})
    for rule in ("random", "max_random"):
        assert table(*level, rule=rule) == ([], {pairing.TIES: 1})
    assert table(*level, rule="top_bottom", top=2) == ([], {pairing.TIES: 3})


def test_a_margin_has_to_be_larger_than_the_smallest() -> None:
    two = (said("a", 1.0), said("b", 0.5))
    assert table(*two, min_margin=0.5) == ([], {pairing.SMALL_MARGIN: 1})
    assert table(*two, min_margin=0.499) == (["a>b"], {})


def test_a_truncated_response_is_never_chosen() -> None:
    best = said("t", 9.0, cut=True)
    assert table(best, *FOUR) == (["b>c"], {})
    for rule in ("random", "max_random", "top_bottom", "anchored"):
        for seed in range(50):
            table(best, *FOUR, rule=rule, draw=seed)  # it looks at each chosen one
    found, lost = table(best, FOUR[0], rule="random")
    assert (found, lost) == ([], {pairing.CUT_CHOSEN: 1})
    assert table(best, FOUR[0]) == ([], {pairing.NONE_BELOW: 1})
    assert table(best, FOUR[0], rule="top_bottom") == ([], {pairing.NONE_BELOW: 1})


def test_a_truncated_response_may_be_rejected_or_left_out() -> None:
    worst = said("t", -9.0, cut=True)
    assert table(worst, *FOUR) == (["b>t"], {})
    assert table(worst, *FOUR, truncated="drop") == (["b>c"], {pairing.TRUNCATED: 1})


def test_of_equal_scores_the_finished_response_ranks_first() -> None:
    """A tie is a tie, whichever of the two was sampled first."""
    two = (said("t", 1.0, cut=True), said("a", 1.0))
    for rows in (two, two[::-1]):
        for rule in ("random", "max_min", "max_random", "top_bottom"):
            assert table(*rows, rule=rule) == ([], {pairing.TIES: 1})


def test_prompts_without_a_finished_response_are_counted() -> None:
    cut = [said(name, score, cut=True) for name, score in (("a", 1.0), ("b", 0.0))]
    assert table(*cut) == ([], {pairing.NONE_FINISHED: 1})
    assert table(*cut, truncated="drop") == ([], {pairing.TRUNCATED: 2, pairing.TOO_FEW: 1})


def test_pairs_of_too_different_lengths_are_dropped() -> None:
    two = (said("a", 1.0, tokens=7), said("b", 0.0, tokens=2))
    assert table(*two, max_length_ratio=3.4) == ([], {pairing.LENGTHS: 1})
    assert table(*two, max_length_ratio=3.5) == (["a>b"], {})
    assert table(*reversed(two), max_length_ratio=3.4) == ([], {pairing.LENGTHS: 1})


def test_nothing_to_pair_is_counted() -> None:
    assert table() == ([], {pairing.TOO_FEW: 1})
    assert table(FOUR[0]) == ([], {pairing.TOO_FEW: 1})


def test_a_loss_is_named_after_the_first_reason() -> None:
    """The order that the module states: no score, duplicate, truncated; then the pair's: cut, tie,
    margin; then lengths, then surplus."""
    rows = (
        said("a", None, cut=True),
        said("b", 2.0),
        said("b", None),
        said("b", 2.0),
        said("c", 1.0, cut=True, tokens=40),
    )
    found = table(*rows, truncated="drop")
    lost = {pairing.NO_SCORE: 2, pairing.DUPLICATES: 1, pairing.TRUNCATED: 1, pairing.TOO_FEW: 1}
    assert found == ([], lost)
    long = said("d", 1.0, tokens=40)
    assert table(rows[1], long, min_margin=1.0, max_length_ratio=2.0)[1] == {
        pairing.SMALL_MARGIN: 1
    }
    assert table(
        rows[1], long, said("e", 0.0), rule="top_bottom", max_length_ratio=2.0, max_pairs=1
    ) == (["b>e"], {pairing.LENGTHS: 2})


# --- the penalty for length -----------------------------------------------------------------------


def test_the_pair_is_oriented_by_the_penalized_score() -> None:
    """The published code chooses by the penalized score, and orients by the raw one: b scores 2.0
    against 1.9, but is 30 tokens longer."""
    long, short = said("b", 2.0, tokens=40), said("a", 1.9, tokens=10)
    assert table(long, short) == (["b>a"], {})
    for rule in ("max_min", "random", "max_random", "top_bottom"):
        assert table(long, short, length_penalty=0.01, rule=rule) == (["a>b"], {})
    (pair,), _ = pairs_of((long, short), Pairing(length_penalty=0.01), random.Random(0))
    assert pair.margin == pytest.approx(1.8 - 1.6)
    assert (pair.chosen.score, pair.rejected.score) == (1.9, 2.0)


def test_the_unit_of_the_penalty_is_what_is_said() -> None:
    """Ten tokens of 4 characters against 2 of 400."""
    many, few = said("m", 0.0, tokens=10, text="m" * 4), said("f", 0.0, tokens=2, text="f" * 400)
    tokens = Pairing(length_penalty=0.5)
    characters = Pairing(length_penalty=0.5, length_unit="characters")
    assert (worth(many, tokens), worth(few, tokens)) == (-5.0, -1.0)
    assert (worth(many, characters), worth(few, characters)) == (-2.0, -200.0)
    assert table(many, few, length_penalty=0.5)[0] == ["f" * 400 + ">mmmm"]
    found, _ = table(many, few, length_penalty=0.5, length_unit="characters")
    assert found == ["mmmm>" + "f" * 400]


def test_scores_that_are_equal_after_the_penalty_tie() -> None:
    assert table(said("a", 1.0, 4), said("b", 0.0, 2), length_penalty=0.5) == (
        [],
        {pairing.TIES: 1},
    )


# --- the best response ----------------------------------------------------------------------------


def test_the_best_is_the_best_finished_one_by_the_penalized_score() -> None:
    rows = (*FOUR, said("t", 9.0, cut=True), said("l", 2.1, tokens=50), said("n", None))
    best, lost = best_of(rows, Pairing(length_penalty=0.01))
    assert best is FOUR[1]
    assert lost == {pairing.NO_SCORE: 1}


def test_a_prompt_without_a_best_response_says_why() -> None:
    best, lost = best_of([said("t", 9.0, cut=True)], Pairing())
    assert (best, lost) == (None, {pairing.NONE_FINISHED: 1})
    best, lost = best_of([said("n", None)], Pairing())
    assert (best, lost) == (None, {pairing.NO_SCORE: 1, pairing.NONE_LEFT: 1})


def test_an_empty_response_may_be_in_a_pair_and_is_no_answer_to_imitate() -> None:
    empty, cut = said("e", 1.0, 1, text=""), said("t", 0.5, cut=True)
    assert table(FOUR[2], empty) == ([">c"], {})
    assert table(FOUR[1], empty) == (["b>"], {})
    best, lost = best_of([FOUR[0], empty], Pairing())
    assert (best, lost) == (FOUR[0], {pairing.EMPTY: 1})
    best, lost = best_of([empty, cut], Pairing())
    assert (best, lost) == (None, {pairing.EMPTY: 1, pairing.NONE_LEFT: 1})


# --- against an obvious twin ----------------------------------------------------------------------


def test_max_min_agrees_with_an_obvious_twin_on_random_tables() -> None:
    draw = random.Random(7)
    for _ in range(500):
        rows = [
            said(
                chr(97 + number),
                draw.choice([None, 0.0, 1.0, 2.0, 3.0]),
                draw.randint(1, 9),
                cut=draw.random() < 0.3,
            )
            for number in range(draw.randint(0, 6))
        ]
        settings = Pairing(length_penalty=draw.choice([0.0, 0.25]), min_margin=0.5)
        pairs, lost = pairs_of(rows, settings, draw)
        net = {
            row.text: row.score - settings.length_penalty * len(row.token_ids)
            for row in rows
            if row.score is not None
        }
        finished = [net[row.text] for row in rows if row.text in net and row.is_finished]
        if len(net) >= 2 and finished and max(finished) - min(net.values()) > 0.5:
            (pair,) = pairs
            assert net[pair.chosen.text] == max(finished)
            assert net[pair.rejected.text] == min(net.values())
        else:
            assert not pairs
            assert sum(lost.values()) > 0, "whatever is lost is counted"
