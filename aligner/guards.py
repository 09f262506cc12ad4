"""Two guards over an objective that may train the chosen answers down: one before training, one in its first steps.

All pairs start at z = 0, where policy and reference are the same. An objective whose slope there is positive pushes the
chosen answer down first; DiscoPOP does (tau below 0.1023), and learns only where single steps are large enough to carry
pairs over its hump. Nothing here changes the training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from aligner.errors import TrainingError
from aligner.objectives import Objective, Settings
from aligner.objectives.shape import run_over

REACH, POINTS = 10.0, 1_001
"""How far from the start, in z, a hump is looked for, and at how many places."""


def wrong_start(objective: Objective, settings: Settings) -> str | None:
    """Return what is wrong with the objective's start and what helps, or None where its slope there is right."""
    slope = float(run_over(objective, settings, torch.zeros(1))[1])
    if not slope > 1e-6:
        return None
    z = torch.linspace(0, REACH, POINTS)
    losses, _ = run_over(objective, settings, z)
    hump = float(z[losses.argmax()])
    learned = (
        f"only those that single steps carry past rho = {hump / settings.beta:.2f} nats are learned in the right direction"
        if hump < REACH
        else "no margin is large enough to be learned in the right direction"
    )
    return (
        f"the objective starts on a wrong slope ({slope:+.3f} per unit of z = beta * rho, where it should be negative): all "
        f"pairs start at rho = 0, and {learned}; others train the chosen answer down"
    )


class AccuracyAlarm(TrainerCallback):
    """Tell, or stop, when the share of pairs ranked rightly has stayed below a half for the first `steps` steps.

    It reads the trainer's own history, which checkpoints carry over a resumption.
    """

    def __init__(self, steps: int, stop: bool, tell: Callable[[str], None]) -> None:
        self.steps, self.stop, self.tell = steps, stop, tell

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look once, at the first log at or after the step."""
        logs = [entry for entry in state.log_history if "rewards/accuracies" in entry]
        if not self._is_now([entry["step"] for entry in logs]) or state.log_history[-1] is not logs[-1]:
            return
        best = max(entry["rewards/accuracies"] for entry in logs)
        if best >= 0.5:
            return
        found = (
            f"after {logs[-1]['step']} steps the share of pairs ranked rightly (rewards/accuracies) has never reached 0.5; "
            f"the highest was {best:.3f}"
        )
        cure = (
            "look whether chosen and rejected are swapped; raise trainer.learning_rate or dpo.beta; with an objective that "
            "starts on a wrong slope set dpo.warmup_steps_dpo=100 or a larger dpo.tau"
        )
        if self.stop:
            raise TrainingError(found[0].upper() + found[1:] + ".", cure + " (dpo.on_alarm=warn goes on).")
        self.tell(f"{found}: {cure}")

    def _is_now(self, steps: Sequence[int]) -> bool:
        return bool(steps) and steps[-1] >= self.steps and not any(step >= self.steps for step in steps[:-1])
