"""Train with a trainer, from its last whole checkpoint on, and save the result to `final/`.

A method builds its trainer and hands it to `fit`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, set_seed

from aligner.config.defaults import OF_ALIGNER, OF_DEVICE, trainer_value
from aligner.config.recipe import TrainRecipe
from aligner.errors import TrainingError
from aligner.events import Notice, OnEvent, StageStarted, Warned, tell
from aligner.models.loading import without_messages
from aligner.models.saved_tokenizer import SavedTokenizer
from aligner.runs.checkpoints import STATE, is_last, latest_checkpoint, step_of
from aligner.runs.files import parse_json, read_metrics, share_weights
from aligner.runs.run import Run
from aligner.training.arguments import found_late
from aligner.training.callbacks import EndEvaluation, Recorder, refuse_broken_weights
from aligner.training.checkpoint_code import refuse_code
from aligner.training.decided import Decided, read_decided
from aligner.training.trainer import OrderedTrainer


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What training gave: results by name, for the manifest and the screen."""

    results: dict[str, float]


def fit(
    trainer: OrderedTrainer,
    recipe: TrainRecipe,
    run: Run,
    on_event: OnEvent | None,
    guards: Sequence[TrainerCallback] = (),
    finish: Callable[[Path], None] | None = None,
) -> TrainResult:
    """Train, from the last complete checkpoint if there is one, and save the result to `final/`.

    `finish` may add files to the folder of the result before it takes its name. `guards` hear of
    every log after it was recorded, and may end the training with an error. Raises: TrainingError
    when the loss is NaN or inf, or memory runs out.
    """
    keep = int(trainer_value(recipe, "save_total_limit") or OF_ALIGNER["save_total_limit"])
    trainer.remove_callback(PrinterCallback)
    trainer.pad_last_batch()
    if trainer.processing_class is not None:
        trainer.saved_tokenizer = SavedTokenizer(trainer.processing_class, recipe.model)
    trainer.add_callback(Recorder(trainer, run, on_event, keep))
    cadence = (read_decided(run) or Decided()).cadence
    if cadence is not None and cadence.eval_steps is not None:
        trainer.add_callback(EndEvaluation())
    for guard in guards:
        trainer.add_callback(guard)
    if recipe.early_stopping is not None:
        trainer.add_callback(
            EarlyStoppingCallback(recipe.early_stopping.patience, recipe.early_stopping.threshold)
        )
    _refuse_whole_copies(trainer, recipe)
    checkpoint = latest_checkpoint(run.checkpoints_dir)
    if checkpoint is not None:
        refuse_code(checkpoint)
    trainer.has_ended = checkpoint is not None and is_last(checkpoint)
    set_seed(
        recipe.seed
    )  # what was computed before, or found in a cache, leaves no trace in dropout
    if trainer.is_world_process_zero():
        for remark in run.record_arguments(found_late(trainer.args, recipe), OF_DEVICE):
            tell(on_event, Warned(remark))
        _announce(checkpoint, run, on_event)
        if trainer.args.save_only_model and on_event:
            on_event(
                Warned(
                    "trainer.save_only_model: checkpoints hold weights alone, and --resume will "
                    "refuse them"
                )
            )
    if on_event:
        on_event(StageStarted("training"))
    try:
        # Shares of the run (0.1) are compared with numbers of steps there; a changed recipe is
        # refused by the run. The ids that a trainer sets configurations to are put back when the
        # model is saved.
        with (
            without_messages("do not match the ones in the `trainer_state.json`", "trainer_utils"),
            without_messages(
                "new PAD/BOS/EOS tokens that differ from the model config", "trainer_utils"
            ),
        ):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the device ran out of memory at step {trainer.state.global_step}",
            "halve trainer.per_device_train_batch_size and double "
            "trainer.gradient_accumulation_steps, set "
            "trainer.gradient_checkpointing=true, lower data.max_length, or use model.lora with "
            "model.quantization=nf4",
        ) from error
    refuse_broken_weights(trainer)
    trainer.own_config.put_back()
    trainer.finalize()
    save_final(trainer, run, finish)
    return TrainResult(_results(trainer))


def _refuse_whole_copies(trainer: OrderedTrainer, recipe: TrainRecipe) -> None:
    """Raise where the model is to be split over processes, and accelerate would give each a whole
    one: it does so silently on devices that it does not know."""
    strategy, state = recipe.launch.strategy, trainer.accelerator.state
    if not strategy.startswith("fsdp") or state.num_processes == 1:
        return
    if state.distributed_type.value != "FSDP":
        raise TrainingError(
            f"launch.strategy is {strategy}, and accelerate does not split a model on "
            f"{state.device.type}: every process would hold all of it",
            "use launch.strategy=ddp here",
        )


def _announce(checkpoint: Path | None, run: Run, on_event: OnEvent | None) -> None:
    step = step_of(checkpoint) if checkpoint else 0
    run.trim_metrics(step)
    run.metrics.start_tracking(on_event)
    if checkpoint and on_event:
        whole = "weights, optimizer, schedule, random state, place in the data"
        taken = (
            "training had ended there, and only the end of the run is left"
            if is_last(checkpoint)
            else whole
        )
        on_event(Notice(f"resuming from {checkpoint} ({taken})"))
        if lost := _lost_steps(checkpoint, run):
            on_event(
                Warned(
                    f"{run.dir / 'metrics.jsonl'} lacks what was logged at {len(lost)} steps, from "
                    f"{lost[0]} to {lost[-1]}: it was damaged, and its curves have a gap there"
                )
            )


def _lost_steps(checkpoint: Path, run: Run) -> list[int]:
    """Return the steps that the checkpoint knows to have been logged, and the record does not."""
    state = parse_json(checkpoint / STATE, f"delete {checkpoint}", needed=["log_history"])
    kept = {record["step"] for record in read_metrics(run.dir) if record.get("split") == "train"}
    return sorted({logs["step"] for logs in state["log_history"] if "loss" in logs} - kept)


def save_final(
    trainer: OrderedTrainer, run: Run, finish: Callable[[Path], None] | None = None
) -> None:
    """Save the model to `final/` under a temporary name first, so that a `final/` is always
    whole."""
    unfinished = run.dir / "final.unfinished"
    if trainer.is_world_process_zero() and unfinished.exists():
        shutil.rmtree(unfinished)  # of a save that was killed
    PartialState().wait_for_everyone()
    trainer.save_model(str(unfinished))
    if trainer.is_world_process_zero():
        (unfinished / "README.md").unlink(missing_ok=True)
        if finish is not None:
            finish(unfinished)
        share_weights(unfinished)
        if run.final_dir.exists():
            shutil.rmtree(run.final_dir)
        os.replace(unfinished, run.final_dir)
    PartialState().wait_for_everyone()


LEFT_OUT = ("epoch", "step", "learning_rate")
"""Of a log: what is no result."""


def _results(trainer: OrderedTrainer) -> dict[str, float]:
    """Return the run's numbers from the trainer's own history, which checkpoints carry over a
    resumption."""
    history = trainer.state.log_history
    results = {"steps": float(trainer.state.global_step), "train_loss": _mean_loss(history)}
    last_train: dict[str, float] = next((logs for logs in reversed(history) if "loss" in logs), {})
    last_eval: dict[str, float] = next(
        (logs for logs in reversed(history) if "eval_loss" in logs), {}
    )
    for split, logs in (("train", last_train), ("eval", last_eval)):
        named = {key.removeprefix("eval_"): float(value) for key, value in logs.items()}
        kept = [key for key in named if key not in LEFT_OUT and not _is_timing(key)]
        # A checkpoint's history is in the order of the alphabet, and a result is not to show that.
        for key in sorted(kept, key=lambda key: (key != "loss", key)):
            results[f"{split}/{key}"] = named[key]
    if trainer.state.best_metric is not None:
        metric = str(trainer.args.metric_for_best_model or "loss").removeprefix("eval_")
        results[f"best_eval_{metric}"] = float(trainer.state.best_metric)
    return results


def _mean_loss(history: Sequence[dict[str, Any]]) -> float:
    """Return the mean training loss over all steps, from logs that each give the mean since the one
    before."""
    total, before = 0.0, 0
    for logs in history:
        if "loss" in logs:
            total += logs["loss"] * (logs["step"] - before)
            before = logs["step"]
    return total / max(1, before)


def _is_timing(key: str) -> bool:
    named = ("runtime", "samples_per_second", "steps_per_second", "sapo/generation_share")
    return key in named or key.startswith("time/")
