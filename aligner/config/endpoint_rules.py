"""Rules on the section `endpoint`, and on others of its kind, for every method that asks a language
model."""

from __future__ import annotations

from aligner.config.recipe_problem import RecipeProblems, problem_at
from aligner.config.view import RecipeView


def endpoint_is_whole(view: RecipeView, prefix: str = "endpoint") -> RecipeProblems:
    """What a section below a key needs, and what has no effect in it."""
    backend = view[f"{prefix}.backend"]
    if backend == "scripted" and view[f"{prefix}.script"] is None:
        yield problem_at(
            f"{prefix}.script",
            "is missing, and `backend: scripted` reads its replies from it",
            "name a file",
        )
    if backend != "scripted" and view.given(f"{prefix}.script"):
        yield problem_at(f"{prefix}.script", f"has no effect with `backend: {backend}`", "drop it")
    if (
        backend in ("openai", "local")
        and not view[f"{prefix}.model"]
        and view[f"{prefix}.replay"] is None
    ):
        yield problem_at(
            f"{prefix}.model",
            "is missing",
            "the name of the model on the server, or a folder for `local`",
        )
    if backend != "openai" and view.given(f"{prefix}.base_url"):
        yield problem_at(
            f"{prefix}.base_url", f"has no effect with `backend: {backend}`", "drop it"
        )
    yield from endpoint_adds_up(view, prefix)


def endpoint_adds_up(view: RecipeView, prefix: str) -> RecipeProblems:
    """Recordings and money, for the section below a key."""
    if view[f"{prefix}.record"] is not None and view[f"{prefix}.replay"] is not None:
        yield problem_at(
            f"{prefix}.replay",
            f"contradicts `{prefix}.record`",
            "record a new folder, or replay an old one",
        )
    prices = ("usd_per_million_prompt_tokens", "usd_per_million_completion_tokens")
    if view[f"{prefix}.budget.usd"] is not None and not any(
        view[f"{prefix}.{price}"] for price in prices
    ):
        yield problem_at(
            f"{prefix}.budget.usd",
            "needs prices to be counted with",
            f"set {prefix}.{prices[0]} and the other",
        )
