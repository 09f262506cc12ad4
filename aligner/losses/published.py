"""Published preference objectives: the log-probabilities of pairs in, one loss per pair out.

Each function computes in float32, never reads global state, and may be called with any batch size.
The names and the values are TRL's where TRL has the objective, but for `sft` (a mean over answers
here) and smoothing in `sigmoid`. `aligner.losses.types` has the legend of the symbols.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aligner.losses.types import PairLogps, Settings


def sigmoid(pairs: PairLogps, settings: Settings) -> Tensor:
    """DPO: -(1-e) log s(z) - e log s(-z) (arXiv 2305.18290, eq. 7; e is conservative DPO's label
    smoothing)."""
    z = settings.beta * pairs.rho
    e = settings.label_smoothing
    return -(1 - e) * F.logsigmoid(z) - e * F.logsigmoid(-z)


def hinge(pairs: PairLogps, settings: Settings) -> Tensor:
    """Hinge on the margin: max(0, 1 - z) (SLiC-HF, arXiv 2305.10425, on DPO's implicit reward as in
    RSO, 2309.06657).

    Weakness: a pair with z above 1 teaches nothing more.
    """
    return torch.relu(1 - settings.beta * pairs.rho)


def ipo(pairs: PairLogps, settings: Settings) -> Tensor:
    """IPO: (rho' - 1/(2 beta))^2 with length-averaged ratios rho' (arXiv 2310.12036, eq. 17;
    averaged as in TRL).

    The paper sums over tokens (`ipo_sum`); the length average is what its authors confirmed to TRL
    and what TRL computes.
    """
    return (pairs.mean_rho - 1 / (2 * settings.beta)) ** 2


def ipo_sum(pairs: PairLogps, settings: Settings) -> Tensor:
    """IPO as printed: (rho - 1/(2 beta))^2 with ratios summed over tokens (arXiv 2310.12036, eq.
    17).

    The squared target 1/(2 beta) holds for a whole answer here and for a token in `ipo`, so their
    betas do not compare.
    """
    return (pairs.rho - 1 / (2 * settings.beta)) ** 2


def robust(pairs: PairLogps, settings: Settings) -> Tensor:
    """Robust DPO: (-(1-e) log s(z) + e log s(-z)) / (1 - 2e), unbiased under label flips (arXiv
    2403.00409, eq. 12).

    Weakness: for e > 0 it is unbounded below; it keeps falling with z, however large.
    """
    z = settings.beta * pairs.rho
    e = settings.label_smoothing
    return (-(1 - e) * F.logsigmoid(z) + e * F.logsigmoid(-z)) / (1 - 2 * e)


def exo_pair(pairs: PairLogps, settings: Settings) -> Tensor:
    """EXO for pairs: KL(policy's preference || smoothed label), needs label smoothing e > 0 (arXiv
    2402.00856, eq. 16).

    Weakness: it saturates where a pair is ranked badly, so such pairs have hardly a gradient.
    """
    z = settings.beta * pairs.rho
    e = torch.tensor(settings.label_smoothing, device=z.device)
    won = torch.sigmoid(z) * (F.logsigmoid(z) - torch.log1p(-e))
    lost = torch.sigmoid(-z) * (F.logsigmoid(-z) - torch.log(e))
    return won + lost


def nca_pair(pairs: PairLogps, settings: Settings) -> Tensor:
    """NCA for pairs: -log s(r_w) - (log s(-r_w) + log s(-r_l)) / 2 with r = beta * ratio (arXiv
    2402.05369)."""
    chosen, rejected = settings.beta * pairs.chosen_ratio, settings.beta * pairs.rejected_ratio
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_pair(pairs: PairLogps, settings: Settings) -> Tensor:
    """Binary classifier on each answer: -log s(r_w) - log s(-r_l), without BCO's reward shift
    (arXiv 2404.04656)."""
    return -F.logsigmoid(settings.beta * pairs.chosen_ratio) - F.logsigmoid(
        -settings.beta * pairs.rejected_ratio
    )


def sppo_hard(pairs: PairLogps, settings: Settings) -> Tensor:
    """SPPO with hard labels: (ratio_w - 1/(2 beta))^2 + (ratio_l + 1/(2 beta))^2 (arXiv 2405.00675,
    eq. 4.7)."""
    target = 0.5 / settings.beta
    return (pairs.chosen_ratio - target) ** 2 + (pairs.rejected_ratio + target) ** 2


def apo_zero(pairs: PairLogps, settings: Settings) -> Tensor:
    """APO-zero: 1 - s(r_w) + s(r_l), for answers better than the model's own (arXiv 2408.06266, eq.
    7).

    Weakness: bounded, so it saturates on answers that are far off either way; so do `apo_down` and
    `kto_pair`.
    """
    chosen, rejected = settings.beta * pairs.chosen_ratio, settings.beta * pairs.rejected_ratio
    return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)


def apo_down(pairs: PairLogps, settings: Settings) -> Tensor:
    """APO-down: s(r_w) + 1 - s(r_w - r_l), for answers worse than the model's own (arXiv
    2408.06266, eq. 8)."""
    return (
        torch.sigmoid(settings.beta * pairs.chosen_ratio)
        + 1
        - torch.sigmoid(settings.beta * pairs.rho)
    )


def sigmoid_norm(pairs: PairLogps, settings: Settings) -> Tensor:
    """DPO on length-averaged ratios: -log s(beta rho') (the normalized form of arXiv
    2411.15124)."""
    return -F.logsigmoid(settings.beta * pairs.mean_rho)


def kto_pair(pairs: PairLogps, settings: Settings) -> Tensor:
    """KTO on pairs: (1 - s(r_w - k_l) + 1 - s(k_w - r_l)) / 2, r = beta * ratio (arXiv 2402.01306,
    eq. 7).

    k_l and k_w are beta times the means of the other side's ratios over the micro-batch, not below
    0, standing for the divergence from the reference. No gradient flows through them, as in the
    paper (TRL's former `kto_pair` let it). For one pair alone they are that pair's own ratios.
    """
    chosen, rejected = settings.beta * pairs.chosen_ratio, settings.beta * pairs.rejected_ratio
    chosen_kl = pairs.over_batch(chosen).mean().clamp(min=0).detach()
    rejected_kl = pairs.over_batch(rejected).mean().clamp(min=0).detach()
    return 1 - 0.5 * torch.sigmoid(chosen - rejected_kl) - 0.5 * torch.sigmoid(chosen_kl - rejected)


def orpo(pairs: PairLogps, settings: Settings) -> Tensor:
    """ORPO: -log P(y_w) - beta log s(log odds(y_w) - log odds(y_l)) with P the mean over tokens
    (arXiv 2403.07691, eq. 6).

    beta is the paper's lambda. odds = P / (1 - P), P the geometric mean of the answer's token
    probabilities. Needs no reference. The first term is that of SFT on the chosen answer, over the
    answer alone.
    """
    odds = log_odds(pairs.chosen_mean) - log_odds(pairs.rejected_mean)
    return -pairs.chosen_mean - settings.beta * F.logsigmoid(odds)


def log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) of log-probabilities, finite also where p rounds to 1."""
    logp = logp.clamp(max=-1e-6)
    return logp - torch.log(-torch.expm1(logp))


def simpo(pairs: PairLogps, settings: Settings) -> Tensor:
    """SimPO: -log s(beta (log P(y_w) - log P(y_l)) - gamma), log P the mean over tokens (arXiv
    2405.14734, eq. 6).

    Needs no reference. Published with beta from 2 to 2.5 and gamma from 0.3 to 1.6; DPO's usual 0.1
    is far too small here. Weakness: nothing holds the policy near its start.
    """
    return -F.logsigmoid(
        settings.beta * (pairs.chosen_mean - pairs.rejected_mean) - settings.simpo_gamma
    )


def sft(pairs: PairLogps, settings: Settings) -> Tensor:
    """SFT on the chosen answer: its negative log-likelihood per token. For mixtures, and as the
    control without pairs."""
    return -pairs.chosen_mean
