"""Recipes of Axolotl: its own names over transformers' trainer.

Keys that are written without a value say nothing there, and say nothing here.
"""

from __future__ import annotations

from typing import Any

from aligner.config.migrate import common, grpo
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
from aligner.config.migrate.rows import hold_out, source
from aligner.errors import RecipeError

TOOL = "axolotl"

_KINDS = {None: "sft", "dpo": "dpo", "orpo": "orpo", "simpo": "simpo", "ipo": "dpo"}

_FORMATS = {
    "alpaca": "alpaca",
    "chat_template": "auto",
    "chat_template.default": "auto",
    "completion": "text",
    "sharegpt": "sharegpt",
}
"""`type` of a dataset -> `format` of a source."""

_NO_FORMAT = "bring such rows into form by a function: `function: file.py:name`"


def kind(old: dict[str, Any]) -> str:
    """Return what a recipe is for: `rl` says it.

    Raises: RecipeError for an `rl` without a counterpart.
    """
    found = old.get("rl")
    if old.get("reward_model"):
        return "reward"
    if found in ("grpo", "gdpo"):
        return "rlhf"
    if found not in _KINDS:
        raise RecipeError(f"`rl: {found}` has no counterpart here", "aligner dpo trains on pairs")
    return _KINDS[found]


def _automatic(migration: Migration, key: str, value: Any) -> None:
    """`bf16: auto` follows the device, as leaving it out does here."""
    if value == "auto":
        migration.needless(key, "follows the device, as it does where it is left out")
    elif value is not None:
        migration.rename(key, f"trainer.{key}", value)


def _flash(migration: Migration, key: str, value: Any) -> None:
    if value in (True, "flash"):
        migration.rename(key, "model.attn_implementation", "flash_attention_2")
    elif isinstance(value, str):
        migration.rename(key, "model.attn_implementation", value)


def _sdpa(migration: Migration, key: str, value: Any) -> None:
    if value:
        migration.rename(key, "model.attn_implementation", "sdpa")


def _template(migration: Migration, key: str, value: Any) -> None:
    if value not in (None, "tokenizer_default", "jinja"):
        text = "there a template of Axolotl; here one of that name of TRL, or a file"
        migration.change(key, "model.chat_template", value, text)


def _per_epoch(migration: Migration, key: str, value: Any) -> None:
    """So many evaluations or checkpoints an epoch are a share of all steps."""
    if not value:
        return
    epochs = float(migration.old.get("num_epochs") or 1)
    share = round(1 / (float(value) * epochs), 6)
    what = "eval" if key.startswith("eval") else "save"
    if what == "eval" and not migration.old.get("val_set_size"):
        migration.needless(key, "no rows are held out")
    elif share >= 1:
        migration.needless(key, "once, at the end")
    else:
        text = f"{value:g} an epoch over {epochs:g} epochs, as a share of all steps"
        migration.change(key, f"trainer.{what}_steps", share, text)
        migration.put(f"trainer.{what}_strategy", "steps")


def _special_tokens(migration: Migration, key: str, value: Any) -> None:
    for name, token in (value or {}).items():
        if name in ("eos_token", "pad_token"):
            migration.rename(key, f"model.{name}", token)
        else:
            migration.lose(f"{key}.{name}", "only eos_token and pad_token are set", token)


def _tokens(migration: Migration, key: str, value: Any) -> None:
    if value:
        migration.rename(key, "model.new_tokens", value)


def _early(migration: Migration, key: str, value: Any) -> None:
    if value:
        migration.rename(key, "early_stopping.patience", value)


def _fsdp(migration: Migration, key: str, value: Any) -> None:
    if value:
        text = "FSDP2, with accelerate's own choices; a file of accelerate's may stand here"
        migration.change(key, "launch.strategy", "fsdp", text)


def _deepspeed(migration: Migration, key: str, value: Any) -> None:
    if value:
        strategy, text = common.strategy_of(str(value))
        migration.change(key, "launch.strategy", strategy, text)


def _liger(migration: Migration, key: str, value: Any) -> None:
    if value and migration.get("trainer.use_liger_kernel") is None:
        migration.rename(key, "trainer.use_liger_kernel", True)


def _plugins(migration: Migration, key: str, value: Any) -> None:
    others = [name for name in value or [] if not str(name).endswith("LigerPlugin")]
    if others:
        migration.lose(key, "plugins of Axolotl", others)
    elif value:
        migration.rename(key, "trainer.use_liger_kernel", True)


def _reports(migration: Migration, key: str, value: Any) -> None:
    if value:
        tracker = "wandb" if key.startswith("wandb") else "mlflow"
        migration.rename(key, "trainer.report_to", tracker)
        migration.needless(key, "the environment of the tracker names the project")


_TRACKER = Needless("the environment of the tracker says it")
_LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_linear")

TABLE: Table = {
    "base_model": "model.name_or_path",
    "base_model_config": Needless("the configuration comes with the model"),
    "model_type": Needless("the class follows from the model's configuration"),
    "tokenizer_type": Needless("the class follows from the tokenizer's files"),
    "is_llama_derived_model": Needless("the class follows from the model's configuration"),
    "revision_of_model": "model.revision",
    "bnb_config_kwargs": Lost("only the kind of the 4 bits is set, as nf4"),
    "trust_remote_code": "model.trust_remote_code",
    "load_in_8bit": apart,
    "load_in_4bit": apart,
    "strict": Needless("weights that do not fit are always an error"),
    "adapter": apart,
    **dict.fromkeys(_LORA, apart),
    "lora_modules_to_save": apart,
    "lora_model_dir": Lost("name the adapter's folder as the model"),
    "lora_fan_in_fan_out": Needless("PEFT sees it by the layer"),
    "peft_use_dora": apart,
    "peft_use_rslora": apart,
    "lora_mlp_kernel": Needless("a faster way to the same numbers"),
    "lora_qkv_kernel": Needless("a faster way to the same numbers"),
    "lora_o_kernel": Needless("a faster way to the same numbers"),
    "datasets": apart,
    "test_datasets": apart,
    "chat_template": _template,
    "rl": apart,
    "rl_beta": apart,
    "orpo_alpha": apart,
    "simpo_gamma": "dpo.simpo_gamma",
    "cpo_alpha": apart,
    "dataset_prepared_path": Needless("rows are kept as tokens in the cache"),
    "dataset_processes": Needless("rows become tokens once, in one process"),
    "dataset_exact_deduplication": "data.deduplicate",
    "shuffle_merged_datasets": Needless("rows are always drawn in a random order"),
    "val_set_size": apart,
    "output_dir": "output_dir",
    "sequence_len": "data.max_length",
    "sample_packing": apart,
    "eval_sample_packing": Needless("held-out rows are never packed"),
    "pad_to_sequence_len": Needless("batches are padded to their longest row"),
    "train_on_inputs": apart,
    "group_by_length": apart,
    "gradient_accumulation_steps": "trainer.gradient_accumulation_steps",
    "micro_batch_size": "trainer.per_device_train_batch_size",
    "eval_batch_size": "trainer.per_device_eval_batch_size",
    "num_epochs": "trainer.num_train_epochs",
    "optimizer": "trainer.optim",
    "lr_scheduler": "trainer.lr_scheduler_type",
    "warmup_ratio": common.warmup_ratio,
    "bf16": _automatic,
    "fp16": _automatic,
    "flash_attention": _flash,
    "attention": _flash,
    "attn_implementation": "model.attn_implementation",
    "sdp_attention": _sdpa,
    "xformers_attention": off_or_lost("use sdpa or flash_attention_2"),
    "early_stopping_patience": _early,
    "evals_per_epoch": _per_epoch,
    "saves_per_epoch": _per_epoch,
    "resume_from_checkpoint": Needless("`--resume` says it at the command"),
    "auto_resume_from_checkpoints": Needless("`--resume` says it at the command"),
    "eval_table_size": only(0, Needless(""), "answers before and after are in the report"),
    "eval_max_new_tokens": "report.max_new_tokens",
    "deepspeed": _deepspeed,
    "fsdp": _fsdp,
    "fsdp_config": Needless("accelerate's own choices, or a file of accelerate's"),
    "special_tokens": _special_tokens,
    "tokens": _tokens,
    "plugins": _plugins,
    "liger_rope": _liger,
    "liger_rms_norm": _liger,
    "liger_glu_activation": _liger,
    "liger_fused_linear_cross_entropy": _liger,
    "wandb_project": _reports,
    "mlflow_tracking_uri": _reports,
    "wandb_name": "trainer.run_name",
    "wandb_entity": _TRACKER,
    "wandb_watch": _TRACKER,
    "wandb_log_model": _TRACKER,
    "wandb_run_id": _TRACKER,
    "save_safetensors": Needless("weights are always saved as safetensors"),
    "local_rank": Needless("set by the launcher"),
    "debug": Needless("a switch of Axolotl's own logging"),
    "seed": "seed",
}
"""Keys of Axolotl; what is not here may be a field of the trainer."""


_GRPO: Table = {
    **grpo.TABLE,
    "trl": apart,
    "vllm": Needless("a setting of vLLM"),
    "rl_beta": "rlhf.beta",
}
"""Keys of Axolotl for reinforcement learning; those of `trl:` stand beside the others."""

DEFAULTS = {
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 1,
    "lr_scheduler_type": "cosine",
}
"""Defaults of Axolotl that decide the result."""


def place(migration: Migration) -> None:
    """Place every key, and the defaults that are not ours."""
    method = migration.method
    if method == "rlhf":
        migration.old |= migration.old.pop("trl", None) or {}
    move(migration, {**TABLE, **(_GRPO if method == "rlhf" else {})})
    _data(migration)
    _adapters(migration)
    common.fill_trainer(migration, "Axolotl", DEFAULTS)
    if method == "sft":
        loss_on = "all" if migration.old.get("train_on_inputs") else "assistant"
        migration.rename("train_on_inputs", "sft.loss_on", _loss_on(migration, loss_on))
        migration.rename("sample_packing", "sft.packing", bool(migration.old.get("sample_packing")))
    if method == "dpo":
        _pairs(migration)
    if method == "rlhf":
        grpo.finish(migration)
    if migration.old.get("group_by_length"):
        migration.rename("group_by_length", "trainer.train_sampling_strategy", "group_by_length")
    migration.fill("data.max_length", 512, "the default of Axolotl; ours is 2048")
    if method != "rlhf":
        migration.fill("data.on_too_long", "drop", "Axolotl leaves longer rows out")
    common.fill_quantization(migration, True, "Axolotl")
    common.settle_evaluation(migration)


def _loss_on(migration: Migration, loss_on: str) -> str:
    """Plain text and instructions have no turns: `auto` knows."""
    types = {item.get("type") for item in migration.old.get("datasets") or []}
    chats = {None, "chat_template", "chat_template.default", "sharegpt"}
    return loss_on if loss_on == "all" or types <= chats else "auto"


def _data(migration: Migration) -> None:
    old = migration.old
    train = [_source(migration, item) for item in old.get("datasets") or []]
    if train:
        migration.rename("datasets", "data.train", train)
    if old.get("test_datasets"):
        held_out = [_source(migration, item) for item in old["test_datasets"]]
        migration.rename("test_datasets", "data.eval", held_out)
    else:
        hold_out(migration, "val_set_size", old.get("val_set_size"))


def _source(migration: Migration, item: dict[str, Any]) -> dict[str, Any]:
    found = _FORMATS.get(item.get("type") or "auto", "")
    if item.get("type") is not None and not found:
        migration.lose("datasets.type", _NO_FORMAT, item["type"])
    columns = {}
    for there, here in (("field_messages", "messages"), ("field", "text")):
        if item.get(there) not in (None, here):
            columns[here] = item[there]
    for name in ("field_chosen", "field_rejected"):
        if item.get(name) not in (None, name.removeprefix("field_")):
            columns[name.removeprefix("field_")] = item[name]
    for key in ("shards", "roles_to_train", "train_on_eos", "message_field_training"):
        if item.get(key) is not None:
            migration.lose(f"datasets.{key}", "nothing of this name is known", item[key])
    if migration.method != "sft":
        found, columns = "auto", _of_pairs(columns, item)
    split = str(item.get("split") or "train")
    if "[" in split:
        migration.lose("datasets.split", "a slice; `max_rows` takes a number of rows", split)
        split = split.split("[", 1)[0]
    path = item.get("data_files") or item["path"]
    if isinstance(path, list):
        path = path[0] if len(path) == 1 else item["path"]
    return source(
        str(path),
        subset=item.get("name"),
        split=None if split == "train" else split,
        format=None if found in ("", "auto") else found,
        columns=columns or None,
    )


def _of_pairs(columns: dict[str, str], item: dict[str, Any]) -> dict[str, str]:
    """Pairs call the turns before the answers their prompt."""
    kept = {key: value for key, value in columns.items() if key in ("chosen", "rejected")}
    if (prompt := item.get("field_messages")) is not None:
        kept["prompt"] = prompt
    return kept


def _adapters(migration: Migration) -> None:
    old = migration.old
    adapter = old.get("adapter")
    if old.get("load_in_4bit") or adapter == "qlora":
        migration.rename("load_in_4bit", "model.quantization", "nf4")
    elif old.get("load_in_8bit"):
        migration.rename("load_in_8bit", "model.quantization", "int8")
    if not adapter:
        return
    migration.put("model.lora", {})
    for there, here in (
        ("lora_r", "r"),
        ("lora_alpha", "lora_alpha"),
        ("lora_dropout", "lora_dropout"),
        ("lora_target_modules", "target_modules"),
        ("lora_modules_to_save", "modules_to_save"),
        ("peft_use_dora", "use_dora"),
        ("peft_use_rslora", "use_rslora"),
    ):
        if old.get(there) is not None:
            migration.rename(there, f"model.lora.{here}", old[there])
    if old.get("lora_target_linear"):
        migration.rename("lora_target_linear", "model.lora.target_modules", "all-linear")


def _pairs(migration: Migration) -> None:
    old = migration.old
    if old.get("rl") == "simpo":
        common.cpo_alpha(migration)
    if old.get("rl") == "ipo":
        migration.rename("rl", "dpo.loss", "ipo")
    for key in ("rl_beta", "orpo_alpha"):
        if old.get(key) is not None:
            migration.rename(key, "dpo.beta", old[key])
