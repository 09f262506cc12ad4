"""Every key of every trainer class with values from the edge: what the check lets through is
trained, or refused by trying it.

The check alone, over many more values, is the quick test: tests/unit/config/test_trainer_values.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import small_recipe

from aligner.errors import RecipeError, TrainingError
from aligner.methods.catalogue import trainer_fields, trainer_settings
from aligner.methods.pipeline import run_recipe

pytestmark = pytest.mark.slow

METHODS = ("sft", "dpo", "reward")
"""One of each class; `sapo` has that of `dpo`."""

EDGE: tuple[Any, ...] = (
    0,
    -1,
    1,
    0.5,
    1e-300,
    1e300,
    2**32,
    "",
    "nope",
    True,
    False,
    None,
    [],
    ["nope"],
    {},
    {"nope": 1},
)

LONG = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
"""Compiled for minutes."""

WORKERS = {"trainer__dataloader_num_workers": 1}
NEEDS: dict[str, dict[str, Any]] = {
    "dataloader_prefetch_factor": WORKERS,
    "dataloader_persistent_workers": WORKERS,
    "dataloader_multiprocessing_context": WORKERS,
    "gradient_checkpointing_kwargs": {"trainer__gradient_checkpointing": True},
    "activation_checkpointing_kwargs": {"trainer__activation_checkpointing": True},
}
"""Key -> settings without which it says nothing."""

MORE: dict[str, tuple[Any, ...]] = {
    "activation_checkpointing_kwargs": (
        {"use_reentrant": True},
        {"use_reentrant": False, "debug": True},
    ),
    "metric_for_best_model": ("loss", "eval_loss"),
    "report_to": ("none", "all"),
    "debug": ("underflow_overflow",),
    "pad_to_multiple_of": ("auto", 8, 512),
    "adam_beta1": (0.999999,),
    "adam_epsilon": (1e-30,),
    "per_device_train_batch_size": (65_536,),
    "neftune_noise_alpha": (1000,),
    "accelerator_config": ({"non_blocking": True},),
}
"""Key -> further values."""

SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-5, "warmup_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 1},
}


def outcome(method: str, key: str, value: Any, world: Path, folder: Path) -> str:
    """`refused`, by the check or by the rehearsal, or `trained`. Whatever else is raised fails the
    test."""
    name = {"sft": "sft.jsonl"}.get(method, "pairs.jsonl")
    settings: dict[str, Any] = {
        "trainer__max_steps": 2,
        "trainer__save_steps": 2,
        "trainer__eval_steps": 2,
        "data__eval": [{"path": str(world / name), "max_rows": 4}],
        **NEEDS.get(key, {}),
    }
    if key == "num_train_epochs":
        del settings["trainer__max_steps"]
    if key == "lr_scheduler_type" and value in SCHEDULES:
        settings["trainer__lr_scheduler_kwargs"] = SCHEDULES[value]
    settings[f"trainer__{key}"] = value
    try:
        run_recipe(small_recipe(method, world, folder, **settings))
    except RecipeError:
        return "refused"
    except TrainingError:
        if key != "learning_rate":
            raise
        # a rate of 2**32 trains, diverges, and is told so
    return "trained"


@pytest.mark.parametrize(
    ("method", "key"),
    [(method, key) for method in METHODS for key in trainer_settings(method) if key not in LONG],
)
def test_a_value_is_refused_before_anything_is_tokenised_or_it_trains(
    method: str, key: str, small_world: Path, tmp_path: Path
) -> None:
    spec = trainer_fields(method)[key]
    values = [*spec.get("choices", EDGE), *MORE.get(key, ())]
    values = [
        value
        for value in values
        if key not in ("max_steps", "num_train_epochs") or not _is_long(value)
    ]
    found = {
        repr(value): outcome(method, key, value, small_world, tmp_path / str(number))
        for number, value in enumerate(values)
    }
    default = repr(spec["default"])
    assert set(found.values()) <= {"trained", "refused"}
    assert found.get(default, "trained") == "trained" or key in ("logging_steps", "bf16"), found
    if key == "router_aux_loss_coef":
        return  # whether there is a router is seen when the model is loaded
    for number in range(len(values)):  # what was refused left no tokens behind
        assert (tmp_path / str(number) / "prepared").exists() == (
            list(found.values())[number] == "trained"
        )


def _is_long(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 5
