"""What watches a training: metrics into `metrics.jsonl` under TRL's names, checkpoints declared
whole, an error where a loss or a weight is NaN or inf.

Nothing is sent anywhere unless `trainer.report_to` asks for it.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from aligner.errors import TrainingError
from aligner.events import Metrics, OnEvent, Warned
from aligner.models.trained_weights import listed, without_gradient
from aligner.runs.checkpoints import checkpoint_at, mark_complete, remove_old
from aligner.runs.run import Run
from aligner.training.trainer import OrderedTrainer


class Recorder(TrainerCallback):
    """Write metrics and checkpoint marks into the run directory, tell the listener, and stop at a
    loss that is NaN or inf."""

    def __init__(
        self, trainer: OrderedTrainer, run: Run, on_event: OnEvent | None, keep: int
    ) -> None:
        self.trainer, self.run, self.on_event, self.keep = trainer, run, on_event, keep
        self.started = time.monotonic()

    def on_epoch_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Set the order's epoch here: the loader of a resumed or sharded run does not pass it
        on."""
        if self.trainer.train_order is not None:
            self.trainer.train_order.set_epoch(int((state.epoch or 0.0) + 1e-6))

    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Say after the first backward pass which weights it did not reach, where each process
        holds them whole."""
        if (
            state.global_step
            or self.on_event is None
            or self.trainer.is_deepspeed_enabled
            or self.trainer.is_fsdp_enabled
        ):
            return
        if places := without_gradient(self.trainer.model):
            self.on_event(
                Warned(
                    f"no gradient reached {listed(places)} in the first step, so these weights "
                    "did not move. "
                    "model.lora.exclude_modules leaves out adapters on layers that a model reads "
                    "without calling them"
                )
            )

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Log at the last step and at every checkpoint, so that a resumed run's averages begin
        where the others did."""
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True

    def on_epoch_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The same for a checkpoint at the end of an epoch."""
        if control.should_save:
            control.should_log = True

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Split a log into its training or held-out line."""
        logs = logs or {}
        if not any(
            key == "loss" or key.startswith("eval_") for key in logs
        ):  # the summary at the end
            return
        split = "eval" if any(key.startswith("eval_") for key in logs) else "train"
        values = {
            key.removeprefix("eval_"): float(value) for key, value in logs.items() if key != "epoch"
        }
        if state.is_world_process_zero:
            record = {
                "step": state.global_step,
                "epoch": round(
                    float(logs.get("epoch", 0.0)) * len(self.trainer.epoch_sizes or [1]), 4
                ),
                "split": split,
                **values,
            }
            self.run.log_metrics({**record, "time_s": round(time.monotonic() - self.started, 3)})
            if self.on_event:
                self.on_event(Metrics(state.global_step, state.max_steps, values, split))
        if not math.isfinite(values.get("loss", 0.0)):
            raise TrainingError(
                f"the {split} loss is {values['loss']} at step {state.global_step}",
                "lower trainer.learning_rate, set trainer.max_grad_norm, or look at the rows of "
                "the last steps; "
                "the last complete checkpoint is from before",
            )

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark the new checkpoint as whole once every rank has written its part; then remove the
        oldest."""
        refuse_broken_weights(self.trainer)
        PartialState().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        mark_complete(checkpoint_at(self.run.checkpoints_dir, state.global_step))
        remove_old(self.run.checkpoints_dir, self.keep, best=state.best_model_checkpoint)


class EndEvaluation(TrainerCallback):
    """Evaluate after the last step too, whatever the steps between evaluations are."""

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for an evaluation at the end."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True


def refuse_broken_weights(trainer: OrderedTrainer) -> None:
    """Raise TrainingError when a trained weight is NaN or inf, so that no checkpoint to resume
    from holds one.

    The loss is looked at only where it is logged; weights that it has spoilt in between would be
    kept otherwise.
    """
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            here = parameter.detach()
            here = here.to_local() if hasattr(here, "to_local") else here  # this rank's shard
            if not bool(torch.isfinite(here).all()):
                raise TrainingError(
                    f"parameter {name} is NaN or inf at step {trainer.state.global_step}",
                    "lower trainer.learning_rate or set trainer.max_grad_norm; the last complete "
                    "checkpoint is from before that",
                )
