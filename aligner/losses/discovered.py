"""The seven objectives that DiscoPOP's search found (arXiv 2406.08414, table 1 and appendix E).

Three versions of each are in circulation: as found (which reads rho without beta, and so is right
at beta = 0.05 alone), as corrected in the authors' code, and as printed. Here z = beta * rho, and z
/ tau stands where a gate read rho, with tau = 0.05 as in the paper. Where the versions differ
otherwise, the docstring says which one this is.

Gates are not detached: gradients flow through batch statistics, as in the authors' code. A
statistic is taken over the pairs of one micro-batch, of all processes together; accumulation does
not widen it, and one pair alone has variance 0.

Legend: D(z) = log(1 + e^-z), H(z) = max(0, 1 - z), X(z) = e^-z, s the logistic function, E mean
over the micro-batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aligner.losses.types import PairLogps, Settings, bounded_exp, deviation, variance


def discopop(pairs: PairLogps, settings: Settings) -> Tensor:
    """LRML, the log-ratio modulated loss named DiscoPOP: (1-w) D(z) + w X(z), w = s(z/tau) (arXiv
    2406.08414, eq. 5).

    Written as s(-z/tau) D(z) + exp(log s(z/tau) - z), which is the same number and stays finite
    where the literal form gives 0 * inf in float32 (z below -88.7). Not convex: at z = 0 its slope
    is (1 - ln 2)/(4 tau) - 3/4, which points the wrong way for tau < (1 - ln 2)/3, about 0.1023;
    pairs start there. With tau = 0.05 a pair has to be carried past z = 0.072 before its loss falls
    with a growing margin.
    """
    z = settings.beta * pairs.rho
    gate = z / settings.tau
    return torch.sigmoid(-gate) * F.softplus(-z) + bounded_exp(F.logsigmoid(gate) - z)


def dbaql(pairs: PairLogps, settings: Settings) -> Tensor:
    """Dynamic blended adaptive quantile loss: c D(z/0.9) + (1-c) X(0.9 z), c = s(Var[z/tau]) (table
    1).

    The quantile of its name is computed in the published code and never used. Weakness: c is 1 as
    soon as margins spread, and the exponential has half the weight where they do not; `bounded_exp`
    keeps it finite.
    """
    z = settings.beta * pairs.rho
    spread = variance(pairs.over_batch(z) / settings.tau)
    blend = torch.sigmoid(spread) * F.softplus(-z / 0.9)
    return blend + bounded_exp(F.logsigmoid(-spread) - 0.9 * z)


def aql(pairs: PairLogps, settings: Settings) -> Tensor:
    """Adaptive quantile loss: q D(z) + (1-q) H(z), q = s(tau m - z), m = 0.5 + 0.01 (s(E[z/tau]) -
    0.5) (table 1).

    The paper's gate; the corrected code has s(m - z/tau), which is 20 times as sharp. The paper
    prints E[s(.)] in m where the code takes s(E[.]); this is the code's.
    """
    z = settings.beta * pairs.rho
    quantile = 0.5 + 0.01 * (torch.sigmoid((pairs.over_batch(z) / settings.tau).mean()) - 0.5)
    gate = torch.sigmoid(settings.tau * quantile - z)
    return gate * F.softplus(-z) + (1 - gate) * torch.relu(1 - z)


def padll(pairs: PairLogps, settings: Settings) -> Tensor:
    """Performance adaptive decay logistic loss: 0.9 (1 - 0.5 [rho < 0]) D(z) (table 1).

    Pairs that the policy ranks wrongly weigh half as much, so it learns less from labels it
    disagrees with. Jumps at 0.
    """
    rho = pairs.rho
    weight = torch.where(rho < 0, 0.45, 0.9)
    return weight * F.softplus(-settings.beta * rho)


def aqfl(pairs: PairLogps, settings: Settings) -> Tensor:
    """Adaptive quantile feedback loss: r D(z) + (1-r) H(z), r = s(0.1 |z/tau - m2|) (table 1, in
    the code's form).

    m2 = m1 + 0.05 (s(E[z/tau]) - m1), m1 = std[z/tau] E[s(-z/tau)]. The paper prints Var for std
    and puts m1 inside the sigmoid, which is not what was trained.
    """
    z = settings.beta * pairs.rho
    scaled = pairs.over_batch(z) / settings.tau
    first = deviation(scaled) * torch.sigmoid(-scaled).mean()
    second = first + 0.05 * (torch.sigmoid(scaled.mean()) - first)
    gate = torch.sigmoid(0.1 * (z / settings.tau - second).abs())
    return gate * F.softplus(-z) + (1 - gate) * torch.relu(1 - z)


def cell(pairs: PairLogps, settings: Settings) -> Tensor:
    """Combined exponential and logistic loss: D(z)/2 + X(z)/2 (table 1).

    Weakness: the exponential is unbounded, and single bad pairs dominate at large beta;
    `bounded_exp` keeps it finite.
    """
    z = settings.beta * pairs.rho
    return 0.5 * F.softplus(-z) + 0.5 * bounded_exp(-z)


def pfl(pairs: PairLogps, settings: Settings) -> Tensor:
    """Policy focused loss: D(z/tau)/2 where log pi(y_w) > log pi(y_l), else 2 H(z/tau) (eq. 29).

    The paper's z/tau, which equals what was found at beta = tau; the corrected code drops the tau.
    The condition reads the policy alone, so this is not a function of z; summed log-probabilities
    make it prefer short answers.
    """
    scaled = settings.beta * pairs.rho / settings.tau
    agrees = pairs.chosen.float() > pairs.rejected.float()
    return torch.where(agrees, 0.5 * F.softplus(-scaled), 2 * torch.relu(1 - scaled))
