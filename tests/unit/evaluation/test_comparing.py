"""Intervals and comparisons: the matrices against loops over rows, and p-values against counting
every exchange by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from aligner.evaluation.comparing import compare, in_words, sign_test
from aligner.evaluation.figures import Figure, Figures, bits, draws, exponential, grouped, mean

GROUPS = grouped(["a", "b", "a", "c", "d", "d"])
LOST = np.array([3.0, 8.0, 2.0, 9.0, 4.0, 1.0])
TOKENS = np.array([2.0, 4.0, 1.0, 3.0, 2.0, 1.0])


def losses(lost: np.ndarray = LOST) -> Figures:
    named = {
        "loss": Figure(lost, TOKENS, -1, of_tokens=True),
        "perplexity": Figure(lost, TOKENS, -1, exponential, repeats=True),
        "bits": Figure(lost, TOKENS, -1, bits, repeats=True),
        "row_loss": mean(lost.tolist(), -1),
    }
    return Figures(named, GROUPS, {"rows": 6.0})


def test_numbers_are_sums_by_sums() -> None:
    found = losses()
    assert found["loss"] == 27 / 13
    assert found["perplexity"] == pytest.approx(math.exp(27 / 13))
    assert found["bits"] == pytest.approx(27 / 13 / math.log(2))
    assert found["row_loss"] == 4.5
    assert found["row_loss_stderr"] == pytest.approx(np.std(LOST, ddof=1) / math.sqrt(6))
    assert "loss_stderr" not in found.metrics()
    assert found["rows"] == 6.0
    assert set(found.without_tokens().named) == {"perplexity", "bits", "row_loss"}


def test_the_interval_is_that_of_rows_that_are_drawn_by_group() -> None:
    by_hand = []
    for times in np.concatenate(list(draws(4, 500, seed=3))):
        rows = [row for row in range(6) for _ in range(int(times[GROUPS[row]]))]
        by_hand.append(sum(LOST[row] for row in rows) / sum(TOKENS[row] for row in rows))
    low, high = np.quantile(by_hand, [0.025, 0.975])
    found = losses().intervals(resamples=500, seed=3)
    assert found["loss"] == {"low": pytest.approx(low), "high": pytest.approx(high)}
    assert found["perplexity"]["high"] == pytest.approx(math.exp(high))


def test_draws_hold_as_many_groups_as_there_are_whatever_their_parts(monkeypatch) -> None:
    from aligner.evaluation import figures

    whole = np.concatenate(list(draws(5, 40, seed=0)))
    assert whole.shape == (40, 5)
    assert set(whole.sum(axis=1)) == {5.0}
    monkeypatch.setattr(figures, "MOST_NUMBERS", 15)
    parts = list(draws(5, 40, seed=0))
    assert [len(part) for part in parts] == [3] * 13 + [1]
    assert np.array_equal(np.concatenate(parts), whole)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        values = random.normal(1.0, 1.0, size=60)
        figures = Figures({"x": mean(values.tolist())}, np.arange(60))
        ends = figures.intervals(resamples=300, seed=trial)["x"]
        covered += ends["low"] <= 1.0 <= ends["high"]
    assert 0.90 <= covered / 200 <= 0.98


def test_nothing_is_drawn_from_one_group() -> None:
    one = Figures({"x": mean([1.0, 2.0])}, np.zeros(2, dtype=np.int64))
    assert one.intervals(resamples=100) == {"x": {"low": None, "high": None}}
    assert compare(one, one, resamples=100)["x"]["p_value"] is None


def test_the_p_value_counts_the_exchanges_that_part_two_models_as_far() -> None:
    mine, yours = losses(), losses(LOST + np.array([1.0, -0.5, 0.25, 2.0, 1.0, 0.5]))
    found = compare(mine, yours, resamples=200)
    assert set(found) == {"loss", "row_loss"}
    apart = []
    for swapped in itertools.product((False, True), repeat=4):
        sides = [0.0, 0.0]
        for row in range(6):
            both = LOST[row], yours.named["loss"].parts[row]
            for side in (0, 1):
                sides[side] += both[side ^ swapped[GROUPS[row]]]
        apart.append(abs(sides[0] - sides[1]) / 13)
    expected = sum(one >= apart[0] - 1e-12 for one in apart) / 16
    assert found["loss"]["p_value"] == expected
    assert found["loss"]["difference"] == pytest.approx(-4.25 / 13)
    assert (found["loss"]["ahead"], found["loss"]["behind"]) == (1, 3)
    assert found["loss"]["low"] <= found["loss"]["difference"] <= found["loss"]["high"]


def test_a_difference_that_is_there_is_found_and_one_that_is_not_is_not() -> None:
    random = np.random.default_rng(1)
    hard = random.normal(0.0, 3.0, size=400)

    def model(better: float) -> Figures:
        values = hard + better + random.normal(0.0, 0.5, size=400)
        return Figures({"x": mean(values.tolist(), 1)}, np.arange(400))

    found = compare(model(0.2), model(0.0))["x"]
    assert found["p_value"] < 0.001  # the rows' own spread, 3, would hide it
    assert found["low"] > 0
    assert compare(model(0.0), model(0.0))["x"]["p_value"] > 0.05


def test_p_values_of_models_that_are_alike_are_uniform() -> None:
    random = np.random.default_rng(2)
    values = []
    for _ in range(200):
        one, other = (
            Figures({"x": mean(random.normal(size=12).tolist())}, np.arange(12)) for _ in range(2)
        )
        values.append(compare(one, other, resamples=1)["x"]["p_value"])
    assert 0.02 <= np.mean(np.array(values) <= 0.05) <= 0.09
    assert 0.4 <= np.mean(values) <= 0.6


@pytest.mark.parametrize(
    ("ahead", "behind", "p_value"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (4, 1, 12 / 32), (3, 3, 1.0), (1, 9, 22 / 1024)],
)
def test_the_sign_test_is_the_binomial(ahead: int, behind: int, p_value: float) -> None:
    assert sign_test(ahead, behind) == pytest.approx(p_value)


def test_the_sign_test_of_many_rows_is_finite() -> None:
    assert 0 <= sign_test(6000, 4000) < 1e-50


def test_a_comparison_is_said_in_words() -> None:
    found = {"p_value": 0.0004, "difference": -0.2, "better": -1}
    assert in_words("loss", found, "A", "B") == "loss: A is better, lower than B (p < 0.001)"
    assert in_words("loss", {**found, "difference": 0.2}, "A", "B").startswith("loss: A is worse")
    longer = {**found, "better": 0, "difference": 3.0}
    assert (
        in_words("mean_tokens", longer, "A", "B") == "mean_tokens: A is higher than B (p < 0.001)"
    )
    assert "no difference is shown (p = 0.4)" in in_words("x", {**found, "p_value": 0.4}, "A", "B")
