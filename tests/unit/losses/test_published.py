"""Objectives: values and gradients against hand-worked numbers and a slow second version in
doubles, from the papers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from aligner.config.loss_names import (
    LABEL_SMOOTHING_LOSSES,
    LOSSES,
    REFERENCE_FREE_LOSSES,
    REWARD_LOSSES,
    TAU_LOSSES,
)
from aligner.losses.catalogue import BATCH_DEPENDENT, OBJECTIVES, REWARD_OBJECTIVES, load_objective
from aligner.losses.dsl.interpreter import as_objective
from aligner.losses.dsl.parser import parse_objective
from aligner.losses.shape import run_over
from aligner.losses.types import PairLogps, Settings
from aligner.methods.discover.recipe import WRITTEN
from aligner.methods.discover.seed_objectives import WRITTEN_SOURCES

SETTINGS = Settings(beta=0.3, label_smoothing=0.1, tau=0.05)
FIELDS = ("chosen", "rejected", "reference_chosen", "reference_rejected")


def s(x: float) -> float:
    """The logistic function."""
    return 1 / (1 + math.exp(-x))


def slow(
    name: str, w: float, v: float, n_w: float, n_l: float, beta: float, e: float, tau: float
) -> float:
    """One loss of one pair as the paper prints it; w and v are the log-ratios of chosen and
    rejected to the reference."""
    if name in BATCH_DEPENDENT:
        return slow_batch(name, [(w, v)], beta, tau)[0]
    z = beta * (w - v)
    z_mean = beta * (w / n_w - v / n_l)
    gate = s(z / tau)
    return {
        "sigmoid": -(1 - e) * math.log(s(z)) - e * math.log(s(-z)),
        "hinge": max(0.0, 1 - z),
        "ipo": (z_mean / beta - 1 / (2 * beta)) ** 2,
        "robust": (-(1 - e) * math.log(s(z)) + e * math.log(s(-z))) / (1 - 2 * e),
        "exo_pair": s(z) * math.log(s(z) / (1 - e)) + s(-z) * math.log(s(-z) / e),
        "nca_pair": -math.log(s(beta * w))
        - 0.5 * (math.log(s(-beta * w)) + math.log(s(-beta * v))),
        "bco_pair": -math.log(s(beta * w)) - math.log(s(-beta * v)),
        "sppo_hard": (w - 1 / (2 * beta)) ** 2 + (v + 1 / (2 * beta)) ** 2,
        "apo_zero": (1 - s(beta * w)) + s(beta * v),
        "apo_down": s(beta * w) + (1 - s(z)),
        "discopop": (1 - gate) * math.log(1 + math.exp(-z)) + gate * math.exp(-z),
        "sigmoid_norm": -math.log(s(z_mean)),
        "ipo_sum": (z / beta - 1 / (2 * beta)) ** 2,
        "padll": 0.9 * (0.5 if z < 0 else 1.0) * math.log(1 + math.exp(-z)),
        "cell": 0.5 * math.log(1 + math.exp(-z)) + 0.5 * math.exp(-z),
    }[name]


def slow_absolute(
    name: str, row: tuple[float, ...], beta: float, tau: float, gamma: float = 0.5
) -> float:
    """The objectives that read more than log-ratios; `row` is (chosen, rejected, their references,
    their lengths)."""
    a, b, ref_a, ref_b, n_w, n_l = row
    p_w, p_l = math.exp(a / n_w), math.exp(b / n_l)
    z = beta * ((a - ref_a) - (b - ref_b))
    odds = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
    return {
        "orpo": -a / n_w - beta * math.log(odds / (1 + odds)),
        "simpo": -math.log(s(beta * (a / n_w - b / n_l) - gamma)),
        "sft": -a / n_w,
        "pfl": 0.5 * math.log(1 + math.exp(-z / tau)) if a > b else 2 * max(0.0, 1 - z / tau),
    }[name]


def slow_row(name: str, row: tuple[float, ...]) -> float:
    """The loss of one row in doubles, whatever the objective reads."""
    if name in ("orpo", "simpo", "sft", "pfl"):
        return slow_absolute(name, row, 0.3, 0.05)
    return slow(name, row[0] - row[2], row[1] - row[3], row[4], row[5], 0.3, 0.1, 0.05)


def slow_batch(
    name: str, ratios: list[tuple[float, float]], beta: float, tau: float
) -> list[float]:
    """Losses of a batch of pairs, given by their two log-ratios, of the objectives that read
    statistics of it."""
    n = len(ratios)
    zs = [beta * (w - v) for w, v in ratios]
    scaled = [z / tau for z in zs]
    mean = sum(scaled) / n
    var = sum((x - mean) ** 2 for x in scaled) / (n - 1) if n > 1 else 0.0
    logistic = [math.log1p(math.exp(-z)) for z in zs]
    hinge = [max(0.0, 1 - z) for z in zs]
    if name == "kto_pair":
        k_w = max(0.0, beta * sum(w for w, _ in ratios) / n)
        k_l = max(0.0, beta * sum(v for _, v in ratios) / n)
        return [((1 - s(beta * w - k_l)) + (1 - s(k_w - beta * v))) / 2 for w, v in ratios]
    if name == "dbaql":
        c = s(min(var, 700.0))
        return [c * math.log1p(math.exp(-z / 0.9)) + (1 - c) * math.exp(-0.9 * z) for z in zs]
    if name == "aql":
        m = 0.5 + 0.01 * (s(mean) - 0.5)
        return [
            s(tau * m - z) * d + (1 - s(tau * m - z)) * h for z, d, h in zip(zs, logistic, hinge)
        ]
    m1 = math.sqrt(var) * sum(s(-x) for x in scaled) / n
    m2 = m1 + 0.05 * (s(mean) - m1)
    gates = [s(0.1 * abs(x - m2)) for x in scaled]
    return [r * d + (1 - r) * h for r, d, h in zip(gates, logistic, hinge)]


def pairs_of(values: list[tuple[float, ...]]) -> PairLogps:
    columns = torch.tensor(values).T
    return PairLogps(
        *(column.clone().requires_grad_() for column in columns[:4]),
        columns[4].long(),
        columns[5].long(),
    )


def grad_of(pairs: PairLogps, field: str) -> torch.Tensor:
    """The gradient of an input, of zeros where the objective does not read it."""
    found = getattr(pairs, field)
    return torch.zeros_like(found) if found.grad is None else found.grad


RANDOM = [
    (
        *(-40 * torch.rand(4, generator=torch.Generator().manual_seed(i))).tolist(),
        float(i + 1),
        float(2 * i + 3),
    )
    for i in range(8)
]


def test_the_names_are_those_that_a_recipe_may_give():
    assert [*OBJECTIVES, *REWARD_OBJECTIVES] == list(LOSSES)
    assert set(REWARD_OBJECTIVES) == set(REWARD_LOSSES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_values_are_those_of_the_slow_version(name):
    pairs = pairs_of(RANDOM)
    expected = [slow_row(name, row) for row in RANDOM]
    if name in BATCH_DEPENDENT:
        expected = slow_batch(name, [(a - c, b - d) for a, b, c, d, _, _ in RANDOM], 0.3, 0.05)
    assert OBJECTIVES[name](pairs, SETTINGS).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_the_slopes_of_the_slow_version(name):
    pairs = pairs_of(RANDOM)
    if name in BATCH_DEPENDENT:
        pytest.skip("has a test of its own: a pair moves the others' losses")
    OBJECTIVES[name](pairs, SETTINGS).sum().backward()
    step = 1e-6
    for side, field in enumerate(FIELDS[:2]):
        found = grad_of(pairs, field)
        for i, row in enumerate(RANDOM):

            def at(change: float, row=row, side=side) -> float:
                moved = [value + change * (k == side) for k, value in enumerate(row[:4])]
                return slow_row(name, (*moved, *row[4:]))

            slope = (at(step) - at(-step)) / (2 * step)
            assert found[i].item() == pytest.approx(slope, rel=2e-3, abs=2e-5), (field, i)


@pytest.mark.parametrize("name", BATCH_DEPENDENT)
def test_gradients_flow_through_batch_statistics_except_those_of_kto(name):
    rows = [(-3.0 - 0.1 * i, -4.0 + 0.2 * i, -3.2, -3.9, 4.0, 4.0) for i in range(5)]
    pairs = pairs_of(rows)
    OBJECTIVES[name](pairs, SETTINGS).sum().backward()

    def total(change: float) -> float:
        ratios = [
            (row[0] - row[2] + change * (i == 1), row[1] - row[3]) for i, row in enumerate(rows)
        ]
        return sum(slow_batch(name, ratios, 0.3, 0.05))

    slope = (total(1e-6) - total(-1e-6)) / 2e-6
    if name == "kto_pair":
        w = rows[1][0] - rows[1][2]
        k_l = max(0.0, 0.3 * sum(row[1] - row[3] for row in rows) / len(rows))
        slope = -0.5 * 0.3 * s(0.3 * w - k_l) * (1 - s(0.3 * w - k_l))
    assert pairs.chosen.grad[1].item() == pytest.approx(slope, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in BATCH_DEPENDENT if name != "kto_pair"])
def test_a_gate_that_lets_no_gradient_through_is_another_objective(name):
    """Where margins are small and tau is large, so that the gates are open, the gradient through
    them is seen."""
    rows = [(-3.0 - 0.05 * i, -3.1 + 0.02 * i, -3.2, -3.05, 4.0, 4.0) for i in range(4)]
    settings = Settings(beta=0.3, tau=1.0)
    pairs, held = pairs_of(rows), pairs_of(rows)
    OBJECTIVES[name](pairs, settings)[0].backward()
    OBJECTIVES[name](replace(held, gather=lambda values: values.detach()), settings)[0].backward()
    expected = [
        (
            slow_batch(name, shifted(rows, i, 1e-5), 0.3, 1.0)[0]
            - slow_batch(name, shifted(rows, i, -1e-5), 0.3, 1.0)[0]
        )
        / 2e-5
        for i in range(4)
    ]
    assert pairs.chosen.grad.tolist() == pytest.approx(expected, rel=2e-4, abs=1e-7)
    assert pairs.chosen.grad[1].item() != pytest.approx(held.chosen.grad[1].item(), abs=1e-6)


def shifted(rows: list[tuple[float, ...]], which: int, change: float) -> list[tuple[float, float]]:
    """Ratios of chosen and rejected, with one chosen log-probability moved."""
    return [
        (row[0] - row[2] + change * (i == which), row[1] - row[3]) for i, row in enumerate(rows)
    ]


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_a_written_objective_is_the_one_of_the_catalogue(name, beta):
    """What a search shows to a language model, and trains with, is what `dpo.loss=NAME` trains
    with."""
    assert set(WRITTEN) == set(WRITTEN_SOURCES)
    written = as_objective(parse_objective(WRITTEN_SOURCES[name]))
    z = torch.tensor([-300.0, -30.0, -20.5, -3.0, -0.1, 0.0, 0.02, 1.0, 7.0, 90.0])
    settings = Settings(beta=beta)
    for reads_batch in (True, False):
        found, expected = (
            run_over(one, settings, z, reads_batch) for one in (written, OBJECTIVES[name])
        )
        assert torch.allclose(found[0], expected[0], rtol=1e-4, atol=1e-6)
        assert torch.allclose(found[1][z != 0], expected[1][z != 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", BATCH_DEPENDENT)
@pytest.mark.parametrize("size", [1, 5])
def test_equal_pairs_have_a_loss_and_a_gradient(name, size):
    """Variance 0, of one pair or of many alike, as at the first step; torch's of one value is
    NaN."""
    pairs = pairs_of([(-3.0, -5.0, -3.0, -5.0, 2.0, 2.0)] * size)
    losses = OBJECTIVES[name](pairs, SETTINGS)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([losses[0].item()] * size)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(pairs.chosen.grad).all()


@pytest.mark.parametrize("name", BATCH_DEPENDENT)
def test_a_gathered_batch_counts_as_one(name):
    """Two halves that see each other's values have the losses and gradients of the whole."""
    whole = pairs_of(RANDOM)
    expected = OBJECTIVES[name](whole, SETTINGS)
    expected.sum().backward()
    found = pairs_of(RANDOM)
    columns = [getattr(found, field) for field in (*FIELDS, "chosen_lengths", "rejected_lengths")]
    ratios = (found.chosen_ratio, found.rejected_ratio) if name == "kto_pair" else (found.rho,)
    total = torch.tensor(0.0)
    for half, other in ((slice(0, 4), slice(4, 8)), (slice(4, 8), slice(0, 4))):
        elsewhere = iter(
            [SETTINGS.beta * ratio[other] for ratio in ratios]
        )  # in the order in which they are asked for
        pairs = PairLogps(
            *(column[half] for column in columns),
            gather=lambda values, rest=elsewhere: torch.cat([values, next(rest)]),
        )
        losses = OBJECTIVES[name](pairs, SETTINGS)
        assert losses.tolist() == pytest.approx(expected[half].tolist(), rel=1e-5)
        total = total + losses.sum()
    total.backward()
    assert found.chosen.grad.tolist() == pytest.approx(
        whole.chosen.grad.tolist(), rel=1e-4, abs=1e-6
    )


def test_a_mixture_is_the_weighted_sum_of_its_parts():
    pairs = pairs_of(RANDOM)
    expected = 0.7 * OBJECTIVES["sigmoid"](pairs, SETTINGS) + 2 * OBJECTIVES["sft"](pairs, SETTINGS)
    assert torch.allclose(load_objective({"sigmoid": 0.7, "sft": 2.0})(pairs, SETTINGS), expected)


@pytest.mark.parametrize("name", REFERENCE_FREE_LOSSES)
def test_objectives_without_a_reference_never_read_it(name):
    pairs = pairs_of(RANDOM)
    other = replace(
        pairs,
        reference_chosen=pairs.reference_chosen - 7,
        reference_rejected=pairs.reference_rejected * 2,
    )
    assert torch.equal(OBJECTIVES[name](pairs, SETTINGS), OBJECTIVES[name](other, SETTINGS))


def test_only_those_objectives_never_read_the_reference():
    pairs = pairs_of(RANDOM)
    other = replace(
        pairs,
        reference_chosen=pairs.reference_chosen - 7,
        reference_rejected=pairs.reference_rejected * 2,
    )
    reads = {
        name
        for name in OBJECTIVES
        if not torch.equal(OBJECTIVES[name](pairs, SETTINGS), OBJECTIVES[name](other, SETTINGS))
    }
    assert set(OBJECTIVES) - reads == set(REFERENCE_FREE_LOSSES)


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
    "ipo_sum": (2 * math.log(2) - 0.5) ** 2,
    "kto_pair": 1 - 2 / 3 / 2 - 0.8 / 2,  # k_l = 0, k_w = ln 2, so s(ln 2) and s(2 ln 2)
    "dbaql": 0.5 * math.log(1 + 0.25 ** (1 / 0.9))
    + 0.5 * 0.25**0.9,  # one pair: variance 0, c = 1/2
    "padll": 0.9 * math.log(5 / 4),
    "cell": 0.5 * math.log(5 / 4) + 0.5 / 4,
    "pfl": 0.5 * math.log(5 / 4),
    # the seven of the paper whose gates see a batch of one: m = 0.5 + 0.01 (4/5 - 0.5), q = s(m - 2
    # ln 2); hinge 0
    "aql": math.log(5 / 4) / (1 + 4 * math.exp(-0.503)),
    "aqfl": math.log(5 / 4)
    / (1 + math.exp(-0.1 * (2 * math.log(2) - 0.05 * 0.8))),  # m1 = 0, m2 = 0.04
}


@pytest.mark.parametrize(("name", "value"), HAND_WORKED.items())
def test_values_worked_out_by_hand(name, value):
    pairs = pairs_of([(math.log(2), -math.log(2), 0.0, 0.0, 1.0, 2.0)])
    assert OBJECTIVES[name](pairs, Settings(beta=1.0, tau=1.0)).item() == pytest.approx(
        value, abs=1e-6
    )


TWO_PAIRS = [(-4.0, -6.0, -5.0, -5.5, 2.0, 4.0), (-7.0, -3.0, -6.0, -4.0, 3.0, 1.0)]
"""w = 1, v = -0.5, z = 0.75, z/tau = 3 and w = -1, v = 1, z = -1, z/tau = -4, for beta = 0.5 and
tau = 0.25."""

OF_TWO_PAIRS = {
    # From the printed formulas with a calculator, e = 0.1, gamma = 0.5. Neither beta nor tau is 1,
    # so that one that is left out shows; the second pair is on the wrong side. pfl: ln(1 + e^-3) /
    # 2, and 2 (1 + 4).
    "sigmoid": (0.461871, 1.213262),
    "hinge": (0.250000, 2.000000),
    "ipo": (0.140625, 5.444444),
    "ipo_sum": (0.250000, 9.000000),
    "robust": (0.293121, 1.438262),
    "exo_pair": (0.182790, 1.129457),
    "nca_pair": (1.249085, 1.698154),
    "bco_pair": (1.050016, 1.948154),
    "sppo_hard": (0.250000, 8.000000),
    "apo_zero": (0.815364, 1.244919),
    "apo_down": (0.943281, 1.108599),
    "sigmoid_norm": (0.549055, 1.081037),
    "kto_pair": (0.422578, 0.636907),
    "orpo": (2.521029, 2.532024),
    "simpo": (1.136871, 0.779949),
    "sft": (2.000000, 2.333333),
    "discopop": (0.468312, 1.338533),
    "dbaql": (0.360885, 1.395683),
    "aql": (0.297710, 1.481610),
    "padll": (0.348184, 0.590968),
    "aqfl": (0.320354, 1.549747),
    "cell": (0.429619, 2.015772),
    "pfl": (0.024294, 10.000000),
}


@pytest.mark.parametrize(("name", "values"), OF_TWO_PAIRS.items())
def test_values_of_two_pairs_worked_out_by_hand(name, values):
    assert set(OF_TWO_PAIRS) == set(OBJECTIVES)
    settings = Settings(beta=0.5, tau=0.25, label_smoothing=0.1, simpo_gamma=0.5)
    assert OBJECTIVES[name](pairs_of(TWO_PAIRS), settings).tolist() == pytest.approx(
        values, abs=2e-6
    )


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
    assert torch.isfinite(grad_of(pairs, "chosen")).all()
    assert torch.isfinite(grad_of(pairs, "rejected")).all()


def test_discopop_has_the_values_that_its_paper_quotes():
    """Start 0.8466; a local minimum 0.7859 at rho = -2.3714 and a maximum 0.87829 at rho = 1.44012,
    for beta = 0.05."""
    settings = Settings(beta=0.05, tau=0.05)
    rho = torch.tensor([0.0, -2.3714, 1.44012])
    pairs = pairs_of([(value, 0.0, 0.0, 0.0, 1.0, 1.0) for value in rho.tolist()])
    loss = OBJECTIVES["discopop"](pairs, settings)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.84657, 0.7859, 0.87829], abs=1e-4)
    assert pairs.chosen.grad[0].item() > 0  # at the start the slope points the wrong way
    assert pairs.chosen.grad[1:].abs().max().item() < 1e-5


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in BATCH_DEPENDENT])
def test_a_loss_belongs_to_its_pair_alone(name):
    """One pair gives the same number alone and in a batch, so accumulation can equal the large
    batch."""
    together = OBJECTIVES[name](pairs_of(RANDOM), SETTINGS)
    assert together.shape == (len(RANDOM),)
    alone = [OBJECTIVES[name](pairs_of([row]), SETTINGS).item() for row in RANDOM]
    assert together.tolist() == pytest.approx(alone, rel=1e-6, abs=1e-7)


def test_only_the_objectives_that_say_so_read_the_batch():
    mixed = {
        name
        for name, objective in OBJECTIVES.items()
        if objective(pairs_of(RANDOM), SETTINGS)[:1].tolist()
        != pytest.approx(objective(pairs_of(RANDOM[:1]), SETTINGS).tolist(), rel=1e-6)
    }
    assert mixed == set(BATCH_DEPENDENT)


def test_only_the_objectives_that_say_so_read_tau():
    pairs = pairs_of(
        [(-3.0 - 0.01 * i, -4.0, -3.0 - 0.02 * i * i, -4.0, 4.0, 4.0) for i in range(4)]
    )
    other = replace(SETTINGS, tau=0.3)
    found = {
        name
        for name, f in OBJECTIVES.items()
        if not torch.equal(f(pairs, SETTINGS), f(pairs, other))
    }
    assert found == set(TAU_LOSSES)


NORMALISED = ("ipo", "sigmoid_norm", "orpo", "simpo", "sft")


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in NORMALISED])
def test_only_normalised_objectives_read_the_lengths(name):
    pairs = pairs_of(RANDOM)
    longer = replace(
        pairs, chosen_lengths=pairs.chosen_lengths * 7, rejected_lengths=pairs.rejected_lengths + 5
    )
    assert torch.equal(OBJECTIVES[name](pairs, SETTINGS), OBJECTIVES[name](longer, SETTINGS))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_label_smoothing_changes_exactly_the_objectives_that_say_so(name):
    pairs = pairs_of(RANDOM)
    smoothed = [OBJECTIVES[name](pairs, replace(SETTINGS, label_smoothing=e)) for e in (0.1, 0.2)]
    assert (not torch.equal(*smoothed)) == (name in LABEL_SMOOTHING_LOSSES)


def test_half_precision_log_probabilities_are_computed_in_single_precision():
    pairs = PairLogps(
        *(torch.tensor([-300.0 - i], dtype=torch.bfloat16) for i in range(4)),
        *torch.ones(2, 1).long(),
    )
    assert OBJECTIVES["sigmoid"](pairs, SETTINGS).dtype == torch.float32
