"""The one preference trainer: tokenized pairs, a pluggable objective, a reference that costs no
second model.

It subclasses transformers' Trainer and uses TRL's fused log-probability head. The alternative,
TRL's DPOTrainer with `_prepare_dataset` and `_compute_loss` replaced, was measured beside it
(`benchmarks/RESULTS.md`): TRL's step also computes entropies, mean logits and top-1 matches at
every position and synchronizes each metric each step, and with those two private methods replaced
little of it is left. So this is the simpler one, and it was the faster one.

What it does. The loss of a step is the weighted mean of the objective over *all* pairs of the step,
over accumulation steps and ranks alike: `sum(w_i * f_i) / sum(w_i)`. So accumulation equals the
large batch also where the last batch is short. `nll_weight` adds the length-averaged negative
log-likelihood of the chosen answer (arXiv 2404.19733, eq. 1). The reference is the base under the
adapter (`adapter_off`), or two columns of the dataset, computed once
(`aligner.training.reference`), or nothing where the objective reads none. Metrics carry TRL's
names.

Two things come with columns of the dataset. `reward_margins` holds what reward models think of each
pair, for the objective that distils them (`aligner.methods.dpo.reward_distillation`). `sample_ids`
and `reference_sample` hold an answer that the reference wrote and its log-probability
(`aligner.methods.dpo.reference_samples`): `forward_kl` weighs the forward KL to the reference, log
pi_ref(y|x) - log pi(y|x) averaged over such answers, in nats per answer.

Objectives with a statistic over the batch get it over the micro-batch of all ranks together, so
ranks change nothing and accumulation does: 8 x 1 and 1 x 8 are then different trainings. Over
held-out pairs it is the one of all of them, so that their loss does not depend on how they fall
into batches.

Legend: B pairs, K reward models. A batch holds 2B answers: the chosen ones, then the rejected ones;
with answers of the reference 3B, and these are the last. Those of a pair may share a row, whose
prompt is then computed once (`aligner.models.shared_prefix`): the same numbers for less work.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from aligner.losses.catalogue import OBJECTIVES
from aligner.losses.distillation import Combine, distillation_targets
from aligner.losses.types import Objective, PairLogps, Settings
from aligner.models.answers import Prefix, answer_logps, stack_answers
from aligner.models.forward import eval_mode
from aligner.models.fused_head import fuse_head
from aligner.training.trainer import WeightedTrainer

METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "nll",
)
"""Logged as means over pairs: rewards are beta times the log-ratio to the reference, in nats, or
beta times the log-probability per token for objectives without a reference; TRL's names."""

NUMBERS = ("weight", "reference_chosen", "reference_rejected", "reference_sample", "reward_margins")
"""Columns that become tensors as they are."""

OF_PAIRS = (
    "chosen",
    "rejected",
    "reference_chosen",
    "reference_rejected",
    "chosen_lengths",
    "rejected_lengths",
)
"""What an objective sees of pairs, beside targets."""


@dataclass(frozen=True, slots=True)
class PairCollator:
    """Stack B pairs into one batch, with samples where there are any: in rows of their own, or with
    their prompts shared (`aligner.models.answers`).

    Padding is marked by masks and labels, never by comparing ids with the padding id.
    """

    pad_token_id: int
    prefix: Prefix = "separate"

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return what `stack_answers` gives, and the rows' numbers (B,), `reward_margins`
        (B, K)."""
        names = (
            ("chosen", "rejected", "sample") if "sample_ids" in rows[0] else ("chosen", "rejected")
        )
        groups = []
        for row in rows:
            groups.append([(row["prompt_ids"], row[f"{name}_ids"]) for name in names])
        batch = stack_answers(groups, self.pad_token_id, self.prefix)
        for key in NUMBERS:
            if key in rows[0]:
                batch[key] = torch.tensor([row[key] for row in rows], dtype=torch.float32)
        return batch


T = TypeVar("T")

NOISE = re.compile(r"drop(out|_?path|_?prob)|pdrop|layer_?drop")
"""Names of numbers of a module by which it drops something at random while it trains."""

JITTER = re.compile(r"jitter|noise")
"""Names of numbers by which the router of a mixture of experts shakes its inputs while it
trains."""


def without_base_noise(model: torch.nn.Module) -> None:
    """Switch off what the model itself does at random in training: dropout, skipped layers, jitter.
    Adapters keep their dropout.

    The reference is scored at rest, so a policy with noise would not start from a reward of 0.
    """
    quiet: dict[int, Any] = {}
    for name, module in model.named_modules():
        if "lora_" in name:
            continue
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _silence(module)
        if any(JITTER.search(key) for key in _numbers(module)):
            module.train = functools.partial(_train_all_but_itself, module)
        config = getattr(module, "config", None)
        if (
            isinstance(config, PreTrainedConfig)
            and not isinstance(module, PreTrainedModel)
            and _noises(config)
        ):
            module.config = quiet.setdefault(
                id(config), _silence(copy.copy(config))
            )  # the model's own is saved


def _numbers(thing: object) -> list[str]:
    """Names of the numbers above 0 that an object holds."""
    return [key for key, value in vars(thing).items() if isinstance(value, float) and value > 0]


def _noises(thing: object) -> list[str]:
    return [key for key in _numbers(thing) if NOISE.search(key)]


def _silence(thing: T) -> T:
    """Set the numbers to 0 that a module, or the config that it reads in its forward, passes to
    functions."""
    for key in _noises(thing):
        setattr(thing, key, 0.0)
    return thing


def _train_all_but_itself(module: torch.nn.Module, mode: bool = True) -> torch.nn.Module:
    """Set the mode of a module's children; it stays at rest itself: some routers choose experts by
    lot in training."""
    for child in module.children():
        child.train(mode)
    module.training = False
    return module


class PreferenceTrainer(WeightedTrainer):
    """Train a policy on preference pairs with any objective of the catalogue.

    Args:
        objective: maps `PairLogps` of B pairs to losses (B,).
        settings: the objective's numbers; `settings.beta` also scales the rewards that are logged.
        nll_weight: weight of the chosen answer's length-averaged negative log-likelihood, in nats
            per token.
        warmup_steps_dpo: optimizer steps that train DPO's loss before the objective takes over.
        needs_reference: whether the objective reads the reference; if not, it sees zeros there.
        reward_combine: how the rewards of several reward models, in the column `reward_margins`,
            become one target.
        forward_kl: weight of the forward KL to the reference; needs the columns `sample_ids` and
            `reference_sample`.
    The dataset holds the columns of `aligner.tokenization.dataset`; with `reference_chosen` and
    `reference_rejected` (summed log-probabilities) the reference is not computed again, and without
    them the policy must be a PEFT model whose base is the reference.
    """

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        settings: Settings,
        nll_weight: float = 0.0,
        warmup_steps_dpo: int = 0,
        needs_reference: bool = True,
        reward_combine: Combine = "mean",
        forward_kl: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.reward_combine, self.forward_kl = reward_combine, forward_kl
        self._shares: dict[str, dict[str, Tensor]] = {"train": {}, "eval": {}}
        self.objective, self.settings, self.nll_weight = objective, settings, nll_weight
        self.warmup_steps_dpo, self.needs_reference = warmup_steps_dpo, needs_reference
        self._sums: dict[str, Tensor | None] = {"train": None, "eval": None}
        self._held_out: list[dict[str, Tensor]] = []
        without_base_noise(self.model)
        fuse_head(self.model)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return this micro-batch's share of the step's loss; summed over micro-batches and ranks
        it is the mean."""
        losses = self._losses(self._scored(model, inputs), self.gather_rows(inputs["weight"]))
        loss = self.loss_share(losses, inputs["weight"], num_items_in_batch)
        return (loss, None) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: Any, *_: Any, **__: Any
    ) -> tuple[Tensor, None, None]:
        """Score held-out pairs and set them aside: their losses are computed of all of them at
        once."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            self._held_out.append(self._scored(model, inputs))
        return torch.zeros((), device=self.args.device), None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the losses of all held-out pairs of all ranks, which are then logged; pairs of no
        weight only fill batches."""
        self._held_out.clear()
        output = super().evaluation_loop(*args, **kwargs)
        everything = {}
        for name in self._held_out[0]:
            mine = torch.cat([scored[name] for scored in self._held_out])
            everything[name] = self.accelerator.gather(mine)
        counted = everything["weight"] > 0
        with torch.no_grad():
            self._losses({name: values[counted] for name, values in everything.items()}, None)
        self._held_out.clear()
        return output

    def _scored(self, model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what policy and reference say of the B pairs of a batch, beside the batch's own
        numbers, each (B, ...)."""
        logps, lengths = answer_logps(model, inputs)
        count = len(inputs["weight"])
        names = ("chosen", "rejected", "sample")[: len(logps) // count]
        scored = dict(zip(names, logps.split(count)))
        scored |= {f"{name}_lengths": found for name, found in zip(names[:2], lengths.split(count))}
        scored |= {name: inputs[name] for name in NUMBERS if name in inputs}
        scored["reference_chosen"], scored["reference_rejected"] = self._reference(inputs)
        return scored

    def _losses(
        self, scored: dict[str, Tensor], gather: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """Return the losses (B,) of scored pairs, and add what is logged of them."""
        pairs = PairLogps(**{name: scored[name] for name in OF_PAIRS}, gather=gather)
        if "reward_margins" in scored:
            pairs = self._aimed(pairs, scored)
        nll = -pairs.chosen_mean
        # DPO's loss while training warms up.
        warming_up = self.model.training and self.state.global_step < self.warmup_steps_dpo
        objective = OBJECTIVES["sigmoid"] if warming_up else self.objective
        losses = objective(pairs, self.settings) + self.nll_weight * nll
        if "sample" in scored:
            kl = scored["reference_sample"] - scored["sample"]
            losses = losses + self.forward_kl * kl
            self._add_shares(scored["weight"] > 0, {"forward_kl": kl})
        assert losses.shape == pairs.chosen.shape, "an objective gives one loss per pair"
        self._add_metrics(pairs, nll, losses, scored["weight"])
        return losses

    def _aimed(self, pairs: PairLogps, inputs: dict[str, Tensor]) -> PairLogps:
        """Return the pairs with their targets, and note how far from them the implicit rewards are.

        Gaps are noted as the reward model sees them, from the answer that it finds better, whatever
        the label says.
        """
        margins, real = inputs["reward_margins"], inputs["weight"] > 0
        target, member = distillation_targets(
            pairs, margins, inputs["weight"], self.settings, self.reward_combine
        )
        z, sign = self.settings.beta * pairs.rho.detach(), target.sign()
        seen = {
            "distill/error": (target - z) ** 2,
            "distill/target_gap": target.abs(),
            "distill/implicit_gap": z * sign,
        }
        self._add_shares(real, seen)
        self._add_shares(real & (target != 0), {"distill/accuracies": (z * sign > 0).float()})
        if member is not None:
            chosen = torch.nn.functional.one_hot(member, margins.shape[1]).float()
            self._add_shares(
                real,
                {f"distill/active/{k + 1}": chosen[k].expand(len(z)) for k in range(len(chosen))},
            )
        return replace(pairs, target=target)

    def _reference(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        if not self.needs_reference:
            zeros = torch.zeros_like(inputs["weight"])
            return zeros, zeros
        if "reference_chosen" in inputs:
            return inputs["reference_chosen"], inputs["reference_rejected"]
        policy = self.accelerator.unwrap_model(self.model)
        count, answers = 2 * len(inputs["weight"]), inputs
        if "labels" in inputs:  # in rows of their own: those of samples are left out
            names = ("input_ids", "attention_mask", "labels")
            answers = {name: inputs[name][:count] for name in names}
        with eval_mode(policy), policy.disable_adapter(), self.compute_loss_context_manager():
            chosen, rejected = answer_logps(policy, answers)[0][:count].chunk(2)
        return chosen, rejected

    def _add_metrics(self, pairs: PairLogps, nll: Tensor, losses: Tensor, weights: Tensor) -> None:
        """Add to the running sums on the device; nothing is synchronized before the next log."""
        with torch.no_grad():
            of = (pairs.chosen_ratio, pairs.rejected_ratio)
            of = of if self.needs_reference else (pairs.chosen_mean, pairs.rejected_mean)
            chosen, rejected = (self.settings.beta * values for values in of)
            rows = (
                chosen,
                rejected,
                (chosen > rejected).float(),
                chosen - rejected,
                pairs.chosen,
                pairs.rejected,
                nll,
            )
            counts = (weights > 0).float()  # a pair without weight only fills a batch
            count = counts.sum()
            sums = torch.stack(
                [
                    *((counts * row).sum() for row in rows),
                    (weights * losses).sum(),
                    weights.sum(),
                    count,
                ]
            )
        split = "train" if self.model.training else "eval"
        self._sums[split] = sums if (old := self._sums[split]) is None else old + sums

    def _add_shares(self, counted: Tensor, values: dict[str, Tensor]) -> None:
        """Add to the sums of values (B,) of which only those that are `counted` (B,) are
        averaged."""
        sums = self._shares["train" if self.model.training else "eval"]
        for name, found in values.items():
            added = torch.stack(
                [torch.where(counted, found.detach(), 0.0).sum(), counted.sum().float()]
            )
            sums[name] = sums[name] + added if name in sums else added

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means over all pairs since the last log, over all ranks."""
        split = "eval" if any(key.startswith("eval_") for key in logs) else "train"
        if (split == "eval" or "loss" in logs) and (sums := self._sums[split]) is not None:
            totals = self.accelerator.reduce(sums, reduction="sum").tolist()
            prefix = "eval_" if split == "eval" else ""
            logs |= {f"{prefix}{name}": total / totals[-1] for name, total in zip(METRICS, totals)}
            if (
                split == "eval"
            ):  # transformers' mean over batches would depend on how the weights fall into them
                logs["eval_loss"] = totals[-3] / totals[-2]
            self._sums[split] = None
            if shares := self._shares[split]:
                totals = self.accelerator.reduce(
                    torch.stack(list(shares.values())), reduction="sum"
                ).tolist()
                logs |= {
                    f"{prefix}{name}": total / n for name, (total, n) in zip(shares, totals) if n
                }
                shares.clear()
        super().log(logs, start_time)
