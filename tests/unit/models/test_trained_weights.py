"""How many weights are trained, where, and what is left: counted, and said in words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aligner.config.load import load_recipe
from aligner.config.recipe import Lora, Model
from aligner.errors import RecipeError
from aligner.models.loading import load_policy
from aligner.models.tokenizers import load_tokenizer
from aligner.models.trained_weights import (
    describe_trained,
    listed,
    place_of,
    trained_of,
    unmoved,
    unmoved_share,
    without_gradient,
)
from aligner.training.callbacks import Recorder
from tests.fakes import byte_tokenizer, save_model, tiny_llama
from tests.mixtures import save_mixture


def load(folder: Any, **settings: Any) -> Any:
    model = Model(name_or_path=str(folder), **settings)
    return load_policy(model, load_tokenizer(model), trainable=True)


def test_full_fine_tuning_trains_every_weight_and_counts_a_tied_one_once() -> None:
    untied = trained_of(tiny_llama(byte_tokenizer()))
    tied = trained_of(tiny_llama(byte_tokenizer(), tie_word_embeddings=True))
    assert untied.trained == untied.total
    assert untied.total - tied.total == 260 * 32
    assert untied.places["self_attn.q_proj"] == 2 * 32 * 32
    assert next(describe_trained(untied)).startswith(
        f"training all {untied.total:,} weights: mlp (gate_proj, up_proj, down_proj) 12,288, "
    )


def test_an_adapter_is_counted_by_the_layers_that_it_sits_on(tmp_path) -> None:
    lora = Lora(r=4, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    found = trained_of(load(save_model(tmp_path), lora=lora), lora)
    assert found.places == {
        "self_attn.q_proj": 2 * 4 * (32 + 32),
        "mlp.down_proj": 2 * 4 * (64 + 32),
        "lm_head": 260 * 32,
    }
    assert found.trained == sum(found.places.values())
    base = trained_of(tiny_llama(byte_tokenizer())).total
    assert (
        found.total == base + found.trained
    )  # the head that is trained stands beside the one that is kept


def test_experts_without_an_adapter_are_named_with_the_key_that_gives_them_one(tmp_path) -> None:
    lora = Lora(r=4)
    found = trained_of(load(save_mixture("jetmoe", tmp_path), lora=lora), lora)
    line = next(text for text in describe_trained(found) if text.startswith("no adapter"))
    assert (
        "model.lora.target_parameters=[mlp.input_linear.weight, mlp.output_linear.weight, " in line
    )


def test_what_peft_refuses_to_adapt_is_said(tmp_path) -> None:
    lora = Lora(r=4)
    policy = load(save_mixture("nemotron_h", tmp_path), lora=lora)
    assert any(
        text.startswith("PEFT adapts no mixer (out_proj)")
        for text in describe_trained(trained_of(policy, lora))
    )
    excluded = Lora(r=4, exclude_modules=["out_proj"])
    assert not any(
        "PEFT adapts no" in text for text in describe_trained(trained_of(policy, excluded))
    )


def test_what_quantization_leaves_alone_is_counted(tmp_path) -> None:
    lora = Lora(r=4)
    policy = load(save_mixture("mixtral", tmp_path), lora=lora, quantization="nf4")
    found = trained_of(policy, lora)
    assert found.quantized == 2 * (2 * 64 * 64 + 2 * 64 * 32)  # q and o, k and v; counted unpacked
    assert found.plain["mlp.experts.down_proj"] == 2 * 4 * 64 * 96
    line = list(describe_trained(found, "nf4"))[-1]
    assert line.startswith(
        "in nf4 are 24,576 weights of the base (11.9%); in float32 stay mlp.experts (gate_up_proj, "
    )


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.11.mlp.down_proj.weight", "mlp.down_proj"),
        ("model.embed_tokens.weight", "embed_tokens"),
        (
            "base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight",
            "self_attn.q_proj",
        ),
        ("base_model.model.model.layers.3.mlp.experts.7.w1.base_layer.weight", "mlp.experts.w1"),
        ("base_model.model.lm_head.modules_to_save.default.weight", "lm_head"),
        (
            "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.default",
            "embed_tokens",
        ),
        ("transformer.h.0.attn.c_attn.bias", "attn.c_attn"),
    ],
)
def test_places_are_those_of_the_models_own_code(name: str, place: str) -> None:
    assert place_of(name) == place


def test_small_places_are_added_up() -> None:
    text = listed({f"part{number}": 10 - number for number in range(9)})
    assert text == "part0 10, part1 9, part2 8, part3 7, part4 6, part5 5, the rest 9"


def test_a_step_that_is_lost_in_rounding_is_counted_weight_by_weight() -> None:
    layer = torch.nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor(
        [[1.0, 0.1, 0.001, 0.0]]
    )  # bfloat16 lies 2^-8, 2^-11 apart below the first two
    assert unmoved_share(layer, 1e-3) == 0.0
    layer.to(torch.bfloat16)
    assert (
        unmoved_share(layer, 1e-3) == 0.25
    )  # half of 2^-8 is more than 0.001, half of 2^-11 is not
    assert unmoved_share(layer, 1e-4) == 0.5
    assert unmoved_share(layer, 1e-1) == 0.0
    layer.to(torch.float16)
    assert unmoved_share(layer, 1e-4) == 0.25


def test_full_fine_tuning_in_half_precision_is_warned_of_with_the_cure(tmp_path) -> None:
    folder = save_model(tmp_path)
    text = unmoved(load(folder, dtype="bfloat16"), 1e-6)
    assert "lost in rounding for" in text
    assert "model.dtype=float32" in text
    assert unmoved(load(folder, dtype="bfloat16", lora=Lora(r=2)), 1e-6) == ""
    assert unmoved(load(folder), 1e-6) == ""


def test_weights_that_the_first_backward_pass_does_not_reach_are_named() -> None:
    model = tiny_llama(byte_tokenizer())
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert without_gradient(model) == {}
    model.model.layers[1].self_attn.q_proj.weight.grad = None
    said: list[Any] = []
    trainer = SimpleNamespace(model=model, is_deepspeed_enabled=False, is_fsdp_enabled=False)
    for step in (0, 1):
        Recorder(trainer, None, said.append, 1).on_pre_optimizer_step(
            None, SimpleNamespace(global_step=step), None
        )  # type: ignore[arg-type]
    assert len(said) == 1
    assert said[0].text.startswith("no gradient reached self_attn (q_proj) 1,024 in the first step")


def test_float16_weights_under_scaled_gradients_are_refused_in_the_recipe() -> None:
    given = [
        "model.name_or_path=x",
        "data.train=y",
        "output_dir=z",
        "model.dtype=float16",
        "trainer.fp16=true",
    ]
    with pytest.raises(RecipeError, match="float16 weights cannot be trained"):
        load_recipe("sft", None, given, {})
    load_recipe("sft", None, [*given, "model.lora={}"], {})
