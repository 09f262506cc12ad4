"""Losses of policy gradients, against TRL's own on the same batch and against numbers by hand."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from aligner.losses.policy import (
    Clip,
    divided,
    kl_terms,
    policy_terms,
    truncated_weights,
    value_losses,
)

B, T, LONGEST = 6, 9, 12
LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo")


def batch(seed: int = 0, rows: int = B) -> dict[str, torch.Tensor]:
    """Log-probabilities of a policy that has moved, and responses of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, T + 1, (rows, 1), generator=generator)
    old = -3 * torch.rand(rows, T, generator=generator, dtype=torch.float64)
    return {
        "logps": old + 0.4 * torch.randn(rows, T, generator=generator, dtype=torch.float64),
        "old": old,
        "reference": old + 0.2 * torch.randn(rows, T, generator=generator, dtype=torch.float64),
        "mask": (torch.arange(T) < lengths).double(),
        "rows": torch.randn(rows, generator=generator, dtype=torch.float64),
        "tokens": torch.randn(rows, T, generator=generator, dtype=torch.float64),
    }


def trl_loss(
    data: dict[str, torch.Tensor],
    advantages: torch.Tensor,
    *,
    loss: str,
    level: str,
    delta: float | None,
    beta: float,
) -> torch.Tensor:
    """What TRL's trainer computes of a batch that is a whole step."""
    logps = data["logps"]
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros_like(logps), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        epsilon_low=0.2,
        epsilon_high=5.0 if loss == "cispo" else 0.28,
        loss_type=loss,
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=1),
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda value: value, reduce=lambda value, reduction: value
        ),
        _metrics={"train": defaultdict(list)},
    )
    inputs: dict[str, Any] = {
        "prompt_ids": torch.zeros(len(logps), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(logps), 1),
        "completion_ids": torch.zeros(len(logps), T, dtype=torch.long),
        "completion_mask": data["mask"],
        "advantages": advantages,
        "old_per_token_logps": data["old"],
        "ref_per_token_logps": data["reference"],
        "num_items_in_batch": data["mask"].sum(),
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs)


def our_loss(
    data: dict[str, torch.Tensor],
    advantages: torch.Tensor,
    *,
    loss: str,
    level: str,
    delta: float | None,
    beta: float,
) -> torch.Tensor:
    clip = Clip(0.2, 0.28, delta)
    logps, mask = data["logps"], data["mask"]
    found = policy_terms(logps, data["old"], advantages, mask, loss=loss, level=level, clip=clip)
    losses = found.losses + beta * kl_terms(logps, data["reference"], "k3")
    rows, tokens = len(mask), float(mask.sum())
    sizes = {"step_rows": rows, "step_tokens": tokens, "max_tokens": LONGEST}
    return divided(losses, mask, loss=loss, **sizes)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("delta", "beta"), [(None, 0.0), (1.5, 0.04)])
@pytest.mark.parametrize("shape", ["rows", "tokens"])
def test_every_loss_and_its_gradient_is_that_of_trl(
    loss: str, level: str, delta: float | None, beta: float, shape: str
) -> None:
    found = []
    for compute in (our_loss, trl_loss):
        data = batch()
        data["logps"].requires_grad_()
        value = compute(data, data[shape], loss=loss, level=level, delta=delta, beta=beta)
        value.backward()
        found.append((value.detach(), data["logps"].grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_add_up_to_the_step(loss: str) -> None:
    data = batch(rows=8)
    sizes = {"step_rows": 8, "step_tokens": float(data["mask"].sum()), "max_tokens": LONGEST}

    def share(rows: slice) -> torch.Tensor:
        mask, some = data["mask"][rows], {name: value[rows] for name, value in data.items()}
        terms = policy_terms(some["logps"], some["old"], some["tokens"], mask, loss=loss)
        return divided(terms.losses, mask, loss=loss, **sizes)

    whole = share(slice(0, 8))
    parts = sum(share(slice(first, first + 2)) for first in range(0, 8, 2))
    if loss == "bnpo":  # divided by the tokens of each micro-batch, as its name says
        assert not torch.allclose(parts, whole)
    else:
        torch.testing.assert_close(parts, whole)


def test_the_first_step_has_a_ratio_of_one_and_the_gradient_of_the_policy() -> None:
    data = batch()
    logps = data["old"].clone().requires_grad_()
    found = policy_terms(logps, data["old"], data["tokens"], data["mask"])
    assert (found.ratios == 1).all()
    assert not found.is_clipped.any()
    found.losses.sum().backward()
    torch.testing.assert_close(logps.grad, -data["tokens"])


def test_clipping_by_hand() -> None:
    old = torch.zeros(1, 4)
    logps = torch.tensor([[0.5, 1.5, 0.5, 1.5]]).log()
    advantages, mask = torch.tensor([[1.0, 1.0, -1.0, -1.0]]), torch.ones(1, 4)
    found = policy_terms(logps, old, advantages, mask, clip=Clip(0.2, 0.28))
    torch.testing.assert_close(found.losses, torch.tensor([[-0.5, -1.28, 0.8, 1.5]]))
    assert found.is_clipped.tolist() == [[False, True, True, False]]
    bounded = policy_terms(logps, old, advantages, mask, clip=Clip(0.2, 0.28, delta=1.4))
    torch.testing.assert_close(bounded.losses, torch.tensor([[-0.5, -1.28, 0.8, 1.4]]))


def test_a_ratio_of_a_response_is_the_geometric_mean() -> None:
    logps, old = torch.tensor([[2.0, 8.0, 99.0]]).log(), torch.zeros(1, 3)
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    found = policy_terms(logps, old, torch.tensor([-1.0]), mask, level="sequence")
    torch.testing.assert_close(found.ratios, torch.full((1, 3), 4.0))


def test_estimates_of_kl_agree_on_average() -> None:
    generator = torch.Generator().manual_seed(1)
    policy = torch.randn(50, generator=generator, dtype=torch.float64).log_softmax(0)
    reference = (policy + 0.1 * torch.randn(50, generator=generator).double()).log_softmax(0)
    exact = (policy.exp() * (policy - reference)).sum()
    means = {
        name: (policy.exp() * kl_terms(policy, reference, name)).sum() for name in ("k1", "k3")
    }
    torch.testing.assert_close(means["k1"], exact)
    torch.testing.assert_close(means["k3"], exact)
    assert (kl_terms(policy, reference, "k3") >= 0).all()
    half = kl_terms(torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)]), "k2")
    assert half.item() == pytest.approx(math.log(2) ** 2 / 2)


def test_gradients_of_kl_in_a_loss() -> None:
    """k2's is that of the divergence, where samples come from the policy; k1's has a mean of 0."""
    logits = torch.randn(20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    reference = torch.zeros(20, dtype=torch.float64).log_softmax(0)

    def gradient(of: str) -> torch.Tensor:
        leaf = logits.clone().requires_grad_()
        logps = leaf.log_softmax(0)
        if of == "exact":
            (logps.exp() * (logps - reference)).sum().backward()
        else:
            (logps.detach().exp() * kl_terms(logps, reference, of)).sum().backward()
        return leaf.grad

    torch.testing.assert_close(gradient("k2"), gradient("exact"))
    torch.testing.assert_close(gradient("k1"), torch.zeros_like(logits), atol=1e-12, rtol=0)


def test_a_value_moves_only_so_far() -> None:
    old, returns = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, -1.0])
    values = torch.tensor([0.1, 0.6, 0.6])
    free = torch.tensor([0.405, 0.08, 1.28])
    torch.testing.assert_close(value_losses(values, old, returns), free)
    clipped = torch.tensor([0.405, 0.28125, 1.28])
    torch.testing.assert_close(value_losses(values, old, returns, 0.25), clipped)


def test_far_ratios_stay_finite() -> None:
    logps, old = torch.tensor([[0.0, -500.0]]), torch.tensor([[-500.0, 0.0]])
    for loss, sign in itertools.product(LOSSES, (1.0, -1.0)):
        found = policy_terms(logps, old, torch.tensor([sign]), torch.ones(1, 2), loss=loss)
        assert found.losses.isfinite().all()
    assert kl_terms(old, logps, "k3").isfinite().all()
    weights = truncated_weights(logps, old, 2.0)
    assert weights.tolist() == [[2.0, pytest.approx(math.exp(-20))]]
