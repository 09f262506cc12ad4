"""Every shipped recipe on a GPU that is a little too small: what is offered makes it fit, typed as
it stands, or it is said why nothing does. Models are configs alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from aligner.config.load import Resolved, load_recipe
from aligner.config.recipe import TrainRecipe
from aligner.config.shipped import shipped_recipes
from aligner.memory.estimate import estimate
from aligner.methods.catalogue import method_of
from aligner.methods.plan_memory import (
    InnerTraining,
    around_itself,
    inner_trainings,
    memory_of,
    memory_of_inner,
    with_changes,
)
from aligner.methods.steps import has_steps

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
WITH_TRAININGS = [
    recipe.name
    for recipe in shipped_recipes()
    if has_steps(recipe.method) or method_of(recipe.method).trainings
]
NONE_IN_THEM = ("discover/bandit", "tiny/discover")
"""Searches whose objectives are measured without a training of a model."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def loaded(name: str, model: Path, *overrides: str) -> Resolved:
    """A shipped recipe with that model, and scorers that take no memory."""
    method = next(recipe.method for recipe in shipped_recipes() if recipe.name == name)
    given = [f"model.name_or_path={model}"]
    if method == "discover":
        written = list(load_recipe(method, name).recipe.discover.overrides)
        inner = [*written, f"model.name_or_path={model}"]
        given = [f"discover.overrides={json.dumps(inner)}"]
    elif method == "rlhf":
        rlhf = load_recipe(method, name).recipe.rlhf
        given += ["rlhf.segment_model=toy"] if rlhf.segment_model else []
        given += ["rlhf.reward_models=[toy]"] if rlhf.reward_models else []
    return load_recipe(method, name, [*given, *overrides])


def trainings(resolved: Resolved) -> list[InnerTraining]:
    if has_steps(resolved.recipe.method):
        return [InnerTraining("training", resolved.recipe)]
    return inner_trainings(resolved)


def peak(recipe: TrainRecipe) -> int:
    return estimate(recipe, cuda=True).peak_bytes


def step_rows(recipe: TrainRecipe) -> int:
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
    rows = recipe.launch.num_processes
    for key, default in zip(keys, (8, 1)):
        rows *= int(recipe.trainer.get(key, default))
    return rows


@pytest.mark.parametrize("name", [name for name in WITH_TRAININGS if name not in NONE_IN_THEM])
def test_what_is_offered_lowers_what_a_recipe_takes(name: str, model: Path) -> None:
    def again(overrides: Sequence[str]) -> Resolved:
        return loaded(name, model, *overrides)

    found = trainings(loaded(name, model))
    assert found
    for one in found:
        now = peak(one.recipe)
        limit = int((now - 2**20) / 0.9)
        if has_steps(one.recipe.method) and one.name == "training":
            plan = with_changes(
                memory_of(one.recipe, None, limit),
                one.recipe,
                None,
                around_itself(one.recipe, again),
            )
        else:
            plan = memory_of_inner(one, limit, again)
        assert plan.fits is False
        assert plan.usable is not None
        assert 1 <= len(plan.changes) <= 3
        for change in plan.changes:
            typed = trainings(loaded(name, model, *change.overrides))
            changed = next(other.recipe for other in typed if other.name == one.name)
            assert peak(changed) == change.estimate.peak_bytes <= plan.usable < now
            assert step_rows(changed) == step_rows(one.recipe)


@pytest.mark.parametrize("name", NONE_IN_THEM)
def test_a_search_without_a_training_has_no_memory_of_one(name: str, model: Path) -> None:
    method = next(recipe.method for recipe in shipped_recipes() if recipe.name == name)
    assert inner_trainings(load_recipe(method, name)) == []


def test_where_nothing_makes_it_fit_what_is_left_is_known(model: Path) -> None:
    for name in ("sft/llama-3.1-8b-qlora", "online/llama-3-8b", "flywheel/mistral-7b"):
        for one in trainings(loaded(name, model)):
            plan = memory_of_inner(one, 3 * 2**30)
            assert plan.changes == []
            assert plan.least is not None
            assert plan.least.estimate.peak_bytes < plan.estimate.peak_bytes
