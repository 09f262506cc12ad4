"""The bandit that judges objectives, against what is known of DPO and of the discovered ones, and
what is said of them."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aligner.errors import TrainingError
from aligner.losses.bandit import HELD_OUT, SEARCH, Adam, BanditResult, run_bandit
from aligner.losses.catalogue import OBJECTIVES
from aligner.losses.dsl.checks import Behaviour, check_behaviour, curve_of
from aligner.losses.shape import pairs_at
from aligner.losses.types import Objective, PairLogps, Settings


def mean_of_two(name: str, beta: float) -> dict[str, float]:
    results = [
        run_bandit(OBJECTIVES[name], Settings(beta=beta, tau=0.05), seed=seed) for seed in (0, 1)
    ]
    return {
        key: sum(getattr(result, key) for result in results) / 2
        for key in ("reward_gain", "kl", "accuracy")
    }


def of_z(function: object) -> Objective:
    """The objective f(beta * rho)."""
    assert callable(function)
    return lambda pairs, settings: function(settings.beta * pairs.rho)


# --- the bandit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.05, 0.1])
def test_the_log_ratio_modulated_loss_unlearns_the_reward_that_dpo_learns(beta: float) -> None:
    """Its slope at z = 0 points the wrong way, and at a small beta no step is large enough to leave
    the basin."""
    dpo, lrml = mean_of_two("sigmoid", beta), mean_of_two("discopop", beta)
    assert dpo["reward_gain"] == pytest.approx(2.6, abs=0.2)
    assert dpo["accuracy"] > 0.8
    assert lrml["reward_gain"] < -1
    assert lrml["accuracy"] < 0.25
    assert lrml["kl"] < dpo["kl"]


def test_it_learns_when_beta_is_large() -> None:
    assert mean_of_two("discopop", 1.0)["reward_gain"] > 1.4


def test_a_larger_beta_keeps_dpo_nearer_to_the_reference() -> None:
    small, large = mean_of_two("sigmoid", 0.05), mean_of_two("sigmoid", 1.0)
    assert large["kl"] < small["kl"] / 2
    assert 1.6 < large["reward_gain"] < small["reward_gain"]


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    def run(seed: int) -> BanditResult:
        return run_bandit(OBJECTIVES["sigmoid"], Settings(), seed=seed, steps=30)

    assert run(3) == run(3)
    assert run(3).reward_gain != run(4).reward_gain


def test_the_curve_ends_at_the_result_and_an_untrained_policy_gains_nothing() -> None:
    result = run_bandit(OBJECTIVES["sigmoid"], Settings(), seed=0, steps=70, curve_every=30)
    assert [step for step, _ in result.curve] == [0, 30, 60, 70]
    assert result.curve[-1][1] == result.reward_gain
    untrained = run_bandit(OBJECTIVES["sigmoid"], Settings(), seed=0, steps=0)
    assert (untrained.reward_gain, untrained.kl) == pytest.approx((0, 0), abs=1e-6)


def test_the_held_out_world_is_another_one_in_which_dpo_learns_as_well() -> None:
    assert HELD_OUT != SEARCH
    assert HELD_OUT.flipped > SEARCH.flipped
    result = run_bandit(OBJECTIVES["sigmoid"], Settings(beta=0.05), seed=0, world=HELD_OUT)
    assert result.reward_gain > 1
    assert result.kl < math.log(HELD_OUT.arms)


def test_a_loss_or_gradient_that_is_not_finite_ends_the_run_with_an_error() -> None:
    with pytest.raises(TrainingError, match="the loss is nan at step 1 of the bandit"):
        run_bandit(of_z(lambda z: z / 0 * 0), Settings(), seed=0)
    with pytest.raises(TrainingError, match="no longer finite"):
        run_bandit(of_z(lambda z: torch.sqrt(z * z)), Settings(), seed=0, steps=1)


def test_its_adam_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(5, 3, generator=generator)
    theirs = ours.clone().requires_grad_()
    adam, optimizer = Adam(ours), torch.optim.Adam([theirs], lr=0.05)
    for _ in range(20):
        gradient = torch.randn(5, 3, generator=generator)
        adam.step(gradient, 0.05)
        theirs.grad = gradient
        optimizer.step()
    torch.testing.assert_close(ours, theirs.detach())


# --- behaviour ------------------------------------------------------------------------------------


def facts(objective: Objective, beta: float = 0.05) -> dict[str, object]:
    found = check_behaviour(objective, beta)
    assert found.ok, found.errors
    json.dumps(found.facts, allow_nan=False)
    return found.facts


def test_the_shape_of_the_log_ratio_modulated_loss_is_measured() -> None:
    """arXiv 2406.08414, section 5: in rho at beta 0.05 the optima are at -2.3714 and 1.44012."""
    found = facts(OBJECTIVES["discopop"])
    assert found["slope_at_zero"] == pytest.approx((1 - math.log(2)) / 0.2 - 0.75, abs=1e-3)
    assert found["stationary"] == [
        {"z": pytest.approx(-2.3714 * 0.05, abs=2e-3), "kind": "minimum"},
        {"z": pytest.approx(1.44012 * 0.05, abs=2e-3), "kind": "maximum"},
    ]
    assert any("uphill" in sentence for sentence in found["text"])  # type: ignore[attr-defined]


def test_dpo_is_its_own_measure() -> None:
    found = facts(OBJECTIVES["sigmoid"])
    assert found["slope_at_zero"] == pytest.approx(-0.5)
    assert found["gradient_scale"] == pytest.approx(1, rel=1e-3)
    assert found["stationary"] == found["jumps"] == found["flat"] == []
    assert not any(found["batch"].values())  # type: ignore[attr-defined]


def test_flat_parts_and_jumps_are_found() -> None:
    hinge = facts(OBJECTIVES["hinge"])
    assert hinge["flat"] == [[pytest.approx(1, abs=0.02), 10.0]]
    assert hinge["jumps"] == []
    step = facts(of_z(lambda z: torch.where(z < 2, 1.5, 1.0) - z))
    assert step["jumps"] == [
        {"z": pytest.approx(2, abs=0.02), "size": pytest.approx(-0.51, abs=0.01)}
    ]


@pytest.mark.parametrize(
    ("function", "changes"),
    [
        (lambda z: F.softplus(-z), set()),
        (lambda z: F.softplus(-z + z.mean() / 2), {"company"}),
        (
            lambda z: F.softplus(-z) * (1 + z.sum() ** 2 / (1 + z.sum() ** 2)),
            {"company", "duplication"},
        ),
        (
            lambda z: F.softplus(-z) * torch.linspace(1, 2, len(z)),
            {"company", "duplication", "permutation"},
        ),
    ],
)
def test_what_the_batch_has_to_do_with_a_loss_is_reported(
    function: object, changes: set[str]
) -> None:
    batch = facts(of_z(function))["batch"]
    assert {name for name, changed in batch.items() if changed} == changes  # type: ignore[attr-defined]


def test_an_input_without_a_gradient_is_a_fact_and_no_error() -> None:
    def reference_free(pairs: PairLogps, settings: Settings) -> Tensor:
        return F.softplus(settings.beta * (pairs.rejected - pairs.chosen))

    assert facts(reference_free)["no_gradient"] == [
        "reference_chosen_logps",
        "reference_rejected_logps",
    ]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda z: F.softplus(z), r"its average slope over z in \+-10 is \+0\.5"),
        (lambda z: z * 0 + 1, r"its average slope over z in \+-10 is \+0$"),
        (
            lambda z: torch.exp(-z),
            r"the loss is inf at z = -89, alone \(beta 0\.05\); .*clamp exponents",
        ),
        (
            lambda z: torch.sigmoid(-z / 0.05) * F.softplus(-z) + torch.exp(-z) * 0,
            "the loss is nan at z = -89",
        ),
        (lambda z: F.softplus(-z) + torch.log(z.abs()), "the loss is -inf at z = 0, alone"),
        (
            lambda z: F.softplus(-z) + z.std() * 0,
            "the loss is nan at z = 0, alone .*for a single pair .*unbiased",
        ),
        (lambda z: F.softplus(-z) + torch.sqrt(z * z), "the gradient is nan at z = 0, alone"),
        (lambda z: F.softplus(-z).mean(), r"the loss has shape \(\)"),
        (lambda z: F.softplus(-z).double(), "torch.float64"),
        (lambda z: F.softplus(-z).detach(), "does not depend on the policy"),
        (lambda z: F.softplus(-z) * torch.rand(1), "differs from call to call"),
    ],
)
def test_what_cannot_train_a_model_is_refused_with_the_figure(
    function: object, reason: str
) -> None:
    found = check_behaviour(of_z(function), 0.05)
    assert isinstance(found, Behaviour)
    assert not found.ok
    assert re.search(reason, found.errors[0]), found.errors


def test_a_loss_of_the_references_alone_is_refused() -> None:
    found = check_behaviour(lambda pairs, settings: pairs.reference_chosen * torch.ones(()), 0.05)
    assert found.errors == ["the loss does not depend on the policy"]


def test_the_curve_of_dpo_is_softplus() -> None:
    curve = torch.tensor(curve_of(OBJECTIVES["sigmoid"], 0.05))
    torch.testing.assert_close(curve[:, 1], F.softplus(-curve[:, 0]), rtol=1e-4, atol=1e-4)
    assert (float(curve[0, 0]), float(curve[-1, 0])) == (-5, 5)


def test_pairs_are_made_with_the_z_that_was_asked_for() -> None:
    z = torch.tensor([-1000.0, -3.0, 0.0, 500.0])
    pairs = pairs_at(z, 0.1)
    torch.testing.assert_close(0.1 * pairs.rho, z, rtol=1e-6, atol=1e-3)
    assert (
        max(
            float(vector.max()) for vector in (pairs.chosen, pairs.rejected, pairs.reference_chosen)
        )
        < 0
    )
