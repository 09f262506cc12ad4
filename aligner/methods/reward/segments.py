"""The segments of answers, found once before training by the frozen reference and kept in the run
directory.

`prepared/segments-train.json` and `-eval.json` hold the places of their ends beside a fingerprint
of all that they hang on. Ends of another fingerprint are found again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import PartialState

from aligner.config.recipe import Model
from aligner.config.segments import Segments
from aligner.errors import RecipeError
from aligner.events import StageProgress
from aligner.methods.job import Job
from aligner.methods.reward.recipe import RewardRecipe, RewardSegments
from aligner.models.dtypes import resolve_dtype
from aligner.models.fingerprint import model_fingerprint, tokenizer_fingerprint
from aligner.models.forward import answer_entropies
from aligner.models.loading import load_policy
from aligner.models.tokenizers import load_tokenizer
from aligner.runs.cache import is_kept, keep
from aligner.runs.files import dumps
from aligner.runs.run import Run
from aligner.tokenization.encode import stop_token_ids
from aligner.tokenization.segments import cutoff_for, segment_ends

if TYPE_CHECKING:
    from datasets import Dataset

PART = 2000
"""Rows that are looked at together."""

CALIBRATED_ON = 1000
"""Pairs whose entropies set a cutoff."""

CUT = "prepared/segments.json"
"""How the answers are cut, the cutoff settled, and the fingerprint of that."""


def with_segments(job: Job) -> tuple[Dataset, Dataset | None]:
    """Return both splits with the ends of their answers' segments, found once and kept in the run
    directory."""
    splits = (("train", job.prepared.train), ("eval", job.prepared.eval))
    state = PartialState()
    if state.is_main_process:
        _find_all(job, {name: rows for name, rows in splits if rows is not None})
    state.wait_for_everyone()
    train, held_out = (
        None if rows is None else _with_ends(job.run, rows, name) for name, rows in splits
    )
    assert train is not None, "there are training rows"
    return train, held_out


def cut_of(run: Run) -> Segments:
    """Return how the answers of a run are cut, with the cutoff that was settled."""
    return Segments(**run.read_json(CUT)["segments"])


def _with_ends(run: Run, rows: Dataset, name: str) -> Dataset:
    found = run.read_json(f"prepared/segments-{name}.json")
    for side in ("chosen", "rejected"):
        rows = rows.add_column(f"{side}_ends", found[side])
    return rows


def _find_all(job: Job, splits: dict[str, Dataset]) -> None:
    """Find the ends of all splits that are not there yet."""
    cutter = _Cutter(job)
    kept = job.run.dir / CUT
    known = job.run.read_json(CUT) if is_kept(kept) else None
    fresh = known is None or known["fingerprint"] != cutter.fingerprint
    cut = cutter.settle(splits["train"]) if fresh else cut_of(job.run)
    for name, rows in splits.items():
        file = job.run.prepared_dir / f"segments-{name}.json"
        if fresh or not is_kept(file, job.on_event):
            ends = cutter.ends(cut, rows, name)
            _keep_json(file, ends)
            _tell_lengths(job, name, ends)
    if fresh:
        _keep_json(kept, {"segments": cut.model_dump(), "fingerprint": cutter.fingerprint})


def _keep_json(file: Path, content: Any) -> None:
    text = dumps(content)
    keep(file, lambda place: place.write_text(text, encoding="utf-8"))


def _tell_lengths(job: Job, name: str, ends: dict[str, list[list[int]]]) -> None:
    """Say how many segments answers have, and how long these are."""
    rows = [row for side in ends.values() for row in side]
    counts = np.array([len(row) for row in rows])
    tokens = sum(row[-1] + 1 for row in rows)
    job.note(
        f"{name} answers have {counts.mean():.1f} segments in the mean ({counts.min()} to "
        f"{counts.max()}) of {tokens / counts.sum():.1f} tokens"
    )


class _Cutter:
    """Cuts the answers of a run's recipe; loads the reference when entropies are first asked
    for."""

    def __init__(self, job: Job) -> None:
        assert isinstance(job.recipe, RewardRecipe)
        self.job, self.recipe = job, job.recipe
        self.segments = job.recipe.reward.segments or RewardSegments()
        self._model: Any = None

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that the ends hang on, but for the rows: the rule, the reference, the tokenizer."""
        found: dict[str, Any] = {
            "segments": self.segments.model_dump(),
            "tokenizer": tokenizer_fingerprint(self.job.tokenizer),
            "max_length": self.recipe.data.max_length,
        }
        if self.segments.rule == "entropy":
            found["reference"] = model_fingerprint(reference_section(self.recipe, self.segments))
        return found

    def settle(self, rows: Dataset) -> Segments:
        """Return how to cut: as the recipe says, with the cutoff that gives segments of the target
        length."""
        given = self.segments.model_dump(exclude={"target_length"})
        if self.segments.target_length is not None:
            given["cutoff"] = self._calibrated(rows, self.segments.target_length)
        return Segments(**given)

    def _calibrated(self, rows: Dataset, target: int) -> float:
        order = np.random.default_rng(self.recipe.seed).permutation(len(rows))[:CALIBRATED_ON]
        part = rows.select(sorted(order.tolist())).to_dict()
        answers = [pair for side in ("chosen", "rejected") for pair in self._pairs(part, side)]
        stops = set(stop_token_ids(self.job.tokenizer))
        found = [
            entropy
            for (_, answer), row in zip(answers, self._entropies(answers))
            for token, entropy in zip(answer[1:], row[1:])
            if token not in stops
        ]
        if not found:
            raise RecipeError(
                "reward.segments.target_length: the answers have one token each",
                "give a `cutoff`",
            )
        cutoff = cutoff_for(found, target)
        self.job.note(
            f"segments of {target} tokens: the cutoff is {cutoff:.4g} nats, from the entropies of "
            f"{len(found):,} tokens"
        )
        return cutoff

    def _pairs(self, part: dict[str, Any], side: str) -> list[tuple[list[int], list[int]]]:
        """Prompts and answers as training reads them: of a long prompt the beginning is cut off."""
        longest = self.recipe.data.max_length
        return [
            (prompt[max(0, len(prompt) + len(answer) - longest) :], answer)
            for prompt, answer in zip(part["prompt_ids"], part[f"{side}_ids"])
        ]

    def _entropies(self, answers: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        if self._model is None:
            self._model = _reference(self.job, self.recipe, self.segments)
        return answer_entropies(self._model, answers, pad_token_id=self.job.tokenizer.pad_token_id)

    def ends(self, cut: Segments, rows: Dataset, name: str) -> dict[str, list[list[int]]]:
        """Return the ends of the segments of all chosen and all rejected answers."""
        tokenizer, stops = self.job.tokenizer, stop_token_ids(self.job.tokenizer)
        found: dict[str, list[list[int]]] = {"chosen": [], "rejected": []}
        for start in range(0, len(rows), PART):
            if self.job.on_event:
                stage = f"cutting {name} answers into segments"
                self.job.on_event(StageProgress(stage, start, len(rows)))
            part = rows[start : start + PART]
            for side, ends in found.items():
                answers = self._pairs(part, side)
                entropies: Sequence[Any] = [None] * len(answers)
                if cut.rule == "entropy":
                    entropies = self._entropies(answers)
                ends += [
                    segment_ends(cut, answer, tokenizer, entropies=known, stop_ids=stops)
                    for (_, answer), known in zip(answers, entropies)
                ]
        return found


def _reference(job: Job, recipe: RewardRecipe, segments: RewardSegments) -> Any:
    """Load the model whose entropies cut the answers.

    Raises: RecipeError when it has another tokenizer.
    """
    section = reference_section(recipe, segments)
    if load_tokenizer(section).get_vocab() != job.tokenizer.get_vocab():
        raise RecipeError(
            f"reward.segments.reference: {section.name_or_path} has another tokenizer than "
            f"{recipe.model.name_or_path}",
            "segments are places between tokens, so both models must have the same ones",
        )
    return load_policy(section, job.tokenizer, trainable=False)


def reference_section(recipe: RewardRecipe, segments: RewardSegments) -> Model:
    """Return the model section of the reference that cuts answers: as the card has it loaded again,
    never quantized."""
    own = segments.reference is None
    return Model(
        name_or_path=segments.reference or recipe.model.name_or_path,
        revision=recipe.model.revision if own else segments.revision,
        dtype=dtype_of(recipe),
        trust_remote_code=recipe.model.trust_remote_code,
    )


def dtype_of(recipe: RewardRecipe) -> Any:
    return str(resolve_dtype(recipe.model, trainable=True)).removeprefix("torch.")
