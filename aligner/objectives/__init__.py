"""Preference objectives as pure tensor functions: the log-probabilities of pairs in, one loss per pair out.

Each function computes in float32, never reads global state, and may be called with any batch size. `OBJECTIVES` is the
catalogue: a name, its function, its source. The names and the values are TRL's where TRL has the objective.

Legend: B pairs. rho = (log pi(y_w|x) - log pi_ref(y_w|x)) - (log pi(y_l|x) - log pi_ref(y_l|x)), z = beta * rho,
where y_w is the chosen and y_l the rejected answer, and log-probabilities are summed over the answer's tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PairLogps:
    """What an objective sees of B pairs; every tensor has shape (B,).

    Log-probabilities are sums over the answer's tokens, in nats; lengths are numbers of answer tokens.
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    @property
    def chosen_ratio(self) -> Tensor:
        """log pi(y_w|x) - log pi_ref(y_w|x), shape (B,), float32."""
        return self.chosen.float() - self.reference_chosen.float()

    @property
    def rejected_ratio(self) -> Tensor:
        """log pi(y_l|x) - log pi_ref(y_l|x), shape (B,), float32."""
        return self.rejected.float() - self.reference_rejected.float()

    @property
    def rho(self) -> Tensor:
        """Difference of the two ratios, shape (B,), float32."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def mean_rho(self) -> Tensor:
        """Difference of the two ratios, each divided by its answer's length, shape (B,), float32."""
        return self.chosen_ratio / self.chosen_lengths.clamp(min=1) - self.rejected_ratio / self.rejected_lengths.clamp(
            min=1
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """Numbers that objectives share; each uses those that its formula names."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    tau: float = 0.05


def sigmoid(pairs: PairLogps, settings: Settings) -> Tensor:
    """DPO: -(1-e) log s(z) - e log s(-z) (arXiv 2305.18290, eq. 7; e is conservative DPO's label smoothing)."""
    z = settings.beta * pairs.rho
    e = settings.label_smoothing
    return -(1 - e) * F.logsigmoid(z) - e * F.logsigmoid(-z)


def hinge(pairs: PairLogps, settings: Settings) -> Tensor:
    """Hinge on the margin: max(0, 1 - z) (SLiC-HF, arXiv 2305.10425, on DPO's implicit reward as in RSO, 2309.06657)."""
    return torch.relu(1 - settings.beta * pairs.rho)


def ipo(pairs: PairLogps, settings: Settings) -> Tensor:
    """IPO: (rho' - 1/(2 beta))^2 with length-averaged ratios rho' (arXiv 2310.12036, eq. 17; averaged as in TRL).

    The paper sums over tokens; the length average is what its authors confirmed to TRL and what TRL computes.
    """
    return (pairs.mean_rho - 1 / (2 * settings.beta)) ** 2


def robust(pairs: PairLogps, settings: Settings) -> Tensor:
    """Robust DPO: (-(1-e) log s(z) + e log s(-z)) / (1 - 2e), unbiased under label flips (arXiv 2403.00409, eq. 12)."""
    z = settings.beta * pairs.rho
    e = settings.label_smoothing
    return (-(1 - e) * F.logsigmoid(z) + e * F.logsigmoid(-z)) / (1 - 2 * e)


def exo_pair(pairs: PairLogps, settings: Settings) -> Tensor:
    """EXO for pairs: KL(policy's preference || smoothed label), needs label smoothing e > 0 (arXiv 2402.00856, eq. 16)."""
    z = settings.beta * pairs.rho
    e = torch.tensor(settings.label_smoothing, device=z.device)
    won = torch.sigmoid(z) * (F.logsigmoid(z) - torch.log1p(-e))
    lost = torch.sigmoid(-z) * (F.logsigmoid(-z) - torch.log(e))
    return won + lost


def nca_pair(pairs: PairLogps, settings: Settings) -> Tensor:
    """NCA for pairs: -log s(r_w) - (log s(-r_w) + log s(-r_l)) / 2 with r = beta * ratio (arXiv 2402.05369)."""
    chosen, rejected = settings.beta * pairs.chosen_ratio, settings.beta * pairs.rejected_ratio
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_pair(pairs: PairLogps, settings: Settings) -> Tensor:
    """Binary classifier on each answer: -log s(r_w) - log s(-r_l), without BCO's reward shift (arXiv 2404.04656)."""
    return -F.logsigmoid(settings.beta * pairs.chosen_ratio) - F.logsigmoid(-settings.beta * pairs.rejected_ratio)


def sppo_hard(pairs: PairLogps, settings: Settings) -> Tensor:
    """SPPO with hard labels: (ratio_w - 1/(2 beta))^2 + (ratio_l + 1/(2 beta))^2 (arXiv 2405.00675, eq. 4.7)."""
    target = 0.5 / settings.beta
    return (pairs.chosen_ratio - target) ** 2 + (pairs.rejected_ratio + target) ** 2


def apo_zero(pairs: PairLogps, settings: Settings) -> Tensor:
    """APO-zero: 1 - s(r_w) + s(r_l), for answers better than the model's own (arXiv 2408.06266, eq. 7)."""
    chosen, rejected = settings.beta * pairs.chosen_ratio, settings.beta * pairs.rejected_ratio
    return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)


def apo_down(pairs: PairLogps, settings: Settings) -> Tensor:
    """APO-down: s(r_w) + 1 - s(r_w - r_l), for answers worse than the model's own (arXiv 2408.06266, eq. 8)."""
    return torch.sigmoid(settings.beta * pairs.chosen_ratio) + 1 - torch.sigmoid(settings.beta * pairs.rho)


def discopop(pairs: PairLogps, settings: Settings) -> Tensor:
    """DiscoPOP (log-ratio modulated loss): (1-w) softplus(-z) + w exp(-z), w = s(z/tau) (arXiv 2406.08414, eq. 5).

    Written as s(-z/tau) softplus(-z) + exp(log s(z/tau) - z), which is the same number and stays finite where the
    literal form gives 0 * inf in float32 (z below -88.7). Not convex: its slope at z = 0 points the wrong way for
    tau below about 0.1.
    """
    z = settings.beta * pairs.rho
    gate = z / settings.tau
    return torch.sigmoid(-gate) * F.softplus(-z) + torch.exp(F.logsigmoid(gate) - z)


def sigmoid_norm(pairs: PairLogps, settings: Settings) -> Tensor:
    """DPO on length-averaged ratios: -log s(beta rho') (the normalised form of arXiv 2411.15124)."""
    return -F.logsigmoid(settings.beta * pairs.mean_rho)


Objective = Callable[[PairLogps, Settings], Tensor]

OBJECTIVES: dict[str, Objective] = {
    "sigmoid": sigmoid,
    "hinge": hinge,
    "ipo": ipo,
    "robust": robust,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
    "sigmoid_norm": sigmoid_norm,
}
"""Name -> objective. The legal names without torch stand in `aligner.config.choices`; a test keeps the two equal."""
