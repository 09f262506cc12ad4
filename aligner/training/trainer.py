"""The trainer under all of ours: rows in a seeded order, whole last batches, exact adapters, and
checkpoints that hold the model's own configuration and the tokenizer as it came."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from aligner.models.loading import load_saved_weights
from aligner.models.own_config import OwnConfig, forget_router_logits
from aligner.models.saved_tokenizer import SavedTokenizer
from aligner.training.checkpoint_code import only_plain_data, refuse_code
from aligner.training.sampler import SeededSampler


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


def without_tied(model: Any, weights: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """Return gathered weights without the second name of each that the model ties.

    Copies that were gathered from shards share no memory, so transformers takes them for two
    weights and writes both.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    if not weights:
        return weights

    def is_second(name: str) -> bool:
        first = weights.get(tied.get(name, ""))
        return first is not None and torch.equal(first, weights[name])

    return {name: weight for name, weight in weights.items() if not is_second(name)}


def lengths_of(rows: Dataset, grouped: bool) -> list[int] | None:
    """Return the `length` column when batches are to be grouped by it."""
    return list(rows["length"]) if grouped else None


class OrderedTrainer(Trainer):
    """A transformers Trainer whose rows come in the order of a `SeededSampler`, resumed or not."""

    train_dataset: Any

    eval_dataset: Any

    group_lengths: Sequence[int] | None = None
    """Lengths (N,) of the training rows, when batches are grouped by length."""

    epoch_sizes: Sequence[int] | None = None
    """Numbers of rows of the epochs that follow one another in the training rows, when each epoch
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

    def finalize(self) -> None:
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
        with only_plain_data():
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Read what a checkpoint holds beside the weights, and DeepSpeed's weights, as data."""
        with only_plain_data():
            return super()._prepare_for_training(*args, **kwargs)

    def _load_best_model(self) -> None:
        self._read_from = str(self.state.best_model_checkpoint)
        refuse_code(Path(self._read_from))
        with only_plain_data():
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
            super()._save(output_dir, without_tied(self.model, state_dict))
        finally:
            self.processing_class = held
        # a pickle of the arguments, which nobody reads: the recipe says it all
        (Path(output_dir or str(self.args.output_dir)) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    num_padding_rows: int = 0

    def padding_row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of a row that counts for nothing in the loss."""
        raise NotImplementedError

    def pad_last_batch(self) -> None:
        """Add blank rows until every rank's last batch is full, of training rows and of held-out
        ones.

        accelerate would fill it with rows from the start, which would then be trained, or counted,
        twice.
        """
        if self.eval_dataset is not None:
            self.eval_dataset = self.with_padding_rows(self.eval_dataset, self.args.eval_batch_size)
        if not self.args.dataloader_drop_last:
            num_rows = len(self.train_dataset)
            self.train_dataset = self.with_padding_rows(
                self.train_dataset, self.args.train_batch_size
            )
            self.num_padding_rows = len(self.train_dataset) - num_rows

    also_measure: Callable[[OrderedTrainer], dict[str, float]] | None = None
    """What else an evaluation measures, by name; every process calls it."""

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, and add what else is measured."""
        output = super().evaluation_loop(*args, **kwargs)
        if self.also_measure is not None:
            prefix = kwargs.get("metric_key_prefix", "eval")
            more = self.also_measure(self)
            output.metrics.update({f"{prefix}_{key}": value for key, value in more.items()})
        return output

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Let every held-out row count: `dataloader_drop_last` is a matter of training."""
        drops, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drops

    def with_padding_rows(self, rows: Dataset, batch_size: int) -> Dataset:
        """Return the rows, and after them as many blank ones as fill every rank's last batch; none
        for one process."""
        if self.args.world_size < 2:
            return rows
        return self.filled(rows, batch_size * self.args.world_size)

    def filled(self, rows: Dataset, size: int) -> Dataset:
        """Return the rows, and after them as many blank ones as make a multiple of `size`."""
        missing = -len(rows) % size
        if missing == 0:
            return rows
        shortest = (
            min(range(len(rows)), key=list(rows["length"]).__getitem__)
            if "length" in rows.column_names
            else 0
        )
        padding_rows = Dataset.from_list(
            [self.padding_row(rows[shortest])] * missing, features=rows.features
        )
        return concatenate_datasets([rows, padding_rows])

    def _get_train_sampler(self, train_dataset: Any = None) -> SeededSampler:
        rows = self.train_dataset if train_dataset is None else train_dataset
        world = max(1, self.args.world_size)
        self.train_order = SeededSampler(
            len(rows) - self.num_padding_rows,
            self.args.seed,
            lengths=self.group_lengths,
            rows_per_step=self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * world,
            num_padding_rows=self.num_padding_rows,
            epoch_sizes=self.epoch_sizes,
        )
        return self.train_order


class WeightedTrainer(OrderedTrainer):
    """Rows with a number `weight`: a step's loss is sum(w_i * loss_i) / sum(w_i) over all of its
    rows.

    That is over accumulation steps and ranks alike, so a short last batch counts for what it holds.
    """

    loss_is_scaled_for_ga = True

    def padding_row(self, row: dict[str, Any]) -> dict[str, Any]:
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

    def loss_share(self, losses: Tensor, weights: Tensor, step_weight: Any) -> Tensor:
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
