"""What a run does where its recipe says nothing: the values that fill `trainer:`, each with its
origin.

Three owners have a say, the strongest first: the method (`default of dpo`), aligner for all of its
methods (`default of aligner`), and the class that the trainer is configured with, whose defaults
stand in `trainer_keys.json` (`default of TRL`, `default of transformers`). Deliberately not here:
what only a device, the data or the loaded model can tell (`LATE`). That is written down when the
run starts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from aligner.config import trainer_keys
from aligner.config.method import ARENA_METRICS
from aligner.config.recipe import Recipe, TrainRecipe
from aligner.methods.catalogue import trainer_fields, trainer_of, trainer_settings, training_of

R = TypeVar("R", bound=Recipe)


class Default(NamedTuple):
    """A value that nobody wrote, and whose it is."""

    value: Any
    origin: str


SHARE_OF_STEPS = 0.1
"""A checkpoint, and an evaluation, is made every tenth of the run, where neither costs much."""

OF_ALIGNER: dict[str, Any] = {
    "logging_steps": 10,
    "logging_first_step": True,
    "save_strategy": "steps",
    "save_total_limit": 2,
    "report_to": "none",
    "project": "aligner",
    # Every step uses every trained weight; looking for others costs time.
    "ddp_find_unused_parameters": False,
    # Else a resumed run forgets how many evaluations brought no improvement, and stops late.
    "restore_callback_states_from_checkpoint": True,
}
"""What all methods share."""

OF_DEVICE = ("bf16", "gradient_checkpointing", "dataloader_pin_memory")
"""Keys that follow the device where the recipe leaves them out."""

LATE = (
    *OF_DEVICE,
    "eval_steps",  # what evaluations and checkpoints cost beside the training decides
    "save_steps",
    "activation_checkpointing",  # another name of gradient_checkpointing
    "train_sampling_strategy",  # the lengths of the rows decide
    "router_aux_loss_coef",  # the model's config has it
)
"""Keys that have no value before the run starts."""

OF_LIBRARIES = ("default of TRL", "default of transformers")
"""Origins of what TRL and transformers would do without us, too."""

DEFAULT = "default"
"""How the origin of every default begins."""

MATTERS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "weight_decay",
    "max_grad_norm",
)
"""Keys of the trainer that decide the result most: told on the plan and in the card, given or
not."""

LORA = ("r", "lora_alpha", "lora_dropout", "target_modules")


def fill(recipe: R) -> tuple[R, dict[str, str]]:
    """Return the recipe with every default of the trainer written out, and the origins of those by
    dotted key."""
    if not isinstance(recipe, TrainRecipe):
        return recipe, {}
    found = {key: one for key, one in defaults(recipe).items() if key not in recipe.trainer}
    values = {key: one.value for key, one in found.items()}
    filled = recipe.model_copy(update={"trainer": {**recipe.trainer, **values}})
    return filled, {f"trainer.{key}": one.origin for key, one in found.items()}


def as_given(recipe: R, origins: Mapping[str, str]) -> R:
    """Return the recipe without the defaults that `fill` wrote into it."""
    if not isinstance(recipe, TrainRecipe):
        return recipe
    given = {
        key: value
        for key, value in recipe.trainer.items()
        if not is_default(origins.get(f"trainer.{key}", ""))
    }
    return recipe.model_copy(update={"trainer": given})


def unfilled(recipe: R) -> R:
    """Return the recipe without the trainer's keys that have the value of their default; of one
    whose origins nobody has. Filled again, it is the same."""
    if not isinstance(recipe, TrainRecipe):
        return recipe
    found = defaults(recipe.model_copy(update={"trainer": {}}))
    following = _following(recipe, {})
    kept = {
        key: value
        for key, value in recipe.trainer.items()
        if key in following or key not in found or found[key].value != value
    }
    return recipe.model_copy(update={"trainer": kept}) if recipe.trainer else recipe


def is_default(origin: str) -> bool:
    """Say whether an origin is that of a value which nobody wrote."""
    return origin == DEFAULT or origin.startswith(f"{DEFAULT} of ")


def trainer_value(recipe: TrainRecipe, key: str) -> Any:
    """Return the value of a key of the trainer, also of a recipe that is not filled; None for a key
    that is decided later."""
    if key in recipe.trainer:
        return recipe.trainer[key]
    found = defaults(recipe).get(key)
    return found.value if found else None


def defaults(recipe: TrainRecipe) -> dict[str, Default]:
    """Return the defaults of the trainer's keys, those of the recipe's given ones included."""
    name = recipe.method
    method = trainer_of(name)
    specs = trainer_fields(name)
    found = {key: _of_library(key, specs[key]) for key in trainer_settings(name) if key not in LATE}
    own = method.defaults_with_lora if recipe.model.lora is not None else {}
    layers = {
        "default of aligner": {
            **OF_ALIGNER,
            **_following(recipe, {**method.metrics, **ARENA_METRICS}),
        },
        f"default of {name}": method.defaults,
        f"default of {name} with model.lora": own,
    }
    for origin, values in layers.items():
        found |= {key: Default(value, origin) for key, value in values.items()}
    return found


def _of_library(key: str, spec: Mapping[str, Any]) -> Default:
    """The default in the table, of TRL where its class changes or adds the field. Numbers as a
    recipe's are read, so that writing a default out changes no hash."""
    value = copy.deepcopy(spec["default"])
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = trainer_keys.read({"type": spec["type"]}, value)
    base = trainer_keys.fields(trainer_keys.PLAIN)
    inherited = key in base and base[key]["default"] == spec["default"]
    return Default(value, "default of transformers" if inherited else "default of TRL")


def _following(recipe: TrainRecipe, metrics: Mapping[str, bool]) -> dict[str, Any]:
    """What follows from other keys of the recipe: evaluations, and which checkpoint is the best."""
    values: dict[str, Any] = {}
    if recipe.trainer.get("save_strategy") == "best":
        values["metric_for_best_model"] = "loss"
    metric = str(recipe.trainer.get("metric_for_best_model") or "loss").removeprefix("eval_")
    values["greater_is_better"] = metrics.get(metric, False)
    if recipe.data.eval is not None:
        values["eval_strategy"] = "steps"
    if recipe.early_stopping is not None:
        values |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    if recipe.early_stopping is not None or recipe.trainer.get("load_best_model_at_end"):
        # The best of few would not be much better than the last.
        values |= {"eval_steps": SHARE_OF_STEPS, "save_steps": SHARE_OF_STEPS}
    if recipe.early_stopping is not None:
        values |= _saves_where_it_evaluates(recipe)
    return values


def _saves_where_it_evaluates(recipe: TrainRecipe) -> dict[str, Any]:
    """Let checkpoints follow evaluations, or the other way round, where the recipe sets only one of
    the two."""
    values: dict[str, Any] = {}
    for one, other in (("eval", "save"), ("save", "eval")):
        for key in ("strategy", "steps"):
            if (given := recipe.trainer.get(f"{one}_{key}")) is not None:
                values.setdefault(f"{other}_{key}", given)
    return values


def keys_that_matter(recipe: Mapping[str, Any]) -> Iterator[str]:
    """Yield the dotted keys that a reader looks for first, in order; `recipe` as JSON has it."""
    method = recipe.get("method", "")
    training = training_of(method)
    yield from (f"{method}.{key}" for key in (training.settings if training else ()))
    if (recipe.get("model") or {}).get("lora"):
        yield from (f"model.lora.{key}" for key in LORA)
    trainer = recipe.get("trainer") or {}
    ignored = "num_train_epochs" if (trainer.get("max_steps") or -1) > 0 else "max_steps"
    yield from (f"trainer.{key}" for key in MATTERS if key in trainer and key != ignored)
    yield "seed"
