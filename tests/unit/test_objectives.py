"""Objectives: values and gradients against hand-worked numbers and a slow second version in doubles, from the papers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from aligner.config.choices import LABEL_SMOOTHING_LOSSES, LOSSES
from aligner.objectives import OBJECTIVES, PairLogps, Settings

SETTINGS = Settings(beta=0.3, label_smoothing=0.1, tau=0.05)
FIELDS = ("chosen", "rejected", "reference_chosen", "reference_rejected")


def s(x: float) -> float:
    """The logistic function."""
    return 1 / (1 + math.exp(-x))


def slow(name: str, w: float, v: float, n_w: float, n_l: float, beta: float, e: float, tau: float) -> float:
    """One loss of one pair as the paper prints it; w and v are the log-ratios of chosen and rejected to the reference."""
    z = beta * (w - v)
    z_mean = beta * (w / n_w - v / n_l)
    gate = s(z / tau)
    return {
        "sigmoid": -(1 - e) * math.log(s(z)) - e * math.log(s(-z)),
        "hinge": max(0.0, 1 - z),
        "ipo": (z_mean / beta - 1 / (2 * beta)) ** 2,
        "robust": (-(1 - e) * math.log(s(z)) + e * math.log(s(-z))) / (1 - 2 * e),
        "exo_pair": s(z) * math.log(s(z) / (1 - e)) + s(-z) * math.log(s(-z) / e),
        "nca_pair": -math.log(s(beta * w)) - 0.5 * (math.log(s(-beta * w)) + math.log(s(-beta * v))),
        "bco_pair": -math.log(s(beta * w)) - math.log(s(-beta * v)),
        "sppo_hard": (w - 1 / (2 * beta)) ** 2 + (v + 1 / (2 * beta)) ** 2,
        "apo_zero": (1 - s(beta * w)) + s(beta * v),
        "apo_down": s(beta * w) + (1 - s(z)),
        "discopop": (1 - gate) * math.log(1 + math.exp(-z)) + gate * math.exp(-z),
        "sigmoid_norm": -math.log(s(z_mean)),
    }[name]


def pairs_of(values: list[tuple[float, ...]]) -> PairLogps:
    columns = torch.tensor(values).T
    return PairLogps(*(column.clone().requires_grad_() for column in columns[:4]), columns[4].long(), columns[5].long())


RANDOM = [
    (*(-40 * torch.rand(4, generator=torch.Generator().manual_seed(i))).tolist(), float(i + 1), float(2 * i + 3))
    for i in range(8)
]


def test_the_names_are_those_that_a_recipe_may_give():
    assert list(OBJECTIVES) == list(LOSSES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_values_are_those_of_the_slow_version(name):
    pairs = pairs_of(RANDOM)
    expected = [slow(name, a - c, b - d, n, m, 0.3, 0.1, 0.05) for a, b, c, d, n, m in RANDOM]
    assert OBJECTIVES[name](pairs, SETTINGS).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_the_slopes_of_the_slow_version(name):
    pairs = pairs_of(RANDOM)
    OBJECTIVES[name](pairs, SETTINGS).sum().backward()
    step = 1e-6
    for side, field in enumerate(FIELDS[:2]):
        found = getattr(pairs, field).grad
        for i, row in enumerate(RANDOM):

            def at(change: float, row=row, side=side) -> float:
                moved = [value + change * (k == side) for k, value in enumerate(row[:4])]
                return slow(name, moved[0] - moved[2], moved[1] - moved[3], row[4], row[5], 0.3, 0.1, 0.05)

            slope = (at(step) - at(-step)) / (2 * step)
            assert found[i].item() == pytest.approx(slope, rel=2e-3, abs=2e-5), (field, i)


HAND_WORKED = {
    # log-ratios w = ln 2, v = -ln 2 (so rho = 2 ln 2), beta = 1, answers of 1 and 2 tokens
    "sigmoid": math.log(5 / 4),  # s(2 ln 2) = 4/5
    "hinge": 0.0,  # 1 - 1.386 is below nothing
    "ipo": (1.5 * math.log(2) - 0.5) ** 2,
    "robust": math.log(5 / 4),
    "nca_pair": math.log(3 / 2) + 0.5 * math.log(3) + 0.5 * math.log(3 / 2),  # s(ln 2) = 2/3
    "bco_pair": 2 * math.log(3 / 2),
    "sppo_hard": 2 * (math.log(2) - 0.5) ** 2,
    "apo_zero": 1 / 3 + 1 / 3,
    "apo_down": 2 / 3 + 1 / 5,
    "discopop": 0.2 * math.log(5 / 4) + 0.8 / 4,  # tau = 1, so the gate is s(z) = 4/5
    "sigmoid_norm": math.log(1 + 2**-1.5),
}


@pytest.mark.parametrize(("name", "value"), HAND_WORKED.items())
def test_values_worked_out_by_hand(name, value):
    pairs = pairs_of([(math.log(2), -math.log(2), 0.0, 0.0, 1.0, 2.0)])
    assert OBJECTIVES[name](pairs, Settings(beta=1.0, tau=1.0)).item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "robust", "bco_pair", "nca_pair"])
def test_a_policy_that_is_its_reference_starts_at_a_known_loss(name):
    pairs = pairs_of([(-3.0, -5.0, -3.0, -5.0, 2.0, 2.0)])
    expected = {"bco_pair": 2 * math.log(2), "nca_pair": 2 * math.log(2)}.get(name, math.log(2))
    assert OBJECTIVES[name](pairs, Settings()).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("z", [-1e4, -100.0, -88.8, 0.0, 88.8, 100.0, 1e4])
def test_loss_and_gradient_are_numbers_far_from_the_start(name, z):
    rho = z / SETTINGS.beta
    pairs = pairs_of([(rho / 2, -rho / 2, 0.0, 0.0, 4.0, 6.0)])
    loss = OBJECTIVES[name](pairs, SETTINGS)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(pairs.chosen.grad).all()
    assert torch.isfinite(pairs.rejected.grad).all()


def test_discopop_has_the_values_that_its_paper_quotes():
    """Start 0.8466; a local minimum 0.7859 at rho = -2.3714 and a maximum 0.87829 at rho = 1.44012, for beta = 0.05."""
    settings = Settings(beta=0.05, tau=0.05)
    rho = torch.tensor([0.0, -2.3714, 1.44012])
    pairs = pairs_of([(value, 0.0, 0.0, 0.0, 1.0, 1.0) for value in rho.tolist()])
    loss = OBJECTIVES["discopop"](pairs, settings)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.84657, 0.7859, 0.87829], abs=1e-4)
    assert pairs.chosen.grad[0].item() > 0  # at the start the slope points the wrong way
    assert pairs.chosen.grad[1:].abs().max().item() < 1e-5


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_loss_belongs_to_its_pair_alone(name):
    """One pair gives the same number alone and in a batch, so accumulation can equal the large batch."""
    together = OBJECTIVES[name](pairs_of(RANDOM), SETTINGS)
    assert together.shape == (len(RANDOM),)
    alone = [OBJECTIVES[name](pairs_of([row]), SETTINGS).item() for row in RANDOM]
    assert together.tolist() == pytest.approx(alone, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ("ipo", "sigmoid_norm")])
def test_only_normalised_objectives_read_the_lengths(name):
    pairs = pairs_of(RANDOM)
    longer = replace(pairs, chosen_lengths=pairs.chosen_lengths * 7, rejected_lengths=pairs.rejected_lengths + 5)
    assert torch.equal(OBJECTIVES[name](pairs, SETTINGS), OBJECTIVES[name](longer, SETTINGS))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_label_smoothing_changes_exactly_the_objectives_that_say_so(name):
    pairs = pairs_of(RANDOM)
    smoothed = [OBJECTIVES[name](pairs, replace(SETTINGS, label_smoothing=e)) for e in (0.1, 0.2)]
    assert (not torch.equal(*smoothed)) == (name in LABEL_SMOOTHING_LOSSES)


def test_half_precision_log_probabilities_are_computed_in_single_precision():
    pairs = PairLogps(*(torch.tensor([-300.0 - i], dtype=torch.bfloat16) for i in range(4)), *torch.ones(2, 1).long())
    assert OBJECTIVES["sigmoid"](pairs, SETTINGS).dtype == torch.float32
