"""What `aligner` hands out of this room: training from Python, with rows and losses that live in
this process.

`train` is what `aligner sft`, `dpo`, `sapo`, `reward`, `rlhf` and `online` do: the same checks, run
directory and results. It prints nothing; `on_event` hears of everything (`aligner.events`). One
process trains: rows in memory and callables are in no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligner.config.api import GivenRecipe, labelled, method_of, resolve
from aligner.config.callables import describe
from aligner.config.method import TrainingMethod
from aligner.config.overrides import FlagValue
from aligner.data.memory import IN_MEMORY, by_role
from aligner.errors import RecipeError
from aligner.events import OnEvent
from aligner.methods.catalogue import (
    command_of,
    function_of,
    trainer_of,
    training_of,
    trainings,
)
from aligner.methods.pipeline import run_recipe
from aligner.methods.steps import steps_of
from aligner.reward_models.base import Scorer
from aligner.reward_models.functions import ScoreFunction, as_scorer, scorer_text
from aligner.runs.result import RunResult

if TYPE_CHECKING:
    from aligner.data.memory import Rows
    from aligner.losses.types import Objective

GivenScorer = Scorer | ScoreFunction | str
GivenScorers = GivenScorer | Sequence[GivenScorer]


def train(
    recipe: GivenRecipe,
    *,
    rows: Rows | None = None,
    objective: Objective | None = None,
    scorer: GivenScorers | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> RunResult:
    """Train as a recipe says, and return the run directory, the results and the path of the report.

    `recipe` is a recipe object, what `load_recipe` returned, a path, the name of a shipped recipe,
    or a method's name alone, with everything in `overrides`: `{"trainer.max_steps": 20}`.
    `rows` stand in place of `data.train`: a list of dicts or a `datasets.Dataset`, or both splits
    as `{"train": ..., "eval": ...}`. `objective` is the loss of `dpo`: a function of (PairLogps,
    Settings) that returns the losses (N,) of N pairs. `scorer` gives the rewards of `rlhf`, in
    place of `rlhf.reward_models`: a function of (prompts, answers, right answers) that returns a
    number for each answer, an object with such a method `score`, or several of these and of names
    in a list. `resume` continues a run that was stopped; other rows or functions than it started
    with are refused.

    Raises: RecipeError, DataError and UsageError before anything is trained; TrainingError
    afterwards.
    """
    memory = by_role(rows)
    method = method_of(recipe)
    if training_of(method) is None:
        hint = f"run it with `aligner {command_of(method)}`"
        raise RecipeError(f"`{method}` trains nothing", hint)
    texts, scorers = _scorers(scorer)
    given = {f"data.{role}": FlagValue([{"path": IN_MEMORY}], "rows=") for role in memory}
    if objective is not None:
        key = _key(method, "objective", "loss")
        given[key] = FlagValue(describe(objective), "objective=")
    if texts:
        given[_key(method, "scorer", "reward")] = FlagValue(texts, "scorer=")
    resolved = resolve(recipe, _laid_over(overrides, given))
    carried_out = trainer_of(method).run
    if carried_out != TrainingMethod.run:
        if memory:
            raise RecipeError(
                f"`{method}` trains in several stages, which read their rows from files",
                "write the rows to a file, and name it in data.train",
            )
        staged = function_of(carried_out)
        done: RunResult = staged(resolved, resume=resume, overwrite=overwrite, on_event=on_event)
        return done
    if objective is not None:
        steps_of(resolved.recipe.method).try_objective(resolved.recipe, objective)
    return run_recipe(
        resolved,
        resume=resume,
        overwrite=overwrite,
        on_event=on_event,
        memory=memory,
        objective=objective,
        scorers=scorers,
    )


def _scorers(given: GivenScorers | None) -> tuple[list[str], dict[str, Scorer]]:
    """What stands in the recipe for scorers, and those that are no names by it."""
    if given is None:
        return [], {}
    several: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    texts: list[str] = []
    scorers: dict[str, Scorer] = {}
    for one in several:
        if isinstance(one, str):
            texts.append(one)
            continue
        if not (callable(one) or hasattr(one, "score")):
            raise RecipeError(
                f"`scorer` is {type(one).__name__}, which gives no scores",
                "give a function of (prompts, answers, right answers), or an object with `score`",
            )
        scorer = as_scorer(one)
        texts.append(scorer_text(scorer))
        scorers[texts[-1]] = scorer
    return texts, scorers


def _laid_over(
    overrides: Mapping[str, Any] | None, given: Mapping[str, FlagValue]
) -> dict[str, FlagValue]:
    """The overrides, and the keys that stand for what lives in this process.

    Raises: RecipeError where an override says something else than an argument.
    """
    for name in given:
        if overrides and name in overrides:
            raise RecipeError(
                f"`{name}` is given twice, in `overrides` and as `{given[name].name}`",
                "keep one of them",
            )
    return labelled(overrides) | dict(given)


def _key(name: str, argument: str, role: str) -> str:
    """The key of the recipe that an argument stands for.

    Raises: RecipeError for a method that does not take it.
    """
    keys = {other: getattr(one, f"{argument}_key") for other, one in trainings().items()}
    if not keys[name]:
        takers = " or ".join(f"`{other}`" for other, key in keys.items() if key)
        raise RecipeError(
            f"`{argument}` is the {role} of {takers}, and this recipe is for `{name}`",
            f"drop it, or use a recipe for {takers}",
        )
    key: str = keys[name]
    return key
