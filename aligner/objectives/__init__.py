"""The catalogue of preference objectives: pure functions of the log-probabilities of pairs, one loss for each pair.

`designed` holds those that people thought up, `discovered` those that a search found, `distilled` the one that takes its
targets from reward models; `load_objective` takes a name, a
file with a proposed objective, or a weighted mixture of them. What each needs of its surroundings (a reference, a batch,
lengths) stands in small tables, held true by tests. `bandit`, `behaviour` and `sandbox` try objectives that a language
model wrote; `table` describes any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from aligner.errors import RecipeError
from aligner.objectives import designed, discovered, distilled
from aligner.objectives.pairs import Objective, PairLogps, Settings

__all__ = [
    "BATCH_DEPENDENT",
    "OBJECTIVES",
    "REWARD_OBJECTIVES",
    "Objective",
    "PairLogps",
    "Settings",
    "check_file",
    "load_objective",
    "mixture",
]

OBJECTIVES: dict[str, Objective] = {
    "sigmoid": designed.sigmoid,
    "hinge": designed.hinge,
    "ipo": designed.ipo,
    "ipo_sum": designed.ipo_sum,
    "robust": designed.robust,
    "exo_pair": designed.exo_pair,
    "nca_pair": designed.nca_pair,
    "bco_pair": designed.bco_pair,
    "sppo_hard": designed.sppo_hard,
    "apo_zero": designed.apo_zero,
    "apo_down": designed.apo_down,
    "sigmoid_norm": designed.sigmoid_norm,
    "kto_pair": designed.kto_pair,
    "orpo": designed.orpo,
    "simpo": designed.simpo,
    "sft": designed.sft,
    "discopop": discovered.discopop,
    "dbaql": discovered.dbaql,
    "aql": discovered.aql,
    "padll": discovered.padll,
    "aqfl": discovered.aqfl,
    "cell": discovered.cell,
    "pfl": discovered.pfl,
}
"""Name -> objective. The legal names without torch stand in `aligner.config.choices`; a test keeps the two equal."""

REWARD_OBJECTIVES: dict[str, Objective] = {"reward_distill": distilled.reward_distill}
"""Objectives that need more than log-probabilities: a target for each pair, which reward models give (`aligner.distillation`)."""

BATCH_DEPENDENT = ("kto_pair", "dbaql", "aql", "aqfl")
"""Objectives with a statistic over the micro-batch: their results change with the batch size of a device."""


def load_objective(loss: str | Mapping[str, float]) -> Objective:
    """Return the objective that `dpo.loss` means: a name, a path that ends with `.py`, or weights of several.

    Raises: RecipeError when a file holds no objective that may be run.
    """
    if isinstance(loss, Mapping):
        return mixture({load_objective(name): weight for name, weight in loss.items()})
    if loss.endswith(".py"):
        return _from_file(Path(loss).expanduser())
    return REWARD_OBJECTIVES[loss] if loss in REWARD_OBJECTIVES else OBJECTIVES[loss]


def mixture(parts: Mapping[Objective, float]) -> Objective:
    """Return the weighted sum of objectives; the weights are not normalised."""

    def weighted(pairs: PairLogps, settings: Settings) -> Tensor:
        losses = [weight * objective(pairs, settings) for objective, weight in parts.items()]
        return sum(losses[1:], losses[0])

    return weighted


def _from_file(path: Path) -> Objective:
    from aligner.objective_source import read_objective
    from aligner.objectives.interpreter import as_objective

    return as_objective(read_objective(path))


def check_file(path: Path, beta: float) -> str:
    """Try the objective in a file in the sandbox, as a proposal of a search is tried; return its source.

    Raises: RecipeError when it may not be run, or could train nothing.
    """
    from aligner.objective_source import read_objective
    from aligner.objectives import sandbox

    source = read_objective(path)
    problem, _ = sandbox.check(source.text, str(path), beta)
    if problem:
        raise RecipeError(f"the objective in {path} cannot be trained with: {problem}", "mend it, or use another")
    return source.text
