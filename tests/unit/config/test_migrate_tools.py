"""Recipes of Axolotl, LLaMA-Factory and torchtune become ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from aligner.config.load import load_recipe
from aligner.config.migrate.migrate import Migrated, migrate
from aligner.errors import RecipeError


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def made(folder: Path, values: dict[str, Any], **more: Any) -> Migrated:
    """Write the old recipe, migrate it, and load what came of it."""
    old = folder / "old.yaml"
    old.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
    output = folder / "ours.yaml"
    result = migrate(old, output=output, **more)
    output.write_text(result.text, "utf-8")
    assert load_recipe(result.method, output).recipe.method == result.method
    return result


AXOLOTL: dict[str, Any] = {
    "base_model": "base",
    "model_type": "AutoModelForCausalLM",
    "load_in_8bit": False,
    "load_in_4bit": True,
    "strict": False,
    "datasets": [{"path": "talks", "type": "chat_template", "field_messages": "conversations"}],
    "dataset_prepared_path": None,
    "val_set_size": 0.05,
    "output_dir": "./outputs/qlora",
    "adapter": "qlora",
    "lora_model_dir": None,
    "sequence_len": 4096,
    "sample_packing": True,
    "pad_to_sequence_len": True,
    "lora_r": 32,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_target_linear": True,
    "wandb_project": None,
    "gradient_accumulation_steps": 4,
    "micro_batch_size": 2,
    "num_epochs": 4,
    "optimizer": "paged_adamw_32bit",
    "lr_scheduler": "cosine",
    "learning_rate": 0.0002,
    "bf16": "auto",
    "tf32": False,
    "gradient_checkpointing": True,
    "flash_attention": True,
    "warmup_steps": 10,
    "evals_per_epoch": 4,
    "saves_per_epoch": 1,
    "weight_decay": 0.0,
    "special_tokens": {"pad_token": "<pad>"},
}


def test_a_recipe_of_axolotl(tmp_path: Path) -> None:
    result = made(tmp_path, AXOLOTL)
    values = result.values
    assert (result.tool, result.method) == ("axolotl", "sft")
    assert values["data"]["train"] == [{"path": "talks", "columns": {"messages": "conversations"}}]
    assert (values["data"]["eval"], values["data"]["max_length"]) == (0.05, 4096)
    assert values["data"]["on_too_long"] == "drop"
    assert values["model"]["quantization"] == "nf4"
    assert values["model"]["lora"] == {
        "r": 32,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": "all-linear",
    }
    assert values["sft"] == {"loss_on": "assistant", "packing": True}
    trainer = values["trainer"]
    assert trainer["per_device_train_batch_size"] == 2
    assert (trainer["eval_steps"], trainer["save_steps"]) == (0.0625, 0.25)
    assert trainer["num_train_epochs"] == 4


def test_pairs_and_what_is_lost_of_axolotl(tmp_path: Path) -> None:
    pairs = {**AXOLOTL, "rl": "dpo", "rl_beta": 0.2, "sample_packing": False}
    pairs["datasets"] = [{"path": "pairs", "type": "chat_template.default", "split": "train"}]
    result = made(tmp_path, pairs)
    assert (result.method, result.values["dpo"]) == ("dpo", {"beta": 0.2})
    assert made(tmp_path, {**pairs, "rl": "orpo"}).values["dpo"]["loss"] == "orpo"
    simpo = {**pairs, "rl": "simpo", "simpo_gamma": 1.0}
    result = made(tmp_path, {**simpo, "cpo_alpha": 0})
    assert result.values["dpo"] == {"simpo_gamma": 1.0, "beta": 0.2, "loss": "simpo"}
    assert made(tmp_path, simpo).values["dpo"]["nll_weight"] == 1.0  # as CPO has it
    with pytest.raises(RecipeError, match="relora_steps"):
        made(tmp_path, {**AXOLOTL, "relora_steps": 100})
    assert "relora_steps: 100" in made(tmp_path, {**AXOLOTL, "relora_steps": 100}, lossy=True).text
    with pytest.raises(RecipeError, match="`rl: kto` has no counterpart"):
        made(tmp_path, {**AXOLOTL, "rl": "kto"})


LLAMA_FACTORY: dict[str, Any] = {
    "model_name_or_path": "base",
    "quantization_bit": 4,
    "stage": "dpo",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "all",
    "pref_beta": 0.1,
    "pref_loss": "sigmoid",
    "dataset": "one, two",
    "template": "llama3",
    "cutoff_len": 2048,
    "max_samples": 1000,
    "overwrite_cache": True,
    "preprocessing_num_workers": 16,
    "output_dir": "saves/dpo",
    "logging_steps": 10,
    "plot_loss": True,
    "overwrite_output_dir": True,
    "per_device_train_batch_size": 1,
    "learning_rate": 5e-6,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "bf16": True,
    "ddp_timeout": 180000000,
    "val_size": 0.1,
    "eval_strategy": "steps",
    "eval_steps": 500,
}


def test_a_recipe_of_llama_factory(tmp_path: Path) -> None:
    result = made(tmp_path, LLAMA_FACTORY)
    values = result.values
    assert (result.tool, result.method) == ("llama-factory", "dpo")
    assert values["data"]["train"] == [
        {"path": "one", "max_rows": 1000},
        {"path": "two", "max_rows": 1000},
    ]
    assert values["data"]["eval"] == 0.1
    assert values["model"]["lora"] == {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": "all-linear",
    }
    assert values["dpo"] == {"beta": 0.1}
    assert values["trainer"]["learning_rate"] == LLAMA_FACTORY.get("learning_rate", 5e-5)
    assert values["trainer"]["warmup_steps"] == 0.1
    changed = [note.old for note in result.notes if note.kind == "changed"]
    assert any(old.startswith("max_samples") for old in changed)
    assert any(old.startswith("template") for old in changed)


def test_the_stages_of_llama_factory(tmp_path: Path) -> None:
    assert made(tmp_path, {**LLAMA_FACTORY, "pref_loss": "simpo"}).values["dpo"]["loss"] == "simpo"
    result = made(tmp_path, {**LLAMA_FACTORY, "pref_loss": "orpo"})
    assert result.values["dpo"]["loss"] == "orpo"
    assert "counts the prompt's tokens" not in result.text  # it trains answers alone, as we do
    start = {key: value for key, value in LLAMA_FACTORY.items() if "pref" not in key}
    assert made(tmp_path, {**start, "stage": "rm"}).method == "reward"
    plain = made(
        tmp_path, {**start, "stage": "pt", "finetuning_type": "full", "quantization_bit": None}
    )
    assert plain.values["sft"] == {"loss_on": "all", "packing": True}
    assert "lora" not in plain.values["model"]
    packed = made(tmp_path, {**start, "stage": "sft", "packing": True})
    assert packed.values["sft"] == {"packing": True}
    with pytest.raises(RecipeError, match="`stage: kto` has no counterpart"):
        made(tmp_path, {**start, "stage": "kto"})


TORCHTUNE: dict[str, Any] = {
    "output_dir": "out",
    "model": {
        "_component_": "torchtune.models.llama3_2.lora_llama3_2_1b",
        "lora_attn_modules": ["q_proj", "v_proj", "output_proj"],
        "apply_lora_to_mlp": True,
        "lora_rank": 64,
        "lora_alpha": 128,
        "lora_dropout": 0.0,
    },
    "tokenizer": {"_component_": "torchtune.tokenizer", "path": "t", "max_seq_len": 512},
    "checkpointer": {"_component_": "c", "checkpoint_dir": "base", "checkpoint_files": ["a"]},
    "resume_from_checkpoint": False,
    "dataset": {"_component_": "torchtune.datasets.alpaca_cleaned_dataset", "packed": False},
    "seed": None,
    "shuffle": True,
    "batch_size": 4,
    "optimizer": {"_component_": "torch.optim.AdamW", "fused": True, "lr": 3e-4},
    "lr_scheduler": {"_component_": "get_cosine_schedule_with_warmup", "num_warmup_steps": 100},
    "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
    "epochs": 2,
    "max_steps_per_epoch": 50,
    "gradient_accumulation_steps": 8,
    "compile": False,
    "metric_logger": {"_component_": "disk", "log_dir": "${output_dir}/logs"},
    "log_every_n_steps": 1,
    "device": "cuda",
    "dtype": "bf16",
    "enable_activation_checkpointing": True,
    "enable_activation_offloading": False,
}


def test_a_recipe_of_torchtune(tmp_path: Path) -> None:
    result = made(tmp_path, TORCHTUNE)
    values = result.values
    assert (result.tool, result.method) == ("torchtune", "sft")
    assert values["model"]["name_or_path"] == "base"
    assert values["model"]["dtype"] == "bfloat16"
    assert values["model"]["lora"]["target_modules"] == [
        "q_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    assert values["data"]["train"] == [{"path": "yahma/alpaca-cleaned"}]
    assert values["data"]["max_length"] == 512
    assert values["sft"] == {"loss_on": "all", "packing": False}
    trainer = values["trainer"]
    assert (trainer["max_steps"], trainer["warmup_steps"]) == (100, 100)
    assert (trainer["optim"], trainer["learning_rate"]) == ("adamw_torch_fused", 3e-4)


def test_pairs_and_what_is_lost_of_torchtune(tmp_path: Path) -> None:
    loss = {"_component_": "torchtune.rlhf.loss.DPOLoss", "beta": 0.2}
    rows = {"_component_": "torchtune.datasets.stack_exchange_paired_dataset"}
    result = made(tmp_path, {**TORCHTUNE, "loss": loss, "dataset": rows})
    assert (result.method, result.values["dpo"]) == ("dpo", {"beta": 0.2})
    odd = {**TORCHTUNE, "optimizer": {**TORCHTUNE["optimizer"], "foreach": True}}
    with pytest.raises(RecipeError) as caught:
        made(tmp_path, odd)
    assert [problem.key for problem in caught.value.problems] == ["optimizer.foreach"]
    constant = {key: value for key, value in TORCHTUNE.items() if key != "lr_scheduler"}
    assert made(tmp_path, constant).values["trainer"]["lr_scheduler_type"] == "constant"
