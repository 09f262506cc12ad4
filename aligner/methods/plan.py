"""What a training would do, in a few rows, before it does it."""

from __future__ import annotations

from aligner.config.defaults import trainer_value
from aligner.config.load import recipe_hash
from aligner.config.recipe import TrainRecipe

PlanRows = list[tuple[str, str, str]]
"""What, value, and how or from where."""


def plan_rows(
    recipe: TrainRecipe,
    sequences: int,
    epoch_sizes: list[int] | None = None,
    stop: int | None = None,
) -> PlanRows:
    """Return the arithmetic of the training as rows (what, value, how).

    With `epoch_sizes`, `sequences` counts those of all epochs together, and `stop` is the step to
    stop at, if there is one.
    """
    from aligner.tokenization.batching import rows_per_step, total_steps

    per_step = rows_per_step(recipe)
    all_steps = -(-sequences // per_step)
    total = total_steps(recipe, sequences, epoch_sizes, stop)
    if epoch_sizes is not None:
        counted = (
            "sequences",
            f"{sequences:,}",
            f"in {len(epoch_sizes)} epochs: {', '.join(f'{size:,}' for size in epoch_sizes)}",
        )
        how = f"{sequences:,} / {per_step} a step"
        return [counted, ("steps", f"{total:,}", how), ("recipe", recipe_hash(recipe)[:12], "hash")]
    epochs = float(trainer_value(recipe, "num_train_epochs"))
    steps = int(trainer_value(recipe, "max_steps"))
    return [
        ("sequences", f"{sequences:,}", ""),
        ("steps an epoch", f"{all_steps:,}", f"{sequences:,} / {per_step} a step"),
        ("steps", f"{total:,}", "trainer.max_steps" if steps > 0 else f"{epochs:g} epochs"),
        ("recipe", recipe_hash(recipe)[:12], "hash"),
    ]
