"""The normalizer of segment values: what it takes off, what it refuses, and the paper's form."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from aligner.errors import AlignerError, TrainingError
from aligner.methods.rlhf.normalizer import LocationNormalizer, fit, huber_line

Samples = list[list[float]]


def sampled(
    count: int,
    seed: int = 0,
    value: Callable[[float, random.Random], float] = lambda p, chance: (
        4 + 2 * math.log(p) + (3 + 0.4 * math.log(p)) * chance.gauss(0, 1)
    ),
) -> Samples:
    """Responses of 1 to 30 segments whose values drift and scatter with the location."""
    chance = random.Random(seed)
    sizes = [chance.randint(1, 30) for _ in range(count)]
    return [[value((j + 1) / size, chance) for j in range(size)] for size in sizes]


def flat(samples: Samples) -> tuple[Tensor, Tensor]:
    """Locations and values of all segments."""
    places = [(j + 1) / len(row) for row in samples for j in range(len(row))]
    return torch.tensor(places), torch.tensor([value for row in samples for value in row])


def test_held_out_values_have_no_level_and_no_spread_of_a_location_left() -> None:
    found = fit(sampled(2000))
    locations, values = flat(sampled(2000, seed=1))
    made = found(locations, values)
    for low, high in ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)):
        there = (locations > low) & (locations <= high)
        assert abs(made[there].mean()) < 0.1
        assert abs(made[there].std() - 1) < 0.1
    correlation = torch.corrcoef(torch.stack([made, locations.log()]))[0, 1]
    assert correlation**2 < 0.01
    assert found.note == ""
    assert found.segments == sum(map(len, sampled(2000)))


def test_scale_level_and_drift_of_the_model_change_nothing() -> None:
    samples = sampled(400)
    moved = [
        [7 * value - 90 + 5 * math.log((j + 1) / len(row)) for j, value in enumerate(row)]
        for row in samples
    ]
    locations, values = flat(samples)
    _, others = flat(moved)
    torch.testing.assert_close(
        fit(moved)(locations, others), fit(samples)(locations, values), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("form", ["weighted", "huber_groups"])
def test_two_ranks_fit_what_one_fits(form: str) -> None:
    samples = sampled(300)
    halves = [samples[:180], samples[180:]]
    rounds: list[list[Tensor]] = [[], []]

    def collect(rank: int) -> Callable[[Tensor, str], Tensor]:
        """What each rank gives to each reduction, found by letting the other's be added."""

        def reduce(value: Tensor, how: str) -> Tensor:
            calls = rounds[rank]
            calls.append(value)
            other = rounds[1 - rank]
            if len(other) < len(calls):
                raise _Wait
            pair = torch.stack([value, other[len(calls) - 1]])
            return pair.amax(0) if how == "max" else pair.sum(0)

        return reduce

    fits = [_rank_by_rank(halves, rank, collect, rounds, form) for rank in (0, 1)]
    whole = fit(samples, form=form)
    for found in fits:
        assert found.segments == whole.segments
        for name in ("mean_slope", "mean", "spread_slope", "spread", "floor", "smallest", "unit"):
            assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-9)


class _Wait(Exception):
    """A reduction needs what the other rank has not given yet."""


def _rank_by_rank(
    halves: list[Samples],
    wanted: int,
    collect: Callable[[int], Callable[[Tensor, str], Tensor]],
    rounds: list[list[Tensor]],
    form: str,
) -> LocationNormalizer:
    """Let both ranks fit in turns, each from the start until it lacks a number of the other."""
    while True:
        for rank in (1 - wanted, wanted):
            rounds[rank].clear()
            try:
                found = fit(halves[rank], form=form, reduce=collect(rank))
            except _Wait:
                continue
            if rank == wanted:
                return found


def test_sigma_stays_positive_at_the_start_of_long_responses() -> None:
    """The published line for values of tokens turns negative from 246 tokens on."""
    samples = sampled(
        400,
        value=lambda p, chance: max(0.01, 5.4513 + 2.2 * math.log(p)) * chance.gauss(0, 1),
    )
    found = fit(samples)
    assert found.spread_slope > 0
    for count in (246, 5000):
        locations = torch.tensor([1 / count])
        high, low = (found(locations, torch.tensor([value])) for value in (1.0, -1.0))
        assert high > low
        assert high - low <= 2 / found.floor + 1e-6


def test_a_location_before_the_first_that_was_fitted_counts_as_that() -> None:
    found = fit(sampled(400))
    assert found.smallest == pytest.approx(1 / 30)
    first, before = (found(torch.tensor([place]), torch.ones(1)) for place in (1 / 30, 1 / 3000))
    assert first == before


def test_means_over_responses_get_a_deviation_of_one() -> None:
    samples = sampled(500)
    found = fit(samples)
    means = [found(*flat([row])).mean() * found.unit for row in samples]
    assert torch.stack(means).std().item() == pytest.approx(1.0, rel=1e-4)


def test_too_few_locations_give_a_constant_and_a_note() -> None:
    chance = random.Random(0)
    found = fit([[chance.gauss(3, 2)] for _ in range(500)])
    assert (found.mean_slope, found.spread_slope) == (0.0, 0.0)
    assert found.mean == pytest.approx(3, abs=0.3)
    assert found.spread == pytest.approx(2, abs=0.2)
    assert "constant" in found.note


def test_a_constant_reward_model_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"nearly the same value, 3\.5, to all 90 segments"):
        fit([[3.5] * 9] * 10)


def test_a_saved_fit_is_refused_for_values_of_something_else(tmp_path: Path) -> None:
    print_of = {"reward model": "a1", "cutoff": "1.75"}
    found, file = fit(sampled(200), fingerprint=print_of), tmp_path / "normalizer.json"
    found.save(file)
    assert LocationNormalizer.load(file, print_of) == found
    with pytest.raises(AlignerError, match=r"another cutoff: 1\.75, and here it is 2\.0"):
        LocationNormalizer.load(file, {**print_of, "cutoff": "2.0"})
    with pytest.raises(AlignerError, match="another tokenizer: nothing, and here it is b2"):
        LocationNormalizer.load(file, {**print_of, "tokenizer": "b2"})
    with pytest.raises(AlignerError, match="another cutoff"):
        LocationNormalizer.load(file, {"reward model": "a1"})
    file.write_text("{")
    with pytest.raises(AlignerError, match=r"normalizer\.json is damaged"):
        LocationNormalizer.load(file, print_of)


def test_a_fit_of_which_a_digit_or_a_name_changed_is_refused(tmp_path: Path) -> None:
    found, file = fit(sampled(200)), tmp_path / "normalizer.json"
    found.save(file)
    whole = file.read_text()
    for old, new in ((str(found.mean), str(found.mean + 8)), ('"floor"', '"floor2"')):
        file.write_text(whole.replace(old, new))
        with pytest.raises(AlignerError, match=r"normalizer\.json is damaged") as caught:
            LocationNormalizer.load(file, {})
        assert "fitted again" in str(caught.value.hint)


def test_the_huber_line_is_that_of_scikit_learn() -> None:
    """Numbers of scikit-learn 1.9.1, HuberRegressor(tol=1e-12, max_iter=10000)."""
    places = [0.05, 0.1, 0.2, 0.25, 0.333, 0.4, 0.5, 0.6, 0.667, 0.75, 0.8, 1.0]
    values = [-2.1, -1.7, -0.9, -0.2, -0.55, -0.3, 0.1, 0.4, 3.0, 0.45, -2.0, 0.8]
    slope, start = huber_line(torch.tensor(places).double().log(), torch.tensor(values))
    assert slope == pytest.approx(0.9960693, abs=1e-5)
    assert start == pytest.approx(0.7536354, abs=1e-5)


def test_the_papers_form_weighs_groups_alike() -> None:
    """One location with very many segments moves the level of the weighted line, not of the
    paper's."""
    chance = random.Random(0)
    rows = [[math.log((j + 1) / 8) + 1e-3 * chance.gauss(0, 1) for j in range(8)]] * 40
    crowd = [[6.0 + chance.gauss(0, 1e-3)] for _ in range(4000)]
    paper = fit([*rows, *crowd], form="huber_groups")
    ours = fit([*rows, *crowd])
    assert paper.mean_slope == pytest.approx(1.0, abs=0.05)
    assert paper.mean == pytest.approx(0.0, abs=0.1)
    assert ours.mean > 5


def test_what_the_number_of_segments_says_of_quality_is_not_taken_for_the_place() -> None:
    """Good responses have one segment and bad ones several, so that early places are theirs; values
    fall by 0.5 ln p."""
    chance = random.Random(0)
    rows = []
    for size in (chance.choice((1, 1, 1, 2, 3, 4)) for _ in range(2000)):
        good, places = (3.0 if size == 1 else -1.0), [(j + 1) / size for j in range(size)]
        rows.append([good - 0.5 * math.log(p) + chance.gauss(0, 1) for p in places])
    assert fit(rows).mean_slope == pytest.approx(-0.5, abs=0.05)
