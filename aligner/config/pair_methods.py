"""What the methods that train a policy on pairs of answers have in common in their reports."""

from __future__ import annotations

from aligner.config.method import Chart

PAIR_METRICS = {
    "loss": False,
    "nll": False,
    "rewards/accuracies": True,
    "rewards/margins": True,
    "rewards/chosen": True,
    "rewards/rejected": False,
    "logps/chosen": True,
    "logps/rejected": False,
}
"""What such a training measures on held-out pairs -> whether more of it is better."""

PAIR_CHARTS: tuple[Chart, ...] = (
    (
        "Reward accuracy",
        [("train", "rewards/accuracies", "train"), ("eval", "rewards/accuracies", "held out")],
    ),
    (
        "Reward margin",
        [("train", "rewards/margins", "train"), ("eval", "rewards/margins", "held out")],
    ),
    ("Rewards", [("train", "rewards/chosen", "chosen"), ("train", "rewards/rejected", "rejected")]),
    (
        "Log-probabilities",
        [("train", "logps/chosen", "chosen"), ("train", "logps/rejected", "rejected")],
    ),
)
