"""A contextual bandit with a known reward: the inner task that judges an objective in a second.

A world draws contexts x ~ N(0, I), a true reward r(x, a) = scale <w_a, x> / sqrt(d) with w_a ~ N(0,
I), and pairs of arms from the reference policy (the uniform one); the better arm is the chosen one,
and of `flipped` of the pairs the labels are exchanged. The policy is a linear softmax, log pi(a|x)
= log softmax(W x)_a, from W = 0, that is, from the reference. Reward gain, KL to the reference and
accuracy are exact: sums over all arms at contexts that were not trained on, without sampling.

The sizes are chosen so that DPO's KL runs from about 2 to 0.8 nats as beta runs from 0.05 to 1. It
is ours: the paper (arXiv 2406.08414) has no bandit. What it cannot show: anything about text or
about long answers, whose log-probabilities move much farther in a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from aligner.errors import TrainingError
from aligner.losses.types import Objective, PairLogps, Settings


@dataclass(frozen=True, slots=True)
class World:
    """A bandit to learn; `flipped` is the share of preferences with exchanged labels."""

    arms: int = 50
    context_size: int = 8
    train_pairs: int = 2000
    test_contexts: int = 500
    reward_scale: float = 1.8
    flipped: float = 0.1


SEARCH = World()
"""The world of the search; a seed draws its contexts, rewards and pairs."""

HELD_OUT = World(arms=30, context_size=16, flipped=0.2)
"""Another world, for a result that the search did not look at."""

WORLDS = {"search": SEARCH, "held_out": HELD_OUT}


@dataclass(frozen=True, slots=True)
class BanditResult:
    """How a policy ended. Rewards in the world's units, KL in nats; `curve` holds (step, reward
    gain).

    `reward_gain` is E[r] under the policy less E[r] under the reference; `kl` is KL(policy ||
    reference), exact; `accuracy` is the share of unflipped held-out pairs with rho > 0.
    """

    reward_gain: float
    kl: float
    accuracy: float
    curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class _Draw:
    """A drawn world. n pairs, m test contexts, A arms, d context size."""

    contexts: Tensor  # (n, d)
    chosen: Tensor  # (n,)
    rejected: Tensor  # (n,)
    test_contexts: Tensor  # (m, d)
    test_reward: Tensor  # (m, A)
    test_chosen: Tensor  # (m,)
    test_rejected: Tensor  # (m,)


def run_bandit(
    objective: Objective,
    settings: Settings,
    *,
    seed: int,
    steps: int = 400,
    lr: float = 1e-2,
    batch: int = 64,
    world: World = SEARCH,
    curve_every: int = 50,
) -> BanditResult:
    """Trains a policy with Adam on `objective`; the same arguments give the same result on the same
    machine.

    Raises `TrainingError` when the mean loss of a batch, or the policy, is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = _draw(world, generator)
    weights = torch.zeros(world.context_size, world.arms, requires_grad=True)
    adam = Adam(weights)
    curve = [(0, 0.0)]
    for step in range(1, steps + 1):
        rows = torch.randint(world.train_pairs, (batch,), generator=generator)
        logps = F.log_softmax(draw.contexts[rows] @ weights, dim=-1)
        loss = objective(_pairs(logps, draw.chosen[rows], draw.rejected[rows]), settings).mean()
        if not math.isfinite(loss.item()):
            raise TrainingError(f"the loss is {loss.item()} at step {step} of the bandit", _HINT)
        (gradient,) = torch.autograd.grad(loss, weights)
        adam.step(gradient, lr)
        if step % curve_every == 0 or step == steps:
            curve.append((step, _reward_gain(draw, weights)))
    if not bool(torch.isfinite(weights).all()):
        raise TrainingError(
            "the policy of the bandit is no longer finite: a gradient was not", _HINT
        )
    return _result(draw, weights.detach(), curve)


class Adam:
    """Adam with torch's defaults, for one tensor. Torch's own takes two seconds to load, in every
    isolated process."""

    def __init__(self, weights: Tensor) -> None:
        self.weights, self.steps = weights, 0
        self.mean, self.square = torch.zeros_like(weights), torch.zeros_like(weights)

    @torch.no_grad()
    def step(self, gradient: Tensor, lr: float) -> None:
        self.steps += 1
        self.mean.lerp_(gradient, 1 - 0.9)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
        size = (self.square / (1 - 0.999**self.steps)).sqrt_().add_(1e-8)
        self.weights.addcdiv_(self.mean, size, value=-lr / (1 - 0.9**self.steps))


_HINT = "clamp the exponents of the objective, or write it with logsigmoid and softplus"


def _pairs(logps: Tensor, chosen: Tensor, rejected: Tensor) -> PairLogps:
    """Log-probabilities of the arms of each pair; the reference is uniform, and an answer is one
    token long."""
    reference = torch.full((len(logps),), -math.log(logps.shape[-1]))
    ones = torch.ones(len(logps))
    first = logps.gather(-1, chosen[:, None]).squeeze(-1)
    second = logps.gather(-1, rejected[:, None]).squeeze(-1)
    return PairLogps(first, second, reference, reference, ones, ones)


def _draw(world: World, generator: torch.Generator) -> _Draw:
    scale = world.reward_scale / math.sqrt(world.context_size)
    true_weights = torch.randn(world.context_size, world.arms, generator=generator) * scale
    contexts = torch.randn(world.train_pairs, world.context_size, generator=generator)
    test = torch.randn(world.test_contexts, world.context_size, generator=generator)
    chosen, rejected = _labelled(contexts @ true_weights, generator)
    flip = torch.rand(world.train_pairs, generator=generator) < world.flipped
    return _Draw(
        contexts,
        torch.where(flip, rejected, chosen),
        torch.where(flip, chosen, rejected),
        test,
        test @ true_weights,
        *_labelled(test @ true_weights, generator),
    )


def _labelled(reward: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two different arms for each row of `reward` (n, A), the better first: (n,), (n,)."""
    rows, arms = reward.shape
    first = torch.randint(arms, (rows,), generator=generator)
    second = (first + torch.randint(1, arms, (rows,), generator=generator)) % arms
    at = torch.arange(rows)
    better = reward[at, first] >= reward[at, second]
    return torch.where(better, first, second), torch.where(better, second, first)


@torch.no_grad()
def _reward_gain(draw: _Draw, weights: Tensor) -> float:
    probabilities = F.softmax(draw.test_contexts @ weights, dim=-1)
    return float(((probabilities * draw.test_reward).sum(-1) - draw.test_reward.mean(-1)).mean())


@torch.no_grad()
def _result(draw: _Draw, weights: Tensor, curve: list[tuple[int, float]]) -> BanditResult:
    logps = F.log_softmax(draw.test_contexts @ weights, dim=-1)
    kl = (logps.exp() * (logps + math.log(logps.shape[-1]))).sum(-1).mean()
    pairs = _pairs(logps, draw.test_chosen, draw.test_rejected)
    return BanditResult(
        reward_gain=_reward_gain(draw, weights),
        kl=float(kl),
        accuracy=float((pairs.rho > 0).float().mean()),
        curve=tuple(curve),
    )
