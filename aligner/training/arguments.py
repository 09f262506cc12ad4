"""The arguments of a trainer: the recipe's `trainer:` section, what this device decides, and what
only we may set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations

from aligner.config.defaults import SHARE_OF_STEPS, fill, trainer_value
from aligner.config.recipe import TrainRecipe
from aligner.errors import Problem, RecipeError
from aligner.launch.devices import has_bf16_gpu, native_bf16
from aligner.methods.catalogue import trainer_fields
from aligner.runs.run import Run
from aligner.runs.trackers.mirror import MODULES
from aligner.training.decided import Decided, read_decided
from aligner.training.precision import trains_on_cpu

WHAT_LIBRARIES_RAISE = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ImportError,
    RuntimeError,
    ArithmeticError,
    OSError,
    AssertionError,
)


def training_arguments(
    recipe: TrainRecipe, run: Run, argument_class: type[TrainingArguments], **ours: Any
) -> TrainingArguments:
    """Build the arguments of a trainer: what the device decides, the recipe's `trainer:` section
    over it, filled, and what only we may set."""
    filled, _ = fill(recipe)
    decided = read_decided(run) or Decided()
    left_out = {**of_device(filled, decided), **how_often(filled, decided)}
    given = {
        key: value
        for key, value in filled.trainer.items()
        if value is not None or key not in left_out  # null leaves it out, as no key does
    }
    values = {**left_out, **given, **ours}
    if values["bf16"] and trains_on_cpu(filled) and native_bf16("cpu"):
        values["use_cpu"] = True  # else transformers wants a GPU for it
    if decided.cadence is not None and decided.cadence.save_steps == 0:
        values["save_strategy"] = "no"
    # The name people know is on its way out of transformers, which warns about it twice a run.
    for key in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        known = values.pop(key, None)
        new = key.replace("gradient", "activation")
        values[new] = known if values.get(new) is None else values[new]
    values["report_to"] = _trackers_of_transformers(values["report_to"])
    # Rotation is ours: transformers removes old checkpoints before the new one is known to be
    # whole.
    values["save_total_limit"] = None
    values["restore_callback_states_from_checkpoint"] = True
    with told_by_key("trainer", recipe):
        return argument_class(
            output_dir=str(run.checkpoints_dir),
            seed=recipe.seed,
            data_seed=recipe.seed,
            disable_tqdm=True,
            logging_nan_inf_filter=False,
            **values,
        )


def _trackers_of_transformers(report_to: str | list[str]) -> list[str]:
    """Return the trackers that transformers writes to: those that a run does not feed itself."""
    words = [report_to] if isinstance(report_to, str) else report_to
    if "all" in words:
        words = get_available_reporting_integrations()
    return [word for word in words if word != "none" and word not in MODULES]


def preference_arguments(recipe: TrainRecipe, run: Run) -> TrainingArguments:
    """Build the arguments of a `PreferenceTrainer`, whose collator reads every column."""
    return training_arguments(recipe, run, TrainingArguments, remove_unused_columns=False)


@contextmanager
def told_by_key(key: str, recipe: TrainRecipe, origins: Mapping[str, str] = {}) -> Iterator[None]:
    """Turn what a library has against a setting into a problem of the key that it names, or else of
    `key`.

    `origins` says where each key was written. Raises: RecipeError.
    """
    try:
        yield
    except RecipeError as error:
        placed = [
            replace(problem, where=problem.where or origins.get(problem.key, ""))
            for problem in error.problems
        ]
        raise RecipeError(error.message, error.hint, placed) from error
    except WHAT_LIBRARIES_RAISE as error:
        text = " ".join(str(error).split()) or type(error).__name__
        known = trainer_fields(recipe.method)
        named = sorted(
            (text.find(name), -len(name), name)
            for name, value in recipe.trainer.items()
            if name in text and value != known.get(name, {}).get("default")
        )
        name = f"trainer.{named[0][2]}" if named else key
        problem = Problem(text[:300], origins.get(name, ""), name)
        raise RecipeError(
            "a setting of the trainer does not work here", "change it, or drop it", [problem]
        ) from error


def of_device(recipe: TrainRecipe, decided: Decided) -> dict[str, Any]:
    """Return what this device decides where the recipe leaves it out; of a CPU, what was decided
    when the run started."""
    on_gpu = torch.cuda.is_available() and not trainer_value(recipe, "use_cpu")
    gpu_bf16 = has_bf16_gpu() and on_gpu and not trainer_value(recipe, "fp16")
    return {
        "bf16": gpu_bf16 or (bool(decided.bf16) and trains_on_cpu(recipe)),
        "gradient_checkpointing": on_gpu,
        "dataloader_pin_memory": on_gpu,
    }


def how_often(recipe: TrainRecipe, decided: Decided) -> dict[str, Any]:
    """Return the steps between checkpoints and evaluations where the recipe leaves them out: what
    was decided when the run started, or else a tenth of the run."""
    cadence = decided.cadence
    save = cadence.save_steps if cadence is not None else None
    evaluate = cadence.eval_steps if cadence is not None else None
    found: dict[str, Any] = {"save_steps": save or SHARE_OF_STEPS}
    if trainer_value(recipe, "eval_strategy") == "steps":
        found["eval_steps"] = evaluate or SHARE_OF_STEPS
    return found


def found_late(arguments: TrainingArguments, recipe: TrainRecipe) -> dict[str, Any]:
    """Return the arguments of a trainer that differ from what the recipe says, or that it does not
    hold: what device, data and model decided, and what only we set."""
    values = arguments.to_dict()  # without secrets
    # Ours are rotated by `aligner.runs.checkpoints`; what the recipe says of them holds.
    values.pop("save_total_limit")
    trainer = fill(recipe)[0].trainer
    return {
        key: value for key, value in values.items() if key not in trainer or value != trainer[key]
    }
