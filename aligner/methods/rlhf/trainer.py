"""The trainer under GRPO and PPO: a step samples responses, has them scored, and trains on them.

It stands on our own trainer and not on TRL's: the prompt of a group is computed once, the loss of a
step is exact over micro-batches and ranks, and a killed run resumes with the same result. What a
response is worth, and the loss, are the subclasses' (`grpo`, `ppo`).

Legend: P prompts, G responses to each, S = P G responses of a micro-batch: the first of every
prompt, then the second of every prompt, ...; L tokens of the longest.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import Sampler

from aligner.losses.policy import (
    Clip,
    PolicyLoss,
    RatioLevel,
    divided,
    kl_terms,
    policy_terms,
    truncated_weights,
)
from aligner.methods.rlhf.credit import Credit, has_spread
from aligner.methods.rlhf.recipe import ROLLOUT, Rlhf
from aligner.methods.rlhf.rollout import Group, Response, Roller, padded
from aligner.models.answers import AnswerTokens, Prefix, answer_tokens, stack_answers
from aligner.models.ema import WeightCopy
from aligner.models.forward import eval_mode
from aligner.models.fused_head import fuse_head
from aligner.runs.checkpoints import checkpoint_at
from aligner.runs.files import dumps, parse_json, write_atomically
from aligner.tokenization.segments import third_of
from aligner.training.preference import without_base_noise
from aligner.training.trainer import WeightedTrainer

Rows = list[dict[str, Any]]

NO_ROW = -1
"""Number of a row that only fills a batch."""


@dataclass(frozen=True, slots=True)
class RowCollator:
    """Rows stay rows: what is trained on is sampled from them."""

    pad_token_id: int
    prefix: Prefix = "separate"

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return `{"rows": rows}`."""
        return {"rows": list(rows)}


class Repeated(Sampler[int]):
    """The rows of a sampler, those of each optimizer step so many times in a row."""

    def __init__(self, sampler: Any, rows_per_step: int, times: int) -> None:
        self.sampler, self.rows_per_step, self.times = sampler, rows_per_step, times

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler) * self.times

    def __iter__(self) -> Iterator[int]:
        order = list(self.sampler)
        for start in range(0, len(order), self.rows_per_step):
            yield from order[start : start + self.rows_per_step] * self.times


class RlhfTrainer(WeightedTrainer):
    """Trains on responses that the model samples.

    Args:
        roller: samples and scores.
        credit: gives advantages.
        settings: the section `rlhf`.
    """

    def __init__(
        self, *args: Any, roller: Roller, credit: Credit, settings: Rlhf, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.roller, self.settings = roller, settings
        self.credit = Credit(settings, credit.normalizer, self._add)
        without_base_noise(self.model)
        self.head = fuse_head(self.model, with_metrics=True, temperature=settings.temperature)
        self.reference = WeightCopy(self.model, self.args.device) if settings.beta else None
        self.clip = Clip(settings.clip_low, settings.clip_high, settings.delta, settings.cap)
        self.groups: list[Group] = []
        """The groups of this rank that are trained on."""
        self._step_rows = self._step_tokens = 0.0
        self._seen: dict[str, list[float]] = defaultdict(list)
        self._means: dict[str, dict[str, Tensor]] = {"train": {}, "eval": {}}

    def padding_row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row with a weight of 0 and a number that no other has."""
        return {**super().padding_row(row), "row": NO_ROW}

    def pad_last_batch(self) -> None:
        """Fill the last step whole, where its rows come again in the steps behind it."""
        super().pad_last_batch()
        if self.settings.iterations > 1:
            batches = self.args.gradient_accumulation_steps * max(1, self.args.world_size)
            num_rows = len(self.train_dataset)
            self.train_dataset = self.filled(
                self.train_dataset, self.args.train_batch_size * batches
            )
            self.num_padding_rows += len(self.train_dataset) - num_rows

    # --- one step ---------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        """Fetch the rows of one step, and return batches of responses in their place, and their
        number over all ranks."""
        fetched: list[Rows] = [
            batch["rows"] for _, batch in zip(range(num_batches), epoch_iterator)
        ]
        rows = [row for batch in fetched for row in batch]
        if self.state.global_step % self.settings.iterations == 0:
            self.groups = self._sampled(rows)
        else:
            kept = {group[0].row: group for group in self.groups}
            self.groups = [kept[row["row"]] for row in rows]
        counted = [row["weight"] > 0 for row in rows]
        batches, first = [], 0
        for part in fetched:
            here = slice(first, first + len(part))
            batches.append(self._batch(self.groups[here], counted[here]))
            first += len(part)
        self.give_advantages(batches, counted)
        tokens = sum(float(batch["counted"].sum()) for batch in batches)
        totals = self._add(torch.tensor([float(sum(counted) * self.settings.group_size), tokens]))
        self._step_rows, self._step_tokens = totals.tolist()
        return batches, totals[0].to(self.args.device)

    def give_advantages(self, batches: Sequence[dict[str, Any]], counted: Sequence[bool]) -> None:
        """Add `advantages` (S, L), and what else the loss reads, to the batches of a step, on the
        device. `counted`: which of `groups` are trained on; the others only fill a batch."""
        raise NotImplementedError

    def _sampled(self, rows: Rows) -> list[Group]:
        """Sample and score groups; those whose responses are all as good again, a few times."""
        step = self.state.global_step
        with self._timed("time/sampling"), self._resting():
            groups = self.roller.sample(self.model, rows, step)
        with self._timed("time/scoring"):
            self.roller.score(rows, groups)
        for attempt in range(1, self.settings.redraws + 1):
            dull = [place for place, group in enumerate(groups) if not has_spread(group)]
            if not dull:
                break
            again = [rows[place] for place in dull]
            with self._timed("time/sampling"), self._resting():
                fresh = self.roller.sample(self.model, again, step, attempt=attempt)
            with self._timed("time/scoring"):
                self.roller.score(again, fresh)
            for place, group in zip(dull, fresh):
                groups[place] = group
        self._note(rows, groups)
        return groups

    @contextmanager
    def _resting(self) -> Iterator[None]:
        model = self.accelerator.unwrap_model(self.model)
        with eval_mode(model), self.compute_loss_context_manager():
            yield

    def _batch(self, groups: Sequence[Group], counted: Sequence[bool]) -> dict[str, Any]:
        """Stack the responses of a micro-batch, with what the reference says of them."""
        answers, ordered = [], []
        for group in groups:
            answers.append([(one.prompt_ids, one.token_ids) for one in group])
        for sample in range(len(groups[0])):
            ordered += [group[sample] for group in groups]
        collator = self.data_collator
        batch: dict[str, Any] = stack_answers(answers, collator.pad_token_id, collator.prefix)
        lengths = torch.tensor([len(one.token_ids) for one in ordered])
        width = int(lengths.max())
        kept = torch.tensor([self._is_trained(one) for one in ordered])
        kept &= torch.tensor(counted).repeat(len(groups[0]))
        batch["counted"] = (torch.arange(width) < lengths[:, None]) & kept[:, None]
        if ordered[0].old_logps is not None:
            batch["old"] = padded([one.old_logps or [] for one in ordered], width)
        batch["engine"] = padded([one.engine_logps for one in ordered], width)
        batch = {name: value.to(self.args.device) for name, value in batch.items()}
        batch["responses"] = ordered
        if self.reference is not None:
            batch["reference"] = self._reference_logps(batch)
        return batch

    def _reference_logps(self, batch: dict[str, Any]) -> Tensor:
        """Return the reference's log-probabilities (S, L), computed once for each response."""
        responses: Sequence[Response] = batch["responses"]
        if responses[0].reference_logps is not None:
            width = batch["counted"].shape[1]
            rows = [one.reference_logps or [] for one in responses]
            return padded(rows, width).to(self.args.device)
        assert self.reference is not None, "it is asked for"
        self.head.with_metrics = False
        with self._timed("time/reference"), self.reference.swapped_in(self.model), self._resting():
            found = answer_tokens(self.model, batch).logps
        if self.settings.iterations > 1:
            for one, row in zip(responses, found.tolist()):
                one.reference_logps = row[: len(one.token_ids)]
        return found

    def _is_trained(self, response: Response) -> bool:
        return response.is_finished or self.settings.truncated == "keep"

    def policy_losses(
        self,
        inputs: dict[str, Any],
        found: AnswerTokens,
        old: Tensor,
        loss: PolicyLoss = "dapo",
        level: RatioLevel = "token",
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each token (S, L), and what is shown of each."""
        logps = found.logps
        advantages, mask = inputs["advantages"], inputs["counted"]
        terms = policy_terms(logps, old, advantages, mask, loss=loss, level=level, clip=self.clip)
        losses, noted = terms.losses, {"clip_ratio/region_mean": terms.is_clipped.float()}
        noted["sampling/kl"] = kl_terms(inputs["engine"], old, "k3")
        if (cap := self.settings.mismatch_cap) is not None:
            losses = losses * truncated_weights(old, inputs["engine"], cap)
        if self.reference is not None:
            noted["kl"] = kl_terms(logps.detach(), inputs["reference"], "k3")
        if self.head.with_metrics:
            noted["entropy"] = found.entropies
        return losses, noted

    def step_share(self, losses: Tensor, mask: Tensor, loss: PolicyLoss = "dapo") -> Tensor:
        """Return what the tokens of a micro-batch (S, L) add to the loss of its step."""
        share = divided(
            losses,
            mask,
            loss=loss,
            step_rows=max(1.0, self._step_rows),
            step_tokens=self._step_tokens,
            max_tokens=self.settings.max_new_tokens,
        )
        return share * self.accelerator.num_processes  # ranks average their gradients

    def old_logps(self, inputs: dict[str, Any], logps: Tensor) -> Tensor:
        """Return the log-probabilities (S, L) that ratios are taken to: those of the first step on
        the responses, which are kept for the others."""
        old: Tensor | None = inputs.get("old")
        if old is None:
            old = logps.detach()
            if self.settings.iterations > 1:
                self._keep_old(inputs["responses"], old)
        return old

    def _keep_old(self, responses: Sequence[Response], logps: Tensor) -> None:
        for one, row in zip(responses, logps.tolist()):
            one.old_logps = row[: len(one.token_ids)]

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Leave batches as they are: they lie on the device already, beside the responses."""
        return inputs

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if self.settings.iterations == 1:
            return sampler
        return Repeated(sampler, sampler.rows_per_step, self.settings.iterations)

    # --- held-out prompts -------------------------------------------------------------------------

    def prediction_step(
        self, model: Any, inputs: Any, *_: Any, **__: Any
    ) -> tuple[Tensor, None, None]:
        """Answer held-out prompts once, and have the responses scored."""
        rows = inputs["rows"]
        with self._resting():
            groups = self.roller.sample(self.model, rows, "held out", samples=1)
        self.roller.score(rows, groups)
        for row, (response,) in zip(rows, groups):
            if row["weight"] > 0:
                self._note_response(response, "eval")
        return torch.zeros((), device=self.args.device), None, None

    # --- what is seen -----------------------------------------------------------------------------

    def _note(self, rows: Rows, groups: Sequence[Group]) -> None:
        """Keep what these responses show, for the next log."""
        seen = self._seen
        for row, group in zip(rows, groups):
            if row["weight"] == 0:
                continue
            for one in group:
                self._note_response(one, "train")
            if self.settings.algorithm == "grpo":
                rewards = [self._reward(one) for one in group]
                seen["reward_std"].append(float(torch.tensor(rewards).std()))
                seen["frac_reward_zero_std"].append(float(not has_spread(group)))
                seen["redraws"].append(float(group[0].attempt))

    def _note_response(self, one: Response, split: str) -> None:
        found = {
            "reward": self._reward(one),
            "completions/mean_length": float(len(one.token_ids)),
            "completions/clipped_ratio": float(not one.is_finished),
        }
        for name, score in one.scores.items():
            if score is not None:
                found[f"rewards/{name}/mean"] = score
        if one.values:
            _, rewards, _ = self.credit.segment_rewards([one])
            found["segments/count"] = float(len(one.ends))
            found["segments/length"] = (one.ends[-1] + 1) / len(one.ends)
            found["segments/value"] = fmean(one.values[end] for end in one.ends)
            for third, name in enumerate(("early", "middle", "late")):
                part = rewards[0, third_of(len(one.ends), third)]
                found[f"segments/{name}"] = part.mean().item()
        prefix = "eval_" if split == "eval" else ""
        for name, value in found.items():
            self._seen[f"{prefix}{name}"].append(value)

    def _reward(self, one: Response) -> float:
        """The reward of a response: the weighted sum of its scores, else the mean of its
        segments."""
        if not one.scores:
            return fmean(one.values[end] for end in one.ends)
        return self.credit.total(one, {})

    def _note_tokens(self, values: Mapping[str, Tensor], mask: Tensor) -> None:
        """Add to the sums over tokens on the device."""
        sums = self._means["train" if self.model.training else "eval"]
        for name, value in values.items():
            part = torch.stack([(value.detach() * mask).sum().double(), mask.sum().double()])
            sums[name] = sums[name] + part if name in sums else part

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._seen[name].append(time.monotonic() - began)

    def _is_logged_next(self) -> bool:
        """Whether a log follows the optimizer step that is being computed."""
        every = max(1, int(self.state.logging_steps or 1))
        step = self.state.global_step + 1
        return step % every == 0 or step >= self.state.max_steps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log, over all ranks."""
        split = "eval" if any(key.startswith("eval_") for key in logs) else "train"
        if split == "eval" or "loss" in logs:
            logs |= self._means_of_responses(split) | self._means_of_tokens(split)
            if split == "eval":
                logs["eval_loss"] = -logs["eval_reward"]
        super().log(logs, start_time)

    def _means_of_responses(self, split: str) -> dict[str, float]:
        names = [name for name in self._seen if name.startswith("eval_") == (split == "eval")]
        mine = {name: (sum(self._seen[name]), len(self._seen[name])) for name in names}
        for name in names:
            del self._seen[name]
        everybodys = gather_object([mine]) if self.accelerator.num_processes > 1 else [mine]
        found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for one in everybodys:
            for name, (total, count) in one.items():
                found[name][0] += total
                found[name][1] += count
        return {name: total / count for name, (total, count) in sorted(found.items())}

    def _means_of_tokens(self, split: str) -> dict[str, float]:
        sums = self._means[split]
        if not sums:
            return {}
        totals = self._add(torch.stack(list(sums.values()))).tolist()
        self._means[split] = {}
        return {name: total / count for name, (total, count) in zip(sums, totals) if count}

    def _add(self, values: Tensor) -> Tensor:
        """Add a tensor up over all ranks."""
        if self.accelerator.num_processes == 1:
            return values
        summed: Tensor = self.accelerator.reduce(values.to(self.args.device), reduction="sum")
        return summed.to(values.device)

    # --- what is kept -----------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Add what the method keeps beside the policy."""
        super()._save_checkpoint(model, trial)
        self.save_rest(checkpoint_at(Path(self.args.output_dir), self.state.global_step))

    def save_rest(self, folder: Path) -> None:
        """Write the responses that are trained on once more, of all ranks."""
        if self.settings.iterations == 1:
            return
        mine = []
        for group in self.groups:
            mine.append([one.to_json() for one in group])
        everybodys = gather_object(mine) if self.accelerator.num_processes > 1 else mine
        if self.is_world_process_zero():
            write_atomically(folder / ROLLOUT, dumps(everybodys))

    def load_rest(self, folder: Path) -> None:
        """Take up the responses of a checkpoint, of all ranks; each picks its own."""
        if self.settings.iterations == 1:
            return
        kept = parse_json(folder / ROLLOUT, f"delete {folder}", list)
        self.groups = []
        for group in kept:
            self.groups.append([Response.from_json(one) for one in group])
