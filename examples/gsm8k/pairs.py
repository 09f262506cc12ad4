"""Preference pairs from model solutions: a function for `data.train[].function`, called with each
row of the file.

A row holds a question and four models' solutions, each marked right or wrong. Every right solution
is paired with every wrong one of the same question; a question that all models solved, or none,
gives no pair and is counted as dropped.
"""

from __future__ import annotations

from typing import Any

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def make_pairs(row: dict[str, Any]) -> list[dict[str, str]] | None:
    """Return rows with `prompt`, `chosen` and `rejected`; None drops the question."""
    solutions = [row[name] for name in MODELS]
    right = sorted({s["solution"] for s in solutions if s["is_correct"]})
    wrong = sorted({s["solution"] for s in solutions if not s["is_correct"]})
    pairs = [
        {"prompt": row["question"], "chosen": good, "rejected": bad}
        for good in right
        for bad in wrong
    ]
    return pairs or None
