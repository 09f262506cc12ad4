"""The steps of `dpo` that are its own: losses given as functions, and reward models that are
followed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aligner.config.callables import is_callable
from aligner.config.generation_rules import SERVED
from aligner.config.loss_names import BATCH_DEPENDENT
from aligner.data.rows import SAMPLED
from aligner.errors import RecipeError
from aligner.memory.footprint import (
    Beside,
    Footprint,
    Lengths,
    Pass,
    Step,
    answers_together,
    halved,
    rows_together,
)
from aligner.methods.dpo.recipe import DpoRecipe
from aligner.methods.dpo.references import (
    forward_kl_weight,
    needs_reference,
    uses_adapter_off,
)
from aligner.methods.steps import TrainingSteps

if TYPE_CHECKING:
    from aligner.losses.types import Objective
    from aligner.methods.job import Job
    from aligner.tokenization.dataset import TokenizedData


class DpoSteps(TrainingSteps):
    """Training on preference pairs."""

    def check(self, recipe: DpoRecipe, objective: Objective | None) -> None:
        """Refuse a function that a process long ended had, and a reference or scorers that are not
        there."""
        losses = [recipe.dpo.loss] if isinstance(recipe.dpo.loss, str) else list(recipe.dpo.loss)
        for name in losses if objective is None else ():
            if is_callable(name):
                raise RecipeError(
                    f"dpo.loss: `{name}` was a function given in Python, which no recipe can name",
                    "give it again with `aligner.train(..., objective=...)`, or write a .py file",
                )
        if (reference := recipe.dpo.reference_model) is not None:
            from aligner.models.files import check_model_path

            section = recipe.model.model_copy(update={"name_or_path": reference})
            check_model_path(section, "dpo.reference_model")
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

    def memory(self, recipe: DpoRecipe, lengths: Lengths) -> Footprint:
        """Return an update, and what the reference takes: nothing of its own where it is the base
        under the adapter, or a pass before the first step, of the policy or of a model beside
        it."""
        batch, held_out = (answers_together(recipe, lengths, split) for split in ("train", "eval"))
        reads = needs_reference(recipe)
        at_each_step = reads and uses_adapter_off(recipe)
        passes = [Pass("update", batch, trains=True, has_reference=at_each_step)]
        beside: list[Beside] = []
        lines: list[tuple[Step, ...]] = []
        if reads and not at_each_step:
            of = "reference" if recipe.dpo.reference_model is not None else ""
            passes.append(Pass("reference", held_out, of=of, is_before=True))
            if recipe.data.eval is None:  # else it is offered anyway
                size = rows_together(recipe, "eval")
                words = "the same numbers of the reference, in smaller passes"
                lines.append(halved("trainer.per_device_eval_batch_size", size, 0.2, words))
            if recipe.dpo.reference_model is not None:
                name = {"name_or_path": recipe.dpo.reference_model, "lora": None}
                model = recipe.model.model_copy(update=name)
                beside.append(Beside(of, model, only=("reference",)))
        if recipe.data.eval is not None:
            passes.append(Pass("evaluation", held_out))
        samples = ("the reference's answers (dpo.forward_kl)",) if forward_kl_weight(recipe) else ()
        losses = [recipe.dpo.loss] if isinstance(recipe.dpo.loss, str) else recipe.dpo.loss
        statistic = ", ".join(name for name in losses if name in BATCH_DEPENDENT)
        return Footprint(
            tuple(passes),
            beside=tuple(beside),
            lines=tuple(lines),
            left_out=samples,
            statistic=statistic,
        )

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
