"""The segments of answers, found once before training and kept in the run directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from aligner.config.recipe import Model
from aligner.errors import RecipeError
from aligner.events import StageProgress
from aligner.methods.job import Job
from aligner.methods.reward.recipe import RewardRecipe, RewardSegments
from aligner.models.forward import answer_entropies
from aligner.models.loading import load_policy, resolve_dtype
from aligner.models.tokenizers import load_tokenizer
from aligner.runs.cache import is_kept, keep
from aligner.runs.files import dumps
from aligner.tokenization.encode import stop_token_ids
from aligner.tokenization.segments import segment_ends

if TYPE_CHECKING:
    from datasets import Dataset

PART = 2000
"""Rows that are looked at together."""


def with_segments(job: Job) -> tuple[Dataset, Dataset | None]:
    """Return both splits with the ends of their answers' segments, found once and kept in the run
    directory."""
    held_out = job.prepared.eval
    return _cut(job, job.prepared.train, "train"), None if held_out is None else _cut(
        job, held_out, "eval"
    )


def _cut(job: Job, rows: Dataset, name: str) -> Dataset:
    file = job.run.prepared_dir / f"segments-{name}.json"
    state = PartialState()
    if state.is_main_process and not is_kept(file):
        ends = _ends(job, rows, name)
        keep(file, lambda place: place.write_text(dumps(ends), encoding="utf-8"))
    state.wait_for_everyone()
    found = job.run.read_json(os.path.relpath(file, job.run.dir))
    for side in ("chosen", "rejected"):
        rows = rows.add_column(f"{side}_ends", found[side])
    return rows


def _ends(job: Job, rows: Dataset, name: str) -> dict[str, list[list[int]]]:
    """The ends of the segments of all chosen and all rejected answers."""
    recipe = job.recipe
    assert isinstance(recipe, RewardRecipe)
    segments, stops = recipe.reward.segments or RewardSegments(), stop_token_ids(job.tokenizer)
    reference = _reference(job, recipe, segments) if segments.rule == "entropy" else None
    found: dict[str, list[list[int]]] = {"chosen": [], "rejected": []}
    for start in range(0, len(rows), PART):
        if job.on_event:
            job.on_event(StageProgress(f"cutting {name} answers into segments", start, len(rows)))
        part = rows[start : start + PART]
        for side, ends in found.items():
            answers = [
                (prompt[max(0, len(prompt) + len(answer) - recipe.data.max_length) :], answer)
                for prompt, answer in zip(part["prompt_ids"], part[f"{side}_ids"])
            ]
            entropies: Sequence[Any] = [None] * len(answers)
            if reference is not None:
                entropies = answer_entropies(
                    reference, answers, pad_token_id=job.tokenizer.pad_token_id
                )
            ends += [
                segment_ends(
                    segments.rule,
                    answer,
                    job.tokenizer,
                    entropies=known,
                    cutoff=segments.cutoff,
                    stop_ids=stops,
                )
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
        revision=recipe.model.revision if own else None,
        dtype=dtype_of(recipe),
        trust_remote_code=recipe.model.trust_remote_code,
    )


def dtype_of(recipe: RewardRecipe) -> Any:
    return str(resolve_dtype(recipe.model, trainable=True)).removeprefix("torch.")
