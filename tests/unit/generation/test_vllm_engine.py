"""The engine `vllm`, against a stand-in with vLLM's signatures: what it is asked, and what its
answers become."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import fake_vllm
import pytest
import torch
from fakes import byte_tokenizer, save_model

from aligner.config.recipe import Generation, Lora, Model
from aligner.errors import RecipeError, UsageError
from aligner.generation.decode import generate
from aligner.generation.hf import HfEngine
from aligner.generation.requests import Request
from aligner.generation.sampling import Sampling
from aligner.generation.vllm import VllmEngine
from aligner.generation.writers import open_engine
from aligner.models.loading import load_policy

LOUD = {"initializer_range": 0.5}
REQUEST = Request([5, 6, 7], Sampling(max_new_tokens=9, seed=3, num_samples=2), (2, 11), stream=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", seed=7, **LOUD)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[fake_vllm.LLM]:
    return fake_vllm.install(monkeypatch)


def test_without_vllm_the_command_that_installs_it_is_shown(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"pip install 'aligner-toolkit\[vllm\]'"):
        VllmEngine(Model(name_or_path=str(folder)))


def test_nothing_is_left_to_the_defaults_of_vllm(folder: Path, made: list[fake_vllm.LLM]) -> None:
    options = {"gpu_memory_utilization": 0.5}
    engine = VllmEngine(Model(name_or_path=str(folder), dtype="bfloat16"), options=options)
    engine.generate([REQUEST])
    (llm,) = made
    assert (llm.model, llm.dtype, llm.generation_config) == (str(folder), "bfloat16", "vllm")
    assert (llm.logprobs_mode, llm.gpu_memory_utilization) == ("raw_logprobs", 0.5)
    assert [prompt for prompt, _ in llm.asked] == [{"prompt_token_ids": [5, 6, 7]}] * 2
    params = [params for _, params in llm.asked]
    assert len({one.seed for one in params}) == 2
    assert (params[0].stop_token_ids, params[0].ignore_eos) == ([2, 11], True)
    assert (params[0].max_tokens, params[0].logprobs, params[0].detokenize) == (9, 0, False)


def test_every_sampling_setting_has_a_name_in_vllm() -> None:
    ours = {field.name for field in fields(Sampling)} - {"max_new_tokens", "num_samples"}
    assert ours <= {field.name for field in fields(fake_vllm.SamplingParams)}


def test_an_adapter_is_served_beside_its_base(
    folder: Path, tmp_path: Path, made: list[fake_vllm.LLM]
) -> None:
    tokenizer = byte_tokenizer()
    section = Model(name_or_path=str(folder), lora=Lora(r=12))
    policy: Any = load_policy(section, tokenizer, trainable=True)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    policy.save_pretrained(tmp_path / "adapter")
    greedy = Request([5, 6, 7, 8], Sampling(max_new_tokens=12, temperature=0.0), (2,))
    engine = VllmEngine(Model(name_or_path=str(tmp_path / "adapter")))
    assert (made[0].model, made[0].enable_lora, made[0].max_lora_rank) == (str(folder), True, 16)
    ours = HfEngine(policy.eval()).generate([greedy])[0][0]
    assert engine.generate([greedy])[0][0].token_ids == ours.token_ids


@pytest.mark.parametrize("change", [{"peft_type": "IA3"}, {"use_dora": True}, {"r": 1000}])
def test_adapters_that_vllm_does_not_serve_are_refused(
    change: dict[str, Any], folder: Path, tmp_path: Path, made: list[fake_vllm.LLM]
) -> None:
    import json

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": str(folder), **change}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="cannot serve"):
        VllmEngine(Model(name_or_path=str(adapter)))
    with pytest.raises(RecipeError, match="nf4"):
        VllmEngine(Model(name_or_path=str(folder), quantization="nf4"))
    assert made == []


def test_an_end_of_its_own_is_an_error(folder: Path, made: list[fake_vllm.LLM]) -> None:
    engine = VllmEngine(Model(name_or_path=str(folder)), options={"ends": "abort"})
    (one, _) = engine.generate([REQUEST])[0]
    assert one.finish_reason == "error"
    assert "abort" in one.error


def test_where_a_ratio_is_trained_on_sampling_is_plain(
    folder: Path, made: list[fake_vllm.LLM]
) -> None:
    engine = VllmEngine(Model(name_or_path=str(folder)), for_ratio=True)
    for setting in ({"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"temperature": 0.7}):
        with pytest.raises(UsageError, match="ratio"):
            engine.generate([Request([5], Sampling(max_new_tokens=3, **setting))])
    assert engine.generate([REQUEST])[0][0].logps


def test_a_recipes_section_opens_it_beside_an_outline_and_closes_it(
    folder: Path, made: list[fake_vllm.LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    section, tokenizer = Model(name_or_path=str(folder)), byte_tokenizer()
    policy: Any = load_policy(section, tokenizer, trainable=False)
    greedy = Sampling(max_new_tokens=12, temperature=0.0)
    ours = generate(policy, tokenizer, ["a", "what is 2 + 2?"], greedy)
    generation = Generation(engine="vllm", vllm={"gpu_memory_utilization": 0.3})
    closed: list[VllmEngine] = []
    monkeypatch.setattr(VllmEngine, "close", lambda self: closed.append(self))
    with open_engine(generation, section, tokenizer, load=lambda: None, batch_size=4) as lent:
        outline, engine = lent
        theirs = generate(outline, tokenizer, ["a", "what is 2 + 2?"], greedy, engine=engine)
        assert not closed
    assert theirs == ours
    assert closed == [engine]
    assert made[0].gpu_memory_utilization == 0.3
    assert {str(weight.device) for weight in outline.parameters()} == {"meta"}
