"""Recipes of other tools become ours: what is renamed, what changes, what is lost, and the result
can be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from aligner.config.load import load_recipe
from aligner.config.migrate.migrate import Migrated, migrate
from aligner.errors import RecipeError, UsageError


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def made(folder: Path, name: str, values: dict[str, Any], **more: Any) -> Migrated:
    """Write the old recipe, migrate it, and load what came of it."""
    old = folder / name
    old.parent.mkdir(parents=True, exist_ok=True)
    old.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
    output = folder / "ours.yaml"
    result = migrate(old, output=output, **more)
    output.write_text(result.text, "utf-8")
    for path, text in result.files.items():
        Path(path).write_text(text, "utf-8")
    loaded = load_recipe(result.method, output).recipe
    assert yaml.safe_load(result.text) == result.values
    assert loaded.method == result.method
    return result


def noted(result: Migrated, kind: str) -> str:
    return "\n".join(
        f"{note.old} -> {note.new} {note.text}" for note in result.notes if note.kind == kind
    )


HANDBOOK_SFT: dict[str, Any] = {
    "model_name_or_path": "base",
    "torch_dtype": "bfloat16",
    "attn_implementation": "flash_attention_2",
    "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    "dataset_mixture": {
        "datasets": [
            {"id": "talks", "config": "SFT", "split": "a", "columns": ["messages"], "weight": 0.5},
            {"id": "talks", "config": "SFT", "split": "b", "columns": ["messages"], "weight": 1},
        ],
        "test_split_size": 0.05,
        "seed": 0,
    },
    "dataset_num_proc": 12,
    "eos_token": "<|im_end|>",
    "assistant_only_loss": True,
    "bf16": True,
    "do_eval": True,
    "eval_strategy": "epoch",
    "gradient_checkpointing_kwargs": {"use_reentrant": True},
    "learning_rate": 2e-5,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "packing": True,
    "packing_strategy": "ffd",
    "max_length": 4096,
    "max_steps": -1,
    "output_dir": "data/out",
    "overwrite_output_dir": True,
    "push_to_hub": True,
    "remove_unused_columns": True,
    "report_to": ["wandb"],
    "seed": 7,
    "warmup_ratio": 0.03,
}

HANDBOOK_DPO: dict[str, Any] = {
    "model_name_or_path": "sft-result",
    "torch_dtype": None,
    "use_peft": True,
    "load_in_4bit": True,
    "lora_r": 8,
    "lora_alpha": 16,
    "dataset_mixer": {"pairs": 1.0, "more/pairs": 0.25},
    "dataset_splits": ["train_prefs", "test_prefs"],
    "preprocessing_num_workers": 12,
    "beta": 0.01,
    "loss_type": "apo_zero",
    "do_eval": True,
    "evaluation_strategy": "steps",
    "eval_steps": 100,
    "learning_rate": 5e-6,
    "max_length": 512,
    "output_dir": "data/dpo-out",
    "optim": "paged_adamw_32bit",
    "warmup_ratio": 0.1,
}


def test_a_recipe_of_the_handbook_for_sft(tmp_path: Path) -> None:
    result = made(tmp_path, "model/sft/config.yaml", HANDBOOK_SFT)
    values = result.values
    assert (result.tool, result.method) == ("alignment-handbook", "sft")
    assert values["data"] == {
        "max_length": 4096,
        "train": [
            {"path": "talks", "subset": "SFT", "split": "a", "weight": 0.5},
            {"path": "talks", "subset": "SFT", "split": "b"},
        ],
        "eval": 0.05,
        "on_too_long": "truncate",
    }
    assert values["sft"] == {"packing": True, "loss_on": "assistant"}
    assert values["trainer"]["warmup_steps"] == 0.03
    assert values["trainer"]["packing_strategy"] == "bfd"
    assert (values["seed"], values["output_dir"]) == (7, "data/out")
    assert values["model"]["eos_token"] == "<|im_end|>"
    assert Path(values["model"]["chat_template"]).read_text("utf-8").startswith("{% for")
    assert "torch_dtype -> model.dtype" in noted(result, "renamed")
    assert "on_too_long" in noted(result, "filled")
    assert "overwrite_output_dir" in noted(result, "needless")
    assert "push_to_hub" in noted(result, "not here")


def test_a_recipe_of_the_handbook_for_dpo_with_the_older_keys(tmp_path: Path) -> None:
    result = made(tmp_path, "config.yaml", HANDBOOK_DPO)
    values = result.values
    assert result.method == "dpo"
    assert values["dpo"] == {"beta": 0.01, "loss": "apo_zero"}
    assert values["data"]["train"] == [
        {"path": "pairs", "split": "train_prefs"},
        {"path": "more/pairs", "split": "train_prefs", "weight": 0.25},
    ]
    assert [source["split"] for source in values["data"]["eval"]] == ["test_prefs"] * 2
    assert values["model"]["quantization"] == "nf4"
    assert values["model"]["dtype"] == "float32"
    assert values["model"]["double_quant"] is False
    assert values["model"]["lora"] == {
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"],
    }
    assert values["trainer"]["eval_strategy"] == "steps"


@pytest.mark.parametrize(("ratio", "steps"), [(0.1, 0.1), (1.0, 0.999999), (0.0, 0.0)])
def test_a_warmup_over_the_whole_run_stays_one(tmp_path: Path, ratio: float, steps: float) -> None:
    result = made(tmp_path, "config.yaml", {**HANDBOOK_DPO, "warmup_ratio": ratio})
    assert result.values["trainer"]["warmup_steps"] == steps
    assert ("warmup_ratio" in noted(result, "changed")) == (ratio == 1.0)


def test_the_share_for_a_whole_run_rounds_up_to_all_steps() -> None:
    from transformers import TrainingArguments

    arguments = TrainingArguments(output_dir="unused", warmup_steps=0.999999, use_cpu=True)
    assert [arguments.get_warmup_steps(steps) for steps in (1, 10, 100_000)] == [1, 10, 100_000]


def test_orpo_is_an_objective_of_dpo(tmp_path: Path) -> None:
    values = {
        "model_name_or_path": "base",
        "dataset_name": "pairs",
        "dataset_train_split": "train",
        "beta": 0.05,
        "max_length": 2048,
        "lr_scheduler_type": "inverse_sqrt",
        "warmup_steps": 100,
        "save_strategy": "no",
    }
    result = made(tmp_path, "model/orpo/config.yaml", values)
    assert result.values["dpo"] == {"beta": 0.05, "loss": "orpo"}
    assert "counts the prompt's tokens, too" in noted(result, "changed")
    assert made(tmp_path, "other/config.yaml", values, kind="orpo").values == result.values
    assert made(tmp_path, "other/config.yaml", values).values["dpo"] == {"beta": 0.05}


def test_what_has_no_counterpart_is_an_error_that_names_all_of_it(tmp_path: Path) -> None:
    values = {**HANDBOOK_SFT, "frobnicate": 3, "env": {"A": "b"}}
    with pytest.raises(RecipeError) as caught:
        made(tmp_path, "sft/config.yaml", values)
    keys = {problem.key for problem in caught.value.problems}
    assert keys == {"frobnicate", "env"}
    assert all("config.yaml:" in problem.where for problem in caught.value.problems)
    result = made(tmp_path, "sft/config.yaml", values, lossy=True)
    assert "#   frobnicate: 3  (nothing of this name is known)" in result.text
    assert result.values["data"]["eval"] == 0.05


def test_a_number_of_held_out_rows_stays_a_number(tmp_path: Path) -> None:
    mixture = {**HANDBOOK_SFT["dataset_mixture"], "test_split_size": 1000}
    values = {**HANDBOOK_SFT, "dataset_mixture": mixture}
    assert made(tmp_path, "sft/config.yaml", values).values["data"]["eval"] == 1000
    assert (
        "eval"
        not in made(
            tmp_path, "sft/config.yaml", {**values, "do_eval": False, "eval_strategy": "no"}
        ).values["data"]
    )


def test_prompts_of_pairs_are_cut_as_there(tmp_path: Path) -> None:
    result = made(tmp_path, "config.yaml", {**HANDBOOK_DPO, "max_prompt_length": 256})
    assert result.values["dpo"]["max_prompt_length"] == 256
    assert result.values["data"]["on_too_long"] == "truncate"
    assert "loses its start" in noted(result, "changed")
    result = made(tmp_path, "config.yaml", {**HANDBOOK_DPO, "max_prompt_length": 512})
    assert "max_prompt_length" not in result.values["dpo"]
    assert "`max_length: 512` is shorter" in noted(result, "needless")
    with pytest.raises(RecipeError, match="max_prompt_length"):
        made(tmp_path, "sft/c.yaml", {**HANDBOOK_SFT, "max_prompt_length": 256})


def test_variables_that_rows_give_to_the_template_come_along(tmp_path: Path) -> None:
    rows: dict[str, Any] = {"id": "talks", "columns": ["messages", "chat_template_kwargs"]}
    rows["config"] = "default"  # what the only configuration of a dataset is called
    nothing = {"id": "none", "weight": 0.0}
    values = {**HANDBOOK_SFT, "dataset_mixture": {"datasets": [rows, nothing]}, "do_eval": False}
    result = made(tmp_path, "sft/config.yaml", values)
    assert result.values["data"]["train"] == [{"path": "talks"}]
    assert "weight: 0 of none" in noted(result, "needless")


def test_only_the_tracker_that_is_missing_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligner.config.trainer_rules.is_installed", lambda name: name != "wandb")
    values = {**HANDBOOK_DPO, "report_to": ["tensorboard", "wandb"]}
    result = made(tmp_path, "config.yaml", values)
    assert result.values["trainer"]["report_to"] == ["tensorboard"]
    assert 'trainer.report_to: ["wandb"]' in noted(result, "not here")
    result = made(tmp_path, "config.yaml", {**values, "report_to": ["wandb"]})
    assert "report_to" not in result.values["trainer"]


def test_a_mixture_of_trl_and_its_columns(tmp_path: Path) -> None:
    rows = {"path": "talks", "name": "SFT", "columns": ["messages"]}
    values = {
        "model_name_or_path": "base",
        "datasets": [rows],
        "test_split_size": 100,
        "max_length": 64,
    }
    result = made(tmp_path, "sft/config.yaml", values)
    assert result.values["data"]["train"] == [{"path": "talks", "subset": "SFT"}]
    assert "all rows are trained on" in noted(result, "changed")
    rows["columns"].append("chat_template_kwargs")
    assert made(tmp_path, "sft/config.yaml", values).values == result.values


def test_simpo_is_a_loss_of_cpo_there(tmp_path: Path) -> None:
    values = {"model_name_or_path": "base", "dataset_name": "pairs", "beta": 2.0}
    plain = {**values, "loss_type": "simpo", "simpo_gamma": 1.0, "cpo_alpha": 0.0}
    result = made(tmp_path, "cpo/config.yaml", plain).values["dpo"]
    assert result == {"beta": 2.0, "simpo_gamma": 1.0, "loss": "simpo"}
    result = made(tmp_path, "cpo/config.yaml", {**values, "loss_type": "simpo"}).values["dpo"]
    assert result == {"beta": 2.0, "nll_weight": 1.0, "loss": "simpo"}
    with pytest.raises(RecipeError, match="loss_type"):
        made(tmp_path, "cpo/config.yaml", {**values, "loss_type": "hinge"})


def test_older_keys_of_the_handbook(tmp_path: Path) -> None:
    values = {
        "model_name_or_path": "base",
        "tokenizer_name_or_path": "base",
        "use_flash_attention_2": True,
        "dataset_mixer": {"texts": 0.5},
        "dataset_splits": ["train"],
        "text_column": "body",
        "max_seq_length": 512,
    }
    result = made(tmp_path, "cpt/config.yaml", values)
    assert result.values["model"]["attn_implementation"] == "flash_attention_2"
    assert result.values["data"]["train"] == [
        {"path": "texts", "split": "train", "columns": {"text": "body"}, "weight": 0.5}
    ]
    assert result.values["sft"] == {"loss_on": "all", "packing": True}
    assert "first rows" in noted(result, "changed")
    with pytest.raises(RecipeError, match="tokenizer_name_or_path"):
        made(tmp_path, "cpt/config.yaml", {**values, "tokenizer_name_or_path": "another"})


def test_defaults_that_decide_the_result_are_written_out(tmp_path: Path) -> None:
    start = {"model_name_or_path": "base", "dataset_name": "rows"}
    reward = made(tmp_path, "reward.yaml", start).values
    assert reward["trainer"] == {"learning_rate": 1e-4, "num_train_epochs": 3.0}
    assert reward["data"]["on_too_long"] == "drop"
    given = {"learning_rate": 1e-5, "num_train_epochs": 2}
    assert made(tmp_path, "reward.yaml", {**start, **given}).values["trainer"] == given
    lora = {"use_peft": True, "lora_target_modules": ["q_proj"]}
    values = made(tmp_path, "reward.yaml", {**start, **lora}).values
    assert values["trainer"] == {"num_train_epochs": 3.0}  # the rate is ours with LoRA
    assert "trainer" not in made(tmp_path, "dpo.yaml", start, kind="dpo").values


def test_dropout_of_the_model_is_off_for_pairs(tmp_path: Path) -> None:
    values = {"model_name_or_path": "base", "dataset_name": "rows", "disable_dropout": True}
    assert "dropout" in noted(made(tmp_path, "dpo.yaml", values, kind="dpo"), "needless")
    reward = made(tmp_path, "reward.yaml", values, kind="reward").values
    assert reward["trainer"]["disable_dropout"] is True
    with pytest.raises(RecipeError, match="disable_dropout"):
        made(tmp_path, "dpo.yaml", {**values, "disable_dropout": False}, kind="dpo")


def test_the_defaults_of_trl_that_are_not_ours_are_written_out(tmp_path: Path) -> None:
    values = {"model_name_or_path": "base", "dataset_name": "talks", "eval_strategy": "steps"}
    result = made(tmp_path, "sft.yaml", values)
    assert result.tool == "trl"
    assert result.values["sft"] == {"loss_on": "all", "packing": False}
    assert result.values["data"]["max_length"] == 1024
    assert result.values["data"]["eval"] == [{"path": "talks", "split": "test"}]


def test_a_reward_model_of_trl(tmp_path: Path) -> None:
    start = {"model_name_or_path": "base", "dataset_name": "rows"}
    reward = made(tmp_path, "r.yaml", {**start, "center_rewards_coefficient": 0.01})
    assert reward.values["reward"] == {"center_rewards_coefficient": 0.01}


def test_what_is_not_known_is_asked_for(tmp_path: Path) -> None:
    start = {"model_name_or_path": "base", "dataset_name": "rows"}
    with pytest.raises(RecipeError, match="what the recipe is for"):
        made(tmp_path, "config.yaml", start)
    assert made(tmp_path, "config.yaml", start, kind="reward").method == "reward"
    with pytest.raises(RecipeError, match="KTO"):
        made(tmp_path, "config.yaml", {**start, "desirable_weight": 1.0})
    with pytest.raises(RecipeError, match="no tool"):
        made(tmp_path, "config.yaml", {"a": 1})
    with pytest.raises(RecipeError) as caught:
        made(tmp_path, "zero3.yaml", {"distributed_type": "DEEPSPEED", "num_processes": 8})
    assert "launch.strategy" in caught.value.hint
    with pytest.raises(UsageError, match="no tool is called `trk`"):
        made(tmp_path, "config.yaml", start, tool="trk")
    with pytest.raises(UsageError, match="nothing is called `dop`"):
        made(tmp_path, "config.yaml", start, kind="dop")


def test_a_template_needs_a_place_for_its_file(tmp_path: Path) -> None:
    old = tmp_path / "sft.yaml"
    old.write_text(yaml.safe_dump(HANDBOOK_SFT), "utf-8")
    with pytest.raises(RecipeError, match="becomes a file"):
        migrate(old, output=None)
