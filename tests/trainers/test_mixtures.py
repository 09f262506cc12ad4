"""Training a mixture of experts: it ends with a model that answers, and its numbers mean what they
mean elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aligner.config.recipe import Model
from aligner.data.loading import load_rows
from aligner.errors import RecipeError
from aligner.evaluation.likelihood import measure_rows
from aligner.events import Notice
from aligner.generation.decode import generate
from aligner.generation.sampling import Sampling
from aligner.methods.pipeline import run_recipe
from aligner.models.forward import eval_mode
from aligner.models.loading import load_policy
from aligner.models.own_config import OwnConfig
from aligner.models.router_loss import has_router_loss, router_coefficient
from aligner.models.tokenizers import load_tokenizer
from tests.fakes import byte_tokenizer, small_recipe, tiny_llama
from tests.mixtures import mixture, save_mixture

TWO = {
    "report__num_prompts": 2,
    "report__max_new_tokens": 4,
    "trainer__max_steps": 2,
    "data__eval": 0.25,
}


def world_of(family: str, small_world: Path, folder: Path, **settings: Any) -> Path:
    save_mixture(family, folder / "model", **settings)
    for file in ("sft.jsonl", "pairs.jsonl"):
        (folder / file).write_bytes((small_world / file).read_bytes())
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text("utf-8"))


@pytest.mark.parametrize("family", ["mixtral", "granitemoe"])
def test_sft_of_a_mixture_ends_with_answers_and_the_configuration_that_it_began_with(
    family, small_world, tmp_path
):
    world = world_of(family, small_world, tmp_path)
    said: list[str] = []
    flags = {**TWO, "trainer__save_steps": 1, "trainer__eval_steps": 2}
    recipe = small_recipe("sft", world, tmp_path / "run", **flags)
    run_recipe(
        recipe,
        on_event=lambda event: said.append(event.text) if isinstance(event, Notice) else None,
    )
    samples = json.loads((tmp_path / "run" / "samples.json").read_text("utf-8"))
    assert all(isinstance(sample["after"], str) for sample in samples)
    weights = json.loads((tmp_path / "run" / "weights.json").read_text("utf-8"))
    assert weights["trained"] == weights["total"] == sum(weights["places"].values())
    card = (tmp_path / "run" / "final" / "README.md").read_text("utf-8")
    assert f"| weights trained | {weights['total']:,} of {weights['total']:,} |" in card
    assert f"{weights['total']:,} of" in (tmp_path / "run" / "report.html").read_text("utf-8")
    before = config_of(world / "model")
    for result in (tmp_path / "run" / "final", tmp_path / "run" / "checkpoints" / "checkpoint-1"):
        assert config_of(result) == before
    assert any(
        text.startswith("training all") and ".experts (gate_up_proj, down_proj)" in text
        for text in said
    )
    assert any(
        "the router's own loss is trained too, with a weight of 0.001" in text for text in said
    )


def test_a_mixtures_held_out_loss_is_that_of_its_tokens_as_the_evaluation_gives_it(
    small_world, tmp_path
):
    world = world_of("mixtral", small_world, tmp_path, router_aux_loss_coef=0.5)
    recipe = small_recipe("sft", world, tmp_path / "run", **TWO)
    results = run_recipe(recipe).results
    model = Model(name_or_path=str(tmp_path / "run" / "final"))
    tokenizer = load_tokenizer(model)
    held_out = load_rows(recipe.recipe.data, "sft", recipe.recipe.seed).eval
    measured = measure_rows(
        load_policy(model, tokenizer, trainable=False), tokenizer, held_out or []
    )["loss"]
    assert results["eval/loss"] == pytest.approx(measured, abs=1e-5)
    assert results["eval/aux_loss"] > 1
    assert results["train/loss"] > measured + 0.4  # 0.5 * 2: the router's loss is trained


def test_no_loss_of_a_router_is_trained_where_the_architecture_has_none() -> None:
    llama4, llama = mixture("llama4_text"), tiny_llama(byte_tokenizer())
    assert llama4.config.router_aux_loss_coef > 0
    assert not has_router_loss(llama4)
    assert router_coefficient(llama4, None) == router_coefficient(llama, 0.0) == 0.0
    assert router_coefficient(mixture("mixtral"), None) == 0.001
    assert router_coefficient(mixture("mixtral"), 0.0) == 0.0
    with pytest.raises(
        RecipeError, match=r"router_aux_loss_coef is 0.1, but Llama has no loss of its router"
    ):
        router_coefficient(llama, 0.1)


@pytest.mark.parametrize("method", ["dpo", "reward", "sapo"])
def test_every_method_trains_a_mixture_whose_configuration_asks_for_router_logits(
    method, small_world, tmp_path
):
    world = world_of("mixtral", small_world, tmp_path, output_router_logits=True)
    flags = {**TWO, "model__lora": {"r": 2}}
    if method == "sapo":
        flags |= {"sapo__window": 4, "trainer__per_device_train_batch_size": 2, "data__eval": None}
    results = run_recipe(small_recipe(method, world, tmp_path / "run", **flags)).results
    assert results["steps"] == 2


def test_a_model_that_asks_for_router_logits_answers_rows_of_different_lengths(tmp_path) -> None:
    model = mixture("mixtral", output_router_logits=True)
    sampling = Sampling(max_new_tokens=3, temperature=0.0)
    asked = generate(model, byte_tokenizer(), ["ab", "abcdefgh"], sampling, batch_size=2)
    alone = [generate(model, byte_tokenizer(), [text], sampling)[0] for text in ("ab", "abcdefgh")]
    assert asked == alone
    assert model.config.output_router_logits


def test_what_training_changes_in_a_configuration_is_put_back_and_taken_up_again() -> None:
    model = mixture("mixtral")
    own, before = OwnConfig(model), (model.config.to_dict(), model.generation_config.to_dict())
    config, generation = model.config, model.generation_config
    model.config.output_router_logits, model.config.use_cache = True, False
    model.config.num_experts_of_somebody = 4
    model.generation_config.eos_token_id = [2, 3]
    changed = model.config.to_dict()
    with own.in_place():
        assert (model.config.to_dict(), model.generation_config.to_dict()) == before
    assert model.config.to_dict() == changed
    assert model.generation_config.eos_token_id == [2, 3]
    own.put_back()
    assert (model.config.to_dict(), model.generation_config.to_dict()) == before
    assert model.config is config
    assert model.generation_config is generation
    with eval_mode(model), torch.no_grad():
        assert not model.training


def test_the_part_below_the_head_is_found_where_a_class_calls_it_otherwise_than_it_says(
    tmp_path,
) -> None:
    model = Model(name_or_path=str(save_mixture("llama4_text", tmp_path)))
    policy = load_policy(model, load_tokenizer(model), trainable=True)
    assert policy.base_model is policy.model
