"""Rules on the section `endpoint`, for every method that asks a language model."""

from __future__ import annotations

from aligner.config.recipe_problem import RecipeProblems, problem_at
from aligner.config.view import RecipeView


def endpoint_is_whole(view: RecipeView) -> RecipeProblems:
    backend = view["endpoint.backend"]
    if backend == "scripted" and view["endpoint.script"] is None:
        yield problem_at(
            "endpoint.script",
            "is missing, and `backend: scripted` reads its replies from it",
            "name a file",
        )
    if backend != "scripted" and view.given("endpoint.script"):
        yield problem_at("endpoint.script", f"has no effect with `backend: {backend}`", "drop it")
    if (
        backend in ("openai", "local")
        and not view["endpoint.model"]
        and view["endpoint.replay"] is None
    ):
        yield problem_at(
            "endpoint.model",
            "is missing",
            "the name of the model on the server, or a folder for `local`",
        )
    if backend != "openai" and view.given("endpoint.base_url"):
        yield problem_at("endpoint.base_url", f"has no effect with `backend: {backend}`", "drop it")
    if view["endpoint.record"] is not None and view["endpoint.replay"] is not None:
        yield problem_at(
            "endpoint.replay",
            "contradicts `endpoint.record`",
            "record a new folder, or replay an old one",
        )
    prices = ("usd_per_million_prompt_tokens", "usd_per_million_completion_tokens")
    if view["endpoint.budget.usd"] is not None and not any(
        view[f"endpoint.{price}"] for price in prices
    ):
        yield problem_at(
            "endpoint.budget.usd",
            "needs prices to be counted with",
            f"set endpoint.{prices[0]} and the other",
        )
