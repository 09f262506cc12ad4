"""The recipe of `aligner flywheel`, and what it says of itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from aligner.config.battles import Contestant, Judge, Rating, contestant_problems
from aligner.config.method import Method, OwnRows
from aligner.config.mosaic_rules import no_mosaics
from aligner.config.named import Names
from aligner.config.recipe import (
    BuilderRecipe,
    Data,
    Launch,
    Model,
    Section,
    Sources,
    Weight,
    Whole,
)
from aligner.config.recipe_problem import RecipeProblems, problem_at
from aligner.config.view import RecipeView

Strategy = Literal["sft", "dpo", "rl"]
STRATEGIES: tuple[Strategy, ...] = ("sft", "dpo", "rl")


def _as_list(value: Any) -> Any:
    """Allow `k: 3` for the same in every round."""
    return [value] if isinstance(value, int | float) else value


Margins = Annotated[
    list[Weight],
    BeforeValidator(_as_list, json_schema_input_type=Weight | list[Weight]),
    Field(min_length=1),
]


class Chosen(Section):
    """Which battles give rows."""

    k: Margins = [2.0]
    """Least margin of the winner, in points of the judge: for each round, the last one for all that
    follow."""
    min_winner_score: float | None = Field(6.0, ge=-1e6, le=1e6)
    """Least mean score of the winner. null: any."""
    consistent_only: bool = False
    """Only battles whose two orders have the same winner."""
    majority_only: bool = False
    """Only where the loser lost to more than half of those that it met: a single loss is often the
    judge's noise."""
    max_length_ratio: float | None = Field(None, gt=1.0, le=1e6)
    """How many times as long as the other answer that of the winner may be."""
    verifier: Annotated[str | None, Names("scorer")] = None
    """A verifier that the winner's answer must pass, with a score of 1 at least."""


class ChosenSft(Chosen):
    """Which battles give answers to learn: those that the target lost."""

    k: Margins = [3.0, 1.0]
    """Least margin of the winner, in points of the judge: for each round, the last one for all that
    follow. The paper has 3, 1, 1."""
    start: Literal["previous", "base"] = "previous"
    """What is trained in rounds after the first: the last round's SFT model, or `model`; the paper
    does not say."""
    rule: Literal["losses", "random", "random_opponent", "all"] = "losses"
    """To compare with: as many prompts as were lost, drawn at random, with the best or any
    opponent's answer; or all prompts with the best opponent's."""


class ChosenPairs(Chosen):
    """Which battles give pairs: a prompt's best answer and its worst."""

    scope: Literal["any", "involves_target", "target_loses"] = "any"
    """Whether the target must be one of the two."""


class ChosenRl(ChosenPairs):
    """The pairs of the reward model, and what is done with it."""

    algorithm: Literal["grpo", "ppo"] = "grpo"
    """How the policy is trained on its rewards: `rlhf.algorithm`. The paper has PPO."""


class Stop(Section):
    """When the rounds end early."""

    min_rows: Whole = Field(20, ge=0)
    """A selection with fewer rows is not trained on."""
    noise: bool = True
    """Stop where the target loses to others no more often than to a second sample of itself, by a
    one-sided test at 95%: asked of rows that are its losses."""
    gain: bool = True
    """Stop where a round's rating is not above the last one's: its interval holds 0."""


class Flywheel(Section):
    """Arena Learning (arXiv 2407.10627): battles show what a model cannot do yet, and the winners'
    answers teach it."""

    rounds: int = Field(3, ge=1, le=100)
    """Rounds; each strategy of a round has its own part of the prompts."""
    strategies: Annotated[list[Strategy], Field(min_length=1)] = ["sft", "dpo", "rl"]
    """What a round trains, in this order: `rl` is a reward model and `rlhf` with it."""
    initial: Sources | None = None
    """Rows that `model` is trained on before the first round (the paper's D0). Absent: it fights
    as it is."""
    opponents: Annotated[list[Contestant], Field(min_length=1)]
    """Who the target fights."""
    opponents_per_round: Whole | None = Field(None, ge=1)
    """So many of them fight in a round: the best by the ratings so far. Absent: all."""
    judges: Annotated[list[Judge], Field(min_length=1)]
    """Who judges; several are a panel."""
    test_set: Annotated[str, Names("testset")]
    """A folder of `aligner arena testset build`: its development part chooses, its test part
    reports, and nothing that overlaps with it is trained on."""
    prompts_per_battle: Whole | None = Field(None, ge=1)
    """Prompts of each strategy in each round, none of which comes again. Absent: all of them,
    divided evenly."""
    mode: Literal["round_robin", "target"] = "round_robin"
    """`round_robin`: opponents fight each other too, as in the paper; `target`: only the target and
    each of them."""
    cumulative: bool = True
    """Train on what all rounds so far chose for a strategy, and not on that of the round alone."""
    sft: ChosenSft = ChosenSft()
    """What SFT learns."""
    dpo: ChosenPairs = ChosenPairs()
    """The pairs of DPO."""
    rl: ChosenRl = ChosenRl()
    """The pairs of the reward model, and RL."""
    category: str | None = None
    """Column of the prompts that is reported by."""
    difficulty: str | None = None
    """Column of the prompts with their difficulty, a number."""
    system: str | None = None
    """System prompt of answers; rows do not hold it."""
    temperature: float = Field(0.7, ge=0.0, le=100.0)
    """Sampling temperature of answers."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Nucleus sampling of answers."""
    max_new_tokens: Whole = Field(1024, ge=1)
    """Longest answer, in tokens."""
    batch_size: int = Field(16, ge=1, le=65_536)
    """Answers that a model here decodes together."""
    noise_prompts: Whole = Field(200, ge=0)
    """Prompts of a battle on which the target fights a second sample of itself; needs a temperature
    above 0."""
    rating: Rating = Rating()
    """How battles become ratings."""
    stop: Stop = Stop()
    """When rounds end early."""


class Trainings(Section):
    """The trainings: keys of their recipes (`aligner sft` and so on), but for those that the
    flywheel decides: model, data, seed and place."""

    sft: dict[str, Any] = {}
    """Of SFT."""
    dpo: dict[str, Any] = {}
    """Of DPO."""
    reward: dict[str, Any] = {}
    """Of the reward model."""
    rlhf: dict[str, Any] = {}
    """Of RL."""


class FlywheelRecipe(BuilderRecipe):
    """`aligner flywheel`: Arena Learning."""

    method: Literal["flywheel"] = "flywheel"
    """What to do."""
    model: Model
    """The model that is trained, and how it is loaded."""
    data: Data
    """Where the prompts of the battles come from."""
    flywheel: Flywheel
    """What belongs to this method alone."""
    trainings: Trainings = Trainings()
    """How each strategy trains; what is said of one that `strategies` does not name is not used."""
    launch: Launch = Launch()
    """Processes, machines, and how they share the model: for all trainings."""


OF_TRAINING = ("on_too_long", "control_tokens", "eval")
"""Keys of `data` that say nothing of prompts."""


def _prompts(view: RecipeView) -> RecipeProblems:
    for key in OF_TRAINING:
        if view.given(f"data.{key}"):
            message = "has no effect on the prompts of battles"
            hint = "set it in `trainings`, below the training that it is about"
            yield problem_at(f"data.{key}", message, hint)


def _contestants(view: RecipeView) -> RecipeProblems:
    opponents = [one for one in view["flywheel.opponents"] if isinstance(one, dict)]
    yield from contestant_problems(opponents, "flywheel.opponents")
    names = [one.get("name") for one in opponents]
    for place, name in enumerate(names):
        if name in names[:place]:
            hint = "give each opponent a name of its own"
            yield problem_at(f"flywheel.opponents[{place}].name", f"is {name!r} twice", hint)
    if opponents and all(one.get("may_be_trained_on") is False for one in opponents):
        message = "no opponent's answers may be trained on, so no battle gives a row"
        yield problem_at("flywheel.opponents", message, "name one whose licence allows it")
    wanted, count = view["flywheel.opponents_per_round"], len(opponents)
    if wanted is not None and wanted > count:
        message = f"is {wanted}, and there are {count} opponents"
        yield problem_at("flywheel.opponents_per_round", message, "name more, or drop it")


OURS = re.compile(rf"start|({'|'.join(STRATEGIES)})-\d+|.* \(again\)")
"""What the models of a run are called, and the second sample of one."""


def _names(view: RecipeView) -> RecipeProblems:
    """Opponents are not called what a model of the run is; an anchor is there from the start."""
    opponents = [one for one in view["flywheel.opponents"] if isinstance(one, dict)]
    names = [str(one.get("name")) for one in opponents]
    for place, name in enumerate(names):
        if OURS.fullmatch(name):
            message = f"is {name!r}, as a model of the run is called"
            yield problem_at(f"flywheel.opponents[{place}].name", message, "name it otherwise")
    first = "start" if view["flywheel.initial"] is None else "sft-0"
    anchor = view["flywheel.rating.anchor"]
    if anchor is not None and anchor not in (first, *names):
        hint = f"those are {', '.join((first, *names))}"
        message = f"{anchor!r} is none of those who fight from the start"
        yield problem_at("flywheel.rating.anchor", message, hint)
    if view["flywheel.rating.merge"] == "votes":
        message = "`votes` has no verdict for a whole battle, which rows are selected by"
        yield problem_at("flywheel.rating.merge", message, "use mean")


def _strategies(view: RecipeView) -> RecipeProblems:
    chosen = view["flywheel.strategies"]
    if len(set(chosen)) < len(chosen):
        hint = "name each once; `rounds` says how often"
        yield problem_at("flywheel.strategies", "names a strategy twice", hint)


def _noise(view: RecipeView) -> RecipeProblems:
    stops, temperature = view["flywheel.stop.noise"], view["flywheel.temperature"]
    if stops and not (temperature and view["flywheel.noise_prompts"]):
        message = "is true, and without sampling the target cannot fight a second sample of itself"
        hint = "set flywheel.temperature and noise_prompts above 0, or noise: false"
        yield problem_at("flywheel.stop.noise", message, hint)


def _points(view: RecipeView) -> RecipeProblems:
    """The defaults of `k` and `min_winner_score` are points from 1 to 10."""
    judges = [one for one in view["flywheel.judges"] if isinstance(one, dict)]
    scorers = [one["scorer"] for one in judges if one.get("scorer") and not one.get("faults")]
    if not scorers:
        return
    for strategy in view["flywheel.strategies"]:
        for name in ("k", "min_winner_score"):
            key = f"flywheel.{strategy}.{name}"
            if not view.given(key):
                message = f"has no default: the scores of {scorers[0]} are no points from 1 to 10"
                hint = "say it in its unit" + (", or null for any" if name != "k" else "")
                yield problem_at(key, message, hint)


def _summary(recipe: FlywheelRecipe) -> OwnRows:
    flywheel = recipe.flywheel
    opponents = ", ".join(one.name for one in flywheel.opponents)
    judges = ", ".join(
        one.name or one.scorer or (one.endpoint.model if one.endpoint is not None else "")
        for one in flywheel.judges
    )
    rounds = f"{flywheel.rounds} of {', '.join(flywheel.strategies)}"
    return [
        ("rounds", rounds, "flywheel.rounds"),
        ("against", opponents, "flywheel.opponents"),
        ("judged by", judges, "flywheel.judges"),
        ("test set", flywheel.test_set, "flywheel.test_set"),
    ]


def _paths(run_dir: Path) -> dict[str, object]:
    return {"run": run_dir, "model": run_dir / "final", "report": run_dir / "report.html"}


METHOD = Method(
    recipe=FlywheelRecipe,
    help="Arena Learning: rounds of battles, selection of what was lost, and training on it.",
    examples=(
        "aligner flywheel tiny/flywheel",
        "aligner flywheel recipe.yaml flywheel.rounds=1 flywheel.strategies=[sft]",
        "aligner flywheel recipe.yaml --resume",
        "aligner flywheel status runs/flywheel",
    ),
    rules=(no_mosaics, _prompts, _contestants, _names, _strategies, _noise, _points),
    run="aligner.methods.flywheel.run:run_flywheel",
    trainings="aligner.methods.flywheel.trainings:planned",
    status="aligner.methods.flywheel.status:status_of",
    report="aligner.methods.flywheel.report:write_flywheel_report",
    summary=_summary,
    paths=_paths,
    continues="continues with the stage that was stopped",
    untouched="nobody fought and nothing was trained",
    is_staged=True,
)
