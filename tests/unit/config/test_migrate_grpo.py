"""GRPO of TRL and of Axolotl becomes `aligner rlhf`: batches, reward functions, what is lost."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from aligner.errors import RecipeError
from aligner.reward_models import load_scorer
from tests.unit.config.test_migrate import made, noted

TRL: dict[str, Any] = {
    "model_name_or_path": "base",
    "dataset_name": "rows",
    "num_generations": 4,
    "max_completion_length": 64,
    "beta": 0.02,
    "epsilon": 0.2,
    "reward_model_name_or_path": "judge",
}

AXOLOTL: dict[str, Any] = {
    "base_model": "base",
    "rl": "grpo",
    "trl": {
        "beta": 0.001,
        "max_completion_length": 256,
        "use_vllm": True,
        "vllm_server_port": 8000,
        "num_generations": 4,
        "reward_funcs": ["rewards.short"],
        "reward_weights": [1.0],
    },
    "datasets": [{"path": "questions", "name": "main"}],
    "micro_batch_size": 8,
    "learning_rate": 1e-5,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_reward_model_scores_groups_of_responses(tmp_path: Path) -> None:
    result = made(tmp_path, "g.yaml", TRL)
    assert result.method == "rlhf"
    assert result.values["rlhf"] == {
        "group_size": 4,
        "max_new_tokens": 64,
        "beta": 0.02,
        "reward_models": ["judge"],
    }
    assert "the ratio is 1" in noted(result, "needless")
    assert result.values["data"] == {"train": [{"path": "rows"}], "max_length": 64 + 2048}


def test_a_batch_of_responses_becomes_one_of_prompts(tmp_path: Path) -> None:
    def batch(**given: int) -> tuple[int | None, int | None, bool]:
        result = made(tmp_path, "g.yaml", {**TRL, **given}, lossy=True)
        trainer = result.values["trainer"]
        steps = trainer.get("gradient_accumulation_steps")
        return trainer["per_device_train_batch_size"], steps, bool(noted(result, "lost"))

    assert batch() == (2, None, False)  # 8 responses, as TRL has by default, in groups of 4
    assert batch(per_device_train_batch_size=16, gradient_accumulation_steps=2) == (4, 2, False)
    assert batch(per_device_train_batch_size=2, gradient_accumulation_steps=8) == (1, 4, False)
    assert batch(per_device_train_batch_size=3, gradient_accumulation_steps=2) == (1, 2, True)


def test_steps_on_the_same_responses_keep_their_clipping(tmp_path: Path) -> None:
    more = {"gradient_accumulation_steps": 4, "steps_per_generation": 8, "use_peft": True}
    result = made(tmp_path, "g.yaml", {**TRL, **more, "delta": 2.0})
    rlhf = result.values["rlhf"]
    assert (rlhf["steps_per_generation"], rlhf["delta"]) == (2, 2.0)
    assert (rlhf["clip_low"], rlhf["clip_high"]) == (0.2, 0.2)
    assert result.values["model"]["lora"]["lora_dropout"] == 0.0
    assert result.values["trainer"]["learning_rate"] == 1e-6  # ours is higher with LoRA
    with pytest.raises(RecipeError, match="steps_per_generation"):
        made(tmp_path, "g.yaml", {**TRL, **more, "steps_per_generation": 6})


def test_settings_of_groups_have_names_of_ours(tmp_path: Path) -> None:
    more = {
        "loss_type": "dr_grpo",
        "scale_rewards": False,
        "importance_sampling_level": "sequence",
        "mask_truncated_completions": True,
        "max_prompt_length": 100,
        "top_p": 1.0,
        "sync_ref_model": False,
    }
    result = made(tmp_path, "g.yaml", {**TRL, **more})
    rlhf = result.values["rlhf"]
    assert (rlhf["loss"], rlhf["scale"]) == ("dr_grpo", "none")
    assert (rlhf["ratio"], rlhf["truncated"]) == ("sequence", "mask")
    assert result.values["data"]["max_length"] == 164
    assert "is an error here" in noted(result, "changed")
    lost = {"loss_type": "vespo", "top_p": 0.9, "sync_ref_model": True, "generation_batch_size": 8}
    with pytest.raises(RecipeError) as caught:
        made(tmp_path, "g.yaml", {**TRL, **lost})
    assert {problem.key for problem in caught.value.problems} == set(lost)


def test_a_format_is_looked_for_as_trl_does(tmp_path: Path) -> None:
    from trl.rewards import think_format_reward

    only = {**TRL, "reward_model_name_or_path": None, "reward_funcs": ["think_format_reward"]}
    (name,) = made(tmp_path, "g.yaml", only).values["rlhf"]["reward_models"]
    texts = [
        "<think>\nso\n</think>\n4",
        "<think></think>",
        "<think>so 4",
        " <think>so</think>4",
        "<think>a<think>b</think>4",
        "<think>a</think>b</think>",
        "say\n<think>a</think>",
    ]
    theirs = think_format_reward([[{"content": text}] for text in texts])
    assert (
        list(load_scorer(name).score(["q"] * len(texts), texts)) == theirs == [1, 1, 0, 0, 0, 1, 0]
    )


def test_mathematics_is_lost_to_a_verifier_of_numbers(tmp_path: Path) -> None:
    only = {**TRL, "reward_model_name_or_path": None, "reward_funcs": ["accuracy_reward"]}
    with pytest.raises(RecipeError, match="would be lost") as caught:
        made(tmp_path, "g.yaml", only)
    assert "verifier:number" in caught.value.problems[0].hint
    result = made(tmp_path, "g.yaml", only, lossy=True).values
    assert result["rlhf"]["reward_models"] == ["verifier:number"]
    assert result["data"]["train"] == [{"path": "rows", "columns": {"answer": "solution"}}]


def test_a_punishment_of_length_needs_the_same_length(tmp_path: Path) -> None:
    long = {**TRL, "reward_funcs": ["get_soft_overlong_punishment"]}
    result = made(tmp_path, "g.yaml", {**long, "max_completion_length": 1280}).values["rlhf"]
    assert (result["overlong_buffer"], result["reward_models"]) == (256, ["judge"])
    with pytest.raises(RecipeError, match="would be lost"):
        made(tmp_path, "g.yaml", long)


def test_several_rewards_are_normalized_first_here(tmp_path: Path) -> None:
    several = {**TRL, "reward_funcs": ["think_format_reward"], "reward_weights": [1.0, 0.5]}
    with pytest.raises(RecipeError) as caught:
        made(tmp_path, "g.yaml", several)
    assert [problem.key for problem in caught.value.problems] == ["multi_objective_aggregation"]
    same = {**several, "multi_objective_aggregation": "normalize_then_sum"}
    assert made(tmp_path, "g.yaml", same).values["rlhf"]["reward_weights"] == [1.0, 0.5]


def test_grpo_of_axolotl_and_a_function_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError) as caught:
        made(tmp_path, "a.yaml", AXOLOTL)
    (problem,) = caught.value.problems
    assert (problem.key, problem.where.endswith(".yaml:9")) == ("reward_funcs", True)
    result = made(tmp_path, "a.yaml", AXOLOTL, lossy=True)
    file = tmp_path / "ours.py"
    assert result.values["rlhf"] == {
        "beta": 0.001,
        "max_new_tokens": 256,
        "group_size": 4,
        "reward_models": [f"verifier:{file}:rewards_short"],
    }
    assert result.values["trainer"]["per_device_train_batch_size"] == 2
    assert "vllm_server_port" in noted(result, "needless")
    body = (
        "def short(completions, answer, **kwargs):\n"
        "    return [float(one == right) - len(one) / 100 for one, right in "
        "zip(completions, answer)]\n"
    )
    (tmp_path / "rewards.py").write_text(body, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("ours", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.rewards_short("q", "four", "four") == pytest.approx(0.96)
    scores = load_scorer(f"verifier:{file}:rewards_short").score(["q"] * 2, ["x", "y"], ["x", "x"])
    assert list(scores) == pytest.approx([0.99, -0.01])


def test_a_rewards_name_that_is_no_function_is_a_reward_model(tmp_path: Path) -> None:
    section = {**AXOLOTL["trl"], "reward_funcs": ["some/reward-model"]}
    result = made(tmp_path, "a.yaml", {**AXOLOTL, "rl": "gdpo", "trl": section})
    assert result.values["rlhf"]["reward_models"] == ["some/reward-model"]


def test_rows_that_a_function_of_axolotl_makes_are_lost(tmp_path: Path) -> None:
    rows = {"path": "questions", "type": "rewards.transform"}
    section = {**AXOLOTL["trl"], "reward_funcs": ["judge-model"]}
    with pytest.raises(RecipeError) as caught:
        made(tmp_path, "a.yaml", {**AXOLOTL, "trl": section, "datasets": [rows]})
    assert [problem.key for problem in caught.value.problems] == ["datasets.type"]
