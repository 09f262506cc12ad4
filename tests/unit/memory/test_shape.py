"""Numbers of weights from configs alone, counted in models without weights."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from aligner.config.recipe import Lora
from aligner.memory.shape import FAMILIES, shape_of

SMALL = {"num_hidden_layers": 2, "vocab_size": 1000, "max_position_embeddings": 64}
SMALL |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def config_of(family: str) -> object:
    small = {**SMALL, "num_local_experts": 4} if family == "mixtral" else SMALL
    return AutoConfig.for_model(family, **small)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_weights_are_those_of_the_model(family: str) -> None:
    config = config_of(family)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = shape_of(config.to_dict())
    assert shape.is_familiar
    assert shape.weights() == model.num_parameters()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2"])
def test_a_head_that_gives_numbers_takes_the_place_of_the_one_that_writes(family: str) -> None:
    config = config_of(family)
    config.num_labels = 3
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    assert shape_of(config.to_dict()).weights(3) == model.num_parameters()


def test_an_unknown_family_is_read_as_llama_and_says_so() -> None:
    values = {**AutoConfig.for_model("llama", **SMALL).to_dict(), "model_type": "llama5"}
    shape = shape_of(values)
    assert not shape.is_familiar
    assert shape.weights() == shape_of({**values, "model_type": "llama"}).weights()


def test_layers_that_are_not_alike_are_not_familiar() -> None:
    values = AutoConfig.for_model("qwen3_moe", **SMALL, mlp_only_layers=[1]).to_dict()
    assert not shape_of(values).is_familiar


def test_adapters_sit_where_the_recipe_says() -> None:
    shape = shape_of(AutoConfig.for_model("llama", **SMALL).to_dict())

    def names(**settings: object) -> list[str]:
        return [linear.name.rpartition(".")[2] for linear in shape.adapted(Lora(**settings))]

    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert names() == every
    assert names(target_modules=["q_proj", "v_proj"]) == ["q_proj", "v_proj"]
    assert names(target_modules=r".*self_attn\.[qk]_proj") == ["q_proj", "k_proj"]
    assert names(exclude_modules=["down_proj"]) == every[:-1]
    assert names(modules_to_save=["gate_proj"]) == [*every[:4], *every[5:]]
