"""Rules on reward models and their weights, for every method that sums scores."""

from __future__ import annotations

from aligner.config.recipe_problem import RecipeProblems, problem_at, show
from aligner.config.view import RecipeView


def reward_models_add_up(view: RecipeView, section: str) -> RecipeProblems:
    """Each is named once, and has a weight where there are weights; for the keys of a section."""
    models, weights = view[f"{section}.reward_models"], view[f"{section}.reward_weights"]
    if weights and len(weights) != len(models):
        message = f"has {len(weights)} numbers, and there are {len(models)} reward models"
        yield problem_at(f"{section}.reward_weights", message, "one for each, in their order")
    for name in sorted({name for name in models if models.count(name) > 1}):
        yield problem_at(f"{section}.reward_models", f"names {show(name)} twice", "name each once")
