"""What a recipe leaves out is filled in, each value with its origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aligner.config import api, defaults
from aligner.config.load import Resolved, load_recipe, recipe_hash
from aligner.methods.catalogue import recipes, trainer_settings, training_of, trainings

METHODS = list(trainings())

OWN: dict[str, dict[str, Any]] = {
    "rlhf": {"rlhf.reward_models": ["toy"]},
    "online": {"online.reward_models": ["toy"], "data.eval": 0.1},
}
"""What a method's recipe needs beside a model and rows."""


def resolve(method: str, *overrides: str, **flags: Any) -> Resolved:
    data = {"model.name_or_path": "base", "data.train": "rows.jsonl"}
    return load_recipe(method, None, overrides, {**data, **OWN.get(method, {}), **flags})


@pytest.mark.parametrize("method", METHODS)
def test_every_key_of_the_trainer_has_a_value_and_an_origin(method: str) -> None:
    resolved = resolve(method)
    of_method = set(trainings()[method].defaults)
    late = set(defaults.LATE) & set(trainer_settings(method)) - of_method
    assert set(resolved.recipe.trainer) == set(trainer_settings(method)) - late
    origins = {resolved.origins[f"trainer.{key}"] for key in resolved.recipe.trainer}
    assert origins <= {
        f"default of {owner}" for owner in (method, "aligner", "TRL", "transformers")
    }


@pytest.mark.parametrize(
    ("method", "overrides", "rate", "origin"),
    [
        ("sft", [], 2e-5, "default of TRL"),
        ("dpo", [], 1e-6, "default of dpo"),
        ("dpo", ["model.lora={}"], 1e-6, "default of dpo"),
        ("sapo", [], 5e-7, "default of sapo"),
        ("rlhf", [], 1e-6, "default of rlhf"),
        ("rlhf", ["model.lora={}"], 1e-5, "default of rlhf with model.lora"),
        ("online", [], 5e-7, "default of online"),
        ("online", ["model.lora={}"], 5e-6, "default of online with model.lora"),
        ("reward", [], 1e-5, "default of reward"),
        ("reward", ["model.lora={}"], 1e-4, "default of reward with model.lora"),
        ("dpo", ["trainer.learning_rate=1e-5"], 1e-5, "trainer.learning_rate=1e-5"),
    ],
)
def test_the_learning_rate_says_whose_it_is(
    method: str, overrides: list[str], rate: float, origin: str
) -> None:
    resolved = resolve(method, *overrides)
    assert resolved.recipe.trainer["learning_rate"] == rate
    assert resolved.origins["trainer.learning_rate"] == origin


def test_epochs_are_three_but_of_a_reward_model_and_a_round() -> None:
    epochs = {method: resolve(method).recipe.trainer["num_train_epochs"] for method in METHODS}
    assert epochs == {"sft": 3, "dpo": 3, "sapo": 3, "rlhf": 3, "reward": 1, "online": 2}


@pytest.mark.parametrize("method", METHODS)
def test_a_default_that_is_written_out_changes_no_hash(method: str) -> None:
    left_out = resolve(method)
    trainer = left_out.recipe.trainer
    for key in ("learning_rate", "num_train_epochs", "weight_decay", "optim", "save_strategy"):
        written = resolve(method, f"trainer.{key}={trainer[key]}")
        assert written.origins[f"trainer.{key}"].startswith(f"trainer.{key}=")
        assert recipe_hash(written.recipe) == recipe_hash(left_out.recipe)


def test_another_default_is_another_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    before = recipe_hash(resolve("dpo").recipe)
    monkeypatch.setitem(training_of("dpo").defaults, "learning_rate", 2e-6)  # type: ignore
    assert recipe_hash(resolve("dpo").recipe) != before


def test_evaluations_follow_held_out_rows_and_early_stopping() -> None:
    assert resolve("sft").recipe.trainer["eval_strategy"] == "no"
    held_out = resolve("sft", "data.eval=0.1").recipe.trainer
    assert held_out["eval_strategy"] == "steps"
    assert not {"eval_steps", "save_steps"} & held_out.keys()  # what they cost decides, later
    best = resolve("sft", "data.eval=0.1", "trainer.load_best_model_at_end=true").recipe.trainer
    assert (best["eval_steps"], best["save_steps"]) == (0.1, 0.1)
    stops = ["data.eval=0.1", "early_stopping={}", "trainer.eval_steps=7"]
    stopping = resolve("sft", *stops)
    assert stopping.recipe.trainer["save_steps"] == 7
    assert stopping.recipe.trainer["load_best_model_at_end"] is True
    assert stopping.origins["trainer.save_steps"] == "default of aligner"


@pytest.mark.parametrize("method", METHODS)
def test_filling_twice_changes_nothing_and_can_be_undone(method: str) -> None:
    resolved = resolve(method, "trainer.max_steps=3")
    assert resolved.filled() == resolved
    given = defaults.as_given(resolved.recipe, resolved.origins)
    assert given.trainer == {"max_steps": 3}
    assert defaults.fill(given)[0] == resolved.recipe


def test_the_recipe_stays_as_it_was_given(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model: {name_or_path: base}\ndata: {train: rows.jsonl}\n", "utf-8")
    assert load_recipe("dpo", file).text == file.read_text("utf-8")


def test_a_recipe_that_was_made_and_not_loaded_has_the_same_defaults() -> None:
    """A value is asked for in one way, whether or not the recipe is filled."""
    values = {
        "output_dir": "x",
        "model": {"name_or_path": "base"},
        "data": {"train": "rows.jsonl"},
    }
    made = recipes()["dpo"].model_validate(values)
    loaded = resolve("dpo").recipe
    for key in loaded.trainer:
        assert defaults.trainer_value(made, key) == loaded.trainer[key]
    assert defaults.trainer_value(made, "bf16") is None


def test_recipes_that_train_nothing_have_none() -> None:
    resolved = load_recipe("mosaic", None, flags={"data.train": "rows.jsonl"})
    assert not any("default of" in origin for origin in resolved.origins.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_loaded_recipe_can_be_given_again(method: str) -> None:
    """As an object, and with further overrides."""
    loaded = resolve(method, "trainer.max_steps=3", "data.eval=0.1")
    assert api.load_recipe(loaded.recipe).recipe == loaded.recipe
    again = api.load_recipe(loaded, {"trainer.save_steps": 2})
    assert again.recipe.trainer == {**loaded.recipe.trainer, "save_steps": 2}
    assert defaults.as_given(again.recipe, again.origins).trainer == {
        "max_steps": 3,
        "save_steps": 2,
    }
