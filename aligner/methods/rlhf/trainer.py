"""The trainer under GRPO and PPO: a step samples responses, has them scored, and trains on them.

It stands on our own trainer and not on TRL's: the prompt of a group is computed once, the loss of a
step is exact over micro-batches and ranks, and a killed run resumes with the same result. What a
response is worth, and the loss, are the subclasses' (`grpo`, `ppo`).

Legend: P prompts, G responses to each, S = P G responses of a micro-batch: the first of every
prompt, then the second of every prompt, ...; L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from aligner.losses.policy import Clip, divided, kl_terms, policy_terms, truncated_weights
from aligner.methods.rlhf.credit import Credit, has_spread
from aligner.methods.rlhf.metrics import Metrics
from aligner.methods.rlhf.recipe import ROLLOUT, Rlhf
from aligner.methods.rlhf.rollout import Group, Response, Roller, padded
from aligner.methods.rlhf.schedule import RolloutOrder, steps_to_sample
from aligner.models.answers import AnswerTokens, Prefix, answer_tokens, stack_answers
from aligner.models.ema import WeightCopy
from aligner.models.forward import eval_mode
from aligner.models.fused_head import fuse_head
from aligner.runs.checkpoints import checkpoint_at
from aligner.runs.files import dumps, parse_json, write_atomically
from aligner.training.preference import without_base_noise
from aligner.training.trainer import WeightedTrainer

Rows = list[dict[str, Any]]

NO_ROW = -1
"""Number of a row that only fills a batch."""
KEPT = {
    "old": "old_logps",
    "reference": "reference_logps",
    "advantages": "advantages",
    "returns": "returns",
    "old_values": "old_values",
}
"""What batches hold of tokens (S, L) -> what responses do (T,), for as long as they are trained
on."""


@dataclass(frozen=True, slots=True)
class RowCollator:
    """Rows stay rows: what is trained on is sampled from them."""

    pad_token_id: int
    prefix: Prefix = "separate"

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return `{"rows": rows}`."""
        return {"rows": list(rows)}


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
        self.seen = Metrics(self.credit, self._add, self._gathered)
        without_base_noise(self.model)
        self.head = fuse_head(self.model, with_metrics=True, temperature=settings.temperature)
        self.reference = WeightCopy(self.model, self.args.device) if settings.beta else None
        self.clip = Clip(settings.clip_low, settings.clip_high, settings.delta, settings.cap)
        self.groups: list[Group] = []
        """The groups of this rollout that this rank trains on, or may."""
        self._ahead: list[dict[str, Any]] = []
        self._step_rows = self._step_tokens = 0.0

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

    # --- a rollout --------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        """Fetch the rows of one step, and return batches of responses in their place, and their
        number over all ranks."""
        if to_sample := self._batches_to_sample():
            self._ahead = self._roll_out(_fetch(epoch_iterator, to_sample))
        batches, self._ahead = self._ahead[:num_batches], self._ahead[num_batches:]
        if not batches:
            kept = {group[0].row: group for group in self.groups}
            for rows in _fetch(epoch_iterator, num_batches):
                batches.append(self._batch(rows, [kept[row["row"]] for row in rows]))
        sums = torch.zeros(2)
        for batch in batches:
            sums += torch.tensor([batch["num_responses"], float(batch["counted"].sum())])
        totals = self._add(sums)
        self._step_rows, self._step_tokens = totals.tolist()
        self.seen.steps += 1
        return batches, totals[0].to(self.args.device)

    def _batches_to_sample(self) -> int:
        """How many micro-batches of rows are answered now: those of the next rollout where it
        begins, else none."""
        step, parts = self.state.global_step, self.args.gradient_accumulation_steps
        batches = len(self.callback_handler.train_dataloader)
        epoch_steps = -(-batches // parts)
        settings = self.settings
        steps = steps_to_sample(
            step, epoch_steps, settings.steps_per_generation, settings.iterations
        )
        steps = min(steps, self.state.max_steps - step)
        return min(steps * parts, batches - step % epoch_steps * parts)

    def _roll_out(self, fetched: Sequence[Rows]) -> list[dict[str, Any]]:
        """Sample and score responses to rows, and return them in batches, with their advantages."""
        self.groups = self._sampled([row for rows in fetched for row in rows])
        batches, first = [], 0
        for rows in fetched:
            batches.append(self._batch(rows, self.groups[first : first + len(rows)]))
            first += len(rows)
        for batch in batches:
            self.measure(batch)
        self.find_advantages(batches)
        if self.settings.steps_on_rollout > 1:
            for batch in batches:
                _keep(batch)
        if self._is_shared:
            self.groups = self._gathered(self.groups)
        return batches

    @property
    def _is_shared(self) -> bool:
        """Whether a response may be trained on by another rank than the one that sampled it."""
        return self.settings.steps_per_generation > 1 and self.settings.iterations > 1

    def measure(self, batch: dict[str, Any]) -> None:
        """Add log-probabilities (S, L) of the reference, and of the policy that samples, where it
        will be another by the time that the responses are trained on."""
        if self.reference is not None:
            with self.seen.timed("reference"), self.reference.swapped_in(self.model):
                batch["reference"] = self.logps(batch)
        if self.settings.steps_per_generation > 1:
            with self.seen.timed("old_logps"):
                batch["old"] = self.logps(batch)

    def logps(self, batch: dict[str, Any]) -> Tensor:
        """Return the log-probabilities of responses (S, L) by the weights of the moment, without
        gradients."""
        self.head.with_metrics = False
        with self._resting():
            return answer_tokens(self.model, self._prepare_inputs(batch)).logps.cpu()

    def find_advantages(self, batches: Sequence[dict[str, Any]]) -> None:
        """Add `advantages` (S, L), and what else the loss reads, to all batches of a rollout."""
        raise NotImplementedError

    def _sampled(self, rows: Rows) -> list[Group]:
        """Sample and score groups; those whose responses are all as good again, a few times."""
        groups = self._scored(rows, attempt=0)
        for attempt in range(1, self.settings.redraws + 1):
            dull = [place for place, group in enumerate(groups) if not has_spread(group)]
            if not dull:
                break
            fresh = self._scored([rows[place] for place in dull], attempt)
            for place, group in zip(dull, fresh):
                groups[place] = group
        self.seen.groups(rows, groups)
        return groups

    def _scored(self, rows: Rows, attempt: int) -> list[Group]:
        with self.seen.timed("sampling"), self._resting():
            groups = self.roller.sample(self.model, rows, self.state.global_step, attempt=attempt)
        with self.seen.timed("scoring"):
            self.roller.score(rows, groups)
        return groups

    @contextmanager
    def _resting(self) -> Iterator[None]:
        model = self.accelerator.unwrap_model(self.model)
        with eval_mode(model), self.compute_loss_context_manager():
            yield

    def _batch(self, rows: Rows, groups: Sequence[Group]) -> dict[str, Any]:
        """Stack the responses of a micro-batch, with what is known of them."""
        answers, ordered = [], []
        for group in groups:
            answers.append([(one.prompt_ids, one.token_ids) for one in group])
        for sample in range(len(groups[0])):
            ordered += [group[sample] for group in groups]
        collator = self.data_collator
        batch: dict[str, Any] = stack_answers(answers, collator.pad_token_id, collator.prefix)
        lengths = torch.tensor([len(one.token_ids) for one in ordered])
        width = int(lengths.max())
        counted = torch.tensor([row["weight"] > 0 for row in rows]).repeat(len(groups[0]))
        batch["num_responses"] = int(counted.sum())
        counted &= torch.tensor([self._is_trained(one) for one in ordered])
        batch["counted"] = (torch.arange(width) < lengths[:, None]) & counted[:, None]
        batch["engine"] = padded([one.engine_logps for one in ordered], width)
        for name, attribute in KEPT.items():
            if getattr(ordered[0], attribute) is not None:
                batch[name] = padded([getattr(one, attribute) for one in ordered], width)
        batch["responses"] = ordered
        return batch

    def _is_trained(self, response: Response) -> bool:
        return response.is_finished or self.settings.truncated == "keep"

    # --- the loss ---------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return this micro-batch's share of the step's loss."""
        self.head.with_metrics = self._is_logged_next()
        found, mask = answer_tokens(model, inputs), inputs["counted"]
        losses, shown = self.token_losses(inputs, found, self._old_logps(inputs, found.logps))
        self.seen.tokens(shown, mask)
        loss = self.step_share(losses, mask)
        return (loss, None) if return_outputs else loss

    def step_share(self, losses: Tensor, mask: Tensor) -> Tensor:
        """Return what the tokens of a micro-batch (S, L) add to the loss of its step."""
        share = divided(
            losses,
            mask,
            loss=self.settings.loss,
            step_rows=max(1.0, self._step_rows),
            step_tokens=self._step_tokens,
            max_tokens=self.settings.max_new_tokens,
        )
        return share * self.accelerator.num_processes  # ranks average their gradients

    def token_losses(
        self, inputs: dict[str, Any], found: AnswerTokens, old: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each token (S, L), here the policy's, and what is shown of each.

        `old` (S, L): the log-probabilities that ratios are taken to.
        """
        settings, logps, mask = self.settings, found.logps, inputs["counted"]
        loss, level = settings.loss, settings.ratio
        terms = policy_terms(
            logps, old, inputs["advantages"], mask, loss=loss, level=level, clip=self.clip
        )
        losses, shown = terms.losses, {"clip_ratio/region_mean": terms.is_clipped.float()}
        shown["sampling/kl"] = kl_terms(inputs["engine"], old, "k3")
        if settings.mismatch_cap is not None:
            losses = losses * truncated_weights(old, inputs["engine"], settings.mismatch_cap)
        if self.reference is not None:
            shown["kl"] = kl_terms(logps.detach(), inputs["reference"], "k3")
        if self.head.with_metrics:
            shown["entropy"] = found.entropies
        return losses, shown

    def _old_logps(self, inputs: dict[str, Any], logps: Tensor) -> Tensor:
        """Those of the first step on the responses, unless they were measured before it."""
        if "old" in inputs:
            return torch.as_tensor(inputs["old"])
        inputs["old"] = logps.detach()
        if self.settings.iterations > 1:
            _keep(inputs, ["old"])
        return inputs["old"]

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Move tensors to the device; what else a batch holds stays beside them."""
        found = dict(inputs)
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                found[name] = value.to(self.args.device)
        return found

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        settings = self.settings
        return RolloutOrder(sampler, settings.steps_per_generation, settings.iterations)

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
                self.seen.response(response, "eval_")
        return torch.zeros((), device=self.args.device), None, None

    # --- what is seen -----------------------------------------------------------------------------

    def _is_logged_next(self) -> bool:
        """Whether a log follows the optimizer step that is being computed."""
        every = max(1, int(self.state.logging_steps or 1))
        step = self.state.global_step + 1
        return step % every == 0 or step >= self.state.max_steps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log, over all ranks."""
        split = "eval" if any(key.startswith("eval_") for key in logs) else "train"
        if split == "eval" or "loss" in logs:
            logs |= self.seen.means(split)
            if split == "eval":
                logs["eval_loss"] = -logs["eval_reward"]
        super().log(logs, start_time)

    def _gathered(self, mine: list[Any]) -> list[Any]:
        """Return the objects of all ranks."""
        if self.accelerator.num_processes == 1:
            return mine
        found: list[Any] = gather_object(mine)
        return found

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
        """Write the responses that are trained on further, of all ranks."""
        if self.settings.steps_on_rollout == 1:
            return
        groups = []
        for group in self.groups:
            groups.append([one.to_json() for one in group])
        if not self._is_shared:
            groups = self._gathered(groups)
        if self.is_world_process_zero():
            write_atomically(folder / ROLLOUT, dumps(groups))

    def load_rest(self, folder: Path) -> None:
        """Take up the responses of a checkpoint, of all ranks; each picks its own."""
        if self.settings.steps_on_rollout == 1:
            return
        kept = parse_json(folder / ROLLOUT, f"delete {folder}", list)
        self.groups = []
        for group in kept:
            self.groups.append([Response.from_json(one) for one in group])


def _fetch(iterator: Any, num_batches: int) -> list[Rows]:
    """Return the rows of the next micro-batches."""
    return [batch["rows"] for _, batch in zip(range(num_batches), iterator)]


def _keep(batch: Mapping[str, Any], names: Iterable[str] = KEPT) -> None:
    """Keep with each response what a batch holds of it."""
    for name in names:
        if name in batch:
            for one, row in zip(batch["responses"], batch[name].tolist()):
                setattr(one, KEPT[name], row[: len(one.token_ids)])
