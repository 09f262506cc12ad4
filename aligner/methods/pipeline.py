"""Training from a resolved recipe: the same flow for every method, read downward in `run_recipe`.

Nothing heavy is imported before recipe, model path and every row have been checked. Data are
tokenized once, before any rank starts. One process trains here; more are started as `ranks.py`
says.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aligner.config.callables import is_callable
from aligner.config.load import Resolved
from aligner.config.named import names_in
from aligner.config.recipe import TrainRecipe
from aligner.data.memory import MemoryRows
from aligner.errors import RecipeError
from aligner.events import Notice, OnEvent, tell
from aligner.launch.command import launch_line, use_one_gpu
from aligner.launch.meeting import before_meeting
from aligner.launch.world import world
from aligner.methods.dry_run import run_dry
from aligner.methods.execution import train_and_finish
from aligner.methods.preparation import load_data, prepare, within_sizes
from aligner.methods.ranks import run_as_rank, start_machine, start_ranks, with_world
from aligner.models.positions import sizes_of
from aligner.runs.result import RunResult
from aligner.runs.session import Session

if TYPE_CHECKING:
    from aligner.losses.types import Objective
    from aligner.reward_models.base import Scorer


def run_recipe(
    resolved: Resolved,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    on_event: OnEvent | None = None,
    memory: Mapping[str, MemoryRows] | None = None,
    objective: Objective | None = None,
    scorers: Mapping[str, Scorer] | None = None,
) -> RunResult:
    """Check, tokenize, train, and write everything down.

    `memory` holds the rows of a split that are in no file, `objective` the loss and `scorers` the
    scorers that the recipe names as callables: all of these live in this process alone, so no
    other one is started or joined.

    Raises: RecipeError, DataError and UsageError before anything is trained; TrainingError
    afterwards.
    """
    rank, size = world()
    is_one_of_several = resolved.recipe.launch.num_machines > 1 and size == 1 and not dry_run
    with before_meeting(resolved.recipe.launch) if is_one_of_several else nullcontext():
        resolved = _with_model(resolved)
    _refuse_what_lives_elsewhere(resolved.recipe, size, memory, objective, scorers)
    _refuse_what_is_gone(resolved.recipe, scorers or {})
    if size > 1:
        return run_as_rank(with_world(resolved, size), rank, resume, overwrite, on_event)
    resolved = replace(
        resolved, recipe=within_sizes(resolved.recipe, sizes_of(resolved.recipe.model), on_event)
    )
    if resolved.recipe.launch.num_processes > 1:
        launch_line(resolved.recipe.launch, [])  # refuses here what could not be launched later
    session = Session(
        resolved=resolved,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        on_event=on_event,
        is_tracked=False,
    )
    if is_one_of_several:
        return start_machine(session, lambda: load_data(resolved.recipe, on_event), on_event)
    session.check_place()
    if (done := session.done()) is not None:
        return done
    loaded = load_data(resolved.recipe, on_event, memory, objective)
    if dry_run:
        return run_dry(session, loaded)
    run = session.open()
    if resolved.recipe.launch.num_processes > 1:
        return start_ranks(resolved, run, loaded, on_event)
    if (remark := use_one_gpu()) is not None:
        tell(on_event, Notice(remark))
    job = prepare(resolved.recipe, run, loaded, on_event)
    return train_and_finish(replace(job, objective=objective, scorers=scorers or {}))


def _with_model(resolved: Resolved) -> Resolved:
    """The recipe with its model checked, and as it is trained."""
    from aligner.models.files import as_trained, check_model_path

    check_model_path(resolved.recipe.model)
    trained = resolved.recipe.model_copy(update={"model": as_trained(resolved.recipe.model)})
    return replace(resolved, recipe=trained).filled()


def _refuse_what_lives_elsewhere(
    recipe: TrainRecipe,
    size: int,
    memory: Mapping[str, MemoryRows] | None,
    objective: Any,
    scorers: Mapping[str, Scorer] | None,
) -> None:
    """Refuse several processes where one alone has the rows, the objective or a scorer."""
    several = max(size, recipe.launch.num_processes, recipe.launch.num_machines) > 1
    given = "rows in memory" if memory else "a callable as the objective" if objective else ""
    given = given or ("a callable as a scorer" if scorers else "")
    if several and given:
        raise RecipeError(
            f"several processes cannot train with {given}: it lives in this process alone",
            "write the rows to a file, the function to a .py file, or use one process",
        )


def _refuse_what_is_gone(recipe: TrainRecipe, scorers: Mapping[str, Scorer]) -> None:
    """Refuse a function for a scorer that a process long ended had."""
    for named in names_in(recipe):
        if named.kind == "scorer" and is_callable(named.name) and named.name not in scorers:
            raise RecipeError(
                f"{named.key}: `{named.name}` was given in Python, and no recipe can name it",
                "give it again with `aligner.train(..., scorer=...)`, or write "
                "verifier:FILE.py:FUNCTION",
            )
