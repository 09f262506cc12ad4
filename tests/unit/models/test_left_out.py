"""Weights that a model has no place for: refused inside its parts, warned of beside them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aligner.config.recipe import Lora, Model
from aligner.errors import RecipeError
from aligner.models.loading import load_policy, load_reward_model
from aligner.models.tokenizers import load_tokenizer
from tests.fakes import save_model, save_reward_model

ATTENTION = "model.layers.0.self_attn"


def holding(folder: Path, *keys: str, file: str = "model.safetensors") -> Path:
    """The folder with further weights in it."""
    weights = load_file(folder / file)
    save_file(
        weights | {key: torch.ones(3) for key in keys}, folder / file, metadata={"format": "pt"}
    )
    return folder


def configured(folder: Path, **settings: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def load(folder: Path, **settings: Any) -> Any:
    spec = Model(name_or_path=str(folder), dtype="float32", **settings)
    return load_policy(spec, load_tokenizer(spec), trainable=bool(settings))


def load_scorer(folder: Path) -> Any:
    spec = Model(name_or_path=str(folder), dtype="float32")
    return load_reward_model(spec, load_tokenizer(spec), outputs=None, trainable=False)


@pytest.mark.parametrize(
    "key",
    [
        f"{ATTENTION}.q_proj.bias",
        f"{ATTENTION}.q_norm.weight",
        "model.layers.1.mlp.experts.0.up_proj.weight",
        "lm_head.bias",
    ],
)
def test_a_weight_inside_a_part_of_the_model_is_refused_by_name(key: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=rf"holds 1 weight \({key}\).* no place for") as caught:
        load(holding(save_model(tmp_path / "model"), key))
    assert "correct its config.json" in str(caught.value.hint)


def test_layers_that_the_config_does_not_count_are_counted_and_named(tmp_path: Path) -> None:
    folder = configured(save_model(tmp_path / "model"), num_hidden_layers=1)
    with pytest.raises(RecipeError, match="than the 1 that") as caught:
        load(folder)
    assert "9 weights (model.layers.1.input_layernorm.weight, " in str(caught.value)
    assert ", ...) would be left out" in str(caught.value)


@pytest.mark.parametrize(
    "key", ["v_head.summary.weight", "mtp.layers.7.norm.weight", "model.vision_tower.layers.9.bias"]
)
def test_a_whole_part_that_the_model_lacks_is_warned_of(key: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=rf"model holds 1 weight \({key}\) for .* not loaded"):
        load(holding(save_model(tmp_path / "model"), key))


@pytest.mark.parametrize(
    "keys",
    [
        (),
        (f"{ATTENTION}.rotary_emb.inv_freq", "model.layers.1.attention.bias"),
        ("model.layers.0.attn.masked_bias", "model.embeddings.position_ids"),
    ],
)
def test_what_means_nothing_is_not_spoken_of(keys: tuple[str, ...], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not loaded")
        load(holding(save_model(tmp_path / "model"), *keys))


def test_a_reward_model_needs_no_head_that_writes_and_all_else(tmp_path: Path) -> None:
    folder = holding(save_reward_model(tmp_path / "reward"), "lm_head.weight")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not loaded")
        load_scorer(folder)
    with pytest.raises(RecipeError, match=rf"1 weight \({ATTENTION}.k_proj.bias\)"):
        load_scorer(holding(folder, f"{ATTENTION}.k_proj.bias"))


def test_a_reward_head_with_other_outputs_than_its_config_says_is_refused(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "reward", outputs=3)
    configured(folder, id2label={"0": "reward"}, label2id={"reward": 0})
    with pytest.raises(RecipeError, match=r"another shape .*\(score.weight\)"):
        load_scorer(folder)


@pytest.mark.parametrize(
    ("key", "fits"),
    [
        ("model.layers.7.self_attn.q_proj.lora_A.weight", False),
        (f"{ATTENTION}.q_proj.bias", False),
        ("v_head.weight", False),
        ("model.norm.weight", True),  # PEFT puts it into the base
        (f"{ATTENTION}.q_proj.weight", True),
    ],
)
def test_a_weight_of_an_adapter_that_has_no_place_is_refused(
    key: str, fits: bool, tmp_path: Path
) -> None:
    base = save_model(tmp_path / "base")
    load(base, lora=Lora(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    folder = tmp_path / "adapter"
    save_tokenizer(base, folder)
    name = f"base_model.model.{key}"
    weights = load_file(folder / "adapter_model.safetensors")
    shape = load_file(base / "model.safetensors").get(key, torch.ones(3)).shape
    weights[name] = torch.ones(shape)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    if fits:
        with pytest.warns(UserWarning, match=rf"holds 1 weight of the base too \({name}\)"):
            load(folder)
        return
    with pytest.raises(RecipeError, match=rf"1 weights have no place \({name}\)"):
        load(folder)


def save_tokenizer(base: Path, folder: Path) -> None:
    load_tokenizer(Model(name_or_path=str(base))).save_pretrained(folder)
