"""What `aligner` hands out of this room: training from Python, with rows and losses that live in
this process.

`train` is what `aligner sft`, `dpo`, `sapo` and `reward` do: the same checks, run directory and
results. It prints nothing; `on_event` hears of everything (`aligner.events`). One process trains:
rows in memory and callables are in no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aligner.config.api import GivenRecipe, labelled, method_of, resolve
from aligner.config.callables import describe
from aligner.config.overrides import FlagValue
from aligner.data.memory import IN_MEMORY, by_role
from aligner.errors import RecipeError
from aligner.events import OnEvent
from aligner.methods.catalogue import command_of, training_of, trainings
from aligner.methods.pipeline import run_recipe
from aligner.methods.steps import steps_of
from aligner.runs.result import RunResult

if TYPE_CHECKING:
    from aligner.data.memory import Rows
    from aligner.losses.types import Objective


def train(
    recipe: GivenRecipe,
    *,
    rows: Rows | None = None,
    objective: Objective | None = None,
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
    Settings) that returns the losses (N,) of N pairs. `resume` continues a run that was stopped;
    other rows or another objective than it started with are refused.

    Raises: RecipeError, DataError and UsageError before anything is trained; TrainingError
    afterwards.
    """
    memory = by_role(rows)
    key = _objective_key(method_of(recipe), objective)
    resolved = resolve(recipe, _laid_over(overrides, list(memory), key, objective))
    if objective is not None:
        steps_of(resolved.recipe.method).try_objective(resolved.recipe, objective)
    return run_recipe(
        resolved,
        resume=resume,
        overwrite=overwrite,
        on_event=on_event,
        memory=memory,
        objective=objective,
    )


def _laid_over(
    overrides: Mapping[str, Any] | None, roles: list[str], key: str, objective: Objective | None
) -> dict[str, FlagValue]:
    """The overrides, and the keys that stand for rows and objective.

    Raises: RecipeError where an override says something else than an argument.
    """
    given = {f"data.{role}": FlagValue([{"path": IN_MEMORY}], "rows=") for role in roles}
    if objective is not None:
        given[key] = FlagValue(describe(objective), "objective=")
    for name in given:
        if overrides and name in overrides:
            raise RecipeError(
                f"`{name}` is given twice, in `overrides` and as `{given[name].name}`",
                "keep one of them",
            )
    return labelled(overrides) | given


def _objective_key(name: str, objective: Objective | None) -> str:
    """The key of the recipe that an objective stands for.

    Raises: RecipeError for a method that trains nothing, or that takes no function.
    """
    method = training_of(name)
    if method is None:
        raise RecipeError(f"`{name}` trains nothing", f"run it with `aligner {command_of(name)}`")
    if objective is not None and not method.objective_key:
        takers = " or ".join(
            f"`{other}`" for other, one in trainings().items() if one.objective_key
        )
        raise RecipeError(
            f"`objective` is the loss of {takers}, and this recipe is for `{name}`",
            f"drop it, or use a recipe for {takers}",
        )
    return method.objective_key
