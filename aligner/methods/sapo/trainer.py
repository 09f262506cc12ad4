"""SAPO's trainer: each step writes pairs, draws some from a replay buffer, and trains on them."""

from __future__ import annotations

import contextlib
import functools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from aligner.generation.sampling import number_of
from aligner.methods.sapo.recipe import AVERAGE, BUFFER, REFERENCE, Sapo
from aligner.methods.sapo.replay_buffer import ReplayBuffer, Rewrite
from aligner.methods.sapo.writer import Writer
from aligner.models.answers import answer_logps
from aligner.models.ema import WeightCopy
from aligner.models.forward import eval_mode
from aligner.runs.checkpoints import checkpoint_at
from aligner.training.preference import (
    PairCollator,
    PreferenceTrainer,
)

NOTHING = (
    "every rewrite of step {step} is the answer again, or as good to the verifier, and the buffer "
    "is empty: nothing is trained "
    "until that changes. Raise sapo.temperature or sapo.window; a verifier that reads the end of "
    "an answer finds a window in "
    "its middle as good"
)


@dataclass(frozen=True, slots=True)
class RowCollator:
    """Rows of a training step stay rows: they are not what is trained on. Pairs, held-out ones,
    become a batch."""

    pairs: PairCollator

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return `{"rows": rows}`, or a batch of pairs."""
        return self.pairs(rows) if "rejected_ids" in rows[0] else {"rows": list(rows)}


class SapoTrainer(PreferenceTrainer):
    """The preference trainer on pairs that are written and drawn while it trains.

    Args:
        writer: rewrites rows.
        sapo: the settings of the method.
        warn: told once when a step has nothing to train on.
    The training rows hold `row`, `prompt_ids`, `chosen_ids`, `weight` (0 for a row that only fills
    a batch), and `prompt` (as JSON) and `answer` as text, for a verifier.
    """

    def __init__(
        self, *args: Any, writer: Writer, sapo: Sapo, warn: Callable[[str], None], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.warn, self.has_warned = warn, False
        self.writer, self.sapo = writer, sapo
        device = torch.device("cpu") if sapo.offload else self.args.device
        self.average = WeightCopy(self.model, device)
        self.reference = WeightCopy(self.model, device) if self.needs_reference else None
        self.buffer = ReplayBuffer(sapo.buffer_size) if sapo.buffer_size else None
        self.seen: list[dict[str, float]] = []
        self._last = time.monotonic()

    # --- one step ---------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        """Fetch the rows of one step, and return batches of pairs in their place, and their number
        over all ranks."""
        fetched = [batch["rows"] for _, batch in zip(range(num_batches), epoch_iterator)]
        rows = [row for batch in fetched for row in batch if row["weight"] > 0]
        step = self.state.global_step
        began = time.monotonic()
        self._advance(step)
        fresh = self._write(rows, step)
        spent = time.monotonic() - began
        places = sorted(self._everybodys([row["row"] for row in rows]))
        if not places:
            return [], torch.tensor(0.0, device=self.args.device)
        drawn = self._draw(fresh, len(places), step)
        pair_of = dict(zip(places, drawn))
        parts = []
        for batch in fetched:
            parts.append([(pair_of.get(row["row"], drawn[0]), row["weight"]) for row in batch])
        batches = self._batches(parts)
        self._note(fresh, drawn, step, spent)
        return batches, torch.tensor(float(len(places)), device=self.args.device)

    def _advance(self, step: int) -> None:
        """Let the average follow the policy, and refresh the reference when it is time."""
        if step and step % self.sapo.ema_every == 0:
            self.average.update(self.model, self.sapo.ema_decay)
        if (
            self.reference is None
            or self.sapo.reference == "fixed"
            or step % self.steps_between_references
        ):
            return
        self.reference.copy_from(self.average if self.sapo.reference == "ema" else self.model)

    @functools.cached_property
    def steps_between_references(self) -> int:
        """`sapo.reference_every`, or the steps of a whole epoch."""
        batches = math.ceil(
            len(self.train_dataset) / (self.args.train_batch_size * max(1, self.args.world_size))
        )
        return self.sapo.reference_every or math.ceil(
            batches / self.args.gradient_accumulation_steps
        )

    def _write(self, rows: Sequence[dict[str, Any]], step: int) -> list[Rewrite]:
        """Let the average rewrite this rank's rows; return the pairs of all ranks."""
        if step % self.sapo.generate_every and self.buffer:
            return []
        window = window_at(self.sapo, step, self.state.max_steps)
        with self.average.swapped_in(self.model), self.compute_loss_context_manager():
            written = self.writer.rewrite(
                self.model, rows, step, window, self.sapo.responses_per_prompt
            )
        return sorted(self._everybodys(written), key=lambda rewrite: (rewrite.row, rewrite.sample))

    def _draw(self, fresh: Sequence[Rewrite], count: int, step: int) -> list[Rewrite]:
        """Put what is of use into the buffer, and draw from it; without a buffer, use the fresh
        pairs themselves."""
        keeps_dead = self.sapo.dead_pairs == "keep"
        useful = [
            rewrite
            for rewrite in fresh
            if not rewrite.is_as_good and (keeps_dead or not rewrite.is_identical)
        ]
        if self.buffer is None and len(useful) >= count:
            return useful[:count]
        pool = self.buffer if self.buffer is not None else ReplayBuffer(count)
        pool.add(useful)
        if not len(
            pool
        ):  # nothing of use was ever written: pairs of two equal answers, which prefer nothing
            if not self.has_warned:
                self.warn(NOTHING.format(step=step))
                self.has_warned = True
            return [replace(rewrite, rejected_ids=rewrite.chosen_ids) for rewrite in fresh][
                :1
            ] * count
        return pool.draw(count, random.Random(number_of(self.args.seed, step, "draw")))

    def _batches(self, parts: Sequence[Sequence[tuple[Rewrite, float]]]) -> list[dict[str, Tensor]]:
        """Collate the pairs of each micro-batch, and score them by the reference."""
        batches = []
        for part in parts:
            pairs = [as_pair(rewrite, weight) for rewrite, weight in part]
            collated = self.data_collator.pairs(pairs)
            batches.append({key: value.to(self.args.device) for key, value in collated.items()})
        if self.reference is not None:
            with (
                self.reference.swapped_in(self.model),
                eval_mode(self.model),
                self.compute_loss_context_manager(),
            ):
                for batch in batches:
                    chosen, rejected = answer_logps(self.model, batch)[0].chunk(2)
                    batch |= {"reference_chosen": chosen, "reference_rejected": rejected}
        return batches

    def _everybodys(self, mine: list[Any]) -> list[Any]:
        return gather_object(mine) if self.accelerator.num_processes > 1 else mine

    # --- what is seen -----------------------------------------------------------------------------

    def _note(
        self, fresh: Sequence[Rewrite], drawn: Sequence[Rewrite], step: int, spent: float
    ) -> None:
        """Keep what this step shows of the method, for the next log."""
        now = time.monotonic()
        seen = {
            "sapo/buffer_age": _mean(step - pair.created_step for pair in drawn),
            "sapo/rejected_length": _mean(len(pair.rejected_ids) for pair in drawn),
            "sapo/chosen_length": _mean(len(pair.chosen_ids) for pair in drawn),
            "sapo/generation_share": spent / max(now - self._last, spent, 1e-9) if step else 1.0,
        }
        if self.buffer is not None:
            seen["sapo/buffer_fill"] = len(self.buffer) / self.buffer.capacity
            seen["sapo/draws"] = _mean(entry.draws for entry in self.buffer.entries)
        if fresh:
            seen["sapo/dead_pairs"] = _mean(rewrite.is_identical for rewrite in fresh)
            if self.writer.scorer is not None:
                seen["sapo/as_good"] = _mean(rewrite.is_as_good for rewrite in fresh)
        self._last = now
        self.seen.append(seen)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log."""
        if "loss" in logs and self.seen:
            for name in dict.fromkeys(chain.from_iterable(self.seen)):
                logs[name] = _mean(seen[name] for seen in self.seen if name in seen)
            logs["sapo/ema_distance"] = self.average.distance(self.model)
            self.seen.clear()
        super().log(logs, start_time)

    # --- what is kept -----------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Add the average, the reference and the buffer to the checkpoint."""
        super()._save_checkpoint(model, trial)
        if self.is_world_process_zero():
            folder = checkpoint_at(Path(self.args.output_dir), self.state.global_step)
            for file, part in self._parts().items():
                part.save(folder / file)

    def _load_best_model(self) -> None:
        """Take up the average that belongs to the best policy, too."""
        super()._load_best_model()
        if self.state.best_model_checkpoint:
            self.average.load(Path(self.state.best_model_checkpoint) / AVERAGE)

    def load_rest(self, folder: Path) -> None:
        """Take up average, reference and buffer from a checkpoint."""
        for file, part in self._parts().items():
            part.load(folder / file)

    def _parts(self) -> dict[str, Any]:
        """What a checkpoint holds beside the trainer's own files, by the file that it stands in."""
        parts = {
            AVERAGE: self.average,
            REFERENCE: self.reference,
            BUFFER: self.buffer,
        }
        return {file: part for file, part in parts.items() if part is not None}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the policy, or at the end its average where the recipe exports that."""
        with self.exported() if not _internal_call else contextlib.nullcontext():
            super().save_model(output_dir, _internal_call)

    @contextlib.contextmanager
    def exported(self) -> Iterator[None]:
        """Let the model have the weights that are exported: its own, or the average, with the last
        step in it."""
        if self.sapo.export == "policy":
            yield
            return
        last = WeightCopy(self.model, self.args.device)
        last.copy_from(self.average)
        if self.state.global_step % self.sapo.ema_every == 0:
            last.update(self.model, self.sapo.ema_decay)
        with last.swapped_in(self.model):
            yield


def window_at(sapo: Sapo, step: int, steps: int) -> int | None:
    """Return the window at a step: the same all the time, or growing evenly from `window_from`;
    None is all."""
    if sapo.window == "all":
        return None
    window = int(sapo.window)
    if sapo.window_from is None:
        return window
    return round(sapo.window_from + (window - sapo.window_from) * step / max(1, steps - 1))


def as_pair(rewrite: Rewrite, weight: float) -> dict[str, Any]:
    """Return a rewrite as a row of pairs."""
    ids = {
        "prompt_ids": rewrite.prompt_ids,
        "chosen_ids": rewrite.chosen_ids,
        "rejected_ids": rewrite.rejected_ids,
    }
    return {**ids, "weight": weight}


def _mean(values: Any) -> float:
    found = [float(value) for value in values]
    return sum(found) / len(found) if found else 0.0
