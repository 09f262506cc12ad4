"""Names that a recipe may give and that live in modules which import torch, kept here without torch.

Each table is held equal to its module by a test.
"""

from __future__ import annotations

LOSSES: dict[str, str] = {
    "sigmoid": "DPO (arXiv 2305.18290); with `label_smoothing`, conservative DPO",
    "hinge": "SLiC's hinge on the margin (arXiv 2305.10425)",
    "ipo": "IPO: a squared loss that bounds the margin (arXiv 2310.12036); beta is its regularisation",
    "robust": "robust DPO for labels flipped at a known rate (arXiv 2403.00409)",
    "exo_pair": "EXO, reverse KL on the pair (arXiv 2402.00856); needs `label_smoothing`",
    "nca_pair": "NCA, absolute likelihood of each answer (arXiv 2402.05369)",
    "bco_pair": "BCO, a binary classifier on each answer, without its reward shift (arXiv 2404.04656)",
    "sppo_hard": "SPPO with hard labels (arXiv 2405.00675)",
    "apo_zero": "APO-zero: raises the chosen, lowers the rejected (arXiv 2408.06266)",
    "apo_down": "APO-down: lowers both, the rejected more (arXiv 2408.06266)",
    "discopop": "DiscoPOP, the discovered log-ratio modulated loss (arXiv 2406.08414)",
    "sigmoid_norm": "DPO on log-ratios divided by the answer's length",
}
"""Objective of `aligner dpo` -> one line about it."""

LABEL_SMOOTHING_LOSSES = ("sigmoid", "robust", "exo_pair")
"""Objectives that read `dpo.label_smoothing`."""

STRATEGIES: dict[str, str] = {
    "ddp": "every process holds the whole model",
    "fsdp": "weights, gradients and optimizer state split over the processes by torch (FSDP2)",
    "fsdp1": "the same with torch's first version of it",
    "zero1": "DeepSpeed: optimizer state split",
    "zero2": "DeepSpeed: optimizer state and gradients split",
    "zero3": "DeepSpeed: optimizer state, gradients and weights split",
}
"""Strategy of `launch.strategy` -> one line about it."""

ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
"""Attention implementations by name; a hub kernel (`owner/name`) is accepted too."""

PREFERENCE_FORMATS = ("auto", "preference")
"""`data.train[].format` that `dpo` can use."""

SFT_FORMATS = ("auto", "messages", "prompt_completion", "sharegpt", "alpaca", "text")
"""`data.train[].format` that `sft` can use."""
