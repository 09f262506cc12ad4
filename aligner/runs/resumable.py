"""What a checkpoint must hold so that a run resumes from it as if it had never stopped. Imports no
torch.

`--resume` promises weights, optimizer, schedule and random state. transformers loads what it
finds in a checkpoint and starts the rest from zero, so one that holds less is refused before
anything is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aligner.config.recipe import Recipe, TrainRecipe
from aligner.errors import Problem, UsageError
from aligner.methods.catalogue import trainer_of
from aligner.runs.checkpoints import STATE, is_last

OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*")
"""Where the optimizer stands: plain, under FSDP in one file or in shards, under DeepSpeed."""


def refuse_smaller(checkpoint: Path | None, recipe: Recipe) -> None:
    """Raise UsageError when a checkpoint holds less than a run of the recipe resumes from."""
    if checkpoint is None or not isinstance(recipe, TrainRecipe):
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
