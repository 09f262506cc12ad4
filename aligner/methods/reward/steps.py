"""The steps of `reward` that are its own: the columns that a kind reads, its head, and segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aligner.data.loading import Loaded
from aligner.data.rows import Task
from aligner.errors import DataError
from aligner.memory.footprint import (
    Batch,
    Footprint,
    Head,
    Lengths,
    answers_together,
    of_updates,
    single_rows,
)
from aligner.methods.reward.recipe import RewardRecipe, RewardSegments
from aligner.methods.reward.start_checks import check_start
from aligner.methods.steps import TrainingSteps

if TYPE_CHECKING:
    from aligner.config.segments import Segments
    from aligner.losses.types import Objective
    from aligner.methods.job import Job
    from aligner.tokenization.dataset import TokenizedData


class RewardSteps(TrainingSteps):
    """Training a reward model."""

    answers = False

    def check(self, recipe: RewardRecipe, objective: Objective | None) -> None:
        """Refuse a model, or a reference of segments, that this kind cannot start from."""
        check_start(recipe)

    def task_of(self, recipe: RewardRecipe) -> Task:
        """Return single answers, with their ratings, for a regression; pairs for the others."""
        return "sft" if recipe.reward.kind == "regression" else "preference"

    def further_columns(self, recipe: RewardRecipe) -> Sequence[str]:
        """Return the columns with the ratings, or with the strength of the preference."""
        reward = recipe.reward
        return tuple(reward.attributes) if reward.kind == "regression" else (reward.strength,)

    def check_rows(self, recipe: RewardRecipe, loaded: Loaded) -> None:
        """Refuse a column that no row has, where the training reads it: one sentence in place of
        one for each row."""
        reward = recipe.reward
        if reward.kind != "regression" and reward.loss == "plain":
            return
        key = "reward.attributes" if reward.kind == "regression" else "reward.strength"
        for name in self.further_columns(recipe):
            if not any(name in row.extra for row in loaded.train):
                raise _absent(key, name, loaded)

    def num_outputs(self, recipe: RewardRecipe) -> int | None:
        """Return the outputs of the kind's head."""
        kind = recipe.reward.kind
        outputs = {"pairwise": None, "regression": len(recipe.reward.attributes), "odin": 2}
        return outputs.get(kind, 1)

    def memory(self, recipe: RewardRecipe, lengths: Lengths) -> Footprint:
        """Return an update, and an evaluation where rows are held out, on the longest rows."""
        outputs = self.num_outputs(recipe)
        head: Head = "letters" if outputs is None else "values"
        passes = of_updates(recipe, lambda split: _batch(recipe, lengths, split), head)
        return Footprint(passes, outputs=outputs)

    def facts(self, recipe: RewardRecipe, prepared: TokenizedData) -> Sequence[tuple[str, str]]:
        """Say whether the prompts of pairs are shared, and what that saves."""
        if recipe.reward.kind in ("regression", "pairwise"):
            return ()
        from aligner.training.prefix import describe_prefix

        return (("prompts", describe_prefix(recipe, prepared.train)),)

    def segments(self, recipe: RewardRecipe) -> Segments | None:
        """Return how a segment reward model cuts answers."""
        if recipe.reward.kind != "segment":
            return None
        return recipe.reward.segments or RewardSegments()

    def segments_of_run(self, run_dir: Path) -> Callable[[Sequence[int]], Sequence[int]] | None:
        """Return what finds the segments that a run has cut an answer into."""
        found: Callable[[Sequence[int]], Sequence[int]] | None
        found = self._part("found_segments").segments_of_run(run_dir)
        return found

    def before_ranks(self, job: Job) -> None:
        """Cut the answers into segments, so that the ranks find it done."""
        self._part("train").before_ranks(job)


def _batch(recipe: RewardRecipe, lengths: Lengths, split: str) -> Batch:
    """Return the longest batch of a split: pairs, or single texts."""
    if recipe.reward.kind not in ("regression", "pairwise"):
        return answers_together(recipe, lengths, split)
    found = single_rows(recipe, lengths, split)
    return replace(found, read=found.rows)


def _absent(key: str, name: str, loaded: Loaded) -> DataError:
    unused = sorted(
        {column for source in loaded.ledger.sources for column in source.unused_columns}
    )
    return DataError(
        f"{key}: no training row has a column `{name}`",
        f"further columns of the rows are: {', '.join(unused) or 'none'}. A column of another name "
        f"is mapped with `columns: {{{name}: your_column}}`",
    )


STEPS = RewardSteps()
