"""The checkpoint that a run resumes from, and what it must hold so that the run is as if it had
never stopped. Imports no torch.

`--resume` promises weights, optimizer, schedule and random state. transformers loads what it
finds in a checkpoint and starts the rest from zero, so all of it is settled before anything is
read: a checkpoint in which a file was lost or changed is kept aside, and the next older one that is
whole is taken; one that never held enough is refused. Where none is left the run is not started
again from the beginning, since its training would be lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aligner.config.defaults import trainer_value
from aligner.config.recipe import Recipe, TrainRecipe
from aligner.errors import DataError, Problem, UsageError
from aligner.methods.catalogue import trainer_of
from aligner.runs.checkpoints import (
    STATE,
    best_of,
    checkpoints_in,
    damage_of,
    has_checksums,
    is_complete,
    is_last,
    set_aside,
)

OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*")
"""Where the optimizer stands: plain, under FSDP in one file or in shards, under DeepSpeed."""


def settle_checkpoint(folder: Path, recipe: Recipe) -> list[str]:
    """Leave the checkpoint that a run of the recipe resumes from as the newest in a folder, and
    return remarks on newer ones, which are damaged and set aside.

    Raises: DataError where there are checkpoints and all are damaged; UsageError where the one to
    resume from holds less than that takes.
    """
    damaged: list[tuple[Path, str]] = []
    for checkpoint in reversed([path for path in checkpoints_in(folder) if is_complete(path)]):
        if what := _damage(checkpoint, recipe):
            damaged.append((checkpoint, what))
            continue
        refuse_smaller(checkpoint, recipe)
        unseen = f"{checkpoint} was written without checksums, so only sizes were compared"
        return [
            *(
                f"{what}, so {checkpoint.name} is resumed from; the damaged one is kept as "
                f"{set_aside(newer)}"
                for newer, what in damaged
            ),
            *([] if has_checksums(checkpoint) else [unseen]),
        ]
    if damaged:
        raise DataError(
            f"no checkpoint in {folder} is whole, so there is nothing to resume from",
            "put the files back from a copy, or start again with --overwrite",
            [Problem(what) for _, what in damaged],
        )
    return []


def _damage(checkpoint: Path, recipe: Recipe) -> str:
    """What is damaged in a checkpoint, or in the best one until then, if that is what the run ends
    with."""
    if what := damage_of(checkpoint):
        return what
    if not isinstance(recipe, TrainRecipe) or not trainer_value(recipe, "load_best_model_at_end"):
        return ""
    best = best_of(checkpoint) if (checkpoint / STATE).is_file() else None
    if best is None or best == checkpoint:
        return ""
    return f"{best} is missing" if not best.is_dir() else damage_of(best)


def refuse_smaller(checkpoint: Path, recipe: Recipe) -> None:
    """Raise UsageError when a checkpoint holds less than a run of the recipe resumes from."""
    if not isinstance(recipe, TrainRecipe):
        return
    missing = list(missing_parts(checkpoint, recipe))
    if not missing:
        return
    why = ""
    if recipe.trainer.get("save_only_model"):
        why = "trainer.save_only_model=true leaves everything but the weights out of checkpoints; "
    raise UsageError(
        f"{checkpoint} holds less than --resume needs, so the run would not be the one that was "
        "stopped",
        f"{why}start again with --overwrite, or remove the folder to continue from an older "
        "checkpoint; its weights alone "
        f"can be trained further: model.name_or_path={checkpoint} with another output_dir",
        [Problem(f"is missing: {what}", where=name) for name, what in missing],
    )


def missing_parts(checkpoint: Path, recipe: TrainRecipe) -> Iterator[tuple[str, str]]:
    """Yield the names of what is not there, and what each is; a last checkpoint trains no
    further."""
    if not (checkpoint / STATE).is_file():
        yield STATE, "the step, and the numbers so far"
    elif not is_last(checkpoint):
        yield from _missing_of_training(checkpoint, recipe.launch.num_processes)
    for name, what in trainer_of(recipe.method).checkpoint_files(recipe).items():
        if not (checkpoint / name).is_file():
            yield name, what


def _missing_of_training(checkpoint: Path, ranks: int) -> Iterator[tuple[str, str]]:
    if not any(next(checkpoint.glob(name), None) for name in OPTIMIZER):
        yield OPTIMIZER[0], "the optimizer"
    if (
        not (checkpoint / "scheduler.pt").is_file()
        and next(checkpoint.glob(OPTIMIZER[-1]), None) is None
    ):
        yield "scheduler.pt", "the schedule of the learning rate"
    for name in (
        ["rng_state.pth"] if ranks == 1 else [f"rng_state_{rank}.pth" for rank in range(ranks)]
    ):
        if not (checkpoint / name).is_file():
            yield name, "the random state"
