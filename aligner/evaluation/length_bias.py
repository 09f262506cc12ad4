"""How far the scores of answers follow their length in characters.

Scores of a reward model are comparable within a prompt only. So the correlation is taken either
within each prompt that has at least three answers, and averaged (`within_prompts`), or over all
answers after the mean of each prompt is taken off scores and lengths (`centred`); with two answers
to a prompt only the second says anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aligner.evaluation.bootstrap import Floats, Integers, or_none
from aligner.evaluation.correlation import pearson, spearman
from aligner.evaluation.pair_scores import DifferentAnswers

FEWEST_ANSWERS = 3


def centred(values: Floats, groups: Integers) -> Floats:
    """The values less the mean of their group; what is left of equal ones by rounding is
    nothing."""
    means = np.bincount(groups, values) / np.bincount(groups)
    left = values - means[groups]
    return np.where(np.abs(left) > 1e-12 * np.abs(values).max(initial=0.0), left, 0.0)


def length_correlation(scores: Floats, answers: DifferentAnswers) -> dict[str, Any]:
    """Correlation of scores with the length of answers, within prompts and with the means of the
    prompts taken off."""
    lengths = np.array([len(text) for text in answers.texts], dtype=np.float64)
    pooled = centred(scores, answers.groups), centred(lengths, answers.groups)
    within = []
    cuts = np.flatnonzero(np.diff(answers.groups)) + 1
    for of_prompt, long in zip(np.split(scores, cuts), np.split(lengths, cuts)):
        if len(long) >= FEWEST_ANSWERS and np.ptp(long) > 0 and np.ptp(of_prompt) > 0:
            within.append((pearson(of_prompt, long), spearman(of_prompt, long)))
    means = np.mean(within, axis=0) if within else (np.nan, np.nan)
    return {
        "within_prompts": {
            "pearson": or_none(means[0]),
            "spearman": or_none(means[1]),
            "prompts": len(within),
        },
        "centred": {
            "pearson": or_none(pearson(*pooled)),
            "spearman": or_none(spearman(*pooled)),
            "answers": len(lengths),
        },
    }
