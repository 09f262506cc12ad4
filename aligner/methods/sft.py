"""Supervised fine-tuning on TRL's SFTTrainer, which gets token ids and labels that `chat.py` and `prepare.py` made.

What is TRL's: the loss (a mean over the trained tokens of the whole step), the fused head, padding-free collation of
packed sequences, and its metrics (`mean_token_accuracy`, `entropy`, `num_tokens`). What is not: TRL prepares no data
here, so nothing is cut at 1,024 tokens or dropped in packing, and rows come in an order that a resumed run repeats.

Packed rows do not see each other: each starts at position 0 and no attention mask is passed, which is how attention
implementations of transformers tell them apart.
"""

from __future__ import annotations

from typing import Any

import torch
from trl import SFTConfig, SFTTrainer

from aligner.chat import IGNORED
from aligner.config.schema import SftRecipe
from aligner.methods.job import Job
from aligner.models import load_policy
from aligner.training import Fitted, OrderedTrainer, exact_adapters, fit, lengths_of, training_arguments


class SeededSFTTrainer(OrderedTrainer, SFTTrainer):
    """TRL's trainer with our order of rows, and without a card of its own in each checkpoint."""

    _total_train_tokens: int
    """TRL's count of tokens."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Leave the card to the run directory, which knows the data and the recipe."""

    def blank(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row without a trained token."""
        return {**row, "labels": [IGNORED] * len(row["labels"])}

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Give the held-out loss as a mean over tokens; transformers' mean over batches depends on how rows fall into them."""
        self._held_out: list[tuple[float, float]] = []
        output = super().evaluation_loop(*args, **kwargs)
        parts = self.accelerator.reduce(torch.tensor(self._held_out).sum(dim=0).to(self.args.device), reduction="sum")
        output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_loss"] = (parts[0] / parts[1]).item()
        return output

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Note the loss of each batch with its number of trained tokens."""
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        tokens = float((inputs["labels"][:, 1:] != IGNORED).sum())
        self._held_out.append((float(loss) * tokens, tokens))
        return loss, logits, labels

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Let the count of tokens go on where the checkpoint left it; TRL starts again from 0."""
        counts = [logs["num_tokens"] for logs in self.state.log_history if "num_tokens" in logs]
        self._total_train_tokens = max(self._total_train_tokens, int(max(counts, default=0)))
        super()._run_epoch(*args, **kwargs)


def train(job: Job) -> Fitted:
    """Fine-tune the model of the recipe on its tokenised rows, and save it."""
    recipe = job.recipe
    assert isinstance(recipe, SftRecipe)
    batching = job.prepared.batching
    model = load_policy(recipe.model, job.tokenizer, trainable=True)
    job.answer_before(model)
    ours = {} if batching.passes is None else {"num_train_epochs": 1, "max_steps": batching.steps or -1}
    arguments = training_arguments(
        recipe,
        job.run,
        SFTConfig,
        packing=batching.packing,
        packing_strategy="bfd",
        max_length=recipe.data.max_length if batching.packing else None,
        dataset_kwargs={"skip_prepare_dataset": True},
        **ours,
    )
    with exact_adapters(model):
        trainer = SeededSFTTrainer(
            model=model,
            args=arguments,
            train_dataset=job.prepared.train,
            eval_dataset=job.prepared.eval,
            processing_class=job.tokenizer,
        )
    trainer.group_lengths = lengths_of(job.prepared.train, batching.grouped)
    trainer.passes = batching.passes
    fitted = fit(trainer, recipe, job.run, job.on_event)
    job.answer_after(trainer)
    return fitted
