"""Two checks of an objective that may train the chosen responses down: one before training, one in
its first steps.

All pairs start at z = 0, where policy and reference are the same. An objective whose slope there is
positive pushes the chosen answer down first; DiscoPOP does (tau below 0.1023), and learns only
where single steps are large enough to carry pairs over its hump. Nothing here changes the training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from aligner.errors import TrainingError
from aligner.losses.shape import run_over
from aligner.losses.types import Objective, Settings

REACH, POINTS = 10.0, 501
"""How far from the start, in z, a hump is looked for, and at how many places near to it and
beyond."""


def check_initial_gradient(
    objective: Objective, settings: Settings, length: float = 1.0
) -> str | None:
    """Return what is wrong with the objective's start, or None where its slope there is right.

    `length`: tokens of a typical answer. A part that counts per token weighs the less in a mixture,
    the longer they are.
    """
    slope = float(run_over(objective, settings, torch.zeros(1), length=length)[1])
    if not slope > 1e-6:
        return None
    z = torch.cat([torch.linspace(0, 0.1, POINTS), torch.linspace(0.1, REACH, POINTS)])
    losses, _ = run_over(objective, settings, z, length=length)
    hump = float(z[losses.argmax()])
    learned = (
        f"only those that single steps carry past rho = {hump / settings.beta:.2f} nats are "
        "learned in the right direction"
        if hump < REACH
        else "no margin is large enough to be learned in the right direction"
    )
    return (
        f"the objective starts on a wrong slope ({slope:+.3f} per unit of z = beta * rho, where "
        "it should be negative): all "
        f"pairs start at rho = 0, and {learned}; others train the chosen answer down"
    )


class AccuracyAlarm(TrainerCallback):
    """Tell, or stop, when the share of pairs ranked rightly has stayed below a half for the first
    `steps` steps.

    They are counted from step `after`: those of a warm-up, which trains another objective, say
    nothing. `metric` is the share that is looked at: against the labels (`rewards/accuracies`), or
    against reward models (`distill/accuracies`).

    It reads the trainer's own history, which checkpoints carry over a resumption.
    """

    def __init__(
        self,
        steps: int,
        stop: bool,
        tell: Callable[[str], None],
        after: int = 0,
        metric: str = "rewards/accuracies",
    ) -> None:
        self.steps, self.stop, self.tell, self.after, self.metric = steps, stop, tell, after, metric

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look once, at the first log at or after the step."""
        logs = [
            entry
            for entry in state.log_history
            if self.metric in entry and entry["step"] > self.after
        ]
        last = self.after + self.steps
        over = [entry for entry in logs if entry["step"] >= last]
        if len(over) != 1 or over[0] is not state.log_history[-1]:
            return
        best = max(entry[self.metric] for entry in logs)
        if best >= 0.5:
            return
        found = (
            f"after {logs[-1]['step']} steps the share of pairs ranked rightly ({self.metric}) "
            "has never reached 0.5"
            f"{f' since the warm-up of {self.after}' if self.after else ''}; "
            f"the highest was {best:.3f}"
        )
        cure = (
            "look whether chosen and rejected are swapped; raise trainer.learning_rate or "
            "dpo.beta; with an objective that "
            "starts on a wrong slope set dpo.warmup_steps_dpo=100 or a larger dpo.tau"
            if self.metric == "rewards/accuracies"
            else "raise trainer.learning_rate or dpo.beta, lower dpo.forward_kl, or look at "
            "distill/target_gap: where it is "
            "small, raise dpo.reward_scale"
        )
        if self.stop:
            raise TrainingError(found, cure + " (dpo.on_alarm=warn continues)")
        self.tell(f"{found}: {cure}")
