"""Recipes of torchtune: sections that name a class each, `_component_`, and its arguments.

The recipe that runs one is named at the command; here pairs are told by the loss.
"""

from __future__ import annotations

from typing import Any

from aligner.config.migrate import common
from aligner.config.migrate.migration import (
    Lost,
    Migration,
    Needless,
    Table,
    apart,
    move,
    off_or_lost,
    only,
)
from aligner.config.migrate.rows import source
from aligner.errors import RecipeError

TOOL = "torchtune"

_ROWS = {
    "alpaca_cleaned_dataset": "yahma/alpaca-cleaned",
    "alpaca_dataset": "tatsu-lab/alpaca",
    "stack_exchange_paired_dataset": "lvwerra/stack-exchange-paired",
}
"""Builders of torchtune's that always take the same rows."""

_COLUMNS = {
    "stack_exchange_paired_dataset": {
        "prompt": "question",
        "chosen": "response_j",
        "rejected": "response_k",
    }
}

_OPTIMIZERS = {
    "AdamW": "adamw_torch",
    "SGD": "sgd",
    "AdamW8bit": "adamw_8bit",
    "PagedAdamW": "paged_adamw_32bit",
    "PagedAdamW8bit": "paged_adamw_8bit",
}

_READ = {
    "model": (
        "_component_",
        "lora_attn_modules",
        "apply_lora_to_mlp",
        "apply_lora_to_output",
        "lora_rank",
        "lora_alpha",
        "lora_dropout",
        "quantize_base",
        "use_dora",
    ),
    "tokenizer": ("_component_", "path", "max_seq_len", "merges_file"),
    "checkpointer": (
        "_component_",
        "checkpoint_dir",
        "checkpoint_files",
        "recipe_checkpoint",
        "output_dir",
        "model_type",
    ),
    "dataset": (
        "_component_",
        "source",
        "data_files",
        "split",
        "name",
        "packed",
        "train_on_input",
        "column_map",
        "conversation_style",
        "conversation_column",
        "column",
    ),
    "optimizer": ("_component_", "lr", "weight_decay", "fused", "betas", "eps"),
    "lr_scheduler": ("_component_", "num_warmup_steps"),
    "loss": ("_component_", "beta", "label_smoothing", "num_output_chunks"),
}
"""Sections, and those of their arguments that are read or that nobody will miss."""


def kind(old: dict[str, Any]) -> str:
    """Return what a recipe is for: pairs are told by the loss.

    Raises: RecipeError for reinforcement learning.
    """
    if {"ppo_epochs", "grpo_samples", "policy_model"} & set(old):
        raise RecipeError("its PPO and GRPO have no counterpart key by key", "see aligner rlhf")
    loss = _component(old, "loss")
    if loss in ("DPOLoss", "RSOLoss"):
        return "dpo"
    return "simpo" if loss == "SimPOLoss" else "sft"


def _component(old: dict[str, Any], section: str) -> str:
    found = old.get(section)
    return str(found.get("_component_", "")).rsplit(".", 1)[-1] if isinstance(found, dict) else ""


def _dtype(migration: Migration, key: str, value: Any) -> None:
    if value is not None:
        common.dtype(migration, key, value)


def _steps(migration: Migration, key: str, value: Any) -> None:
    if value:
        steps = int(value) * int(migration.old.get("epochs") or 1)
        migration.change(key, "trainer.max_steps", steps, "of all epochs together")


def _shuffle(migration: Migration, key: str, value: Any) -> None:
    if value is False:
        migration.lose(key, "rows are always drawn in a random order")


TABLE: Table = {
    **dict.fromkeys(_READ, apart),
    "output_dir": "output_dir",
    "seed": "seed",
    "shuffle": _shuffle,
    "batch_size": "trainer.per_device_train_batch_size",
    "epochs": "trainer.num_train_epochs",
    "max_steps_per_epoch": _steps,
    "gradient_accumulation_steps": "trainer.gradient_accumulation_steps",
    "clip_grad_norm": "trainer.max_grad_norm",
    "compile": "trainer.torch_compile",
    "log_every_n_steps": "trainer.logging_steps",
    "enable_activation_checkpointing": "trainer.gradient_checkpointing",
    "enable_activation_offloading": off_or_lost("activations stay on the device"),
    "optimizer_in_bwd": off_or_lost("the optimizer steps after the whole backward pass"),
    "dtype": _dtype,
    "device": Needless("the device of this machine is used"),
    "resume_from_checkpoint": only(False, Needless(""), "`--resume` says it at the command"),
    "save_adapter_weights_only": Needless("the adapter is the result; aligner merge joins the two"),
    "metric_logger": Needless("metrics are in the run directory; `trainer.report_to` for more"),
    "log_peak_memory_stats": Needless("always logged"),
    "log_level": "trainer.log_level",
    "profiler": Needless("a profile of the run, which does not change it"),
    "custom_sharded_layers": Lost("accelerate decides what is split"),
    "fsdp_cpu_offload": off_or_lost("a configuration file of accelerate's says it"),
}
"""Keys of torchtune at the top."""


def place(migration: Migration) -> None:
    """Place every key, and the defaults that are not ours."""
    move(migration, TABLE)
    for section, known in _READ.items():
        for key, value in (migration.old.get(section) or {}).items():
            if key not in known and value is not None:
                migration.lose(f"{section}.{key}", "nothing of this name is known", value)
    _model(migration)
    _data(migration)
    _optimizer(migration)
    common.cut_long_rows(migration, "torchtune")
    common.fill_quantization(migration, True, "torchtune")


def _section(migration: Migration, name: str) -> dict[str, Any]:
    return migration.old.get(name) or {}


def _model(migration: Migration) -> None:
    model, folder = _section(migration, "model"), _section(migration, "checkpointer")
    if (path := folder.get("checkpoint_dir")) is not None:
        migration.rename("checkpointer.checkpoint_dir", "model.name_or_path", path)
    if "lora" not in _component(migration.old, "model"):
        return
    migration.put("model.lora", {})
    for there, here in (
        ("lora_rank", "r"),
        ("lora_alpha", "lora_alpha"),
        ("lora_dropout", "lora_dropout"),
        ("use_dora", "use_dora"),
    ):
        if model.get(there) is not None:
            migration.rename(f"model.{there}", f"model.lora.{here}", model[there])
    modules = [name for name in model.get("lora_attn_modules") or [] if name != "output_proj"]
    if "output_proj" in (model.get("lora_attn_modules") or []):
        modules.append("o_proj")
    if model.get("apply_lora_to_mlp"):
        modules += ["gate_proj", "up_proj", "down_proj"]
    if model.get("apply_lora_to_output"):
        modules.append("lm_head")
    migration.rename("model.lora_attn_modules", "model.lora.target_modules", modules)
    if model.get("quantize_base") or "qlora" in _component(migration.old, "model"):
        migration.rename("model._component_", "model.quantization", "nf4")


def _data(migration: Migration) -> None:
    rows, builder = _section(migration, "dataset"), _component(migration.old, "dataset")
    path = _ROWS.get(builder) or rows.get("data_files") or rows.get("source")
    if path is not None:
        found = source(
            str(path),
            split=rows.get("split"),
            subset=rows.get("name"),
            columns=_COLUMNS.get(builder) or rows.get("column_map"),
        )
        migration.rename("dataset._component_", "data.train", [found])
    if longest := _section(migration, "tokenizer").get("max_seq_len"):
        migration.rename("tokenizer.max_seq_len", "data.max_length", longest)
    if migration.method != "sft":
        return
    everything = rows.get("train_on_input", builder.startswith("alpaca"))
    migration.rename("dataset.train_on_input", "sft.loss_on", "all" if everything else "auto")
    migration.rename("dataset.packed", "sft.packing", bool(rows.get("packed")))


def _optimizer(migration: Migration) -> None:
    given, name = _section(migration, "optimizer"), _component(migration.old, "optimizer")
    optimizer = _OPTIMIZERS.get(name)
    if optimizer == "adamw_torch" and given.get("fused"):
        optimizer = "adamw_torch_fused"
    if optimizer:
        migration.rename("optimizer._component_", "trainer.optim", optimizer)
    elif name:
        migration.lose("optimizer._component_", "not among `trainer.optim`", name)
    for there, here in (("lr", "learning_rate"), ("weight_decay", "weight_decay")):
        if given.get(there) is not None:
            migration.rename(f"optimizer.{there}", f"trainer.{here}", given[there])
    for key, field in zip(given.get("betas") or [], ("adam_beta1", "adam_beta2"), strict=False):
        migration.rename("optimizer.betas", f"trainer.{field}", key)
    if given.get("eps") is not None:
        migration.rename("optimizer.eps", "trainer.adam_epsilon", given["eps"])
    schedule = _section(migration, "lr_scheduler")
    if schedule:
        migration.rename("lr_scheduler._component_", "trainer.lr_scheduler_type", "cosine")
        warmup = schedule.get("num_warmup_steps", 0)
        migration.rename("lr_scheduler.num_warmup_steps", "trainer.warmup_steps", warmup)
    else:
        text = "without a schedule the rate stays; ours falls"
        migration.fill("trainer.lr_scheduler_type", "constant", text)
    loss = _section(migration, "loss")
    for key in ("beta", "label_smoothing"):
        if migration.method == "dpo" and loss.get(key):
            migration.rename(f"loss.{key}", f"dpo.{key}", loss[key])
