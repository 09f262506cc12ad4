"""The `trainer:` section: which keys a trainer's class takes, of which type, and which belong
elsewhere.

The table of keys is a file, `trainer_keys.json`, written from the classes themselves by `python -m
aligner.config.trainer_keys` and held equal to them by a test; so a recipe is checked without
importing torch. Deliberately not here: what the values do. That is the documentation of TRL and
transformers.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import re
import types
import typing
from importlib import resources
from typing import Any

PLAIN = "transformers.TrainingArguments"
"""The class that the others inherit from; our preference trainer sits on transformers' Trainer."""

CLASSES = ("trl.SFTConfig", PLAIN, "trl.RewardConfig")
"""Classes that trainers are configured with; a method names one in its `recipe.py`."""

WRITTEN_CHOICES = {
    "loss_type": ("nll", "dft"),
    "log_level": ("debug", "info", "warning", "error", "critical", "passive"),
    "packing_strategy": ("bfd", "bfd_split", "wrapped"),
    "train_sampling_strategy": ("random", "sequential", "group_by_length", "batch_rebalance"),
    "truncation_mode": ("keep_start", "keep_end"),
}
"""Choices that the classes keep in their help texts only."""

ACCEPTED: dict[str, tuple[str | bool, ...]] = {
    "log_level_replica": ("debug", "info", "warning", "error", "critical", "passive"),
    "include_num_input_tokens_seen": ("no", "all", "non_padding", True, False),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
    "ddp_backend": ("nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl"),
    "torch_compile_backend": (
        "inductor",
        "eager",
        "aot_eager",
        "cudagraphs",
        "onnxrt",
        "tensorrt",
        "tvm",
    ),
    "torch_compile_mode": (
        "default",
        "lite",
        "reduce-overhead",
        "max-autotune",
        "max-autotune-no-cudagraphs",
    ),
}
"""Choices that stand nowhere in the classes: what the libraries below them accept."""

RESERVED: dict[str, str] = {
    "output_dir": "set `output_dir` at the top of the recipe",
    "seed": "set `seed` at the top of the recipe",
    "data_seed": "the order of rows follows `seed`",
    "disable_tqdm": "progress is shown by `aligner` itself, and only in a terminal",
    "logging_nan_inf_filter": "a loss that is not a number ends the run, and says at which step",
    "length_column_name": "lengths are known from the tokens",
    "max_length": "set `data.max_length`",
    "truncation_mode": "set `data.on_too_long`: error, drop or truncate",
    "packing": "set `sft.packing`",
    "padding_free": "set `sft.packing`; packed sequences carry no padding",
    "eval_packing": "held-out rows are never packed, so that their loss means the same in every "
    "run",
    "completion_only_loss": "set `sft.loss_on: completion`",
    "assistant_only_loss": "set `sft.loss_on: assistant`",
    "chat_template_path": "set `model.chat_template`",
    "eos_token": "set `model.eos_token`",
    "pad_token": "set `model.pad_token`",
    "trust_remote_code": "set `model.trust_remote_code`",
    "model_init_kwargs": "set the keys of `model`: dtype, attn_implementation, quantization, "
    "revision",
    "dataset_text_field": "name the column in its source: `columns: {text: your_column}`",
    "dataset_kwargs": "rows are turned into tokens before the trainer sees them",
    "dataset_num_proc": "rows are turned into tokens once, in one process, and kept for later runs",
    "center_rewards_coefficient": "set `reward.center_rewards_coefficient`",
    "shuffle_dataset": "training rows are always drawn in a random order that `seed` fixes",
    "remove_unused_columns": "the trainer gets exactly the columns that it reads",
    "label_names": "the trainer gets exactly the columns that it reads",
    "resume_from_checkpoint": "run the same command with `--resume`",
    "trackio_static_space_id": "run `trackio sync` yourself once the run is done",
    "hub_token": "secrets come from the environment: set HF_TOKEN there",
    "fsdp": "set `launch.strategy: fsdp`",
    "fsdp_config": "set `launch.strategy` to `fsdp`, or to a configuration file of accelerate's",
    "deepspeed": "set `launch.strategy` to `zero1`, `zero2`, `zero3`, or to a configuration file "
    "of "
    "accelerate's",
    "parallelism_config": "set `launch.strategy` to a configuration file of accelerate's",
    "local_rank": "set by the launcher; see the `launch` section",
    "do_train": "the command says what is done",
    "do_eval": "give `data.eval`",
    "do_predict": "use `aligner eval` or `aligner generate`",
}
"""Keys of those classes that the recipe sets elsewhere, or that we set ourselves -> where to go
instead."""


@functools.cache
def table() -> dict[str, dict[str, dict[str, Any]]]:
    """Everything in `trainer_keys.json`: class -> its fields."""
    return json.loads(
        resources.files("aligner.config").joinpath("trainer_keys.json").read_text("utf-8")
    )


def fields(class_name: str) -> dict[str, dict[str, Any]]:
    """Key -> {"type", "default", "help"} and sometimes "choices", of one class."""
    return table()[class_name]


class Mismatch(ValueError):
    """A value that a key cannot take; the text says what was expected."""


def read(spec: dict[str, Any], value: Any) -> Any:
    """The value as the field wants it. Numbers written as text (`"5e-6"`) are read as numbers."""
    kinds = spec["type"].split(" | ")
    if "choices" in spec and not (value is None and "None" in kinds):
        return _read_choice(spec, value)
    for kind in kinds:
        matched, converted = _as_kind(kind, value)
        if matched:
            return converted
    raise Mismatch("expected " + " or ".join(_WORDS[kind] for kind in kinds))


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "dict": "a mapping",
    "None": "null",
}


def _read_choice(spec: dict[str, Any], value: Any) -> Any:
    if value in spec["choices"]:
        return value
    raise Mismatch(
        "expected one of "
        + ", ".join(
            choice if isinstance(choice, str) else json.dumps(choice) for choice in spec["choices"]
        )
    )


def _as_kind(kind: str, value: Any) -> tuple[bool, Any]:
    """Whether `value` is of that kind, and the value in that kind."""
    if kind in ("int", "float"):
        number = number_in(value)
        if number is None or (kind == "int" and not number.is_integer()):
            return False, None
        # 2 and 2.0 epochs are one recipe with one hash; steps of 1 or more are counted and stay
        # whole numbers.
        return True, int(number) if number.is_integer() and (
            kind == "int" or abs(number) >= 1
        ) else number
    plain: dict[str, type | tuple[type, ...]] = {
        "bool": bool,
        "str": str,
        "list": list,
        "dict": dict,
        "None": type(None),
    }
    return isinstance(value, plain[kind]), value


def number_in(value: Any) -> float | None:
    """A finite number, also one written as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


# ------------------------------------------------------------------------------------------------
# Writing the table: the only part that imports the trainers.


def describe_class(dotted_name: str) -> dict[str, dict[str, Any]]:
    """The fields of a configuration class, as the table keeps them."""
    import importlib

    module, _, name = dotted_name.partition(".")
    config_class = getattr(importlib.import_module(module), name)
    hints = typing.get_type_hints(config_class)
    return {
        field.name: _describe(field, hints[field.name])
        for field in dataclasses.fields(config_class)
        if field.init
    }


def _describe(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    kinds, choices = _kinds(hint)
    choices = choices or [*WRITTEN_CHOICES.get(field.name, ()), *ACCEPTED.get(field.name, ())]
    spec: dict[str, Any] = {"type": " | ".join(kinds), "default": _default(field)}
    if choices:
        spec["choices"] = choices
    text = re.sub(r"\s+", " ", field.metadata.get("help", "")).strip().replace("%%", "%")
    sentence = re.match(r".+?[.!?](?=\s+[A-Z`'\[(]|$)", text)
    return {**spec, "help": sentence.group(0) if sentence else text}


def _kinds(hint: Any) -> tuple[list[str], list[str | bool]]:
    """Kinds in a fixed order, and the values of an enum among them."""
    members = (
        typing.get_args(hint)
        if typing.get_origin(hint) in (typing.Union, types.UnionType)
        else (hint,)
    )
    kinds: set[str] = set()
    choices: list[str | bool] = []
    for member in members:
        origin = typing.get_origin(member) or member
        if isinstance(origin, enum.EnumMeta):
            choices = [str(item.value) for item in typing.cast("Any", origin)]
        elif origin is typing.Literal:
            kinds |= {type(item).__name__ for item in typing.get_args(member)}
        elif origin in (int, float, bool, str, list, dict):
            kinds.add(origin.__name__)
        elif origin is type(None):
            kinds.add("None")
        else:
            kinds.add("dict")
    order = ("bool", "int", "float", "str", "list", "dict", "None")
    return [kind for kind in order if kind in kinds], choices


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        value = None if field.default is dataclasses.MISSING else field.default
    value = getattr(value, "value", value)
    return (
        value if isinstance(value, bool | int | float | str | list | dict | None) else repr(value)
    )


def build_table() -> dict[str, Any]:
    """The whole table, from the installed classes."""
    return {name: describe_class(name) for name in CLASSES}


if __name__ == "__main__":
    path = resources.files("aligner.config").joinpath("trainer_keys.json")
    with open(str(path), "w", encoding="utf-8") as stream:
        json.dump(build_table(), stream, indent=1, ensure_ascii=False)
        stream.write("\n")
    print(f"wrote {path}")
