"""The steps of `sapo`: those of every method, on rows with one good answer."""

from __future__ import annotations

from aligner.methods.steps import TrainingSteps


class SapoSteps(TrainingSteps):
    """Self-Augmented Preference Optimization."""

    task = "sft"


STEPS = SapoSteps()
