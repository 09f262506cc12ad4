"""A limited oracle for a cheap proxy (arXiv 2407.02119): the section of a recipe, what it asks of
the others, and how its budget is shared among rounds. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from aligner.config.named import Names
from aligner.config.recipe import Lora, Section, Weight, Whole
from aligner.config.recipe_problem import RecipeProblems, problem_at, show
from aligner.config.view import RecipeView


class Refresh(Section):
    """How the proxy is trained on the oracle's labels: an ordinary run of `aligner reward`, which
    takes what is not said here from `trainer`, `launch` and `preference`."""

    start: Literal["initial", "previous"] = "initial"
    """`initial`: each round trains the original proxy on the labels of all rounds so far;
    `previous`: it trains the last one on its new labels."""
    held_out: float = Field(0.2, ge=0.0, le=0.9)
    """Share of each round's labels that is never trained on: the proxies are measured on it."""
    learning_rate: float = Field(1e-5, gt=0.0, le=1.0)
    """Learning rate of the proxy; `trainer.learning_rate` is that of the policy."""
    num_train_epochs: float = Field(1.0, gt=0.0, le=1000.0)
    """Passes over the labels."""
    per_device_train_batch_size: int | None = Field(None, ge=1, le=65_536)
    """Pairs of a batch. Absent: that of `trainer`."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=0.5)
    """Assumed share of labels that are wrong."""
    center_rewards_coefficient: Weight = 0.0
    """Weight of a term that keeps the rewards of a pair around 0."""
    lora: Lora | None = None
    """Train adapters on the proxy. Absent: all of it."""


class Oracle(Section):
    """An expensive scorer that is asked about few pairs of each round; the proxy in
    `online.reward_models` is trained on its labels, and scores all others (arXiv 2407.02119)."""

    scorer: Annotated[str, Names("scorer")]
    """Who is asked: a judge, a verifier, a larger reward model, your own function."""
    budget: Whole = Field(200, ge=1)
    """Queries of the whole run. One query asks about one pair of responses to a prompt."""
    queries_per_round: Whole | None = Field(None, ge=1)
    """Queries of a round, as long as the budget lasts. Absent: the budget, divided evenly."""
    selector: Literal["coreset_response", "coreset_prompt", "uncertainty", "random"] = (
        "coreset_response"
    )
    """Which prompts are asked about: spread over prompts with their responses, spread over prompts
    alone, those whose pair the proxy is least sure of, or any."""
    pair: Literal["max_min", "most_uncertain", "random"] = "max_min"
    """Which pair of a prompt's responses: the best and the worst by the proxy, the one that it is
    least sure of, or any."""
    embedding: Literal["ngrams", "policy"] = "ngrams"
    """For a coreset: n-grams of the texts (TF-IDF), or mean hidden states of the round's policy."""
    refresh: Refresh = Refresh()
    """How the proxy is trained on the labels."""


def queries_of(oracle: Oracle, rounds: int, number: int) -> int:
    """Return how many queries one of so many rounds may make; they count from 1. Without
    `queries_per_round` the first ones get what does not divide evenly."""
    budget, each = oracle.budget, oracle.queries_per_round
    if each is not None:
        return max(0, min(each, budget - each * (number - 1)))
    return budget // rounds + (number <= budget % rounds)


def oracle_of_rounds(view: RecipeView) -> RecipeProblems:
    """Say what `online.oracle` and the rest of its recipe have against each other."""
    if view["online.oracle"] is None:
        return
    models, scorer = view["online.reward_models"], view["online.oracle.scorer"]
    if view["online.pairing.rule"] == "two_models":
        message = "has no effect with `rule: two_models`, which compares no scores"
        yield problem_at("online.oracle", message, "drop it, or use another rule")
    elif view["online.self_rewarding"] is not None:
        message = "refreshes a reward model, and `self_rewarding` has the policy rate itself"
        yield problem_at("online.oracle", message, "use one of them")
    elif len(models) != 1:
        message = f"refreshes one proxy, and online.reward_models names {len(models)}"
        yield problem_at("online.oracle", message, "name one: a run of `aligner reward`")
    if scorer in models:
        message = f"is {show(scorer)}, which is the proxy itself"
        yield problem_at("online.oracle.scorer", message, "name a better scorer")
    most, budget = view["online.oracle.queries_per_round"], view["online.oracle.budget"]
    if most is not None and most > budget:
        message = f"is {most:,}, and the budget of all rounds is {budget:,}"
        yield problem_at("online.oracle.queries_per_round", message, "use a larger budget")
    selector = view["online.oracle.selector"]
    if view.given("online.oracle.embedding") and not selector.startswith("coreset"):
        message = f"has no effect with `selector: {selector}`"
        yield problem_at("online.oracle.embedding", message, "it belongs to the coresets")
