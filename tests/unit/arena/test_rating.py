"""Ratings against numbers worked out by hand, against other libraries, and where none exist."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from simulated_arena import simulate, votes_of

from aligner.arena import rating
from aligner.arena.covariates import covariates_of
from aligner.arena.rating import POINTS_PER_LOGIT, Settings, by_category, rate
from aligner.arena.votes import Votes
from aligner.errors import DataError

POINTS = Settings(resamples=0)
LADDER = (-1.2, -0.6, -0.2, 0.3, 0.7, 1.0)


def logits(votes: Votes, how: Settings = POINTS) -> np.ndarray:
    """Ratings in logits around their mean."""
    return (rate(votes, how).rating - 1000.0) / POINTS_PER_LOGIT


def reordered(votes: Votes, order: np.ndarray) -> Votes:
    names = ("a", "b", "prompt", "category", "outcome", "weight", "seat", "grade")
    rows = {name: getattr(votes, name)[order] for name in (*names, "style_a", "style_b")}
    return replace(votes, **rows)


def swapped(votes: Votes) -> Votes:
    """Each vote told from the other side."""
    return replace(
        votes,
        a=votes.b,
        b=votes.a,
        outcome=1.0 - votes.outcome,
        seat=-votes.seat,
        style_a=votes.style_b,
        style_b=votes.style_a,
    )


def test_three_wins_to_one_are_odds_of_three() -> None:
    found = rate(votes_of(*[("x", "y", 1.0)] * 3, ("x", "y", 0.0)), POINTS)
    assert found.rating[0] - found.rating[1] == pytest.approx(400 * math.log10(3))
    assert found.rating.mean() == pytest.approx(1000.0)


def test_a_tie_is_half_a_win_by_default() -> None:
    rows = [("x", "y", 1.0)] * 2 + [("x", "y", 0.5)] * 2 + [("x", "y", 0.0)]
    assert np.diff(logits(votes_of(*rows)))[0] == pytest.approx(math.log(2 / 3))


def test_davidson_with_two_models_is_what_counts_say() -> None:
    rows = [("x", "y", 1.0)] * 8 + [("x", "y", 0.5)] * 6 + [("x", "y", 0.0)] * 2
    found = rate(votes_of(*rows * 100), replace(POINTS, ties="davidson"))
    assert found.rating[0] - found.rating[1] == pytest.approx(400 * math.log10(8 / 2), abs=0.01)
    assert found.coefficients["ties"][0] == pytest.approx(math.log(6 / math.sqrt(8 * 2)), abs=1e-4)


def test_rao_and_kupper_with_two_models_is_what_counts_say() -> None:
    rows = [("x", "y", 1.0)] * 8 + [("x", "y", 0.5)] * 6 + [("x", "y", 0.0)] * 2
    found = rate(votes_of(*rows * 100), replace(POINTS, ties="rao_kupper"))
    win, loss = math.log(8 / 8), math.log(2 / 14)
    lead = (found.rating[0] - found.rating[1]) / POINTS_PER_LOGIT
    assert lead == pytest.approx((win - loss) / 2, abs=1e-4)
    assert found.coefficients["ties"][0] == pytest.approx(-(win + loss) / 2, abs=1e-4)


def likelihood(votes: Votes, ties: str, theta: np.ndarray, seat: float, eta: float) -> float:
    """Sum of log-probabilities, vote by vote, as the papers write them."""
    total = 0.0
    for a, b, outcome in zip(votes.a, votes.b, votes.outcome):
        lead = theta[a] - theta[b] + seat
        if ties == "davidson":
            win, loss, tie = math.exp(lead / 2), math.exp(-lead / 2), math.exp(eta)
            win, tie = win / (win + loss + tie), tie / (win + loss + tie)
        else:
            win, not_loss = 1 / (1 + math.exp(eta - lead)), 1 / (1 + math.exp(-lead - eta))
            tie = not_loss - win
        total += math.log({1.0: win, 0.5: tie, 0.0: 1 - win - tie}[float(outcome)])
    return total


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
def test_no_other_parameters_are_likelier(ties: str) -> None:
    votes = simulate((-0.6, 0.0, 0.8), 60, seat=0.3, tie_below=0.25)
    found = rate(votes, replace(POINTS, ties=ties, controls=("seat",)))
    theta = found.rating / POINTS_PER_LOGIT
    seat, eta = found.coefficients["seat"][0], found.coefficients["ties"][0]
    best = likelihood(votes, ties, theta, seat, eta)
    for move in (-0.02, 0.02):
        for model in range(3):
            moved = theta + move * (np.arange(3) == model)
            assert likelihood(votes, ties, moved, seat, eta) < best
        assert likelihood(votes, ties, theta, seat + move, eta) < best
        assert likelihood(votes, ties, theta, seat, eta + move) < best


def test_the_seat_is_estimated_beside_the_ratings() -> None:
    """x wins 8 of 10 seen first and 5 of 10 seen second: logit(.8) = d + s, logit(.5) = d - s."""
    rows = [("x", "y", 1.0)] * 8 + [("x", "y", 0.0)] * 2
    rows += [("y", "x", 1.0)] * 5 + [("y", "x", 0.0)] * 5
    found = rate(votes_of(*rows), replace(POINTS, controls=("seat",)))
    assert found.coefficients["seat"][0] == pytest.approx(math.log(4) / 2, abs=1e-2)
    assert found.rating[0] - found.rating[1] == pytest.approx(400 * math.log10(2), abs=1)


def test_an_anchor_has_its_rating_and_no_interval() -> None:
    votes = simulate(LADDER, 30, by_prompt=0.5)
    found = rate(votes, Settings(resamples=50, anchor="m2", anchor_rating=1100.0))
    assert found.rating[2] == found.low[2] == found.high[2] == 1100.0
    assert (found.high[[0, 1, 3, 4, 5]] > found.low[[0, 1, 3, 4, 5]]).all()


def test_the_order_of_strengths_is_recovered() -> None:
    for seed in range(5):
        votes = simulate(np.linspace(-1.5, 1.5, 8), 60, seed=seed, by_prompt=1.0)
        order = rate(votes, POINTS).rating.argsort().argsort()
        assert np.corrcoef(order, np.arange(8))[0, 1] >= 0.95


@pytest.mark.parametrize("ties", ["half", "davidson", "rao_kupper"])
def test_what_must_not_matter_does_not(ties: str) -> None:
    votes = simulate(LADDER, 20, by_prompt=0.5, seat=0.3, tie_below=0.2)
    how = Settings(ties=ties, controls=("seat", "length"), resamples=20)
    before = rate(votes, how)
    order = np.random.default_rng(1).permutation(len(votes))
    for same in (reordered(votes, order), swapped(votes)):
        after = rate(same, how)
        assert after.rating == pytest.approx(before.rating, abs=1e-6)
        assert after.low == pytest.approx(before.low, abs=1e-6)
        assert after.coefficients["seat"] == pytest.approx(before.coefficients["seat"], abs=1e-8)


def test_twice_the_same_votes_are_the_same_ratings_and_intervals() -> None:
    votes = simulate(LADDER, 20, by_prompt=0.5)
    twice = reordered(votes, np.concatenate([np.arange(len(votes))] * 2))
    how = Settings(resamples=30)
    assert rate(twice, how).rating == pytest.approx(rate(votes, how).rating, abs=1e-6)
    assert rate(twice, how).low == pytest.approx(rate(votes, how).low, abs=1e-6)


def test_new_names_are_the_same_ratings() -> None:
    votes = simulate(LADDER, 20, by_prompt=0.5)
    last = len(votes.models) - 1
    renamed = replace(votes, a=last - votes.a, b=last - votes.b)
    how = Settings(resamples=30)
    assert rate(renamed, how).rating[::-1] == pytest.approx(rate(votes, how).rating, abs=1e-6)
    assert rate(renamed, how).high[::-1] == pytest.approx(rate(votes, how).high, abs=1e-6)


def test_the_same_seed_is_the_same_intervals_however_they_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from aligner.arena import resampling

    votes = simulate(LADDER, 25, by_prompt=0.5, tie_below=0.1)
    how = Settings(resamples=30)
    whole = rate(votes, how)
    monkeypatch.setattr(resampling, "MOST_NUMBERS", 100)
    assert rate(votes, how).draws == pytest.approx(whole.draws, abs=1e-6)
    monkeypatch.setattr(resampling, "DENSE_BELOW", 0)
    assert rate(votes, how).draws == pytest.approx(whole.draws, abs=1e-6)


def test_a_resample_is_what_drawing_rows_would_give() -> None:
    """Prompts drawn one by one, their votes copied: the slow twin."""
    votes = simulate(LADDER, 12, by_prompt=0.5)
    found = rate(votes, Settings(resamples=3, seed=5, anchor="m0"))
    rng = np.random.default_rng(5)
    for draw in found.draws:
        drawn = rng.integers(12, size=12)
        rows = np.concatenate([np.flatnonzero(votes.prompt == prompt) for prompt in drawn])
        again = rate(reordered(votes, rows), replace(POINTS, anchor="m0"))
        assert draw == pytest.approx(again.rating, abs=1e-5)


def test_one_step_is_near_what_solving_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    votes = simulate(LADDER, 80, by_prompt=0.5, seat=0.3, length=1.0, tie_below=0.1)
    for ties in ("half", "davidson"):
        how = Settings(ties=ties, controls=("seat", "length"), resamples=40)
        solved = rate(votes, how)
        with monkeypatch.context() as patch:
            patch.setattr(rating, "MOST_SOLVED", 0)
            stepped = rate(votes, how)
        assert "one Newton step" in stepped.notes[0]
        off = np.abs(stepped.draws - solved.draws).mean()
        assert 0 < off < 0.06 * solved.draws.std(axis=0).min()
        assert stepped.rating == pytest.approx(solved.rating)


@pytest.mark.parametrize("controls", [(), ("seat",), ("seat", "length")])
def test_statsmodels_finds_the_same(controls: tuple) -> None:
    sm = pytest.importorskip("statsmodels.api")
    votes = simulate(LADDER, 40, by_prompt=0.5, seat=0.4, length=1.0, tie_below=0.1)
    found = rate(votes, replace(POINTS, controls=controls))
    columns = np.zeros((len(votes), len(votes.models)))
    columns[np.arange(len(votes)), votes.a] = 1.0
    columns[np.arange(len(votes)), votes.b] -= 1.0
    extra = covariates_of(votes, controls).values
    fit = sm.GLM(votes.outcome, np.hstack([columns[:, 1:], extra]), sm.families.Binomial()).fit()
    theirs = np.concatenate([[0.0], fit.params[: len(votes.models) - 1]])
    ours = found.rating / POINTS_PER_LOGIT
    assert ours - ours.mean() == pytest.approx(theirs - theirs.mean(), abs=1e-3)
    values = [value for value, _, _ in found.coefficients.values()]
    assert values == pytest.approx(fit.params[len(votes.models) - 1 :], abs=1e-3)


def test_evalica_finds_the_same() -> None:
    evalica = pytest.importorskip("evalica")
    votes = simulate(LADDER, 40, by_prompt=0.5, tie_below=0.1)
    names = np.array(votes.models, dtype=object)
    kinds = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}
    result = evalica.bradley_terry(
        names[votes.a].tolist(),
        names[votes.b].tolist(),
        [kinds[outcome] for outcome in votes.outcome.tolist()],
        tolerance=1e-10,
        limit=10_000,
    )
    theirs = np.log(result.scores[votes.models].to_numpy())
    assert logits(votes) == pytest.approx(theirs - theirs.mean(), abs=1e-3)


def test_a_biased_judge_is_corrected_by_both_orders_or_by_the_seat() -> None:
    whole = simulate((-0.5, 0.0, 0.5), 300, seat=0.8)
    first = reordered(whole, np.flatnonzero((whole.a == 0) | ((whole.a == 1) & (whole.b == 2))))
    truth = np.array([-0.5, 0.0, 0.5])
    assert abs(logits(first)[0] - truth[0]) > 0.25
    assert logits(whole) == pytest.approx(truth * 0.9, abs=0.12)
    seated = rate(whole, Settings(controls=("seat",), resamples=100))
    value, low, high = seated.coefficients["seat"]
    assert abs(value - 0.8) < 3 * (high - low) / (2 * 1.96)


def test_length_that_a_judge_likes_is_taken_out() -> None:
    votes = simulate((0.0, 0.4, 0.8), 300, length=3.0, lengths=(500.0, 220.0, 100.0))
    raw = rate(votes, POINTS).rating
    controlled = rate(votes, Settings(controls=("length",), resamples=0)).rating
    assert raw[0] > raw[2]
    assert controlled[2] - controlled[0] == pytest.approx(0.8 * POINTS_PER_LOGIT, abs=40)


def test_length_that_only_tells_models_apart_is_refused() -> None:
    votes = simulate((0.0, 0.5), 50)
    long = np.where(votes.a[:, None] == 0, 100.0, 300.0)
    other = np.where(votes.b[:, None] == 0, 100.0, 300.0)
    fixed = replace(votes, style_a=np.tile(long, 4), style_b=np.tile(other, 4))
    with pytest.raises(DataError, match="length cannot be told apart from the ratings"):
        rate(fixed, Settings(controls=("length",), resamples=0))


def test_controls_say_what_the_votes_lack() -> None:
    bare = votes_of(("x", "y", 1.0), ("y", "x", 1.0))
    with pytest.raises(DataError, match="2 of 2 votes lack the length"):
        rate(bare, replace(POINTS, controls=("length",)))
    with pytest.raises(DataError, match="no vote says which answer was seen first"):
        rate(replace(bare, seat=bare.seat * 0), replace(POINTS, controls=("seat",)))


def test_an_undefeated_and_a_winless_model_are_bounds_and_the_rest_is_left_alone() -> None:
    inner = simulate((-0.4, 0.0, 0.4), 40)
    alone = rate(inner, POINTS).rating
    names = [(inner.models[a], inner.models[b]) for a, b in zip(inner.a, inner.b)]
    rows = [(a, b, float(outcome)) for (a, b), outcome in zip(names, inner.outcome)]
    for other in ("m0", "m1", "m2"):
        rows += [("top", other, 1.0)] * 10 + [("low", other, 0.0)] * 10
    found = rate(votes_of(*rows), Settings(resamples=100))
    by_name = dict(zip(found.models, found.bound))
    assert by_name == {"m0": "", "m1": "", "m2": "", "top": "at_least", "low": "at_most"}
    top, low = found.models.index("top"), found.models.index("low")
    assert found.high[top] == math.inf
    assert found.low[top] > 1000
    assert found.low[low] == -math.inf
    assert found.high[low] < 1000
    inside = [found.models.index(name) for name in ("m0", "m1", "m2")]
    assert found.rating[inside] == pytest.approx(alone, abs=6)
    assert found.unstable == 100


def test_two_models_of_which_one_always_wins_are_both_bounds() -> None:
    found = rate(votes_of(*[("x", "y", 1.0)] * 5), Settings(resamples=10))
    assert found.bound == ["at_least", "at_most"]
    assert found.rating[0] > found.rating[1]
    assert np.isfinite(found.rating).all()


def test_a_model_with_one_loss_is_no_bound_but_some_resamples_are_unstable() -> None:
    rows = [("x", "y", 1.0)] * 30 + [("x", "y", 0.0)]
    found = rate(votes_of(*rows), Settings(resamples=300))
    assert found.bound == ["", ""]
    assert 0.25 < found.unstable / 300 < 0.5
    assert np.isfinite(found.high).all()


def test_a_long_chain_of_models_far_apart_is_fitted() -> None:
    rows = []
    for low in range(80):
        rows += [(f"m{low + 1:02}", f"m{low:02}", 1.0)] * 20 + [(f"m{low + 1:02}", f"m{low:02}", 0)]
    assert np.diff(logits(votes_of(*rows))) == pytest.approx([math.log(20)] * 80)


@pytest.mark.parametrize("ties", ["half", "davidson", "rao_kupper"])
def test_odd_tables_have_finite_ratings_or_say_why_not(ties: str) -> None:
    """Random small tables, some lopsided, some heavily weighted."""
    rng = np.random.default_rng(0)
    fitted = 0
    for _ in range(60):
        count = int(rng.integers(2, 6))
        names = [f"m{number}" for number in range(count)]
        rows = []
        for _ in range(int(rng.integers(4, 30))):
            a, b = rng.choice(count, 2, replace=False)
            rows.append((names[a], names[b], float(rng.choice([0.0, 0.5, 1.0]))))
        votes = votes_of(*rows)
        votes = replace(votes, weight=10.0 ** rng.integers(-2, 3, len(votes)))
        how = Settings(ties=ties, resamples=8, controls=("seat",))
        try:
            found = rate(votes, how)
        except DataError:
            continue
        fitted += 1
        assert np.isfinite(found.rating).all()
        assert np.isfinite(found.draws).all()
    assert fitted > 20


def test_models_that_never_met_are_refused_by_name() -> None:
    rows = [("x", "y", 1.0), ("y", "x", 1.0), ("p", "q", 1.0), ("q", "p", 1.0)]
    with pytest.raises(DataError, match=r"2 groups that never met: \(p, q\); \(x, y\)"):
        rate(votes_of(*rows), POINTS)


def test_no_vote_is_refused_with_what_was_left_out() -> None:
    empty = replace(votes_of(), left_out={"battles that failed": 3})
    with pytest.raises(DataError, match="no vote is left to rate: 3 battles that failed"):
        rate(empty, POINTS)


def test_weights_are_relative_and_not_too_far_apart() -> None:
    votes = votes_of(*[("x", "y", 1.0)] * 3, ("x", "y", 0.0))
    weight = np.array([1.0, 1.0, 1.0, 3.0])
    even = rate(replace(votes, weight=weight), POINTS).rating
    assert even == pytest.approx([1000.0, 1000.0])
    assert rate(replace(votes, weight=1e6 * weight), POINTS).rating == pytest.approx(even)
    with pytest.raises(DataError, match="the weights of votes go from 1 to 100000"):
        rate(replace(votes, weight=np.array([1.0, 1.0, 1.0, 1e5])), POINTS)


def test_an_anchor_that_has_no_vote_is_refused() -> None:
    with pytest.raises(DataError, match="the anchor 'z' has no vote"):
        rate(votes_of(("x", "y", 1.0)), replace(POINTS, anchor="z"))


def test_ties_alone_are_equal_ratings_and_no_model_of_ties() -> None:
    votes = votes_of(*[("x", "y", 0.5), ("y", "z", 0.5)] * 4)
    found = rate(votes, Settings(resamples=20))
    assert found.rating == pytest.approx([1000.0] * 3)
    assert found.bound == ["", "", ""]
    with pytest.raises(DataError, match="ties davidson needs both ties and games that are none"):
        rate(votes, replace(POINTS, ties="davidson"))


def test_soft_preferences_have_no_model_of_ties() -> None:
    votes = votes_of(("x", "y", 0.7), ("x", "y", 0.5), ("x", "y", 0.0))
    with pytest.raises(DataError, match="some votes lie between"):
        rate(votes, replace(POINTS, ties="rao_kupper"))


def test_one_prompt_has_ratings_and_no_intervals() -> None:
    votes = votes_of(*[("x", "y", 1.0)] * 3, ("x", "y", 0.0))
    one = replace(votes, prompts=["p"], prompt=votes.prompt * 0)
    found = rate(one, Settings(resamples=50))
    assert np.isnan(found.low).all()
    assert found.notes == ["there is one prompt alone, so there are no intervals"]
    assert found.rank == [1, 2]
    assert np.isfinite(rate(one, Settings(resamples=50, unit="game")).low).all()


def test_categories_are_rated_by_themselves_or_say_why_not() -> None:
    votes = simulate((0.0, 0.5), 20)
    found = by_category(votes, Settings(resamples=10))
    assert set(found) == {"even", "odd"}
    half = votes.where(votes.category == 0)
    assert found["even"].rating == pytest.approx(rate(half, POINTS).rating)
    split = replace(votes, categories=["even", "odd", "none"])
    assert by_category(split, POINTS)["none"] == "no vote is left to rate"
    odd = replace(votes, category=np.where(votes.a + votes.b == 1, 1, 0))
    assert by_category(odd, replace(POINTS, anchor="m0"))["even"] == "no vote is left to rate"


def test_above_is_the_share_of_resamples_and_ranks_follow_intervals() -> None:
    found = rate(simulate((-2.0, 0.0, 2.0), 40), Settings(resamples=60))
    assert found.above[2, 0] == 1.0
    assert (found.above + found.above.T)[~np.eye(3, dtype=bool)] == pytest.approx(np.ones(6))
    assert np.isnan(found.above.diagonal()).all()
    assert found.rank == [3, 2, 1]
    assert found.rank_ends == [(3, 3), (2, 2), (1, 1)]


def test_models_that_are_equal_in_every_resample_share_their_ranks() -> None:
    ties = votes_of(*[("x", "y", 0.5)] * 4)
    found = rate(replace(ties, prompts=list("abcd"), prompt=np.arange(4)), Settings(resamples=50))
    assert found.rank_ends == [(1, 2), (1, 2)]


def coverage(simulations: int, unit: str, prompts: int = 60) -> float:
    """How often the interval of a difference holds what a very large arena finds."""
    strengths = np.linspace(-1.0, 1.0, 5)
    truth = rate(simulate(strengths, 4000, seed=99, by_prompt=1.0), replace(POINTS, anchor="m2"))
    held = []
    for seed in range(simulations):
        votes = simulate(strengths, prompts, seed=seed, by_prompt=1.0)
        found = rate(votes, Settings(resamples=200, anchor="m2", unit=unit))
        inside = (found.low <= truth.rating) & (truth.rating <= found.high)
        held.append(inside[[0, 1, 3, 4]].mean())
    return float(np.mean(held))


def test_intervals_by_prompt_are_wider_than_by_battle_and_by_game() -> None:
    votes = simulate(np.linspace(-1.0, 1.0, 5), 60, by_prompt=1.0)
    widths = []
    for unit in ("prompt", "battle", "game"):
        found = rate(votes, Settings(unit=unit, resamples=300))
        widths.append(float((found.high - found.low).mean()))
    assert widths[0] > 1.1 * widths[1] > 1.1 * widths[2]


@pytest.mark.slow
def test_intervals_by_prompt_hold_the_truth_as_often_as_they_say() -> None:
    assert 0.90 <= coverage(200, "prompt") <= 0.99
    assert coverage(200, "game") < 0.86
