"""The steps of `rlhf` that are its own: prompts without responses, and scorers that are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aligner.config.callables import is_callable
from aligner.errors import RecipeError
from aligner.memory.footprint import Footprint, Lengths
from aligner.methods.rlhf.footprint import footprint_of
from aligner.methods.rlhf.recipe import RlhfRecipe
from aligner.methods.steps import TrainingSteps

if TYPE_CHECKING:
    from aligner.losses.types import Objective
    from aligner.methods.job import Job
    from aligner.tokenization.dataset import TokenizedData


class RlhfSteps(TrainingSteps):
    """Reinforcement learning on sampled responses."""

    task = "prompts"

    def check(self, recipe: RlhfRecipe, objective: Objective | None) -> None:
        """Refuse scorers that are not there or have nothing to compare, and a segment model that
        is none."""
        from aligner.reward_models.catalogue import holds, only_compares, read_spec
        from aligner.reward_models.ensemble import refuse_cycles

        for spec in recipe.rlhf.reward_models:
            if is_callable(spec):
                continue
            card = read_spec(spec)
            refuse_cycles(card)
            if only_compares(card):
                raise RecipeError(
                    f"rlhf.reward_models: {spec} compares two answers, and responses need a score "
                    "each",
                    "name a scorer of single answers (of judges, that is the kind `rating`), or a "
                    "card of the kind `tournament` with this one as its member",
                )
            if recipe.rlhf.group_size < 2 and holds(card, ("tournament",)):
                raise RecipeError(
                    f"rlhf.reward_models: {spec} compares the responses to a prompt with one "
                    f"another, and rlhf.group_size is {recipe.rlhf.group_size}",
                    "sample a group of 2 or more",
                )
        if recipe.rlhf.segment_model is not None:
            card = read_spec(recipe.rlhf.segment_model)
            if card.kind != "segment":
                raise RecipeError(
                    f"rlhf.segment_model: {recipe.rlhf.segment_model} is of the kind `{card.kind}`",
                    "train one with `aligner reward` and reward.kind=segment",
                )

    def further_columns(self, recipe: RlhfRecipe) -> Sequence[str]:
        """Return the column with the right answer, which verifiers read."""
        return ("answer",)

    def facts(self, recipe: RlhfRecipe, prepared: TokenizedData) -> Sequence[tuple[str, str]]:
        """Say how many responses are sampled, and what is done with them."""
        group, parts, times = (
            recipe.rlhf.group_size,
            recipe.rlhf.steps_per_generation,
            recipe.rlhf.iterations,
        )
        more = f", those of {parts} steps at once" if parts > 1 else ""
        more += f", trained on {times} times" if times > 1 else ""
        longest = recipe.rlhf.max_new_tokens
        return (("responses", f"{group} to each prompt, of at most {longest:,} tokens{more}"),)

    def responses(self, recipe: RlhfRecipe) -> tuple[int, int]:
        """Return the size of a group, and the longest response."""
        return recipe.rlhf.group_size, recipe.rlhf.max_new_tokens

    def passes(self, recipe: RlhfRecipe) -> tuple[float, float]:
        """Return what a token costs; with a KL to it, the reference reads every response too, and
        so does the policy where it will have moved by the time that it is trained on."""
        trained, held_out = super().passes(recipe)
        rlhf = recipe.rlhf
        before = bool(rlhf.beta) + (rlhf.steps_per_generation > 1)
        return trained + before / rlhf.iterations, held_out

    def memory(self, recipe: RlhfRecipe, lengths: Lengths) -> Footprint:
        """Return a rollout, its scoring, and the update on it."""
        return footprint_of(recipe, lengths)

    def before_ranks(self, job: Job) -> None:
        """Fit the normalizer of segments, so that the ranks find it done."""
        self._part("train").before_ranks(job)


STEPS = RlhfSteps()
