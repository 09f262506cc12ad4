"""Reward distillation as formulas: hand-worked numbers, and policies over a few answers whose
optimum is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from aligner.losses.catalogue import REWARD_OBJECTIVES, load_objective
from aligner.losses.distillation import distillation_targets, reward_distill
from aligner.losses.table import loss_table
from aligner.losses.types import PairLogps, Settings

BETA = 0.5
SETTINGS = Settings(beta=BETA)


def pairs_of(
    chosen: list[float], rejected: list[float], target: list[float] | None = None
) -> PairLogps:
    """Pairs with log-ratios to a reference of log-probability -1."""
    left, right = (torch.tensor(side).requires_grad_() for side in (chosen, rejected))
    reference = torch.zeros(len(chosen))
    lengths = torch.ones(len(chosen)).long()
    goal = None if target is None else torch.tensor(target)
    return PairLogps(left, right, reference, reference.clone(), lengths, lengths, target=goal)


def test_the_loss_is_the_squared_distance_of_the_margin_from_the_rewards_difference():
    """z = 0.5 * (2 - -1) = 1.5 against gaps of 1, 1.5, -2 and 0."""
    pairs = pairs_of([2.0] * 4, [-1.0] * 4, [1.0, 1.5, -2.0, 0.0])
    losses = reward_distill(pairs, SETTINGS)
    assert losses.tolist() == pytest.approx([0.25, 0.0, 12.25, 2.25])
    losses.sum().backward()
    assert pairs.chosen.grad.tolist() == pytest.approx([0.5, 0.0, 3.5, 1.5])  # 2 beta (z - gap)
    assert pairs.rejected.grad.tolist() == pytest.approx([-0.5, 0.0, -3.5, -1.5])


def test_swapped_sides_are_the_same_loss():
    """A pair needs no label: which answer is called chosen changes nothing."""
    one = reward_distill(pairs_of([2.0, -0.3], [-1.0, 0.7], [0.4, -3.0]), SETTINGS)
    other = reward_distill(pairs_of([-1.0, 0.7], [2.0, -0.3], [-0.4, 3.0]), SETTINGS)
    assert torch.equal(one, other)


def test_an_objective_without_its_targets_is_a_mistake_of_ours():
    with pytest.raises(AssertionError, match="target"):
        reward_distill(pairs_of([1.0], [0.0]), SETTINGS)


def test_it_is_found_by_its_name_and_drawn_with_the_others():
    assert load_objective("reward_distill") is REWARD_OBJECTIVES["reward_distill"]
    (row,) = (row for row in loss_table(Settings()) if row.name == "reward_distill")
    assert row.shape.slope_at_start == pytest.approx(-2.0)
    assert [(round(turn.z, 3), turn.kind) for turn in row.shape.turns] == [(1.0, "minimum")]
    assert (row.reads_batch, row.reads_reference) == (False, True)


# --- a family -------------------------------------------------------------------------------------


def test_the_mean_of_a_family_is_its_mean():
    margins = torch.tensor([[1.0, 3.0], [-2.0, 0.0]])
    target, member = distillation_targets(
        pairs_of([0.0, 0.0], [0.0, 0.0]), margins, torch.ones(2), SETTINGS, "mean"
    )
    assert target.tolist() == [2.0, -1.0]
    assert member is None


def test_the_minimum_is_taken_over_the_mean_of_the_batch_and_not_for_each_pair():
    """Errors of two members at z = 0: (1, 9) for the first, (4, 4) for the second; 5 against 4, so
    the second for both."""
    pairs = pairs_of([0.0, 0.0], [0.0, 0.0])
    margins = torch.tensor([[1.0, 2.0], [3.0, -2.0]])
    target, member = distillation_targets(pairs, margins, torch.ones(2), SETTINGS, "min")
    assert (target.tolist(), int(member)) == ([2.0, -2.0], 1)
    target, member = distillation_targets(
        pairs, margins, torch.tensor([3.0, 1.0]), SETTINGS, "min"
    )  # 3 against 4 by weight
    assert (target.tolist(), int(member)) == ([1.0, 3.0], 0)


def test_the_choice_is_that_of_all_processes():
    """Each of two halves alone would choose another member than the whole, which both have to
    follow."""
    chosen, margins = torch.zeros(4), torch.tensor([[1.0, 0.9], [1.0, 0.9], [0.1, 3.0], [0.1, 3.0]])
    pairs = pairs_of([0.0] * 4, [0.0] * 4)
    alone = [
        distillation_targets(half_of(pairs, half), margins[half], torch.ones(2), SETTINGS, "min")[1]
        for half in HALVES
    ]
    assert [int(member) for member in alone] == [1, 0]
    for half in HALVES:
        rest = next(other for other in HALVES if other != half)
        elsewhere = iter([torch.ones(2), (margins[rest] - chosen[rest, None]) ** 2])
        gathered = replace(
            half_of(pairs, half),
            gather=lambda values, rest=elsewhere: torch.cat([values, next(rest)]),
        )
        target, member = distillation_targets(
            gathered, margins[half], torch.ones(2), SETTINGS, "min"
        )
        assert int(member) == 0
        assert torch.equal(target, margins[half, 0])


HALVES = (slice(0, 2), slice(2, 4))


def half_of(pairs: PairLogps, half: slice) -> PairLogps:
    names = (
        "chosen",
        "rejected",
        "reference_chosen",
        "reference_rejected",
        "chosen_lengths",
        "rejected_lengths",
    )
    return PairLogps(*(getattr(pairs, name)[half] for name in names))


def test_no_gradient_flows_through_the_choice():
    pairs = pairs_of([0.5, -0.2], [0.1, 0.3])
    target, _ = distillation_targets(
        pairs, torch.tensor([[1.0, 2.0], [3.0, -2.0]]), torch.ones(2), SETTINGS, "min"
    )
    assert not target.requires_grad


# --- policies over a few answers ------------------------------------------------------------------


REFERENCE = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
FIRST, SECOND = torch.triu_indices(4, 4, offset=1)


def pairs_under(logits: torch.Tensor) -> PairLogps:
    """All pairs of the four answers, under a softmax policy."""
    logps = logits.log_softmax(0)
    lengths = torch.ones(len(FIRST)).long()
    return PairLogps(
        logps[FIRST], logps[SECOND], REFERENCE[FIRST], REFERENCE[SECOND], lengths, lengths
    )


def margins_of(*rewards: list[float]) -> torch.Tensor:
    return torch.stack(
        [torch.tensor(one)[FIRST] - torch.tensor(one)[SECOND] for one in rewards], dim=1
    )


def optimum(rewards: list[float]) -> torch.Tensor:
    """log of pi_ref exp(r / beta), normalised: the optimum of E r - beta KL(pi || pi_ref)."""
    return (REFERENCE + torch.tensor(rewards, dtype=torch.float64) / BETA).log_softmax(0)


def forward_kl(logps: torch.Tensor) -> torch.Tensor:
    return (REFERENCE.exp() * (REFERENCE - logps)).sum()


def trained(
    margins: torch.Tensor, combine: str = "mean", gamma: float = 0.0, steps: int = 600
) -> torch.Tensor:
    """Log-probabilities of a policy that began as the reference."""
    logits = REFERENCE.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], lr=0.5, max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        pairs = pairs_under(logits)
        target, _ = distillation_targets(
            pairs, margins, torch.ones(len(margins)), SETTINGS, combine
        )
        loss = reward_distill(replace(pairs, target=target), SETTINGS).mean()
        loss = loss + gamma * forward_kl(logits.log_softmax(0))
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().log_softmax(0)


REWARDS = [0.0, 1.0, -0.5, 0.3]


def test_the_minimiser_is_the_optimum_of_the_regularised_problem_and_reaches_every_gap():
    found = trained(margins_of(REWARDS))
    assert found.tolist() == pytest.approx(optimum(REWARDS).tolist(), abs=1e-4)
    z = BETA * pairs_under(found).rho
    assert z.tolist() == pytest.approx(margins_of(REWARDS)[:, 0].tolist(), abs=1e-4)


def test_the_gradient_vanishes_where_every_margin_is_its_target():
    logits = optimum(REWARDS).clone().requires_grad_()
    pairs = pairs_under(logits)
    reward_distill(replace(pairs, target=margins_of(REWARDS)[:, 0]), SETTINGS).mean().backward()
    assert logits.grad.abs().max().item() < 1e-6


def test_a_family_under_its_mean_gives_the_optimum_for_the_mean_reward():
    other = [1.0, 0.0, 0.5, -0.3]
    mean = [(a + b) / 2 for a, b in zip(REWARDS, other)]
    assert trained(margins_of(REWARDS, other)).tolist() == pytest.approx(
        optimum(mean).tolist(), abs=1e-4
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_pessimistic_policy_is_the_optimal_one_that_is_nearest_to_the_reference(order):
    """Among the policies that are optimal for some member, the one with the smallest KL(pi_ref ||
    pi)."""
    family = [REWARDS, [2.0, -1.0, 0.0, 0.0], [0.3, -0.2, 0.1, 0.0]]
    family = [family[i] for i in order]
    distances = [forward_kl(optimum(rewards)).item() for rewards in family]
    nearest = optimum(family[distances.index(min(distances))])
    found = trained(margins_of(*family), "min", gamma=1e-4)
    assert found.tolist() == pytest.approx(nearest.tolist(), abs=2e-3)


def test_the_forward_kl_term_pulls_the_optimum_towards_the_reference():
    distances = [
        forward_kl(trained(margins_of(REWARDS), gamma=gamma)).item()
        for gamma in (0.0, 0.1, 1.0, 10.0)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.1
    assert distances[-1] < 0.01


def test_the_gradient_of_the_estimate_on_samples_is_that_of_the_forward_kl():
    """For logits it is pi - pi_ref, and the estimate on answers of the reference has it in
    expectation."""
    logits = torch.tensor([0.3, -0.2, 0.9, 0.0], dtype=torch.float64).requires_grad_()
    forward_kl(logits.log_softmax(0)).backward()
    exact = (logits.detach().softmax(0) - REFERENCE.exp()).tolist()
    assert logits.grad.tolist() == pytest.approx(exact, abs=1e-9)
    draws = torch.multinomial(
        REFERENCE.exp(), 200_000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    again = logits.detach().clone().requires_grad_()
    estimate = (REFERENCE[draws] - again.log_softmax(0)[draws]).mean()
    estimate.backward()
    assert again.grad.tolist() == pytest.approx(exact, abs=5e-3)
    assert estimate.item() == pytest.approx(
        forward_kl(logits.detach().log_softmax(0)).item(), abs=5e-3
    )


def test_dpo_on_labels_without_doubt_has_no_finite_optimum_and_distillation_has():
    """The reason to distil: where one answer always wins, DPO's margin grows with every step."""
    margins = margins_of(REWARDS)
    seen = []
    for steps in (5, 50):
        logits = REFERENCE.clone().requires_grad_()
        for _ in range(steps):
            pairs = pairs_under(logits)
            z = BETA * pairs.rho * margins[:, 0].sign()
            (gradient,) = torch.autograd.grad(-torch.nn.functional.logsigmoid(z).sum(), logits)
            logits = (logits - 5 * gradient).detach().requires_grad_()
        seen.append((BETA * pairs_under(logits.detach()).rho).abs().max().item())
    assert seen[1] > seen[0] + 1
    largest = (BETA * pairs_under(trained(margins)).rho).abs().max().item()
    assert largest == pytest.approx(max(map(abs, margins[:, 0].tolist())), abs=1e-4)
    assert math.isfinite(largest)
