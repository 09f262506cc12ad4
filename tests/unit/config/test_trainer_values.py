"""What values of a recipe may be: every key with values from the edge is refused in words or
passes, without torch.

Training with those that pass is a slow test: tests/trainers/test_edge_values.py.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from aligner.config import trainer_rules, trainer_values
from aligner.config.introspect import dotted_keys
from aligner.config.load import load_recipe
from aligner.errors import RecipeError
from aligner.methods.catalogue import METHODS, recipes, trainer_fields, trainer_settings

EDGE: tuple[Any, ...] = (
    *(
        0,
        -1,
        0.5,
        1e-300,
        1e300,
        float("nan"),
        float("inf"),
        2**32,
        10**30,
        "",
        "nope",
        "a\0b",
        True,
        False,
        None,
    ),
    *([], ["nope"], [1], [None], {}, {"nope": 1}, {"a": {"b": None}}),
)

TRAINING = {"model.name_or_path": "m", "data.train": "d.jsonl"}
BASE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("sft", "dpo", "sapo", "reward", "rlhf", "online"), TRAINING),
    "discover": {"endpoint.base_url": "http://127.0.0.1:1", "endpoint.model": "m"},
    "evolve": {
        "data.train": "d.jsonl",
        "endpoint.base_url": "http://127.0.0.1:1",
        "endpoint.model": "m",
    },
    "mosaic": {"data.train": "d.jsonl"},
    "arena": {
        "data.train": "d.jsonl",
        "arena.contestants": [{"name": "a", "model": "m"}, {"name": "b", "answers": "b.jsonl"}],
        "arena.judges": [{"scorer": "toy"}],
    },
    "flywheel": {
        **TRAINING,
        "flywheel.opponents": [{"name": "a", "answers": "a.jsonl"}],
        "flywheel.judges": [{"scorer": "toy"}],
        "flywheel.test_set": "testset",
    },
    "select": {"data.train": "d.jsonl", "select.policy": "m", "select.strategy": "random"},
}


def problems(method: str, key: str, value: Any, **more: Any) -> str:
    """What is said of a key with this value; nothing where it passes. Any other exception fails the
    test."""
    kept = {
        name: item
        for name, item in {**BASE[method], **more}.items()
        if not name.startswith(f"{key}.")
    }
    try:
        load_recipe(method, None, [], {**kept, key: value})
    except RecipeError as error:
        return str(error)
    return ""


def _new_keys(method: str) -> list[str]:
    """Keys of a trainer that no method before it has in the same form."""
    before = list(METHODS)[: list(METHODS).index(method)]
    specs = [trainer_fields(other) for other in before]
    own = trainer_fields(method)
    return [
        key
        for key in trainer_settings(method)
        if not any(spec.get(key) == own[key] for spec in specs)
    ]


@pytest.mark.parametrize("method", ["sft", "dpo", "reward"])
def test_every_value_of_a_trainer_passes_or_is_refused_in_words(method: str) -> None:
    for key in _new_keys(method):
        for value in EDGE:
            problems(method, f"trainer.{key}", value)


@pytest.mark.parametrize("method", METHODS)
def test_every_value_of_our_own_sections_passes_or_is_refused_in_words(method: str) -> None:
    shared = (
        set(dotted_keys(recipes()["sft"]))
        if method in ("dpo", "sapo", "reward", "rlhf", "online")
        else set()
    )
    for key in [
        key for key in dotted_keys(recipes()[method]) if "[]" not in key and key not in shared
    ]:
        for value in EDGE:
            problems(method, key, value)


BREAKS = [
    ("dpo", "seed", 2**32, "at most 4294967295"),
    ("dpo", "trainer.per_device_train_batch_size", 2**32, "must be at most 65,536"),
    ("dpo", "trainer.logging_steps", 0, "must be greater than 0"),
    ("dpo", "trainer.logging_steps", -1, "must be greater than 0"),
    ("dpo", "trainer.logging_steps", 1.5, "else a whole number"),
    ("dpo", "trainer.adam_beta1", 1, "must be below 1"),
    ("dpo", "trainer.adam_beta2", -0.1, "must not be negative"),
    ("dpo", "trainer.adam_epsilon", 0, "must be at least 1e-30"),
    ("dpo", "trainer.adam_epsilon", 1e300, "must be at most 1"),
    ("dpo", "trainer.dataloader_num_workers", -1, "must not be negative"),
    ("dpo", "trainer.neftune_noise_alpha", -1, "must not be negative"),
    ("dpo", "trainer.num_train_epochs", 1e300, "must be at most 100,000"),
    ("dpo", "trainer.num_train_epochs", 0, "must be greater than 0"),
    ("dpo", "trainer.save_total_limit", -3, "must be at least 1"),
    ("dpo", "model.lora.r", 10**8, "at most 65536"),
    ("dpo", "dpo.beta", 1e-300, "at least 1e-06"),
    ("dpo", "dpo.beta", float("inf"), "a finite number"),
    ("dpo", "dpo.loss", {"sigmoid": float("inf")}, "a finite number"),
    ("dpo", "dpo.loss", {"sigmoid": 1e300}, "from 1e-6 to 1e6"),
    ("dpo", "trainer.optim", "adamw", "did you mean"),
    ("dpo", "trainer.lr_scheduler_type", "cosin", "did you mean `cosine`"),
    (
        "dpo",
        "trainer.lr_scheduler_type",
        "cosine_with_min_lr",
        "needs one of min_lr and min_lr_rate",
    ),
    ("dpo", "trainer.lr_scheduler_type", "warmup_stable_decay", "needs num_decay_steps"),
    ("dpo", "trainer.lr_scheduler_type", "reduce_lr_on_plateau", "set `data.eval`"),
    ("dpo", "trainer.lr_scheduler_kwargs", {"num_cycle": 1}, "unknown argument of `linear`"),
    ("dpo", "trainer.lr_scheduler_kwargs", '{"num_cycle": 1}', "unknown argument of `linear`"),
    ("dpo", "trainer.lr_scheduler_kwargs", "nope", "expected a section"),
    ("dpo", "trainer.optim_args", "momentum", "is not `name=value`"),
    ("dpo", "trainer.optim_args", "momentum=0.9", "takes no such argument"),
    ("dpo", "trainer.optim_target_modules", "all-linear", "has no effect"),
    ("dpo", "trainer.ddp_backend", "glo", "did you mean `gloo`"),
    ("dpo", "trainer.ddp_backend", "gloo", "several processes"),
    ("dpo", "trainer.save_strategy", "best", "set `data.eval`"),
    ("dpo", "trainer.dataloader_prefetch_factor", 2, "worker processes"),
    ("dpo", "trainer.dataloader_persistent_workers", True, "worker processes"),
    ("dpo", "trainer.dataloader_multiprocessing_context", "spwan", "did you mean `spawn`"),
    ("dpo", "trainer.report_to", "wandbb", "did you mean `wandb`"),
    ("dpo", "trainer.report_to", None, "found null"),
    ("dpo", "trainer.debug", "underflow", "did you mean `underflow_overflow`"),
    (
        "dpo",
        "trainer.gradient_checkpointing_kwargs",
        {"reentrant": True},
        "did you mean `use_reentrant`",
    ),
    ("dpo", "trainer.accelerator_config", {"split_batches": True}, "unknown argument"),
    ("dpo", "trainer.torch_compile_mode", "fast", "expected one of default"),
    ("dpo", "trainer.log_level_replica", "loud", "expected one of debug"),
    ("sft", "trainer.pad_to_multiple_of", "8x", "or `auto`"),
    ("sapo", "sapo.temperature", 1e-300, "takes the likeliest token"),
    ("discover", "endpoint.timeout_s", 1e300, "at most 1000000"),
]


@pytest.mark.parametrize(("method", "key", "value", "words"), BREAKS)
def test_a_value_that_breaks_the_trainer_is_refused(
    method: str, key: str, value: Any, words: str
) -> None:
    assert words in problems(method, key, value)


CONTEXTS = [
    (
        "sgd and its arguments",
        {"trainer.optim": "sgd", "trainer.optim_args": "momentum=0.9, nesterov=true"},
        "",
    ),
    (
        "a momentum of 2",
        {"trainer.optim": "sgd", "trainer.optim_args": "momentum=2"},
        "must be at most 1",
    ),
    (
        "an argument mistyped",
        {"trainer.optim": "sgd", "trainer.optim_args": "momentm=0.9"},
        "did you mean `momentum`",
    ),
    (
        "restarts by halves",
        {
            "trainer.lr_scheduler_type": "cosine_with_restarts",
            "trainer.lr_scheduler_kwargs": {"num_cycles": 0.5},
        },
        "expected a whole number",
    ),
    (
        "a power that divides by zero",
        {"trainer.lr_scheduler_type": "polynomial", "trainer.lr_scheduler_kwargs": {"power": -1}},
        "must be greater than 0",
    ),
    (
        "both least rates",
        {
            "trainer.lr_scheduler_type": "cosine_with_min_lr",
            "trainer.lr_scheduler_kwargs": {"min_lr": 1e-7, "min_lr_rate": 0.1},
        },
        "found 2",
    ),
    (
        "one least rate",
        {
            "trainer.lr_scheduler_type": "cosine_with_min_lr",
            "trainer.lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        },
        "",
    ),
    (
        "workers and their batches",
        {"trainer.dataloader_num_workers": 1, "trainer.dataloader_prefetch_factor": 2},
        "",
    ),
    ("best with held-out rows", {"trainer.save_strategy": "best", "data.eval": 0.1}, ""),
    (
        "the best of checkpoints that are not made",
        {
            "trainer.load_best_model_at_end": True,
            "data.eval": 0.1,
            "trainer.save_steps": 0.25,
            "trainer.eval_steps": 0.1,
        },
        "not a multiple of `eval_steps`",
    ),
    (
        "the best of other steps",
        {
            "trainer.load_best_model_at_end": True,
            "data.eval": 0.1,
            "trainer.save_strategy": "epoch",
        },
        "the best checkpoint must exist",
    ),
    (
        "two names that disagree",
        {"trainer.gradient_checkpointing": True, "trainer.activation_checkpointing": False},
        "keep one of them",
    ),
]


@pytest.mark.parametrize(("what", "settings", "words"), CONTEXTS)
def test_keys_that_need_each_other(what: str, settings: dict[str, Any], words: str) -> None:
    found = problems("dpo", "output_dir", "runs/x", **settings)
    assert (words in found) if words else not found, what


def test_a_key_that_needs_a_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {
        "report_to": (["wandb", "none"], "wandb"),
        "optim": ("galore_adamw", "galore_torch"),
        "use_liger_kernel": (True, "liger-kernel"),
    }
    for is_there in (True, False):
        monkeypatch.setattr(
            trainer_rules, "is_installed", lambda package, is_there=is_there: is_there
        )
        for key, (value, package) in asked.items():
            found = problems(
                "dpo", f"trainer.{key}", value, **{"trainer.optim_target_modules": "all-linear"}
            )
            assert (f"needs {package}, not installed here" in found) != is_there


def test_the_hub_is_asked_for_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "HF_HUB_OFFLINE" in problems("dpo", "trainer.push_to_hub", True)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert "set HF_TOKEN" in problems("dpo", "trainer.push_to_hub", True)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert problems("dpo", "trainer.push_to_hub", True) == ""


def test_arguments_of_schedulers_are_those_of_the_library() -> None:
    from torch.optim.lr_scheduler import ReduceLROnPlateau
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR

    classes = {"reduce_lr_on_plateau": ReduceLROnPlateau, "greedy": GreedyLR}
    ours = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "self"}
    for name, function in TYPE_TO_SCHEDULER_FUNCTION.items():
        taken = set(inspect.signature(classes.get(name.value, function)).parameters) - ours
        assert set(trainer_values.SCHEDULER_ARGUMENTS[name.value]) == taken, name


def test_arguments_of_optimizers_are_those_that_the_library_reads() -> None:
    from transformers import trainer_optimizer

    for name, handler in trainer_optimizer._OPTIMIZER_HANDLERS.items():
        source = inspect.getsource(handler)
        read = set(re.findall(r"optim_args\.(?:get|pop)\(\s*\"(\w+)\"", source))
        for names in re.findall(r"for key in \(([^)]*)\)", source):
            read |= set(re.findall(r'"(\w+)"', names))
        read |= set(re.findall(r'"(\w+)" in ctx.optim_args', source))
        known = set(
            trainer_values.of_optimizer(trainer_values.OPTIMIZER_ARGUMENTS, name.value) or {}
        )
        assert known <= read, name
        is_of_several = any(
            other in name.value for other in ("adamw_8bit", "bnb", "lion", "paged", "ademamix")
        )
        assert is_of_several or read - known <= {"block_size"}, (
            name
        )  # transformers hands it on as a text


def test_reporters_are_those_of_the_library() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(trainer_values.REPORTERS) == set(INTEGRATION_TO_CALLBACK)
    assert set(trainer_values.WORDS["report_to"]) == {"none", "all", *INTEGRATION_TO_CALLBACK}
