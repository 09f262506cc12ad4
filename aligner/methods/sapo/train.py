"""Self-Augmented Preference Optimization (SAPO, arXiv 2405.20830): preferences out of single good
answers.

It is not the `sapo` loss of GRPO trainers (Soft Adaptive Policy Optimization, arXiv 2511.20347).

A slowly moving copy of the policy rewrites one window of each good answer; answer and rewrite are a
pair; pairs go into a replay buffer, and the policy trains on pairs drawn from it. In each optimizer
step, in the order of the authors' code:

1. the moving average follows the policy, which folds in the step before (nothing at the first
   step);
2. the reference is refreshed: from the average, from the policy, or never;
3. the average rewrites the rows of the step, and the pairs go into the buffer;
4. as many pairs as the step has rows are drawn from the buffer;
5. they are trained on by the one preference trainer, with any objective of the catalogue.

Different from the authors' code, on purpose. All of this happens once per optimizer step and not
per micro-batch, and every process has the same buffer, so neither accumulation nor processes change
what is written and drawn. The reference is refreshed once per epoch by the length of the epoch, not
every 108 steps. Masks, positions, stop tokens and tokenization are those of
`aligner.tokenization.encode` and of training. Averages are float32, and of the trained weights only
(`aligner.models.ema`), so LoRA and 4-bit bases work. Random numbers follow from seed, step and row,
so a resumed run draws what it would have drawn. ORPO's next-token term counts the answer's tokens,
not those of prompt and padding.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import TrainingArguments

from aligner.config.choices import REFERENCE_FREE_LOSSES
from aligner.config.recipe import Sapo, SapoRecipe
from aligner.errors import DataError, RecipeError
from aligner.generation.decode import Sampling, at_rest, continue_ids, max_positions
from aligner.launch.command import world
from aligner.launch.devices import best_device
from aligner.losses.catalogue import BATCH_DEPENDENT, load_objective
from aligner.losses.types import Settings
from aligner.methods.dpo.start_checks import wrong_start
from aligner.methods.job import SHARDED, Job
from aligner.methods.sapo.windows import ReplayBuffer, Rewrite, cut, stitch
from aligner.models.ema import Shadow
from aligner.models.loading import load_policy
from aligner.reward_models.base import Scorer
from aligner.reward_models.catalogue import load_scorer
from aligner.runs.resumable import AVERAGE, BUFFER, REFERENCE
from aligner.tokenization.encode import stop_token_ids
from aligner.training.preference import (
    PairCollator,
    PreferenceTrainer,
    answer_logps,
    fuse_head,
    reference_logps,
)
from aligner.training.trainer import Fitted, fit, lengths_of, training_arguments

LEARNING_RATE = 5e-7
"""Our default, which is the authors' for the DPO variant."""

HELD_OUT_PAIRS = "prepared/held_out_pairs.json"
NOTHING = (
    "every rewrite of step {step} is the answer again, or as good to the verifier, and the buffer "
    "is empty: nothing is trained "
    "until that changes. Raise sapo.temperature or sapo.window; a verifier that reads the end of "
    "an answer finds a window in "
    "its middle as good"
)

SHOWN_PAIRS = 6
"""Latest pairs that the report shows."""


@dataclass(frozen=True, slots=True)
class RowCollator:
    """Rows of a training step stay rows: they are not what is trained on. Pairs, held-out ones,
    become a batch."""

    pairs: PairCollator

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return `{"rows": rows}`, or a batch of pairs."""
        return self.pairs(rows) if "rejected_ids" in rows[0] else {"rows": list(rows)}


@dataclass(frozen=True, slots=True)
class Writer:
    """Rewrites rows with whatever weights the model has at the moment."""

    tokenizer: Any
    settings: Sapo
    seed: int
    batch_size: int
    stops: tuple[int, ...]
    scorer: Scorer | None = None

    def rewrite(
        self,
        model: Any,
        rows: Sequence[dict[str, Any]],
        step: int | str,
        window: int | None,
        samples: int = 1,
    ) -> list[Rewrite]:
        """Return `samples` pairs of each row; useless ones are written again, up to
        `settings.retries` times."""
        places = [(row, sample) for row in rows for sample in range(samples)]
        done = self._attempt(model, places, step, window, 0)
        for attempt in range(1, self.settings.retries + 1):
            useless = [i for i, rewrite in enumerate(done) if rewrite.is_useless]
            again = self._attempt(model, [places[i] for i in useless], step, window, attempt)
            for i, rewrite in zip(useless, again):
                done[i] = rewrite
        return done

    def _judge(
        self,
        rewrites: Sequence[Rewrite],
        whole: Sequence[list[int]],
        rows: Sequence[dict[str, Any]],
    ) -> None:
        """Mark the rewrites that the verifier scores at least as high as the answers, each with its
        suffix (`whole`)."""
        judged = [one for one in zip(rewrites, whole, rows) if not one[0].is_dead]
        if self.scorer is None or not judged:
            return
        prompts, answers = (
            [json.loads(row["prompt"]) for *_, row in judged],
            [row["answer"] for *_, row in judged],
        )
        theirs = self.scorer.score(prompts, [self._text(ids) for _, ids, _ in judged], answers)
        ours = self.scorer.score(prompts, answers, answers)
        for (rewrite, *_), one, other in zip(judged, theirs, ours):
            rewrite.is_as_good = one >= other

    def _attempt(
        self,
        model: Any,
        places: Sequence[tuple[dict[str, Any], int]],
        step: int | str,
        window: int | None,
        attempt: int,
    ) -> list[Rewrite]:
        if not places:
            return []
        keys = [_number(self.seed, step, row["row"], sample, attempt) for row, sample in places]
        windows = [
            cut(len(row["chosen_ids"]), window, random.Random(key))
            for key, (row, _) in zip(keys, places)
        ]
        contexts = [
            [*row["prompt_ids"], *row["chosen_ids"][:start]]
            for (row, _), (start, _) in zip(places, windows)
        ]
        sampling = Sampling(
            max_new_tokens=max(size for _, size in windows),
            temperature=self.settings.temperature,
            top_k=self.settings.top_k,
            top_p=self.settings.top_p,
        )
        written = continue_ids(
            model, self.tokenizer, contexts, sampling, batch_size=self.batch_size, streams=keys
        )
        done, whole = [], []
        for (row, sample), (start, size), (answer,) in zip(places, windows, written):
            chosen = list(row["chosen_ids"])
            glued = stitch(chosen, start, size, answer.token_ids, self.stops, keep_suffix=True)
            rejected = glued
            if self.settings.suffix == "drop":
                rejected = stitch(
                    chosen, start, size, answer.token_ids, self.stops, keep_suffix=False
                )
            born, same = step if isinstance(step, int) else 0, glued == chosen
            done.append(
                Rewrite(
                    row["row"],
                    sample,
                    list(row["prompt_ids"]),
                    chosen,
                    rejected,
                    born,
                    is_same=same,
                )
            )
            whole.append(glued)
        self._judge(done, whole, [row for row, _ in places])
        return done

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def _number(*parts: object) -> int:
    """A number that follows from the parts alone."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big")


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
        self.average = Shadow(self.model, device)
        self.reference = Shadow(self.model, device) if self.needs_reference else None
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
            self.average.follow(self.model, self.sapo.ema_decay)
        if (
            self.reference is None
            or self.sapo.reference == "fixed"
            or step % self.steps_between_references
        ):
            return
        self.reference.become(self.average if self.sapo.reference == "ema" else self.model)

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
        with self.average.in_place(self.model), self.compute_loss_context_manager():
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
            if not rewrite.is_as_good and (keeps_dead or not rewrite.is_dead)
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
        return pool.draw(count, random.Random(_number(self.args.seed, step, "draw")))

    def _batches(self, parts: Sequence[Sequence[tuple[Rewrite, float]]]) -> list[dict[str, Tensor]]:
        """Collate the pairs of each micro-batch, and score them by the reference."""
        batches = []
        for part in parts:
            pairs = [_pair(rewrite, weight) for rewrite, weight in part]
            collated = self.data_collator.pairs(pairs)
            batches.append({key: value.to(self.args.device) for key, value in collated.items()})
        if self.reference is not None:
            with (
                self.reference.in_place(self.model),
                at_rest(self.model),
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
            "sapo/buffer_age": _mean(step - pair.born for pair in drawn),
            "sapo/rejected_length": _mean(len(pair.rejected_ids) for pair in drawn),
            "sapo/chosen_length": _mean(len(pair.chosen_ids) for pair in drawn),
            "sapo/generation_share": spent / max(now - self._last, spent, 1e-9) if step else 1.0,
        }
        if self.buffer is not None:
            seen["sapo/buffer_fill"] = len(self.buffer) / self.buffer.capacity
            seen["sapo/draws"] = _mean(entry.draws for entry in self.buffer.entries)
        if fresh:
            seen["sapo/dead_pairs"] = _mean(rewrite.is_dead for rewrite in fresh)
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
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
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
        last = Shadow(self.model, self.args.device)
        last.become(self.average)
        if self.state.global_step % self.sapo.ema_every == 0:
            last.follow(self.model, self.sapo.ema_decay)
        with last.in_place(self.model):
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


def _pair(rewrite: Rewrite, weight: float) -> dict[str, Any]:
    ids = {
        "prompt_ids": rewrite.prompt_ids,
        "chosen_ids": rewrite.chosen_ids,
        "rejected_ids": rewrite.rejected_ids,
    }
    return {**ids, "weight": weight}


def _mean(values: Any) -> float:
    found = [float(value) for value in values]
    return sum(found) / len(found) if found else 0.0


# --- the job --------------------------------------------------------------------------------------


def train(job: Job) -> Fitted:
    """Train the policy of the recipe against its own rewrites, and save it."""
    recipe = job.recipe
    assert isinstance(recipe, SapoRecipe)
    _refuse_shards(recipe)
    sapo = recipe.sapo
    model = load_policy(recipe.model, job.tokenizer, trainable=True)
    arguments = _arguments(job, recipe)
    _refuse_what_does_not_fit(job, recipe, model, arguments)
    job.answer_before(model)
    writer = _writer(job, recipe, model, arguments)
    _announce(job, recipe, writer)
    settings = Settings(sapo.beta)
    trainer = SapoTrainer(
        model=model,
        args=arguments,
        data_collator=RowCollator(PairCollator(job.tokenizer.pad_token_id)),
        train_dataset=job.prepared.train,
        eval_dataset=_held_out(job, recipe, model, writer, arguments),
        processing_class=job.tokenizer,
        objective=load_objective(sapo.loss),
        settings=settings,
        nll_weight=sapo.nll_weight,
        needs_reference=sapo.loss not in REFERENCE_FREE_LOSSES,
        writer=writer,
        sapo=sapo,
        warn=job.warn,
    )
    if recipe.model.lora is not None and arguments.gradient_checkpointing:
        model.enable_input_require_grads()
    if (checkpoint := job.run.latest_checkpoint()) is not None:
        trainer.load_rest(checkpoint)
    trainer.group_lengths = lengths_of(job.prepared.train, job.prepared.batching.grouped)
    job.tell_trained(trainer.model, arguments.learning_rate)
    fitted = fit(trainer, recipe, job.run, job.on_event)
    _keep_pairs(job, trainer)
    with trainer.exported():
        job.answer_after(trainer)
    return fitted


def _refuse_shards(recipe: SapoRecipe) -> None:
    if recipe.launch.strategy in SHARDED and world()[1] > 1:
        raise RecipeError(
            f"launch.strategy is {recipe.launch.strategy}, and SAPO generates with a policy that "
            "each process holds whole",
            "use ddp, zero1 or zero2; with model.lora three sets of adapters share one base",
        )


def _refuse_what_does_not_fit(
    job: Job, recipe: SapoRecipe, model: Any, arguments: TrainingArguments
) -> None:
    """Rows that the model has no positions for, and a buffer that cannot hold the pairs of one
    step."""
    splits = [job.prepared.train, *([job.prepared.eval] if job.prepared.eval is not None else [])]
    longest, positions = max(max(rows["length"]) for rows in splits), max_positions(model)
    if positions is not None and longest > positions:
        raise DataError(
            f"the longest row has {longest:,} tokens, and the model {positions:,} positions",
            f"set data.max_length={positions} and data.on_too_long=drop",
        )
    rows = (
        arguments.train_batch_size
        * arguments.gradient_accumulation_steps
        * max(1, arguments.world_size)
    )
    pairs = rows * recipe.sapo.responses_per_prompt
    if 0 < recipe.sapo.buffer_size < pairs:
        raise RecipeError(
            f"sapo.buffer_size is {recipe.sapo.buffer_size}, and one step writes {pairs} pairs",
            "make it several times as large, or 0 for no replay",
        )


def _writer(job: Job, recipe: SapoRecipe, model: Any, arguments: TrainingArguments) -> Writer:
    per_step = (
        arguments.train_batch_size
        * arguments.gradient_accumulation_steps
        * recipe.sapo.responses_per_prompt
    )
    return Writer(
        job.tokenizer,
        recipe.sapo,
        recipe.seed,
        recipe.sapo.generation_batch_size or per_step,
        tuple(stop_token_ids(job.tokenizer, model)),
        load_scorer(recipe.sapo.verifier) if recipe.sapo.verifier else None,
    )


def _announce(job: Job, recipe: SapoRecipe, writer: Writer) -> None:
    """Say how rewrites are sampled, and what a user should know about the objective."""
    sapo = recipe.sapo
    window = "the whole answer" if sapo.window == "all" else f"{sapo.window} tokens"
    stops = ", ".join(map(str, writer.stops))
    job.note(
        f"rewriting {window}: temperature {sapo.temperature:g}, top_k {sapo.top_k}, top_p "
        f"{sapo.top_p:g}, stops {stops}"
    )
    lengths = [len(ids) for ids in job.prepared.train["chosen_ids"]]
    if sapo.window != "all" and (short := sum(length <= int(sapo.window) for length in lengths)):
        job.note(
            f"{short / len(lengths):.0%} of the answers are no longer than the window and are "
            "rewritten whole"
        )
    wrong = wrong_start(load_objective(sapo.loss), Settings(sapo.beta))
    if wrong:
        job.warn(f"{wrong}. Use another sapo.loss")
    if sapo.loss in BATCH_DEPENDENT:
        job.note(f"{sapo.loss} reads statistics of the batch")


def _arguments(job: Job, recipe: SapoRecipe) -> TrainingArguments:
    learning_rate = recipe.trainer.get("learning_rate", LEARNING_RATE)
    with_rate = recipe.model_copy(
        update={"trainer": {**recipe.trainer, "learning_rate": learning_rate}}
    )
    return training_arguments(with_rate, job.run, TrainingArguments, remove_unused_columns=False)


def _held_out(
    job: Job, recipe: SapoRecipe, model: Any, writer: Writer, arguments: TrainingArguments
) -> Dataset | None:
    """Return pairs of the held-out rows, written once by the model that training starts from, and
    scored by it.

    They stay the same over the whole run, also a resumed one, so that the held-out numbers can be
    compared.
    """
    rows = job.prepared.eval
    if rows is None:
        return None
    if world()[0] == 0 and job.run.read_json(HELD_OUT_PAIRS) is None:
        if recipe.model.quantization == "none":
            model.to(best_device())
        job.say("rewriting held-out answers")
        job.run.write_json(HELD_OUT_PAIRS, _scored_pairs(job, model, writer, list(rows), arguments))
    PartialState().wait_for_everyone()
    pairs = job.run.read_json(HELD_OUT_PAIRS)
    if not pairs:
        raise RecipeError(
            "data.eval: every rewrite of a held-out answer is that answer again, so there is "
            "nothing to compare",
            "raise sapo.temperature or sapo.window, or leave data.eval out",
        )
    return Dataset.from_list(pairs)


def _scored_pairs(
    job: Job, model: Any, writer: Writer, rows: list[dict[str, Any]], arguments: TrainingArguments
) -> list[dict[str, Any]]:
    written = writer.rewrite(model, rows, "held out", window_at(writer.settings, 1, 1))
    useful = [rewrite for rewrite in written if not rewrite.is_useless]
    if not useful:
        return []
    pairs = Dataset.from_list([{**_pair(one, 1.0), "length": one.length} for one in useful])
    fuse_head(model)
    device = model.device
    autocast = torch.autocast(device.type, dtype=torch.bfloat16) if arguments.bf16 else None
    chosen, rejected = reference_logps(
        model,
        pairs,
        PairCollator(job.tokenizer.pad_token_id),
        arguments.eval_batch_size,
        device=device,
        autocast=autocast,
    )
    scored = zip(pairs, chosen.tolist(), rejected.tolist())
    return [
        {**pair, "reference_chosen": one, "reference_rejected": other}
        for pair, one, other in scored
    ]


def _keep_pairs(job: Job, trainer: SapoTrainer) -> None:
    """Keep the latest pairs as text, for the report."""
    if world()[0] != 0:
        return
    decode = job.tokenizer.decode
    entries = trainer.buffer.entries if trainer.buffer is not None else ()
    latest = [entry for entry in reversed(entries) if not entry.is_dead][:SHOWN_PAIRS]
    job.run.write_json(
        "pairs.json",
        [
            {
                "prompt": decode(entry.prompt_ids),
                "chosen": decode(entry.chosen_ids),
                "rejected": decode(entry.rejected_ids),
                "born": entry.born,
                "draws": entry.draws,
            }
            for entry in latest
        ],
    )
