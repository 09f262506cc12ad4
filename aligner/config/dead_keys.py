"""Rules on keys of `trainer:` that a method would not read, or that contradict what it computes."""

from __future__ import annotations

from aligner.config.loss_names import REFERENCE_FREE_LOSSES
from aligner.config.recipe_problem import RecipeProblems, problem_at
from aligner.config.view import RecipeView, Rule


def no_smoothing_of_tokens(hint: str) -> Rule:
    """transformers smooths the targets of a next-token loss; losses of pairs have keys of their
    own, which the hint names."""

    def rule(view: RecipeView) -> RecipeProblems:
        if view["trainer.label_smoothing_factor"]:
            method = view["method"]
            message = f"smooths the tokens of a next-token loss, and has no effect on `{method}`"
            yield problem_at("trainer.label_smoothing_factor", message, hint)

    return rule


def no_noise_beside_a_reference(key: str) -> Rule:
    """NEFTune's noise is in the policy alone: its rewards would measure the noise, from the first
    step on. `key` names the losses."""

    def rule(view: RecipeView) -> RecipeProblems:
        if not view["trainer.neftune_noise_alpha"]:
            return
        loss = view[key]
        losses = set(loss) if isinstance(loss, dict) else {loss}
        if not losses <= set(REFERENCE_FREE_LOSSES):
            message = (
                "puts noise on the policy's embeddings, which its reference has not: rewards would "
                "measure the noise"
            )
            hint = (
                f"drop it, use it in `aligner sft`, or train {', '.join(REFERENCE_FREE_LOSSES)}, "
                "which read no reference"
            )
            yield problem_at("trainer.neftune_noise_alpha", message, hint)

    return rule


def _something_is_trained(view: RecipeView) -> RecipeProblems:
    """transformers takes 0 steps for no limit."""
    if view["trainer.max_steps"] == 0:
        hint = (
            "`aligner eval` and `aligner generate` take a model as it is; `--dry-run` shows what "
            "would be trained"
        )
        yield problem_at(
            "trainer.max_steps", "0 steps train nothing, and would be taken for no limit", hint
        )


DEAD_KEY_RULES: tuple[Rule, ...] = (_something_is_trained,)
