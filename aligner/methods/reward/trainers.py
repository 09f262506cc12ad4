"""Trainers of reward models: what each kind computes of a batch, and one step that is exact over
accumulation and ranks.

`BradleyTerryTrainer` is TRL's RewardTrainer with our rows, losses and step; the other kinds, which
TRL has not (it refuses more than one output), stand on transformers' Trainer. The loss of a step is
sum(w_i * loss_i) / sum(w_i) over all rows of the step, over accumulation steps and ranks alike; TRL
takes the mean of each micro-batch, which differs where the last one is short. `accuracy` counts a
tie as a half (TRL: as wrong) and is a mean over pairs, not over batches.

Legend: B pairs, N answers (2B: the chosen ones, then the rejected ones), R rows, T tokens, K
outputs, S segments, M places that are read in rows that share prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from trl import RewardTrainer
from trl.trainer.utils import disable_dropout_in_model

from aligner.losses.reward import length_term, orthogonality, pair_losses, rating_losses
from aligner.methods.reward.collators import PAD_SEGMENT
from aligner.methods.reward.recipe import Reward
from aligner.models.answers import SHARED
from aligner.models.reward_head import (
    head_of,
    merge_heads,
    read_at_places,
    return_token_values,
)
from aligner.training.trainer import WeightedTrainer


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """What a batch gives: `losses` (R,) and `weights` (R,) of its R rows, and further numbers (R,)
    to be logged as means.

    `moments`: rewards (N,), lengths (N,) and weights (N,) of which the correlation is logged.
    """

    losses: Tensor
    weights: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    moments: tuple[Tensor, Tensor, Tensor] | None = None


class RewardTrainerBase(WeightedTrainer):
    """The step that all kinds share; a kind gives `terms`."""

    def __init__(self, *args: Any, settings: Reward, **kwargs: Any) -> None:
        self.settings = settings
        self._sums: dict[str, dict[str, Tensor]] = {"train": {}, "eval": {}}
        super().__init__(*args, **kwargs)

    def terms(self, model: Any, inputs: dict[str, Tensor]) -> BatchLoss:
        """Return losses and metrics of a batch."""
        raise NotImplementedError

    def scores(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return what the report shows of each row, (R, answers or attributes)."""
        raise NotImplementedError

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Leave the card to the run directory."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return this micro-batch's share of the step's loss; summed over micro-batches and ranks
        it is the mean."""
        found = self.terms(model, inputs)
        self._add(found)
        loss = self.loss_share(found.losses, found.weights, num_items_in_batch)
        return (loss, None) if return_outputs else loss

    def _add(self, found: BatchLoss) -> None:
        """Add to the running sums on the device; nothing is synchronized before the next log."""
        exact = torch.float32 if found.losses.device.type == "mps" else torch.float64
        with torch.no_grad():
            counts = (found.weights > 0).to(exact)  # a row without weight only fills a batch
            sums = {
                name: (counts * values.to(exact)).sum() for name, values in found.metrics.items()
            }
            sums |= {"_rows": counts.sum(), "_loss": (found.weights * found.losses).sum().to(exact)}
            sums["_weight"] = found.weights.sum().to(exact)
            if found.moments is not None:
                r, n, kept = (values.to(exact) for values in found.moments)
                kept = (kept > 0).to(exact)
                products = {"_1": kept, "_r": r, "_n": n, "_rr": r * r, "_nn": n * n, "_rn": r * n}
                sums |= {name: (kept * values).sum() for name, values in products.items()}
        kept_sums = self._sums["train" if self.model.training else "eval"]
        for name, value in sums.items():
            kept_sums[name] = kept_sums[name] + value if name in kept_sums else value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means over all rows since the last log, over all ranks."""
        split = "eval" if any(key.startswith("eval_") for key in logs) else "train"
        if (split == "eval" or "loss" in logs) and self._sums[split]:
            names = list(self._sums[split])
            stacked = torch.stack([self._sums[split][name] for name in names])
            total = dict(zip(names, self.accelerator.reduce(stacked, reduction="sum").tolist()))
            prefix = "eval_" if split == "eval" else ""
            means = {
                name: total[name] / total["_rows"] for name in names if not name.startswith("_")
            }
            if "_r" in total:
                means["length_correlation"] = _pearson(total)
            logs |= {f"{prefix}{name}": value for name, value in means.items()}
            if (
                split == "eval"
            ):  # transformers' mean over batches would depend on how the rows fall into them
                logs["eval_loss"] = total["_loss"] / total["_weight"]
            self._sums[split] = {}
        super().log(logs, start_time)


def _pearson(total: dict[str, float]) -> float:
    """Pearson's correlation from sums; 0 where one side does not vary."""
    count = total["_1"]
    across = total["_rn"] - total["_r"] * total["_n"] / count
    spread = (total["_rr"] - total["_r"] ** 2 / count) * (total["_nn"] - total["_n"] ** 2 / count)
    return across / spread**0.5 if spread > 1e-18 else 0.0


# --- pairs ----------------------------------------------------------------------------------------


class PairTerms(RewardTrainerBase):
    """Losses on pairs of rewards; a kind says what the reward of an answer is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        read_at_places(self.model)

    def outputs(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return what the head says at the end of each answer (N, K); with segments, where prefixes
        are shared, at each place that is read (M, K)."""
        names: Sequence[str] = ("input_ids", "attention_mask")
        if "read_from" in inputs:
            names = ("input_ids", *SHARED)
        found: Tensor = model(**{name: inputs[name] for name in names}).logits
        return found.float()

    def rewards(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return the reward of each answer (N,)."""
        return self.outputs(model, inputs)[:, 0]

    def scores(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return the rewards of both answers, (B, 2)."""
        return torch.stack(self.rewards(model, inputs).chunk(2), dim=1)

    def terms(self, model: Any, inputs: dict[str, Tensor]) -> BatchLoss:
        """Return the losses of B pairs."""
        rewards = self.rewards(model, inputs)
        return self.pair_terms(rewards, rewards, inputs)

    def pair_terms(self, trained: Tensor, logged: Tensor, inputs: dict[str, Tensor]) -> BatchLoss:
        """Compare rewards (N,) that are `trained`, and log those that are `logged`."""
        chosen, rejected = trained.chunk(2)
        losses = pair_losses(
            chosen,
            rejected,
            inputs["strength"],
            loss=self.settings.loss,
            label_smoothing=self.settings.label_smoothing,
            center=self.settings.center_rewards_coefficient,
        )
        best, worst = logged.detach().chunk(2)
        metrics = {
            "accuracy": (best > worst).float() + 0.5 * (best == worst).float(),
            "margin": best - worst,
            "rewards/chosen": best,
            "rewards/rejected": worst,
        }
        weights = inputs["weight"]
        moments = (
            logged.detach(),
            inputs["answer_lengths"],
            torch.cat([weights, weights]),
        )
        return BatchLoss(losses, weights, metrics, moments)


class BradleyTerryTrainer(PairTerms, RewardTrainer):
    """`bradley_terry`: TRL's RewardTrainer, with rows that are tokens already, so that it drops
    none of them."""


class HeadTrainer(RewardTrainerBase):
    """What TRL's trainer does before training, for the kinds that it does not know."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.disable_dropout:
            disable_dropout_in_model(self.model)


class SegmentTrainer(PairTerms, HeadTrainer):
    """`segment`: the reward of an answer is the mean of the values at the ends of its segments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        return_token_values(kwargs["model"])
        super().__init__(*args, **kwargs)

    def rewards(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return e(x, y) = (1/K) sum_j r_end(j) of each answer (N,)."""
        values = self.outputs(model, inputs)[..., 0]
        if "owners" in inputs:
            sums = values.new_zeros(len(inputs["answer_lengths"]))
            counts = inputs["owners"].bincount(minlength=len(sums))
            return sums.index_add(0, inputs["owners"], values) / counts
        return mean_at(values, inputs["ends"])


def mean_at(values: Tensor, ends: Tensor) -> Tensor:
    """Return the mean of `values` (N, T) at the places `ends` (N, S), of which -1 are none:
    (N,)."""
    there = ends != PAD_SEGMENT
    picked = values.gather(1, ends.clamp(min=0)) * there
    return picked.sum(1) / there.sum(1)


class OdinTrainer(PairTerms, HeadTrainer):
    """`odin`: two outputs, quality and length, compared by their sum; quality alone is kept.

    What the loss says about length is a correlation over the answers of a batch. Over held-out ones
    it is that of all of them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held_out: list[tuple[Tensor, ...]] = []

    def terms(self, model: Any, inputs: dict[str, Tensor]) -> BatchLoss:
        """Return the losses of B pairs, each with the batch's terms about length added."""
        quality, length = self.outputs(model, inputs).unbind(-1)
        found = self.pair_terms(quality + length, quality, inputs)
        apart = orthogonality(head_of(self.accelerator.unwrap_model(self.model))[2].weight)
        more = self.settings.orthogonality_weight * apart
        seen, weights = (
            (quality, length, inputs["answer_lengths"]),
            torch.cat([inputs["weight"]] * 2),
        )
        if self.model.training:
            gather = self.gather_rows(weights) or (lambda values: values)
            more = more + self.settings.length_weight * length_term(*map(gather, seen))
        else:
            self._held_out.append((*seen, weights))
        return BatchLoss(found.losses + more, found.weights, found.metrics, found.moments)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Add the term about the length of all held-out answers, of all ranks."""
        self._held_out.clear()
        output = super().evaluation_loop(*args, **kwargs)
        *seen, weights = (
            self.accelerator.gather(torch.cat(values)) for values in zip(*self._held_out)
        )
        term = self.settings.length_weight * length_term(*(values[weights > 0] for values in seen))
        sums = self._sums["eval"]
        sums["_loss"] = sums["_loss"] + term * sums["_weight"]
        self._held_out.clear()
        return output

    def finalize(self) -> None:
        """Keep the output of quality: the result is an ordinary model with one score."""
        merge_heads(self.accelerator.unwrap_model(self.model), [1.0, 0.0])


# --- ratings and questions ------------------------------------------------------------------------


class RegressionTrainer(HeadTrainer):
    """`regression`: squared error over the attributes that an answer has a rating for."""

    def scores(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return the ratings that the model gives, (N, K)."""
        return model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).logits.float()

    def terms(self, model: Any, inputs: dict[str, Tensor]) -> BatchLoss:
        """Return the losses of N answers."""
        outputs = self.scores(model, inputs)
        losses = rating_losses(outputs, inputs["ratings"])
        off = (outputs - inputs["ratings"]).abs().nanmean(-1).nan_to_num()
        return BatchLoss(
            losses, inputs["weight"], {"mse": losses.detach(), "mean_absolute_error": off.detach()}
        )


class QuestionTrainer(HeadTrainer):
    """`pairwise`: the next-token loss on the letter alone, over the whole vocabulary."""

    def letters(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return the logits at the place of the letter, (B, V)."""
        keys = ("input_ids", "attention_mask", "position_ids")
        return model(**{key: inputs[key] for key in keys}, logits_to_keep=1).logits[:, -1].float()

    def scores(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return the probability of the right letter among both, (B, 1)."""
        return self.letters(model, inputs).gather(1, inputs["letter_ids"]).softmax(-1)[:, :1]

    def terms(self, model: Any, inputs: dict[str, Tensor]) -> BatchLoss:
        """Return the losses of B questions."""
        logits = self.letters(model, inputs)
        losses = cross_entropy(logits, inputs["letter_ids"][:, 0], reduction="none")
        right, wrong = logits.detach().gather(1, inputs["letter_ids"]).unbind(1)
        metrics = {
            "accuracy": (right > wrong).float() + 0.5 * (right == wrong).float(),
            "margin": right - wrong,
        }
        return BatchLoss(losses, inputs["weight"], metrics)
