"""The recipe of `aligner discover`, and what the method says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from aligner.config.endpoint_rules import endpoint_is_whole
from aligner.config.hints import did_you_mean
from aligner.config.loss_names import objective_file
from aligner.config.method import Method, OwnRows, run_and_report
from aligner.config.named import Names
from aligner.config.recipe import BuilderRecipe, Endpoint, Section, Strength, Whole
from aligner.config.recipe_problem import RecipeProblems, problem_at, show
from aligner.config.view import RecipeView

WRITTEN = ("sigmoid", "hinge", "ipo_sum", "kto_pair", "padll", "cell", "discopop")
"""Objectives that also exist as a language model would write them, to start a search from."""


class Discover(Section):
    """The search for preference objectives by a language model (arXiv 2406.08414)."""

    task: Literal["bandit", "toy", "recipe"] = "bandit"
    """What an objective is judged by: `bandit` (a contextual bandit with a known reward, seconds),
    `toy` (DPO in the toy world, minutes), or `recipe` (a DPO recipe of yours and an evaluation)."""
    proposals: Whole = Field(20, ge=0)
    """How many objectives the language model proposes; those that fail count too."""
    minutes: float | None = Field(None, gt=0.0, le=1e7)
    """Stop after so much time, between two proposals. `--resume` starts the clock again."""
    seeds: int = Field(3, ge=1, le=1000)
    """Trainings for each objective; the fitness is their mean."""
    beta: Strength = 0.05
    """Beta of every training run; the language model is given it too."""
    start: Annotated[list[str], Names("objective")] = ["sigmoid", "hinge", "ipo_sum", "kto_pair"]
    """Objectives that are measured first and shown to the language model. The default are the
    paper's four."""
    history: Whole = Field(20, ge=1)
    """How many of the latest proposals, with what came of them, stay in the conversation; the best
    ones always do."""
    timeout_minutes: float = Field(60.0, gt=0.0, le=1e6)
    """Longest time for all trainings of one objective; then it counts as failed."""
    recipe: Annotated[str | None, Names("recipe")] = None
    """For `recipe`: the DPO recipe that is run with each objective, a file or a shipped name."""
    overrides: list[str] = []
    """For `toy` and `recipe`: further settings of the inner recipe, as `key=value`."""
    prompts: Annotated[str | None, Names("data")] = None
    """For `recipe`: prompts to answer with the trained model. One half gives the fitness, the other
    is held out."""
    reward_model: Annotated[str | None, Names("scorer")] = None
    """For `recipe`: what scores the answers: `toy`, `verifier:number`, or a function of yours,
    `verifier:path/to/file.py:name`."""
    max_new_tokens: Whole = Field(32, ge=1)
    """For `toy` and `recipe`: longest answer, in tokens."""


class DiscoverRecipe(BuilderRecipe):
    """`aligner discover`: search for preference objectives."""

    method: Literal["discover"] = "discover"
    """What to do."""
    endpoint: Endpoint
    """The language model that proposes."""
    discover: Discover = Discover()
    """What belongs to this method alone."""


def _task_has_its_parts(view: RecipeView) -> RecipeProblems:
    task = view["discover.task"]
    for key in ("recipe", "prompts", "reward_model"):
        if task == "recipe" and view[f"discover.{key}"] is None:
            yield problem_at(
                f"discover.{key}", "is missing, and `task: recipe` needs it", _PARTS[key]
            )
        if task != "recipe" and view.given(f"discover.{key}"):
            yield problem_at(
                f"discover.{key}",
                f"has no effect with `task: {task}`",
                "it belongs to `task: recipe`",
            )
    if task == "bandit" and view["discover.overrides"]:
        yield problem_at(
            "discover.overrides",
            "have no effect with `task: bandit`, which runs no recipe",
            "drop them",
        )


_PARTS = {
    "recipe": "a DPO recipe: a file, or a shipped name",
    "prompts": "a file of prompts that the trained model answers",
    "reward_model": "`toy`, `verifier:number`, or a function of yours, "
    "`verifier:path/to/file.py:name`",
}


def _start_is_known(view: RecipeView) -> RecipeProblems:
    for name in view["discover.start"]:
        if name.endswith(".py"):
            yield from objective_file(name, "discover.start")
        elif name not in WRITTEN:
            hint = did_you_mean(name, WRITTEN) or "or a .py file"
            yield problem_at(
                "discover.start", f"expected some of {', '.join(WRITTEN)}, found {show(name)}", hint
            )


def _summary(recipe: DiscoverRecipe) -> OwnRows:
    settings, endpoint = recipe.discover, recipe.endpoint
    where = endpoint.base_url or endpoint.script or endpoint.replay or ""
    proposer = f"{endpoint.model or endpoint.backend} {f'({where})' if where else ''}".rstrip()
    return [
        (
            "method",
            f"discover ({settings.task}, beta {settings.beta:g}, {settings.seeds} seeds)",
            "",
        ),
        ("proposer", proposer, ""),
        ("proposals", str(settings.proposals), "discover.proposals"),
    ]


def _paths(run_dir: Path) -> dict[str, object]:
    found = json.loads((run_dir / "search.json").read_text("utf-8"))["found"]
    use = found and f"aligner dpo RECIPE dpo.loss={run_dir / found}"
    return {**run_and_report(run_dir), "use it": use}


METHOD = Method(
    recipe=DiscoverRecipe,
    help="Let a language model search for preference objectives.",
    examples=(
        "aligner discover tiny/discover",
        "aligner discover discover/bandit endpoint.base_url=http://127.0.0.1:8000/v1 "
        "endpoint.model=NAME",
        "aligner discover recipe.yaml discover.proposals=50 endpoint.budget.usd=5",
        "aligner discover recipe.yaml --resume",
    ),
    rules=(_task_has_its_parts, _start_is_known, endpoint_is_whole),
    run="aligner.methods.discover.search:run_discovery",
    trainings="aligner.methods.discover.inner:trainings",
    summary=_summary,
    continues="continues the search",
    untouched="nothing was asked and nothing was trained",
    paths=_paths,
    report="aligner.methods.discover.report:write_discovery_report",
)
