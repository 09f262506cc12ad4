"""Rules on the section `generation`: what an engine needs, and which engines a method can use."""

from __future__ import annotations

from aligner.config.choices import SHARDED
from aligner.config.endpoint_rules import endpoint_adds_up
from aligner.config.recipe_problem import RecipeProblems, problem_at
from aligner.config.view import RecipeView, Rule

SERVED = ("vllm", "endpoint")
"""Engines with weights of their own, which no training changes."""


def engine_has_its_parts(view: RecipeView) -> RecipeProblems:
    """Each engine has what it needs, and nothing is given to another one."""
    engine = view["generation.engine"]
    for key in SERVED:
        if engine != key and view.given(f"generation.{key}"):
            message = f"has no effect with `engine: {engine}`"
            yield problem_at(f"generation.{key}", message, f"set generation.engine={key}")
    if engine != "endpoint":
        return
    if view["generation.endpoint"] is None:
        hint = "give it `base_url`, the address of a server of this model"
        yield problem_at("generation.endpoint", "is missing, and `engine: endpoint` asks it", hint)
        return
    backend = view["generation.endpoint.backend"]
    if backend != "openai":
        message = f"is `{backend}`, and only a server continues token ids"
        yield problem_at("generation.endpoint.backend", message, "drop it; `hf` is a local model")
    for key in ("temperature", "top_p", "max_tokens", "script"):
        if view.given(f"generation.endpoint.{key}"):
            message = "has no effect: whoever asks says how texts are sampled"
            yield problem_at(f"generation.endpoint.{key}", message, "drop it")
    yield from endpoint_adds_up(view, "generation.endpoint")


def written_by_the_trained(what: str) -> Rule:
    """Refuse engines with weights of their own where those that are trained write; `what` they
    write."""

    def rule(view: RecipeView) -> RecipeProblems:
        engine = view["generation.engine"]
        if engine in SERVED:
            message = f"is `{engine}`, which has weights of its own, and {what}"
            yield problem_at("generation.engine", message, "use hf, or hf_cb")

    return rule


def sampled_from_whole(what: str) -> Rule:
    """Refuse strategies that split the model where each process samples from its own copy; `what`
    they write."""

    def rule(view: RecipeView) -> RecipeProblems:
        strategy = view["launch.strategy"]
        if strategy in SHARDED and view["launch.num_processes"] > 1:
            message = f"`{strategy}` splits the policy, and {what} a policy that is held whole"
            hint = "use ddp, zero1 or zero2; with model.lora the base is held once"
            yield problem_at("launch.strategy", message, hint)

    return rule


def writes_nothing(view: RecipeView) -> RecipeProblems:
    """A reward model gives numbers."""
    if view.given("generation"):
        yield problem_at("generation", "has no effect: a reward model writes nothing", "drop it")
