"""What is decided once the rows are tokens, before the first step: the precision on a CPU, and how
often to evaluate, save and answer. `training/precision.py` and `training/cadence.py` say how; here
it is asked for what the recipe leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aligner.config.defaults import trainer_value
from aligner.config.recipe import TrainRecipe
from aligner.methods.catalogue import trainer_of
from aligner.methods.steps import steps_of
from aligner.models.configs import read_config
from aligner.tokenization.batching import rows_per_step, total_steps
from aligner.training.cadence import Free, Work, choose_cadence
from aligner.training.decided import Decided

if TYPE_CHECKING:
    from aligner.tokenization.dataset import TokenizedData

FOLLOW_HELD_OUT = ("reduce_lr_on_plateau", "greedy")
"""Schedules whose rate depends on the held-out loss."""


def decide(
    recipe: TrainRecipe,
    prepared: TokenizedData,
    books: Mapping[str, Any],
    prompts: int,
    trained: int | None,
) -> Decided:
    """Decide for a training on `prepared`, whose tokens `books` counts (the `splits` of a ledger).

    `prompts` are those that could be answered; `trained` the number of weights that are, None where
    it is not known before the model is loaded.
    """
    from aligner.training.precision import choose_precision, shape_of, trains_on_cpu

    config = read_config(recipe.model)
    sequences = len(prepared.train)
    tokens = books["train"]["tokens"] / sequences
    per_batch = int(trainer_value(recipe, "per_device_train_batch_size"))
    found = choose_precision(recipe, config, tokens * per_batch)
    steps = total_steps(recipe, sequences, prepared.batching.epoch_sizes, prepared.batching.steps)
    passes, held_out_passes = steps_of(recipe.method).passes(recipe)
    held_out = len(prepared.eval) if prepared.eval is not None else 0
    weights = shape_of(config).weights
    rows, arena = min(rows_per_step(recipe), sequences), recipe.eval.arena
    responses, longest = steps_of(recipe.method).responses(recipe)
    held_out_tokens = books["eval"]["tokens"] if held_out else 0
    work = Work(
        steps=steps,
        tokens_a_step=rows * max(1, responses) * (tokens + longest),
        responses_a_step=rows * responses,
        response_tokens=longest,
        repeats=trainer_of(recipe.method).repeats(recipe),
        passes=passes,
        held_out_rows=held_out,
        held_out_tokens=held_out_tokens + held_out * longest,
        held_out_passes=held_out_passes,
        arena_batches=-(-min(arena.prompts, held_out) // arena.batch_size) if arena else 0,
        arena_tokens=arena.max_new_tokens if arena else 0,
        prompts=prompts if steps_of(recipe.method).answers else 0,
        max_new_tokens=recipe.report.max_new_tokens,
        prompt_tokens=books["train"]["tokens"] / books["train"]["rows"],
        weights=weights,
        trained=weights if trained is None else trained,
        processes=recipe.launch.num_processes,
        device="cpu" if trains_on_cpu(recipe) else "gpu",
    )
    return Decided(
        bf16=None if found is None else found.bf16,
        precision="" if found is None else found.in_short,
        why="" if found is None else found.why,
        cadence=choose_cadence(work, left_free(recipe)),
        steps=steps,
        all_held_out=held_out,
    )


def left_free(recipe: TrainRecipe) -> Free:
    """Say what the recipe leaves to us of how often things happen. A best checkpoint needs its
    evaluations and checkpoints where they are; a schedule that follows the held-out loss needs its
    evaluations, of all rows."""
    needs_best = recipe.early_stopping is not None or bool(
        trainer_value(recipe, "load_best_model_at_end")
    )
    followed = (
        trainer_value(recipe, "save_strategy") == "best"
        or trainer_value(recipe, "lr_scheduler_type") in FOLLOW_HELD_OUT
    )

    def is_free(what: str) -> bool:
        every = trainer_value(recipe, f"{what}_strategy") == "steps"
        return every and recipe.trainer.get(f"{what}_steps") is None and not needs_best

    given = recipe.report.model_fields_set
    return Free(
        evaluations=is_free("eval") and not followed,
        checkpoints=is_free("save"),
        prompts="num_prompts" not in given,
        max_new_tokens="max_new_tokens" not in given,
    )
