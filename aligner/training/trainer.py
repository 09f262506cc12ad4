"""What all trainers share: arguments, metrics, the order of rows, checkpoints, saving the result.

A method builds a trainer from these parts and hands it to `fit`. Checkpoints count only once the
file `complete` is in them, written after everything else is on disk, and older ones are removed
only then; so a kill at any moment leaves one that can be resumed. Numbers go to `metrics.jsonl`
under TRL's names; nothing is sent anywhere unless `trainer.report_to` asks for it.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import TrainerControl, TrainerState

from aligner.config import trainer_keys
from aligner.config.defaults import OF_ALIGNER, OF_DEVICE, fill, trainer_value
from aligner.config.recipe import TrainRecipe
from aligner.errors import Problem, RecipeError, TrainingError
from aligner.events import Metrics, Notice, OnEvent, StageStarted, Warned, tell
from aligner.launch.devices import has_bf16_gpu
from aligner.models.loading import load_saved_weights, without_messages
from aligner.models.own_config import OwnConfig, forget_router_logits
from aligner.models.saved_tokenizer import SavedTokenizer
from aligner.models.trained_weights import listed, without_gradient
from aligner.runs.resumable import is_last
from aligner.runs.run import Run
from aligner.training.sampler import SeededSampler


def training_arguments(
    recipe: TrainRecipe, run: Run, argument_class: type[TrainingArguments], **ours: Any
) -> TrainingArguments:
    """Build the arguments of a trainer: what the device decides, the recipe's `trainer:` section
    over it, filled, and what only we may set."""
    filled, _ = fill(recipe)
    values = {**of_device(filled), **filled.trainer, **ours}
    # The name people know is on its way out of transformers, which warns about it twice a run.
    for key in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        known = values.pop(key, None)
        new = key.replace("gradient", "activation")
        values[new] = known if values.get(new) is None else values[new]
    # Rotation is ours: transformers removes old checkpoints before the new one is known to be
    # whole.
    values["save_total_limit"] = None
    values["restore_callback_states_from_checkpoint"] = True
    with told_by_key("trainer", recipe):
        return argument_class(
            output_dir=str(run.checkpoints_dir),
            seed=recipe.seed,
            data_seed=recipe.seed,
            disable_tqdm=True,
            logging_nan_inf_filter=False,
            **values,
        )


WHAT_LIBRARIES_RAISE = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ImportError,
    RuntimeError,
    ArithmeticError,
    OSError,
    AssertionError,
)


@contextmanager
def told_by_key(key: str, recipe: TrainRecipe, origins: Mapping[str, str] = {}) -> Iterator[None]:
    """Turn what a library has against a setting into a problem of the key that it names, or else of
    `key`.

    `origins` says where each key was written. Raises: RecipeError.
    """
    try:
        yield
    except RecipeError as error:
        placed = [
            replace(problem, where=problem.where or origins.get(problem.key, ""))
            for problem in error.problems
        ]
        raise RecipeError(error.message, error.hint, placed) from error
    except WHAT_LIBRARIES_RAISE as error:
        text = " ".join(str(error).split()) or type(error).__name__
        known = trainer_keys.fields(recipe.method)
        named = sorted(
            (text.find(name), -len(name), name)
            for name, value in recipe.trainer.items()
            if name in text and value != known.get(name, {}).get("default")
        )
        name = f"trainer.{named[0][2]}" if named else key
        problem = Problem(text[:300], origins.get(name, ""), name)
        raise RecipeError(
            "a setting of the trainer does not work here", "change it, or drop it", [problem]
        ) from error


def of_device(recipe: TrainRecipe) -> dict[str, Any]:
    """Return what this device decides where the recipe leaves it out."""
    on_gpu = torch.cuda.is_available() and not trainer_value(recipe, "use_cpu")
    return {
        "bf16": has_bf16_gpu() and on_gpu and not trainer_value(recipe, "fp16"),
        "gradient_checkpointing": on_gpu,
        "dataloader_pin_memory": on_gpu,
    }


def found_late(arguments: TrainingArguments, recipe: TrainRecipe) -> dict[str, Any]:
    """Return the arguments of a trainer that differ from what the recipe says, or that it does not
    hold: what device, data and model decided, and what only we set."""
    values = arguments.to_dict()  # without secrets
    # Ours are rotated by `Recorder`; what the recipe says of them holds.
    values.pop("save_total_limit")
    trainer = fill(recipe)[0].trainer
    return {
        key: value for key, value in values.items() if key not in trainer or value != trainer[key]
    }


@contextmanager
def exact_adapters(model: Any) -> Iterator[None]:
    """Keep what is trained over a quantized base in float32, which TRL rounds to bfloat16 while it
    builds a trainer.

    Small updates of Adam would round to nothing, and an adapter that is trained further would not
    begin where it ended.
    """
    quantized = getattr(model, "is_quantized", False)
    trained = [
        (weight, weight.data) for weight in model.parameters() if quantized and weight.requires_grad
    ]
    yield
    for weight, values in trained:
        weight.data = values.to(weight.device, torch.float32)


class OrderedTrainer(Trainer):
    """A transformers Trainer whose rows come in the order of a `SeededSampler`, resumed or not."""

    train_dataset: Any

    eval_dataset: Any

    group_lengths: Sequence[int] | None = None
    """Lengths (N,) of the training rows, when batches are grouped by length."""

    passes: Sequence[int] | None = None
    """Numbers of rows of the passes that follow one another in the training rows, when each epoch
    has its own."""

    train_order: SeededSampler | None = None

    has_ended: bool = False
    """Set when the checkpoint to resume from is the last one: training is over, and only the end is
    left to do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.own_config = OwnConfig(kwargs["model"])
        super().__init__(*args, **kwargs)
        forget_router_logits(self.model)  # a trainer that wants them asks in each forward pass

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the model's own configuration into the checkpoint, without what training needs."""
        with self.own_config.in_place():
            super()._save_checkpoint(model, trial)

    def before_result(self) -> None:
        """Whatever is to be done to the model between training and saving it."""

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train no further than the end: transformers resumes a finished epoch's middle with one
        more step."""
        if self.has_ended:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    _read_from: str = ""
    """The checkpoint that weights are being read from."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._read_from = resume_from_checkpoint
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self._read_from = str(self.state.best_model_checkpoint)
        super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Read weights again that a checkpoint holds under other names or in another form, as it
        does those of experts.

        transformers would continue with what the model had before. Tied weights are held once,
        under one of their names.
        """
        tied = getattr(self.model, "all_tied_weights_keys", {})
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        if load_result.missing_keys:
            load_saved_weights(self.accelerator.unwrap_model(self.model), self._read_from)
        else:
            super()._issue_warnings_after_load(load_result)

    saved_tokenizer: SavedTokenizer | None = None
    """What is saved in place of the tokenizer."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the tokenizer as it came, beside the model."""
        held: Any = self.processing_class
        self.processing_class: Any = self.saved_tokenizer or held
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.processing_class = held

    num_blank_rows: int = 0

    def blank(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of a row that counts for nothing in the loss."""
        raise NotImplementedError

    def fill_last_batch(self) -> None:
        """Add blank rows until every rank's last batch is full, of training rows and of held-out
        ones.

        accelerate would fill it with rows from the start, which would then be trained, or counted,
        twice.
        """
        if self.eval_dataset is not None:
            self.eval_dataset = self.with_blanks(self.eval_dataset, self.args.eval_batch_size)
        if not self.args.dataloader_drop_last:
            num_rows = len(self.train_dataset)
            self.train_dataset = self.with_blanks(self.train_dataset, self.args.train_batch_size)
            self.num_blank_rows = len(self.train_dataset) - num_rows

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Let every held-out row count: `dataloader_drop_last` is a matter of training."""
        drops, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drops

    def with_blanks(self, rows: Dataset, batch_size: int) -> Dataset:
        """Return the rows, and after them as many blank ones as fill every rank's last batch; none
        for one process."""
        missing = -len(rows) % (batch_size * max(1, self.args.world_size))
        if self.args.world_size < 2 or missing == 0:
            return rows
        shortest = (
            min(range(len(rows)), key=list(rows["length"]).__getitem__)
            if "length" in rows.column_names
            else 0
        )
        blanks = Dataset.from_list([self.blank(rows[shortest])] * missing, features=rows.features)
        return concatenate_datasets([rows, blanks])

    def _get_train_sampler(self, train_dataset: Any = None) -> SeededSampler:
        rows = self.train_dataset if train_dataset is None else train_dataset
        world = max(1, self.args.world_size)
        self.train_order = SeededSampler(
            len(rows) - self.num_blank_rows,
            self.args.seed,
            lengths=self.group_lengths,
            rows_per_step=self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * world,
            num_blank_rows=self.num_blank_rows,
            passes=self.passes,
        )
        return self.train_order


class WeightedTrainer(OrderedTrainer):
    """Rows with a number `weight`: a step's loss is sum(w_i * loss_i) / sum(w_i) over all of its
    rows.

    That is over accumulation steps and ranks alike, so a short last batch counts for what it holds.
    """

    loss_is_scaled_for_ga = True

    def blank(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row with a weight of 0."""
        return {**row, "weight": 0.0}

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        """Fetch the batches of one step, and the sum of their rows' weights over accumulation steps
        and ranks."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator)]
        total = sum((batch["weight"].sum() for batch in batches), torch.tensor(0.0))
        return batches, self.accelerator.reduce(total.to(self.args.device), reduction="sum")

    def share_of_step(self, losses: Tensor, weights: Tensor, step_weight: Any) -> Tensor:
        """Return what a micro-batch of `losses` and `weights` (R,) adds to the loss of its step;
        its mean outside one.

        `step_weight` is what `get_batch_samples` found, or None where there is no step, as with
        held-out rows.
        """
        weighted = (weights * losses).sum()
        if step_weight is None:
            return weighted / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)
        # Ranks average their gradients, so the division by all ranks' weights is undone by their
        # number.
        return weighted * self.accelerator.num_processes / step_weight

    def gather_rows(self, weights: Tensor) -> Callable[[Tensor], Tensor] | None:
        """Return what collects values (R,) of all ranks' rows, without those of no weight that only
        fill a batch.

        None for one process: its own are all there are. Every rank must call it equally often.
        """
        if self.accelerator.num_processes == 1:
            return None
        from torch.distributed.nn.functional import (
            all_gather,
        )  # unlike accelerate's, it lets gradients back

        def gather(values: Tensor) -> Tensor:
            return torch.cat(all_gather(values))[self.accelerator.gather(weights) > 0]

        return gather

    def prediction_step(
        self,
        model: Any,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """Return the loss alone: metrics are gathered on the side, and logits are never kept."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None


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
                "epoch": round(float(logs.get("epoch", 0.0)) * len(self.trainer.passes or [1]), 4),
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
        checkpoint = self.run.checkpoints_dir / f"checkpoint-{state.global_step}"
        self.run.complete_checkpoint(checkpoint)
        best = Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None
        found = sorted(
            self.run.checkpoints_dir.glob("checkpoint-*"),
            key=lambda path: int(path.name.split("-")[1]),
        )
        for path in found[: max(0, len(found) - self.keep)]:
            if path.name != best:
                shutil.rmtree(path)


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


@dataclass(frozen=True, slots=True)
class Fitted:
    """What training gave: results by name, for the manifest and the screen."""

    results: dict[str, float]


def fit(
    trainer: OrderedTrainer,
    recipe: TrainRecipe,
    run: Run,
    on_event: OnEvent | None,
    guards: Sequence[TrainerCallback] = (),
    finish: Callable[[Path], None] | None = None,
) -> Fitted:
    """Train, from the last complete checkpoint if there is one, and save the result to `final/`.

    `finish` may add files to the folder of the result before it takes its name. `guards` hear of
    every log after it was recorded, and may end the training with an error. Raises: TrainingError
    when the loss is NaN or inf, or memory runs out.
    """
    keep = int(trainer_value(recipe, "save_total_limit") or OF_ALIGNER["save_total_limit"])
    trainer.remove_callback(PrinterCallback)
    trainer.fill_last_batch()
    if trainer.processing_class is not None:
        trainer.saved_tokenizer = SavedTokenizer(trainer.processing_class, recipe.model)
    trainer.add_callback(Recorder(trainer, run, on_event, keep))
    for guard in guards:
        trainer.add_callback(guard)
    if recipe.early_stopping is not None:
        trainer.add_callback(
            EarlyStoppingCallback(recipe.early_stopping.patience, recipe.early_stopping.threshold)
        )
    checkpoint = run.latest_checkpoint()
    if checkpoint is not None:
        run.check_checkpoint(checkpoint)
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
    trainer.before_result()
    save_final(trainer, run, finish)
    return Fitted(_results(trainer))


def _announce(checkpoint: Path | None, run: Run, on_event: OnEvent | None) -> None:
    step = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    run.trim_metrics(step)
    if checkpoint and on_event:
        whole = "weights, optimizer, schedule, random state, place in the data"
        taken = (
            "training had ended there, and only the end of the run is left"
            if is_last(checkpoint)
            else whole
        )
        on_event(Notice(f"resuming from {checkpoint} ({taken})"))


def save_final(
    trainer: OrderedTrainer, run: Run, finish: Callable[[Path], None] | None = None
) -> None:
    """Save the model to `final/` under a temporary name first, so that a `final/` is always
    whole."""
    unfinished = run.dir / "final.unfinished"
    trainer.save_model(str(unfinished))
    if trainer.is_world_process_zero():
        (unfinished / "training_args.bin").unlink(
            missing_ok=True
        )  # a pickle; the recipe says it all
        (unfinished / "README.md").unlink(missing_ok=True)
        if finish is not None:
            finish(unfinished)
        readable = (
            (run.dir / "resolved.json").stat().st_mode
        )  # safetensors 0.8 writes files that only their owner may read
        for file in unfinished.rglob("*.safetensors"):
            file.chmod(readable)
        if run.final_dir.exists():
            shutil.rmtree(run.final_dir)
        os.replace(unfinished, run.final_dir)
    PartialState().wait_for_everyone()


def _results(trainer: OrderedTrainer) -> dict[str, float]:
    """Return the run's numbers from the trainer's own history, which checkpoints carry over a
    resumption."""
    history = trainer.state.log_history
    results = {"steps": float(trainer.state.global_step), "train_loss": _mean_loss(history)}
    last_train: dict[str, float] = next((logs for logs in reversed(history) if "loss" in logs), {})
    last_eval: dict[str, float] = next(
        (logs for logs in reversed(history) if "eval_loss" in logs), {}
    )
    left_out = ("epoch", "step", "learning_rate")
    kept = {
        f"train/{key}": value
        for key, value in last_train.items()
        if not (key in left_out or _is_timing(key))
    }
    held_out = {
        key.removeprefix("eval_"): value
        for key, value in last_eval.items()
        if key.startswith("eval_")
    }
    results |= {key: float(value) for key, value in kept.items()}
    results |= {
        f"eval/{key}": float(value) for key, value in held_out.items() if not _is_timing(key)
    }
    if trainer.state.best_metric is not None:
        results["best_eval_loss"] = float(trainer.state.best_metric)
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
    return key in ("runtime", "samples_per_second", "steps_per_second", "sapo/generation_share")


def lengths_of(rows: Dataset, grouped: bool) -> list[int] | None:
    """Return the `length` column when batches are to be grouped by it."""
    return list(rows["length"]) if grouped else None
