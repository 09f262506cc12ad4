"""In which precision a CPU trains where the recipe does not say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, MixtralConfig

from aligner.config.load import load_recipe
from aligner.training import precision
from aligner.training.precision import Precision, Shape, choose_precision, shape_of, time_share

LARGE = LlamaConfig(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    vocab_size=49152,
    num_attention_heads=9,
)
TINY = LlamaConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=3, vocab_size=200)


@pytest.fixture(autouse=True)
def this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "best_device", lambda: "cpu")
    monkeypatch.setattr(precision, "native_bf16", lambda device: True)


def choose(
    share: float, *overrides: str, config: Any = LARGE, tokens: float = 1000
) -> tuple[Any, list[Any]]:
    asked: list[Any] = []

    def measure(*arguments: Any) -> float:
        asked.append(arguments)
        return share

    recipe = load_recipe(
        "sft", None, overrides, {"model.name_or_path": "base", "data.train": "rows.jsonl"}
    ).recipe
    return choose_precision(recipe, config, tokens, measure), asked


def test_a_gain_in_the_trial_means_bf16() -> None:
    found, asked = choose(0.5)
    assert found.bf16
    assert "0.50 of float32's time" in found.why
    assert asked == [(shape_of(LARGE), 1000, True)]
    assert choose(0.5, "model.lora={}")[1] == [(shape_of(LARGE), 1000, False)]


def test_no_gain_means_float32() -> None:
    found, _ = choose(0.95)
    assert not found.bf16
    assert "0.95 of float32's time" in found.why


@pytest.mark.parametrize(
    "override",
    ["trainer.bf16=true", "trainer.bf16=false", "launch.mixed_precision=no"],
)
def test_what_the_recipe_says_is_not_asked_again(override: str) -> None:
    assert choose(0.5, override) == (None, [])


@pytest.mark.parametrize("override", ["trainer.fp16=true", "launch.mixed_precision=fp16"])
def test_that_a_cpu_leaves_fp16_out_is_said(override: str) -> None:
    assert choose(0.5, override) == (Precision(False, "fp16 is left out on a CPU"), [])


def test_shards_keep_their_precision() -> None:
    assert choose(0.5, "launch.num_processes=2", "launch.strategy=fsdp") == (None, [])
    assert choose(0.5, "launch.num_processes=2")[0].bf16


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["model.dtype=bfloat16"], "model.dtype is bfloat16"),
        (["model.lora={}", "model.quantization=nf4"], "quantized"),
    ],
)
def test_other_weights_are_not_tried(overrides: list[str], why: str) -> None:
    found, asked = choose(0.5, *overrides)
    assert (found.bf16, asked) == (False, [])
    assert why in found.why


def test_tiny_batches_and_other_cpus_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = choose(0.5, config=TINY, tokens=10_000)
    assert (found.bf16, asked) == (False, [])
    assert "too small" in found.why
    assert choose(0.5, tokens=50)[0].bf16 is False
    monkeypatch.setattr(precision, "native_bf16", lambda device: False)
    found, asked = choose(0.5)
    assert (found.bf16, asked) == (False, [])
    assert "neither AVX512-BF16 nor AMX" in found.why


def test_a_gpu_is_no_matter_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "best_device", lambda: "cuda:0")
    assert choose(0.5) == (None, [])
    assert choose(0.5, "trainer.use_cpu=true")[0].bf16


def test_shapes_of_families() -> None:
    layer = 4 * 576**2 + 3 * 576 * 1536
    assert shape_of(LARGE) == Shape(576, 1536, 30 * layer + 49152 * 576)
    assert shape_of(GPT2Config(n_embd=64, n_layer=2, vocab_size=100)).inner == 256
    experts = MixtralConfig(
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=1,
        vocab_size=10,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    assert shape_of(experts).weights == 4 * 64**2 + 3 * 64 * 32 * 2 + 640


def test_the_trial_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    assert time_share(Shape(64, 128, 1e5), 32, True) > 0
    assert torch.equal(torch.get_rng_state(), state)
