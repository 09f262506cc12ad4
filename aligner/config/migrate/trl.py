"""Recipes of TRL's command line and of alignment-handbook, which have one vocabulary: flat keys,
and the trainer's own names.

They differ in how they name data: `dataset_name`, `datasets` with fractions (TRL),
`dataset_mixture` and the older `dataset_mixer` (alignment-handbook).
"""

from __future__ import annotations

from typing import Any

from aligner.config.flag_table import ACCELERATE_CONFIGS
from aligner.config.loss_names import OTHER_LOSS_NAMES
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
from aligner.config.migrate.trl_data import place_data
from aligner.methods.catalogue import trainer_settings


def _packing_strategy(migration: Migration, key: str, value: Any) -> None:
    if value == "ffd":
        text = "the same under its right name, best-fit decreasing"
        migration.change(key, "trainer.packing_strategy", "bfd", text)
    elif value == "wrapped":
        text = "`wrapped` cut rows, and let them see each other; bfd keeps them whole and apart"
        migration.change(key, "trainer.packing_strategy", "bfd", text)
    elif value is not None:
        migration.rename(key, "trainer.packing_strategy", value)


def _dropout(migration: Migration, key: str, value: Any) -> None:
    """Pairs are compared without the model's own dropout; reward models have the key."""
    if key in trainer_settings(migration.method):
        migration.rename(key, f"trainer.{key}", value)
    elif value or migration.method not in ("dpo", "rlhf"):
        migration.needless(key, "the model's own dropout is off where responses are compared")
    else:
        migration.lose(key, "the model's own dropout is off where responses are compared")


def _flash(migration: Migration, key: str, value: Any) -> None:
    if value:
        migration.rename(key, "model.attn_implementation", "flash_attention_2")


def _tokenizer(migration: Migration, key: str, value: Any) -> None:
    if value == migration.old.get("model_name_or_path"):
        migration.needless(key, "the tokenizer comes with the model")
    elif value is not None:
        text = (
            "the tokenizer comes with the model: put its files into the model's folder, or set "
            "`model.eos_token` and `model.new_tokens`"
        )
        migration.lose(key, text)


def _strategy(migration: Migration, key: str, value: Any) -> None:
    migration.rename(key, "launch.strategy", ACCELERATE_CONFIGS.get(value, value))


SHARED: Table = {
    "model_name_or_path": "model.name_or_path",
    "model_revision": "model.revision",
    "torch_dtype": common.dtype,
    "dtype": common.dtype,
    "attn_implementation": "model.attn_implementation",
    "use_flash_attention_2": _flash,
    "tokenizer_name_or_path": _tokenizer,
    "trust_remote_code": "model.trust_remote_code",
    "chat_template": common.chat_template,
    "chat_template_path": "model.chat_template",
    "eos_token": "model.eos_token",
    "pad_token": "model.pad_token",
    "use_peft": apart,
    "lora_r": apart,
    "lora_alpha": apart,
    "lora_dropout": apart,
    "lora_target_modules": apart,
    "lora_target_parameters": apart,
    "lora_modules_to_save": apart,
    "use_rslora": apart,
    "use_dora": apart,
    "lora_task_type": Needless("the method says it"),
    "load_in_4bit": common.four_bits,
    "load_in_8bit": common.eight_bits,
    "bnb_4bit_quant_type": apart,
    "use_bnb_nested_quant": "model.double_quant",
    "dataset_name": apart,
    "dataset_config": apart,
    "dataset_train_split": apart,
    "dataset_test_split": apart,
    "dataset_mixture": apart,
    "dataset_mixer": apart,
    "dataset_splits": apart,
    "dataset_configs": apart,
    "datasets": apart,
    "test_split_size": apart,
    "do_eval": apart,
    "do_train": Needless("the command says what is done"),
    "dataset_num_proc": Needless("rows become tokens once, in one process"),
    "preprocessing_num_workers": Needless("rows become tokens once, in one process"),
    "dataset_kwargs": Needless("the chat template alone says which special tokens a row has"),
    "dataset_text_field": apart,
    "text_column": apart,
    "auto_insert_empty_system_msg": off_or_lost("rows get no turns that they do not have"),
    "dataset_streaming": off_or_lost("rows are read once, and kept as tokens"),
    "remove_unused_columns": Needless("the trainer gets exactly the columns that it reads"),
    "max_length": "data.max_length",
    "max_seq_length": "data.max_length",
    "max_prompt_length": common.max_prompt_length,
    "truncation_mode": only("keep_start", Lost("rows are cut at their end"), ""),
    "output_dir": "output_dir",
    "overwrite_output_dir": Needless("`--overwrite` says it at the command"),
    "resume_from_checkpoint": only(False, Needless(""), "`--resume` says it at the command"),
    "seed": "seed",
    "data_seed": Needless("the order of rows follows `seed`"),
    "shuffle_dataset": Needless("rows are always drawn in a random order"),
    "warmup_ratio": common.warmup_ratio,
    "evaluation_strategy": "trainer.eval_strategy",
    "hub_model_revision": "trainer.hub_revision",
    "logging_dir": Needless("metrics are in the run directory"),
    "group_by_length": apart,
    "use_liger": "trainer.use_liger_kernel",
    "save_safetensors": Needless("weights are always saved as safetensors"),
    "disable_tqdm": Needless("progress is shown in a terminal only"),
    "padding_free": Needless("packed sequences carry no padding, and pairs are packed by prompt"),
    "disable_dropout": _dropout,
    "use_logits_to_keep": Needless("only the logits that are needed are computed"),
    "num_processes": "launch.num_processes",
    "num_machines": "launch.num_machines",
    "machine_rank": "launch.machine_rank",
    "main_process_ip": "launch.main_process_ip",
    "main_process_port": "launch.main_process_port",
    "mixed_precision": "launch.mixed_precision",
    "accelerate_config": _strategy,
    "env": Lost("variables of the environment are set where the command is run"),
}
"""What TRL and alignment-handbook say for every method."""

_SFT: Table = {
    "packing": "sft.packing",
    "packing_strategy": _packing_strategy,
    "eval_packing": Needless("held-out rows are never packed"),
    "assistant_only_loss": apart,
    "completion_only_loss": apart,
}

_DPO: Table = {
    "beta": "dpo.beta",
    "loss_type": apart,
    "loss_weights": apart,
    "label_smoothing": "dpo.label_smoothing",
    "discopop_tau": apart,
    "simpo_gamma": "dpo.simpo_gamma",
    "cpo_alpha": apart,
    "rpo_alpha": "dpo.nll_weight",
    "precompute_ref_log_probs": apart,
    "ref_model_name_or_path": "dpo.reference_model",
    "sync_ref_model": off_or_lost("the reference does not move; `aligner sapo` has one that does"),
    "reference_free": off_or_lost("there is always a reference, but for orpo and simpo"),
    "max_completion_length": Lost(
        "answers are not cut by themselves; `data.max_length` counts all"
    ),
}

_REWARD: Table = {"center_rewards_coefficient": "reward.center_rewards_coefficient"}

_TOO_LONG = {
    "dpo": (
        "truncate",
        "cuts longer pairs silently, at the end that its version chooses (`truncation_mode`); here "
        "answers lose their end, and each one is counted in data.json",
    ),
    "reward": ("drop", "leaves longer pairs out silently; here each one is counted in data.json"),
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "sft": {"learning_rate": 2e-5},
    "dpo": {"learning_rate": 1e-6},
    "reward": {"learning_rate": 1e-4, "num_train_epochs": 3.0},
    "rlhf": {"learning_rate": 1e-6},
}
"""Defaults of TRL that decide the result, and that a method may have others of."""

OF_METHOD: dict[str, Table] = {"sft": _SFT, "dpo": _DPO, "reward": _REWARD, "rlhf": grpo.TABLE}
"""What they say for one method alone."""


def table(migration: Migration) -> Table:
    """Return the table of keys of a method."""
    return {**SHARED, **OF_METHOD[migration.method]}


def place(migration: Migration, tool: str) -> None:
    """Place every key, what several say together, and the defaults that are not ours."""
    move(migration, table(migration))
    place_data(migration, tool)
    _adapters(migration)
    common.fill_quantization(migration, False, tool)
    _FINISH[migration.method](migration)
    if migration.method != "rlhf":
        migration.fill("data.max_length", 1024, f"the default of {tool}; ours is 2048")
        common.cut_long_rows(migration, tool, *_TOO_LONG.get(migration.method, ()))
    common.fill_trainer(migration, "TRL", DEFAULTS[migration.method])
    if migration.old.get("group_by_length"):
        key = "trainer.train_sampling_strategy"
        migration.rename("group_by_length", key, "group_by_length")


def _adapters(migration: Migration) -> None:
    old = migration.old
    if not old.get("use_peft"):
        for key in [key for key in old if key.startswith("lora_") and old[key] is not None]:
            migration.needless(key, "`use_peft` is off, so there are no adapters")
        return
    migration.put("model.lora", {})
    for there, here in (
        ("lora_r", "r"),
        ("lora_alpha", "lora_alpha"),
        ("lora_dropout", "lora_dropout"),
        ("lora_target_modules", "target_modules"),
        ("lora_target_parameters", "target_parameters"),
        ("lora_modules_to_save", "modules_to_save"),
        ("use_rslora", "use_rslora"),
        ("use_dora", "use_dora"),
    ):
        if old.get(there) is not None:
            migration.rename(there, f"model.lora.{here}", old[there])
    migration.fill("model.lora.lora_dropout", 0.05, "the default of TRL; ours is 0")
    text = "left to PEFT there, which mostly takes these; ours is all-linear"
    migration.fill("model.lora.target_modules", ["q_proj", "v_proj"], text)


def _finish_sft(migration: Migration) -> None:
    old = migration.old
    if old.get("assistant_only_loss"):
        migration.rename("assistant_only_loss", "sft.loss_on", "assistant")
    elif old.get("completion_only_loss"):
        migration.rename("completion_only_loss", "sft.loss_on", "completion")
    else:
        text = (
            "there every token of a conversation or text is trained; ours, auto, trains answers. "
            "Rows of `prompt` and `completion` train the completion there: set auto for them"
        )
        migration.fill("sft.loss_on", "all", text)
    if old.get("dataset_mixer"):
        text = "scripts of the time of `dataset_mixer` always packed, and cut rows for it"
        migration.fill("sft.packing", True, f"{text}; here they stay whole")
    migration.fill("sft.packing", False, "off by default there; ours is auto")
    if not migration.get("sft.packing"):
        migration.drop("trainer.packing_strategy")


def _finish_dpo(migration: Migration) -> None:
    old = migration.old
    loss = old.get("loss_type")
    if migration.objective == "simpo":
        _finish_simpo(migration, loss)
    elif loss is not None:
        names = [OTHER_LOSS_NAMES.get(name, name) for name in _listed(loss)]
        weights = old.get("loss_weights") or [1.0] * len(names)
        several = dict(zip(names, weights, strict=False))
        migration.rename("loss_type", "dpo.loss", several if len(names) > 1 else names[0])
    if old.get("discopop_tau") is not None and migration.get("dpo.loss") == "discopop":
        migration.rename("discopop_tau", "dpo.tau", old["discopop_tau"])
    if old.get("precompute_ref_log_probs"):
        migration.rename("precompute_ref_log_probs", "dpo.reference", "precomputed")


def _finish_simpo(migration: Migration, loss: Any) -> None:
    """SimPO is a loss of CPO there."""
    if loss not in (None, "simpo"):
        migration.lose("loss_type", "of CPO's losses, simpo alone is here")
    common.cpo_alpha(migration)


def _listed(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _finish_reward(migration: Migration) -> None:
    """Pairs are compared as TRL compares them; there is nothing to fill in."""


_FINISH = {
    "sft": _finish_sft,
    "dpo": _finish_dpo,
    "reward": _finish_reward,
    "rlhf": grpo.finish,
}
