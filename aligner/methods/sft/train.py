"""Supervised fine-tuning on TRL's SFTTrainer, which gets token ids and labels that `encode.py`
beside it made.

What is TRL's: the loss (a mean over the trained tokens of the whole step), the fused head,
padding-free collation of packed sequences, and its metrics (`mean_token_accuracy`, `entropy`,
`num_tokens`). What is not: TRL prepares no data here, so nothing is cut at 1,024 tokens or dropped
in packing, and rows come in an order that a resumed run repeats. The head goes through trained
positions alone, and the first two metrics, which cost it more than the loss does, are computed for
the step before a log and not at every step.

Packed rows do not see each other: each starts at position 0 and no attention mask is passed, which
is how attention implementations of transformers tell them apart. Not every model does;
`aligner.models.row_sharing` asks, here once more of the one that is trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from trl import SFTConfig, SFTTrainer

from aligner.methods.job import Job
from aligner.methods.sft.recipe import SftRecipe
from aligner.methods.win_rate import against_start
from aligner.models.adapter_kinds import base_under_adapter
from aligner.models.fused_head import fuse_head
from aligner.models.loading import load_policy
from aligner.models.router_loss import name_experts, router_coefficient
from aligner.models.row_sharing import cannot_pack, rows_apart
from aligner.tokenization.encode import IGNORED
from aligner.training.arguments import training_arguments
from aligner.training.fit import TrainResult, fit
from aligner.training.trainer import OrderedTrainer, exact_adapters, lengths_of


class TokenSums:
    """Sums over trained tokens since the last log, on the device; nothing is synchronized before
    they are taken.

    The loss among them is -log p(token) whatever is trained (smoothed labels, a router's loss,
    another weighting of tokens): what `aligner eval` computes of the same rows.
    """

    NAMES = ("loss", "entropy", "mean_token_accuracy")

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    @torch.no_grad()
    def add(self, outputs: Any) -> None:
        """Add what a fused head gives of a micro-batch; its fields are 0 where no token is
        trained."""
        parts = (-outputs.log_probs, outputs.entropy, outputs.is_top1, outputs.label_mask)
        exact = torch.float32 if outputs.log_probs.device.type == "mps" else torch.float64
        sums = torch.stack([part.detach().sum(dtype=exact) for part in parts])
        self.sums = sums if self.sums is None else self.sums + sums

    def taken(self, accelerator: Any) -> dict[str, float] | None:
        """Return the means over the tokens of all ranks, and start again from zero; None when there
        were none."""
        sums, self.sums = self.sums, None
        if sums is None:
            return None
        *totals, tokens = accelerator.reduce(sums, reduction="sum").tolist()
        return {name: total / tokens for name, total in zip(self.NAMES, totals)} if tokens else None


def num_padding_tokens(inputs: dict[str, Tensor]) -> Tensor:
    """Return the tokens, a scalar, of the rows of a batch that train nothing and only fill it."""
    trained = inputs["labels"] != IGNORED
    if "attention_mask" in inputs:
        return inputs["attention_mask"][~trained.any(dim=1)].sum()
    rows = (inputs["position_ids"] == 0).cumsum(
        dim=1
    ).flatten() - 1  # packed: one row behind the other
    lengths, counts = rows.bincount(), rows.bincount(trained.flatten().long())
    return lengths[counts == 0].sum()


class SeededSFTTrainer(OrderedTrainer, SFTTrainer):
    """TRL's trainer with our order of rows, and without a card of its own in each checkpoint."""

    _total_train_tokens: int
    """TRL's count of tokens."""

    _metrics: dict[str, dict[str, list[float]]]
    """TRL's metrics since the last log."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._sums = {"train": TokenSums(), "eval": TokenSums()}
        base = base_under_adapter(kwargs["model"])
        own = base.forward
        super().__init__(*args, **kwargs)
        base.forward = own  # in place of TRL's head, which computes all of it at every step
        self.head = fuse_head(base, with_metrics=True)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Leave the card to the run directory, which knows the data and the recipe."""

    def padding_row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row without a trained token."""
        return {**row, "labels": [IGNORED] * len(row["labels"])}

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return TRL's loss, and note on the side what the model said of each token."""

        self.head.with_metrics = not self.model.training or self._is_logged_next()

        def noted(*given: Any, **named: Any) -> Any:
            outputs = model(*given, **named)
            if self.head.with_metrics and getattr(outputs, "label_mask", None) is not None:
                self._sums[self._split].add(outputs)
            return outputs

        loss = super().compute_loss(noted, inputs, *args, **kwargs)
        if self.num_padding_rows and self.model.training:
            padding = self.accelerator.gather(num_padding_tokens(inputs)).sum()
            self._total_train_tokens -= int(padding)
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss

    def _is_logged_next(self) -> bool:
        """Whether a log follows the optimizer step that is being computed; one follows every
        checkpoint."""
        step, saving = self.state.global_step + 1, self.args.save_strategy
        if self.args.logging_strategy != IntervalStrategy.STEPS or step >= self.state.max_steps:
            return True
        if saving == SaveStrategy.STEPS and step % self.state.save_steps == 0:
            return True
        if saving == SaveStrategy.EPOCH:
            batches = len(self.callback_handler.train_dataloader)
            if step % -(-batches // self.args.gradient_accumulation_steps) == 0:
                return True
        is_first = step == 1 and self.args.logging_first_step
        return is_first or step % self.state.logging_steps == 0

    @property
    def _split(self) -> str:
        return "train" if self.model.training else "eval"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Give TRL's metrics as means over tokens, of the last step before the log alone while it
        trains; its means over micro-batches depend on how rows fall into them."""
        found = self._sums[self._split].taken(self.accelerator)
        if found is not None:
            for name in ("entropy", "mean_token_accuracy"):
                self._metrics[self._split][name] = [found[name]]
            if self._split == "eval":
                logs["eval_loss"] = found["loss"]
        else:  # a log that was not foreseen: TRL's are of steps that did not compute them
            for name in ("entropy", "mean_token_accuracy"):
                self._metrics[self._split].pop(name, None)
        super().log(logs, start_time)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Continue the count of tokens where the checkpoint left it; TRL starts again from 0."""
        counts = [logs["num_tokens"] for logs in self.state.log_history if "num_tokens" in logs]
        self._total_train_tokens = max(self._total_train_tokens, int(max(counts, default=0)))
        super()._run_epoch(*args, **kwargs)


def train(job: Job) -> TrainResult:
    """Fine-tune the model of the recipe on its tokenized rows, and save it."""
    recipe = job.recipe
    assert isinstance(recipe, SftRecipe)
    batching = job.prepared.batching
    model = load_policy(recipe.model, job.tokenizer, trainable=True)
    ours = (
        {}
        if batching.epoch_sizes is None
        else {"num_train_epochs": 1, "max_steps": batching.steps or -1}
    )
    arguments = training_arguments(
        recipe,
        job.run,
        SFTConfig,
        packing=batching.packing,
        packing_strategy="bfd",
        max_length=recipe.data.max_length if batching.packing else None,
        dataset_kwargs={"skip_prepare_dataset": True},
        router_aux_loss_coef=router_coefficient(model, recipe.trainer.get("router_aux_loss_coef")),
        **ours,
    )
    if batching.packing:
        _refuse_rows_that_meet(model, arguments, job)
    job.answer_before(model)
    measure = against_start(job, model)
    with exact_adapters(model):
        trainer = SeededSFTTrainer(
            model=model,
            args=arguments,
            train_dataset=job.prepared.train,
            eval_dataset=job.prepared.eval,
            processing_class=job.tokenizer,
        )
    trainer.group_lengths = lengths_of(job.prepared.train, batching.grouped)
    trainer.epoch_sizes = batching.epoch_sizes
    if trainer.aux_loss_enabled:
        name_experts(trainer.model)
        job.note(
            "the router's own loss is trained too, with a weight of "
            f"{trainer.router_aux_loss_coef:g}, and logged as aux_loss; "
            "held-out losses are without it. trainer.router_aux_loss_coef changes the weight"
        )
    job.tell_trained(trainer.model, arguments.learning_rate)
    trainer.also_measure = measure
    fitted = fit(trainer, recipe, job.run, job.on_event)
    job.answer_after(trainer)
    return fitted


def _refuse_rows_that_meet(model: Any, arguments: SFTConfig, job: Job) -> None:
    """Read packed rows with the model that is trained, in its data type, before the first step; a
    shard alone reads none."""
    if job.is_sharded:
        return
    if job.recipe.model.quantization == "none":
        model.to(arguments.device)  # where the trainer would put it
    half = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    finding = rows_apart(
        model, around=torch.autocast(arguments.device.type, half) if half else None
    )
    if finding.apart is False:
        raise cannot_pack(finding)
