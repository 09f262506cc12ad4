"""The catalogue of preference objectives: pure functions of the log-probabilities of pairs, one
loss for each pair.

`published.py` holds those that people designed, `discovered.py` those that a search found,
`distillation.py` the one that takes its targets from reward models; `load_objective` takes a name,
a file with a proposed objective, or a weighted mixture of them. What each reads beside its pairs (a
reference, a batch, lengths) is in small tables, held true by tests. `bandit.py`, `dsl/checks.py`
and `dsl/sandboxed.py` try objectives that a language model wrote; `table.py` describes any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from aligner.config.loss_names import BATCH_DEPENDENT
from aligner.losses import discovered, distillation, published
from aligner.losses.types import Objective, PairLogps, Settings

__all__ = [
    "BATCH_DEPENDENT",
    "OBJECTIVES",
    "REWARD_OBJECTIVES",
    "Objective",
    "PairLogps",
    "Settings",
    "load_objective",
    "mixture",
]

OBJECTIVES: dict[str, Objective] = {
    "sigmoid": published.sigmoid,
    "hinge": published.hinge,
    "ipo": published.ipo,
    "ipo_sum": published.ipo_sum,
    "robust": published.robust,
    "exo_pair": published.exo_pair,
    "nca_pair": published.nca_pair,
    "bco_pair": published.bco_pair,
    "sppo_hard": published.sppo_hard,
    "apo_zero": published.apo_zero,
    "apo_down": published.apo_down,
    "sigmoid_norm": published.sigmoid_norm,
    "kto_pair": published.kto_pair,
    "orpo": published.orpo,
    "simpo": published.simpo,
    "sft": published.sft,
    "discopop": discovered.discopop,
    "dbaql": discovered.dbaql,
    "aql": discovered.aql,
    "padll": discovered.padll,
    "aqfl": discovered.aqfl,
    "cell": discovered.cell,
    "pfl": discovered.pfl,
}
"""Name -> objective. The legal names without torch stand in `aligner.config.choices`; a test keeps
the two equal."""

REWARD_OBJECTIVES: dict[str, Objective] = {"reward_distill": distillation.reward_distill}
"""Objectives that need more than log-probabilities: a target for each pair, which reward models
give (`aligner.methods.dpo.reward_distillation`)."""


def load_objective(loss: str | Mapping[str, float]) -> Objective:
    """Return the objective that `dpo.loss` means: a name, a path that ends with `.py`, or weights
    of several.

    Raises: RecipeError when a file holds no objective that may be run.
    """
    if isinstance(loss, Mapping):
        return mixture({load_objective(name): weight for name, weight in loss.items()})
    if loss.endswith(".py"):
        from aligner.losses.dsl.interpreter import as_objective
        from aligner.losses.dsl.parser import read_objective

        return as_objective(read_objective(Path(loss).expanduser()))
    return REWARD_OBJECTIVES[loss] if loss in REWARD_OBJECTIVES else OBJECTIVES[loss]


def mixture(parts: Mapping[Objective, float]) -> Objective:
    """Return the weighted sum of objectives; the weights are not normalized."""

    def weighted(pairs: PairLogps, settings: Settings) -> Tensor:
        losses = [weight * objective(pairs, settings) for objective, weight in parts.items()]
        return sum(losses[1:], losses[0])

    return weighted
