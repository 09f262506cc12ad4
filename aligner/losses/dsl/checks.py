"""How an objective behaves before anything is trained with it: the third of four layers of safety.

`check_behaviour` refuses what could not train a model (a wrong shape, values or gradients that are
not finite anywhere for z in +-1000, a loss that on average grows with z, a smoke run that breaks
off) and reports the rest as facts, for the proposer and for the user: the slope at z = 0,
stationary points, jumps, flat parts, what the batch has to do with a pair's loss, and the size of
the gradient beside DPO's. A wrong slope at zero is such a fact and no reason to refuse: the best
known discovered objective has one.

It measures along the path of `aligner.losses.shape`. An objective that looks at more than rho may
behave otherwise elsewhere.

Source: closes the gaps of the unit test of arXiv 2406.08414's code, which looks for NaN at |z|
below 0.4.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aligner.errors import TrainingError
from aligner.losses.bandit import run_bandit
from aligner.losses.dsl.language import INPUTS
from aligner.losses.dsl.parser import EvaluationError
from aligner.losses.shape import REACH, jumps, pairs_at, run_over, turns
from aligner.losses.types import Objective, PairLogps, Settings

PROBES = (0.0, 0.01, 0.1, 1.0, 5.0, 20.0, 50.0, 80.0, 89.0, 104.0, 200.0, 500.0, 1000.0)
SMOKE_STEPS = 50
_MOST_LISTED, _MOST_KEPT = 6, 30


@dataclass(frozen=True, slots=True)
class Behaviour:
    """`errors` are sentences that say why it is refused; `facts` is JSON, with the sentences in
    `facts["text"]`.

    The facts: `slope_at_zero` and `average_slope` (over z in +-10) of f(z), `gradient_scale` (mean
    |f'| over z in +-5 divided by DPO's), `stationary` [{z, kind}], `jumps` [{z, size}], `flat`
    [[from, to]], `batch` {permutation, duplication, company: whether a pair's loss changes with
    it}, `no_gradient` (inputs without one), `smoke_gain` (reward gain after 50 steps of the
    bandit). Empty when the objective failed before they could be measured.
    """

    ok: bool
    errors: list[str]
    facts: dict[str, Any]


def check_behaviour(objective: Objective, beta: float) -> Behaviour:
    """Looks at `objective` at `settings.beta = beta`; about a second on one core. Raises nothing
    for what it finds."""
    settings = Settings(beta=beta)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch warns of the variance of one sample, which is looked at below
        errors = _broken(objective, settings)
        if errors:
            return Behaviour(False, errors, {})
        facts = _facts(objective, settings)
        errors = _wrong(objective, settings, facts)
    facts["text"] = _sentences(facts)
    return Behaviour(not errors, errors, facts)


def curve_of(objective: Objective, beta: float, points: int = 201) -> list[tuple[float, float]]:
    """(z, f(z)) for z in +-5, along the path of `aligner.losses.shape`.

    Raises `EvaluationError` where the objective cannot be computed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        z = torch.linspace(-5, 5, points)
        return list(zip(z.tolist(), run_over(objective, Settings(beta=beta), z)[0].tolist()))


# --- what cannot be used --------------------------------------------------------------------------


def _batches() -> Iterator[tuple[str, Tensor]]:
    """(what it is, z) of batches of 1, 2 and 8 pairs: alone, with its mirror image, with its like,
    in a mixture."""
    signed = sorted({sign * probe for probe in PROBES for sign in (1, -1)}, key=abs)
    for z in signed:
        yield f"z = {z:g}, alone", torch.tensor([z])
        yield f"z = {z:g} and {-z:g}, a batch of 2", torch.tensor([z, -z])
        yield f"z = {z:g}, a batch of 2", torch.tensor([z, z])
        yield f"z = {z:g}, a batch of 8", torch.full((8,), z)
    for start in range(len(signed) - 7):
        yield (
            f"z from 0 to {abs(signed[start + 7]):g}, a batch of 8",
            torch.tensor(signed[start : start + 8]),
        )


def _broken(objective: Objective, settings: Settings) -> list[str]:
    """The first thing wrong with values, or else with gradients, at the smallest |z| that shows
    it."""
    values: list[str] = []
    slopes: list[str] = []
    moved = set()
    for what, z in _batches():
        pairs = pairs_at(z, settings.beta)
        leaves = [v.clone().requires_grad_() for v in _vectors(pairs)]
        try:
            loss = objective(_with(pairs, leaves), settings)
        except EvaluationError as error:
            return [str(error)]
        if loss.shape != z.shape or loss.dtype != torch.float32:
            return [
                f"the loss has shape {tuple(loss.shape)}, {loss.dtype} where {tuple(z.shape)}, "
                "float32 is needed"
            ]
        if not torch.isfinite(loss).all():
            values.append(f"the loss is {_first_odd(loss)} at {what}")
            continue
        if not loss.requires_grad:
            return ["the loss does not depend on the policy: it has no gradient"]
        gradients = torch.autograd.grad(loss.mean(), leaves, allow_unused=True)
        moved |= {name for name, gradient in zip(INPUTS, gradients) if gradient is not None}
        odd = [_first_odd(g) for g in gradients if g is not None and not torch.isfinite(g).all()]
        if odd:
            slopes.append(f"the gradient is {odd[0]} at {what}")
    if found := values or slopes:
        return [f"{found[0]} (beta {settings.beta:g}); {_advice(found)}"]
    return [] if moved & set(INPUTS[:2]) else ["the loss does not depend on the policy"]


def _vectors(pairs: PairLogps) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return pairs.chosen, pairs.rejected, pairs.reference_chosen, pairs.reference_rejected


def _with(pairs: PairLogps, leaves: list[Tensor]) -> PairLogps:
    a, b, c, d = leaves
    return replace(pairs, chosen=a, rejected=b, reference_chosen=c, reference_rejected=d)


def _first_odd(tensor: Tensor) -> float:
    return float(tensor.detach()[~torch.isfinite(tensor.detach())][0])


def _advice(found: list[str]) -> str:
    if all(error.endswith(", alone") for error in found):
        return (
            "statistics of a batch must also be finite for a single pair (std and var with "
            "unbiased=False)"
        )
    return (
        "values and gradients must be finite for z in +-1000 (clamp exponents, use F.logsigmoid "
        "or F.softplus)"
    )


def _wrong(objective: Objective, settings: Settings, facts: dict[str, Any]) -> list[str]:
    """What is finite and can still not be used; adds the gain of the smoke run to the facts."""
    errors = []
    z = _mixture(8)
    if not torch.equal(_loss(objective, z, settings), _loss(objective, z, settings)):
        errors.append("the loss of the same pairs differs from call to call")
    if not facts["average_slope"] < 0:
        errors.append(
            "the loss must fall as the chosen answer gains on the rejected one, but its average "
            "slope over z in "
            f"+-{REACH:g} is {facts['average_slope']:+.4g}"
        )
    try:
        facts["smoke_gain"] = run_bandit(objective, settings, seed=0, steps=SMOKE_STEPS).reward_gain
    except (TrainingError, EvaluationError) as error:
        errors.append(f"a run of {SMOKE_STEPS} steps on the bandit broke off: {error}")
    return errors


# --- what is worth knowing ------------------------------------------------------------------------


def _facts(objective: Objective, settings: Settings) -> dict[str, Any]:
    batch = _batch_dependence(objective, settings)
    z = torch.linspace(-REACH, REACH, 1001 if any(batch.values()) else 2001)
    value, slope = run_over(objective, settings, z, any(batch.values()))
    near = z.abs() <= 5
    dpo = F.sigmoid(-z[near]).mean()
    return {
        "slope_at_zero": float(run_over(objective, settings, torch.zeros(1))[1]),
        "average_slope": float(value[-1] - value[0]) / (2 * REACH),
        "gradient_scale": float(slope[near].abs().mean() / dpo),
        "stationary": [
            {"z": round(one.z, 3), "kind": one.kind} for one in turns(z, value, slope)[:_MOST_KEPT]
        ],
        "jumps": [
            {"z": round(one.z, 3), "size": round(one.size, 4)}
            for one in jumps(z, value, slope)[:_MOST_KEPT]
        ],
        "flat": _flat(z, slope),
        "batch": batch,
        "no_gradient": _no_gradient(objective, settings),
    }


def _mixture(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0)) * 2


def _loss(objective: Objective, z: Tensor, settings: Settings) -> Tensor:
    return objective(pairs_at(z, settings.beta), settings)


def _batch_dependence(objective: Objective, settings: Settings) -> dict[str, bool]:
    """Whether a pair's loss changes with the order of its batch, with a doubled batch, and with its
    company at all."""
    found = {"permutation": False, "duplication": False, "company": False}
    order = torch.tensor([3, 1, 7, 5, 0, 2, 6, 4])
    for z in (
        _mixture(8),
        _mixture(8) / 50,
    ):  # gates that are saturated at one spread are open at the other
        whole = _loss(objective, z, settings)
        alone = torch.cat(
            [_loss(objective, torch.stack([one, z[0], -z[0]]), settings)[:1] for one in z]
        )
        found["permutation"] |= not _close(_loss(objective, z[order], settings), whole[order])
        found["duplication"] |= not _close(_loss(objective, torch.cat([z, z]), settings)[:8], whole)
        found["company"] |= not _close(alone, whole)
    return found


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def _flat(z: Tensor, slope: Tensor) -> list[list[float]]:
    """Intervals of z without any slope."""
    flat = [[float(point), float(point)] for point, gradient in zip(z, slope) if gradient == 0]
    step = 1.5 * float(z[1] - z[0])
    merged: list[list[float]] = []
    for start, end in flat:
        if merged and start - merged[-1][1] <= step:
            merged[-1][1] = end
        else:
            merged.append([start, end])
    return [[round(start, 2), round(end, 2)] for start, end in merged if end > start]


def _no_gradient(objective: Objective, settings: Settings) -> list[str]:
    pairs = pairs_at(_mixture(8), settings.beta)
    leaves = [v.clone().requires_grad_() for v in _vectors(pairs)]
    loss = objective(_with(pairs, leaves), settings)
    gradients = torch.autograd.grad(loss.mean(), leaves, allow_unused=True)
    return [name for name, gradient in zip(INPUTS, gradients) if gradient is None]


def _sentences(facts: dict[str, Any]) -> list[str]:
    """The facts in words, for a proposer and for the terminal."""
    slope = facts["slope_at_zero"]
    way = (
        "downhill, as it should be"
        if slope < 0
        else "uphill: training starts by making the chosen answer less likely"
    )
    text = [
        f"The slope at z = 0, where all pairs start, is {slope:+.3g} "
        f"({way if slope else 'none: nothing moves'})."
    ]
    text.append(f"The average slope over z in +-{REACH:g} is {facts['average_slope']:+.3g}.")
    text.append(f"Gradients are {facts['gradient_scale']:.2g} times as large as DPO's.")
    for name, wording in (
        ("stationary", "a {kind} at z = {z:g}"),
        ("jumps", "a jump of {size:+g} at z = {z:g}"),
    ):
        listed = ", ".join(wording.format(**one) for one in facts[name][:_MOST_LISTED])
        more = (
            f" and {len(facts[name]) - _MOST_LISTED} more"
            if len(facts[name]) > _MOST_LISTED
            else ""
        )
        text += [f"It has {listed}{more}."] if listed else []
    text += [
        f"It is flat for z from {start:g} to {end:g}."
        for start, end in facts["flat"][:_MOST_LISTED]
    ]
    changes = [name for name, found in facts["batch"].items() if found]
    text += (
        [f"A pair's loss depends on its batch: it changes with {', '.join(changes)}."]
        if changes
        else []
    )
    if policy := [name for name in facts["no_gradient"] if name in INPUTS[:2]]:
        text.append(f"There is no gradient for {', '.join(policy)}.")
    if "smoke_gain" in facts:
        text.append(
            f"After {SMOKE_STEPS} steps of the bandit its reward gain is "
            f"{facts['smoke_gain']:+.3g}."
        )
    return text
