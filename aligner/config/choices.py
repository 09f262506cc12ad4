"""Names that a recipe may give (losses, strategies, ...), listed without the torch modules that
define them.

Each table is held equal to its module by a test.
"""

from __future__ import annotations

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

REWARD_LOSSES = ("reward_distill",)
"""Objectives that follow reward models and not the labels."""

DISTILL_FORWARD_KL = 0.1
"""Weight of the forward KL with such an objective, where `dpo.forward_kl` is left out."""

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

WRITTEN = ("sigmoid", "hinge", "ipo_sum", "kto_pair", "padll", "cell", "discopop")
"""Objectives that also exist as a language model would write them, to start a search from."""

STRATEGIES: dict[str, str] = {
    "ddp": "every process holds the whole model",
    "fsdp": "weights, gradients and optimizer state split over the processes by torch (FSDP2)",
    "fsdp1": "the same with torch's first version of it",
    "zero1": "DeepSpeed: optimizer state split",
    "zero2": "DeepSpeed: optimizer state and gradients split",
    "zero3": "DeepSpeed: optimizer state, gradients and weights split",
}
"""Strategy of `launch.strategy` -> one line about it."""

ATTENTION = (
    "eager",
    "sdpa",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
)
"""Attention implementations by name; a hub kernel (`owner/name`) is accepted too."""

PREFERENCE_FORMATS = ("auto", "preference")
"""`data.train[].format` that `dpo` can use."""

SINGLE_ANSWER_FORMATS = ("auto", "messages", "prompt_completion", "sharegpt", "alpaca")
"""`data.train[].format` that `sapo` can use."""

SAPO_LOSSES = tuple(name for name in LOSSES if name not in ("exo_pair", "sft", *REWARD_LOSSES))
"""Objectives that `sapo.loss` may name: those that compare, and need no setting of their own."""

SFT_FORMATS = ("auto", "messages", "prompt_completion", "sharegpt", "alpaca", "text")
"""`data.train[].format` that `sft` can use."""

PLAIN_STARTS = (True, False, "gaussian")
"""Values of `model.lora.init_lora_weights` under which an adapter starts beside its weight, and
changes nothing of it."""
