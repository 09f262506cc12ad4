"""Shares, rewards of five verdicts, the length rule and length-controlled win rates."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_arena import simulate, votes_of

from aligner.arena.votes import VoteBuilder, Votes
from aligner.arena.win_rates import length_controlled, pairs, records, rewards, with_length_rule
from aligner.errors import DataError


def graded(*rows: tuple[str, str, float, int, int]) -> Votes:
    """Votes of (a, b, grade, length of a, length of b)."""
    builder = VoteBuilder()
    for number, (a, b, grade, long_a, long_b) in enumerate(rows):
        outcome = 0.5 + 0.5 * float(np.sign(grade))
        styles = ({"length": long_a}, {"length": long_b})
        builder.add(a, b, f"p{number}", outcome, grade=grade, styles=styles)
    return builder.votes()


def test_a_tie_is_half_a_win_of_each_side() -> None:
    votes = votes_of(("x", "y", 1.0), ("y", "x", 0.5), ("x", "z", 0.0))
    x, y, z = records(votes)
    assert (x.wins, x.ties, x.losses, x.votes, x.prompts) == (1, 1, 1, 3, 3)
    assert (x.win_rate, y.win_rate, z.win_rate) == (0.5, 0.25, 1.0)
    assert x.mean_length is None
    share, met = pairs(votes)
    assert share[0, 1] == 0.75
    assert share[1, 0] == 0.25
    assert np.isnan(share[1, 2])
    assert met.tolist() == [[0, 2, 1], [2, 0, 0], [1, 0, 0]]


def test_rewards_are_averaged_for_each_baseline_and_then_over_them() -> None:
    votes = graded(
        ("x", "y", 2, 1, 1), ("y", "x", 1, 1, 1), ("x", "z", 0, 1, 1), ("z", "x", -1, 1, 1)
    )
    found = rewards(votes)
    assert found["x"] == {"y": 25.0, "z": 25.0, "mean": 25.0}
    assert found["y"] == {"x": -25.0, "mean": -25.0}
    assert rewards(votes_of(("x", "y", 1.0))) == {}


def test_a_slight_win_of_a_much_longer_answer_is_a_tie_and_a_clear_one_stays() -> None:
    votes = graded(
        ("x", "y", 1, 900, 100),
        ("x", "y", 1, 600, 100),
        ("x", "y", 1, 100, 900),
        ("x", "y", 2, 900, 100),
        ("x", "y", -1, 100, 900),
    )
    ruled = with_length_rule(votes, 500)
    assert ruled.outcome.tolist() == [0.5, 1.0, 1.0, 1.0, 0.5]
    assert ruled.grade.tolist() == [0, 1, 1, 2, 0]
    with pytest.raises(DataError, match="some verdicts have no grade"):
        with_length_rule(votes_of(("x", "y", 1.0)), 500)


def test_without_an_effect_of_length_the_controlled_rate_is_the_raw_one() -> None:
    votes = simulate((0.0, 0.8), 400)
    found = length_controlled(votes, "m0", resamples=100, seed=0)
    assert list(found) == ["m1"]
    row = found["m1"]
    assert row["controlled"] == pytest.approx(row["raw"], abs=2)
    assert row["low"] < 100 / (1 + np.exp(-0.8)) < row["high"]
    assert not row["is_far"]


@pytest.mark.parametrize("names", [(0, 1), (1, 0)])
def test_a_judge_that_likes_length_is_seen_through(names: tuple[int, int]) -> None:
    lengths = (100.0, 400.0) if names == (0, 1) else (400.0, 100.0)
    votes = simulate((0.0, 0.0), 600, length=4.0, lengths=lengths)
    model, baseline = f"m{names[1]}", f"m{names[0]}"
    row = length_controlled(votes, baseline, resamples=0, seed=0)[model]
    assert row["raw"] > 80
    assert row["controlled"] < row["raw"] - 15
    assert row["is_far"]
    assert row["low"] is None


def test_a_baseline_that_always_loses_gives_a_finite_rate() -> None:
    votes = graded(*[("x", "y", 1, 50, 60)] * 10)
    row = length_controlled(votes, "y", resamples=10, seed=0)["x"]
    assert row["raw"] == 100.0
    assert 50 < row["controlled"] < 100


def test_a_baseline_without_a_vote_is_refused() -> None:
    with pytest.raises(DataError, match="the baseline 'z' has no vote"):
        length_controlled(votes_of(("x", "y", 1.0)), "z", 0, 0)


def test_without_lengths_there_is_the_raw_rate_with_its_interval() -> None:
    votes = votes_of(*[("x", "y", 1.0)] * 30, *[("y", "x", 1.0)] * 10)
    for model, baseline, rate in (("x", "y", 75.0), ("y", "x", 25.0)):
        row = length_controlled(votes, baseline, resamples=400, seed=0)[model]
        assert row["raw"] == rate
        assert row["controlled"] is row["low"] is row["high"] is None
        error = 196 * np.sqrt(0.75 * 0.25 / 40)
        assert row["raw_low"] == pytest.approx(rate - error, abs=2.5)
        assert row["raw_high"] == pytest.approx(rate + error, abs=2.5)
    assert length_controlled(votes, "y", resamples=0, seed=0)["x"]["raw_low"] is None
