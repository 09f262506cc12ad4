"""The steps of `dpo` that are its own: losses given as functions, and reward models that are
followed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aligner.config.callables import is_callable
from aligner.config.generation_rules import SERVED
from aligner.data.rows import SAMPLED
from aligner.errors import RecipeError
from aligner.methods.dpo.recipe import DpoRecipe
from aligner.methods.steps import TrainingSteps

if TYPE_CHECKING:
    from aligner.losses.types import Objective
    from aligner.methods.job import Job
    from aligner.tokenization.dataset import TokenizedData


class DpoSteps(TrainingSteps):
    """Training on preference pairs."""

    def check(self, recipe: DpoRecipe, objective: Objective | None) -> None:
        """Refuse a function that a process long ended had, and scorers that are not there."""
        losses = [recipe.dpo.loss] if isinstance(recipe.dpo.loss, str) else list(recipe.dpo.loss)
        for name in losses if objective is None else ():
            if is_callable(name):
                raise RecipeError(
                    f"dpo.loss: `{name}` was a function given in Python, which no recipe can name",
                    "give it again with `aligner.train(..., objective=...)`, or write a .py file",
                )
        if recipe.dpo.reward_models:
            from aligner.reward_models.catalogue import read_spec
            from aligner.reward_models.ensemble import refuse_cycles

            for scorer in recipe.dpo.reward_models:
                refuse_cycles(read_spec(scorer))  # that there is such a one, and such members, too
        if recipe.generation.engine in SERVED:
            from aligner.generation.writers import check_engine
            from aligner.models.files import adapter_config
            from aligner.training.reference import reference_section

            if recipe.dpo.reference_model is None and adapter_config(recipe.model.name_or_path):
                raise RecipeError(
                    f"generation.engine: `{recipe.generation.engine}` answers as the reference, "
                    "and what that is follows here from the adapter in model.name_or_path",
                    "name the reference in dpo.reference_model, or use hf",
                )
            check_engine(recipe.generation, reference_section(recipe))

    def further_columns(self, recipe: DpoRecipe) -> Sequence[str]:
        """Return the column with ids that were sampled, and the one with the right answer, which
        verifiers read."""
        return (SAMPLED, "answer") if recipe.dpo.reward_models else (SAMPLED,)

    def facts(self, recipe: DpoRecipe, prepared: TokenizedData) -> Sequence[tuple[str, str]]:
        """Say whether prompts are shared, and what that saves."""
        from aligner.training.prefix import describe_prefix

        return (("prompts", describe_prefix(recipe, prepared.train)),)

    def passes(self, recipe: DpoRecipe) -> tuple[float, float]:
        """Return what a token costs; under adapters the reference reads it too, at every step."""
        trained, held_out = super().passes(recipe)
        computed = recipe.dpo.reference != "precomputed" and recipe.dpo.reference_model is None
        extra = recipe.model.lora is not None and computed
        return trained + extra, held_out + extra

    def before_ranks(self, job: Job) -> None:
        """Score and write what ranks could not: they hold only shards of the policy, or would
        wait."""
        self._part("train").before_ranks(job)

    def try_objective(self, recipe: DpoRecipe, objective: Objective) -> None:
        """Try a function on pairs with the recipe's settings."""
        from aligner.losses.trial import check_callable
        from aligner.losses.types import Settings

        dpo = recipe.dpo
        settings = Settings(dpo.beta, dpo.label_smoothing, dpo.tau, dpo.simpo_gamma)
        check_callable(objective, settings)


STEPS = DpoSteps()
