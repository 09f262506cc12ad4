"""Names of the losses of pairs, listed without the torch modules that define them, and what is said
of a name that is none.

The tables are held equal to the modules by a test.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from aligner.config.hints import did_you_mean
from aligner.config.recipe_problem import RecipeProblems, problem_at
from aligner.errors import RecipeError

LOSSES: dict[str, str] = {
    "sigmoid": "DPO (arXiv 2305.18290); with `label_smoothing`, conservative DPO",
    "hinge": "SLiC's hinge on the margin (arXiv 2305.10425)",
    "ipo": "IPO, a squared loss that bounds the margin (arXiv 2310.12036), on log-ratios per "
    "token; "
    "beta is its regularization",
    "ipo_sum": "IPO as printed, on log-ratios summed over the answer",
    "robust": "robust DPO for labels flipped at a known rate (arXiv 2403.00409)",
    "exo_pair": "EXO, reverse KL on the pair (arXiv 2402.00856); needs `label_smoothing`",
    "nca_pair": "NCA, absolute likelihood of each answer (arXiv 2402.05369)",
    "bco_pair": "BCO, a binary classifier on each answer, without its reward shift (arXiv "
    "2404.04656)",
    "sppo_hard": "SPPO with hard labels (arXiv 2405.00675)",
    "apo_zero": "APO-zero: raises the chosen, lowers the rejected (arXiv 2408.06266)",
    "apo_down": "APO-down: lowers both, the rejected more (arXiv 2408.06266)",
    "sigmoid_norm": "DPO on log-ratios divided by the answer's length",
    "kto_pair": "KTO on pairs (arXiv 2402.01306); reads batch means",
    "orpo": "ORPO: SFT and an odds ratio of the two answers, no reference (arXiv 2403.07691); beta "
    "is "
    "its lambda",
    "simpo": "SimPO: log-probabilities per token and a margin, no reference (arXiv 2405.14734); "
    "beta "
    "2 "
    "to 2.5",
    "sft": "next-token loss on the chosen answer alone, no reference; for mixtures and as a "
    "control",
    "discopop": "DiscoPOP, the discovered log-ratio modulated loss, LRML (arXiv 2406.08414)",
    "dbaql": "discovered: dynamic blended adaptive quantile loss (arXiv 2406.08414); reads a batch "
    "variance",
    "aql": "discovered: adaptive quantile loss (arXiv 2406.08414); reads a batch mean",
    "padll": "discovered: performance adaptive decay logistic loss (arXiv 2406.08414)",
    "aqfl": "discovered: adaptive quantile feedback loss (arXiv 2406.08414); reads batch "
    "statistics",
    "cell": "discovered: combined exponential and logistic loss (arXiv 2406.08414)",
    "pfl": "discovered: policy focused loss (arXiv 2406.08414)",
    "reward_distill": "reward distillation: margins follow reward models (arXiv 2405.19316); needs "
    "`reward_models`, reads no labels",
}
"""Objective of `aligner dpo` -> one line about it."""

LABEL_SMOOTHING_LOSSES = ("sigmoid", "robust", "exo_pair")
"""Objectives that read `dpo.label_smoothing`."""

TAU_LOSSES = ("discopop", "dbaql", "aql", "aqfl", "pfl")
"""Objectives that read `dpo.tau`."""

REFERENCE_FREE_LOSSES = ("orpo", "simpo", "sft")
"""Objectives that never read the reference, which is then not computed."""

BATCH_DEPENDENT = ("kto_pair", "dbaql", "aql", "aqfl")
"""Objectives with a statistic over the micro-batch: their results change with the batch size of a
device."""

REWARD_LOSSES = ("reward_distill",)
"""Objectives that follow reward models and not the labels."""

NO_LOSSES_OF_PAIRS = {
    "kto": "KTO learns from single answers that are marked as good or bad, not from pairs; "
    "`kto_pair` is made of it for pairs: "
    "the chosen answer counts as good, the rejected as bad, and the divergence is a mean over the "
    "micro-batch",
    "bco": "BCO learns from single answers that are marked as good or bad, not from pairs; "
    "`bco_pair` is made of it for pairs: "
    "a classifier on the chosen and on the rejected answer, without the shift of rewards",
}
"""Known objectives that are none of pairs -> what they are, and what comes nearest."""

OTHER_LOSS_NAMES = {
    "dpo": "sigmoid",
    "lrml": "discopop",
    "slic": "hinge",
    "rso": "hinge",
    "cdpo": "sigmoid",
    "rdpo": "robust",
    "nll": "sft",
    "distill": "reward_distill",
    "ddpo": "reward_distill",
    "d-dpo": "reward_distill",
    "e-dpo": "reward_distill",
}
"""Names that people know an objective by -> its name here."""


def meant_loss(name: str, known: Iterable[str]) -> str:
    """Say what a name that is not an objective's is called here, what it is, or which one is
    near."""
    if explained := NO_LOSSES_OF_PAIRS.get(name.lower()):
        return explained
    other = OTHER_LOSS_NAMES.get(name.lower())
    return f"it is called `{other}` here" if other else did_you_mean(name, known)


def objective_file(path: str, key: str = "dpo.loss") -> RecipeProblems:
    from aligner.losses.dsl.parser import read_objective

    try:
        read_objective(Path(path).expanduser())
    except RecipeError as error:
        yield problem_at(key, error.message, error.hint)
