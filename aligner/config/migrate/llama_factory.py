"""Recipes of LLaMA-Factory: `stage` says what is done, the rest are its names over transformers'
trainer.

Names of its datasets stand in a `dataset_info.json` that a recipe does not hold, so they are
written as they are, for you to point at files.
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
from aligner.config.migrate.rows import hold_out, source
from aligner.errors import RecipeError

TOOL = "llama-factory"

_STAGES = {"sft": "sft", "pt": "sft", "dpo": "dpo", "rm": "reward"}
_LOSSES = {"orpo": "orpo", "simpo": "simpo"}
_TEMPLATES = ("default", "empty")


def kind(old: dict[str, Any]) -> str:
    """Return what a recipe is for: `stage` says it, and `pref_loss` for pairs.

    Raises: RecipeError for a stage without a counterpart.
    """
    stage = old.get("stage", "sft")
    if stage not in _STAGES:
        hint = "ppo: `aligner rlhf` with rlhf.algorithm=ppo" if stage == "ppo" else ""
        raise RecipeError(f"`stage: {stage}` has no counterpart here", hint)
    return _LOSSES.get(old.get("pref_loss", ""), "dpo") if stage == "dpo" else _STAGES[stage]


def _finetuning(migration: Migration, key: str, value: Any) -> None:
    if value == "freeze":
        migration.lose(key, "layers cannot be frozen; use lora or full")
    elif value in ("oft", "ia3"):
        migration.lose(key, "use lora or full")


def _template(migration: Migration, key: str, value: Any) -> None:
    if value is not None and value not in _TEMPLATES:
        text = (
            "templates of LLaMA-Factory differ from the models' own; here the tokenizer's own is "
            "used, set `model.chat_template` for another"
        )
        migration.notes.append(migration.said("changed", key, "model.chat_template", text))


def _bits(migration: Migration, key: str, value: Any) -> None:
    kinds = {4: migration.old.get("quantization_type") or "nf4", 8: "int8"}
    if value in kinds:
        migration.rename(key, "model.quantization", kinds[value])
    elif value is not None:
        migration.lose(key, "4 or 8 bits")


def _deepspeed(migration: Migration, key: str, value: Any) -> None:
    if value:
        strategy, text = common.strategy_of(str(value))
        migration.change(key, "launch.strategy", strategy, text)


def _flash(migration: Migration, key: str, value: Any) -> None:
    names = {"fa2": "flash_attention_2", "sdpa": "sdpa", "disabled": "eager"}
    if value in names:
        migration.rename(key, "model.attn_implementation", names[value])
    elif value not in (None, "auto"):
        migration.lose(key, "use sdpa or flash_attention_2")


TABLE: Table = {
    "stage": apart,
    "do_train": Needless("the command says what is done"),
    "do_eval": Needless("`data.eval` says it"),
    "do_predict": off_or_lost("use aligner generate"),
    "model_name_or_path": "model.name_or_path",
    "model_revision": "model.revision",
    "trust_remote_code": "model.trust_remote_code",
    "adapter_name_or_path": Lost("name the adapter's folder as the model"),
    "quantization_bit": _bits,
    "quantization_type": apart,
    "quantization_method": only("bitsandbytes", Lost("bitsandbytes alone quantizes here"), ""),
    "double_quantization": "model.double_quant",
    "flash_attn": _flash,
    "finetuning_type": _finetuning,
    "lora_rank": apart,
    "lora_alpha": apart,
    "lora_dropout": apart,
    "lora_target": apart,
    "additional_target": apart,
    "use_rslora": apart,
    "use_dora": apart,
    "loraplus_lr_ratio": Lost("both matrices of an adapter have one learning rate"),
    "pissa_init": apart,
    "use_galore": off_or_lost("write `trainer.optim: galore_adamw` with its targets"),
    "use_badam": off_or_lost("not among the optimizers"),
    "pure_bf16": off_or_lost("write `model.dtype: bfloat16`"),
    "pref_beta": "dpo.beta",
    "pref_loss": apart,
    "pref_ftx": "dpo.nll_weight",
    "dpo_label_smoothing": "dpo.label_smoothing",
    "simpo_gamma": "dpo.simpo_gamma",
    "ref_model": "dpo.reference_model",
    "dataset": apart,
    "eval_dataset": apart,
    "dataset_dir": apart,
    "template": _template,
    "enable_thinking": Lost("thinking follows the rows and the chat template"),
    "cutoff_len": "data.max_length",
    "max_samples": apart,
    "overwrite_cache": Needless("rows that changed become tokens again"),
    "preprocessing_num_workers": Needless("rows become tokens once, in one process"),
    "dataloader_num_workers": "trainer.dataloader_num_workers",
    "tokenized_path": Needless("rows are kept as tokens in the cache"),
    "streaming": off_or_lost("rows are read once, and kept as tokens"),
    "mix_strategy": only("concat", Lost("`weight` of each source says how often it is seen"), ""),
    "packing": apart,
    "neat_packing": apart,
    "train_on_prompt": apart,
    "mask_history": apart,
    "val_size": apart,
    "output_dir": "output_dir",
    "overwrite_output_dir": Needless("`--overwrite` says it at the command"),
    "plot_loss": Needless("curves are in the report"),
    "save_only_model": "trainer.save_only_model",
    "resume_from_checkpoint": Needless("`--resume` says it at the command"),
    "warmup_ratio": common.warmup_ratio,
    "evaluation_strategy": "trainer.eval_strategy",
    "deepspeed": _deepspeed,
    "enable_liger_kernel": "trainer.use_liger_kernel",
    "seed": "seed",
}
"""Keys of LLaMA-Factory; what is not here may be a field of the trainer."""


DEFAULTS = {"learning_rate": 5e-5, "num_train_epochs": 3.0}
"""Defaults of transformers, which it keeps."""


def place(migration: Migration) -> None:
    """Place every key, and the defaults that are not ours."""
    move(migration, TABLE)
    old = migration.old
    _data(migration)
    if old.get("finetuning_type", "lora") == "lora":
        _adapters(migration)
    if migration.method == "sft":
        _sft(migration)
    if migration.method == "dpo" and old.get("pref_loss") not in (None, "sigmoid", *_LOSSES):
        migration.rename("pref_loss", "dpo.loss", old["pref_loss"])
    common.fill_trainer(migration, "LLaMA-Factory", DEFAULTS)
    migration.fill("data.max_length", 2048, "the default of both, written out")
    common.cut_long_rows(migration, "LLaMA-Factory")
    common.fill_quantization(migration, True, "LLaMA-Factory")
    common.settle_evaluation(migration)


def _data(migration: Migration) -> None:
    old = migration.old
    for key, place_of in (("dataset", "data.train"), ("eval_dataset", "data.eval")):
        names = old.get(key)
        names = names.split(",") if isinstance(names, str) else names
        if names:
            rows = old.get("max_samples")
            sources = [source(str(name).strip(), max_rows=rows) for name in names]
            text = "names of dataset_info.json: write the file or the hub id of each"
            migration.change(key, place_of, sources, text)
    if old.get("max_samples"):
        text = "there the first rows of each source, here so many at random; drop it for all rows"
        migration.notes.append(migration.said("changed", "max_samples", "max_rows", text))
    hold_out(migration, "val_size", old.get("val_size"))


def _adapters(migration: Migration) -> None:
    old = migration.old
    rank = old.get("lora_rank") or 8
    migration.put("model.lora", {})
    migration.rename("lora_rank", "model.lora.r", rank)
    alpha = old.get("lora_alpha") or 2 * rank
    migration.rename("lora_alpha", "model.lora.lora_alpha", alpha)
    target = old.get("lora_target") or "all"
    names = target.split(",") if isinstance(target, str) else target
    targets = "all-linear" if target == "all" else [name.strip() for name in names]
    migration.rename("lora_target", "model.lora.target_modules", targets)
    for there, here in (
        ("lora_dropout", "lora_dropout"),
        ("use_rslora", "use_rslora"),
        ("use_dora", "use_dora"),
    ):
        if old.get(there) is not None:
            migration.rename(there, f"model.lora.{here}", old[there])
    if old.get("additional_target"):
        saved = [name.strip() for name in str(old["additional_target"]).split(",")]
        migration.rename("additional_target", "model.lora.modules_to_save", saved)
    if old.get("pissa_init"):
        migration.rename("pissa_init", "model.lora.init_lora_weights", "pissa")


def _sft(migration: Migration) -> None:
    old = migration.old
    if old.get("stage") == "pt":
        migration.fill("sft.loss_on", "all", "`stage: pt` trains plain text")
    elif old.get("train_on_prompt"):
        migration.rename("train_on_prompt", "sft.loss_on", "all")
    elif old.get("mask_history"):
        migration.rename("mask_history", "sft.loss_on", "last_assistant")
    if old.get("neat_packing") or old.get("stage") == "pt":
        migration.rename("neat_packing", "sft.packing", True)
    elif old.get("packing"):
        text = "there packed rows see each other; here they do not"
        migration.change("packing", "sft.packing", True, text)
    else:
        migration.fill("sft.packing", False, "off by default there; ours is auto")
