"""Adapters of other kinds than LoRA: what merges is merged, what stands in front of a text answers
and is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import byte_tokenizer, save_model

from aligner.config.recipe import Lora, Model
from aligner.errors import RecipeError
from aligner.evaluation.likelihood import Tokens, likelihoods
from aligner.generation.decode import continue_ids
from aligner.generation.sampling import Sampling
from aligner.models.loading import load_policy
from aligner.models.positions import max_positions
from aligner.models.tokenizers import load_tokenizer

MERGED: dict[str, dict[str, Any]] = {
    "IA3Config": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LoHaConfig": {"target_modules": ["q_proj"]},
    "LoKrConfig": {"target_modules": ["q_proj"]},
    "AdaLoraConfig": {"target_modules": ["q_proj"], "total_step": 10},
    "VeraConfig": {"target_modules": ["q_proj"]},
    "OFTConfig": {"target_modules": ["q_proj"], "oft_block_size": 8},
    "LNTuningConfig": {"target_modules": ["input_layernorm"]},
    "HRAConfig": {"target_modules": ["q_proj"]},
}
IN_FRONT: dict[str, dict[str, Any]] = {
    "PromptTuningConfig": {"num_virtual_tokens": 4},
    "PromptEncoderConfig": {"num_virtual_tokens": 4},
    "PrefixTuningConfig": {"num_virtual_tokens": 4},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base") / "model")


def adapter(folder: Path, base: Path, name: str, settings: dict[str, Any]) -> tuple[Path, Any]:
    """Write an adapter with random weights; return its folder and PEFT's own model."""
    import peft
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(base)
        model = peft.get_peft_model(
            model, getattr(peft, name)(task_type="CAUSAL_LM", **settings)
        ).eval()
        for weight in (weight for weight in model.parameters() if weight.requires_grad):
            weight.data += 0.05 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return folder, model


def loaded(folder: Path) -> Any:
    section = Model(name_or_path=str(folder))
    return load_policy(section, load_tokenizer(section), trainable=False, answers=True)


@pytest.mark.parametrize("name", MERGED)
def test_what_changes_weights_is_merged(name: str, base: Path, tmp_path: Path) -> None:
    folder, expected = adapter(tmp_path / "adapter", base, name, MERGED[name])
    policy = loaded(folder)
    assert not hasattr(policy, "peft_config")
    ids = torch.tensor([[9, 20, 31, 42]])
    with torch.no_grad():
        assert torch.allclose(policy(ids).logits, expected(ids).logits, atol=1e-4)


@pytest.mark.parametrize("name", IN_FRONT)
def test_what_stands_in_front_answers_and_is_measured(
    name: str, base: Path, tmp_path: Path
) -> None:
    folder, expected = adapter(tmp_path / "adapter", base, name, IN_FRONT[name])
    policy = loaded(folder)
    assert max_positions(policy) == 512 - 4
    rows = [[9, 20, 31, 42], [50, 60]]
    answers = continue_ids(
        policy, byte_tokenizer(None), rows, Sampling(max_new_tokens=5, temperature=0.0)
    )
    whole = [row + answer[0].token_ids for row, answer in zip(rows, answers)]
    sequences = [
        Tokens(ids, wanted=list(range(len(row), len(ids))), origin="row")
        for row, ids in zip(rows, whole)
    ]
    for row, ids, found in zip(rows, whole, likelihoods(policy, sequences)):
        with torch.no_grad():
            logps = expected(torch.tensor([ids])).logits[0, -len(ids) :].log_softmax(-1)
        assert ids[len(row) :] == logps[len(row) - 1 : -1].argmax(-1).tolist(), (
            "greedy is the best token each time"
        )
        wanted = torch.tensor([logps[place - 1, ids[place]] for place in range(len(row), len(ids))])
        assert torch.allclose(found.logps, wanted, atol=1e-4)


def test_what_stands_in_front_is_used_for_nothing_else(base: Path, tmp_path: Path) -> None:
    folder, _ = adapter(tmp_path / "adapter", base, "PromptTuningConfig", {"num_virtual_tokens": 4})
    section = Model(name_or_path=str(folder))
    tokenizer = load_tokenizer(section)
    for trainable in (True, False):
        with pytest.raises(RecipeError, match="PROMPT_TUNING, which cannot be merged"):
            load_policy(section, tokenizer, trainable=trainable)


def test_only_lora_is_trained_further(base: Path, tmp_path: Path) -> None:
    folder, _ = adapter(tmp_path / "adapter", base, "LoHaConfig", MERGED["LoHaConfig"])
    section = Model(name_or_path=str(folder), lora=Lora())
    with pytest.raises(
        RecipeError, match=r"LOHA, and only LORA is trained further(.|\n)*leave model.lora out"
    ):
        load_policy(section, load_tokenizer(section), trainable=True)


CONFIGS = {
    "unknown": ({"peft_type": "WOBBLE"}, "kind that PEFT does not know .WOBBLE"),
    "by tasks": ({"peft_type": "POLY"}, "chooses by the task of a row"),
    "no name": ({"peft_type": 3}, "adapter_config.json: peft_type is '3', which is not a name"),
    "rank": ({"r": 0}, "the adapter of .* cannot be loaded: .r. should be a positive integer"),
    "other modules": ({"target_modules": ["q_proj"]}, "4 weights have no place"),
    "further modules": (
        {"target_modules": ["q_proj", "v_proj", "o_proj"]},
        "4 weights are missing",
    ),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_an_adapter_that_is_not_what_its_config_says_is_refused(
    what: str, base: Path, tmp_path: Path
) -> None:
    folder, _ = adapter(
        tmp_path / "adapter", base, "LoraConfig", {"target_modules": ["q_proj", "v_proj"]}
    )
    change, message = CONFIGS[what]
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(RecipeError, match=message):
        loaded(folder)


def test_adapters_on_adapters_and_in_a_circle_are_refused(base: Path, tmp_path: Path) -> None:
    first, _ = adapter(tmp_path / "first", base, "LoraConfig", {"target_modules": ["q_proj"]})
    second, _ = adapter(tmp_path / "second", first, "LoraConfig", {"target_modules": ["q_proj"]})
    file = second / "adapter_config.json"
    for other, message in (
        (first, "first, is an adapter"),
        (second, "second, is this adapter itself"),
    ):
        file.write_text(
            json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(other)})
        )
        with pytest.raises(RecipeError, match=message):
            loaded(second)
