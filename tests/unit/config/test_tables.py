"""Tables that repeat what stands elsewhere, held equal to it: trainer keys, choices, the recipe
reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from aligner.config import docs, hints, trainer_keys
from aligner.config.choices import STRATEGIES
from aligner.config.flag_table import ACCELERATE_CONFIGS, TRAINER, all_flags
from aligner.config.introspect import dotted_keys, walk
from aligner.config.loss_names import LOSSES
from aligner.config.recipe import Section
from aligner.methods.catalogue import (
    METHODS,
    recipes,
    trainer_fields,
    trainer_settings,
    trainings,
)

ROOT = Path(__file__).parents[3]


def test_the_table_of_trainer_keys_equals_the_classes() -> None:
    """When this fails after an upgrade: `python -m aligner.config.trainer_keys`, and read the
    difference."""
    assert trainer_keys.build_table() == trainer_keys.table()


def test_choices_that_the_classes_keep_in_their_help_are_named_there() -> None:
    from dataclasses import fields

    from trl import SFTConfig

    helps = {field.name: field.metadata.get("help", "") for field in fields(SFTConfig)}
    for name, choices in trainer_keys.WRITTEN_CHOICES.items():
        assert all(f"'{choice}'" in helps[name] for choice in choices), name


def test_reserved_keys_are_keys_of_a_trainer() -> None:
    known = {key for method in trainings() for key in trainer_fields(method)}
    assert set(trainer_keys.RESERVED) <= known
    assert set(TRAINER) <= known - set(trainer_keys.RESERVED)


def test_names_that_are_gone_are_not_accepted_anywhere() -> None:
    taken = {key for method in METHODS for key in trainer_settings(method)}
    assert not set(hints.GONE) & taken
    assert not (set(hints.GONE) | set(hints.ELSEWHERE)) & set(all_flags()) - {"warmup_ratio"}


def test_names_of_other_tools_point_to_keys_that_exist() -> None:
    keys = {key for recipe in recipes().values() for key in dotted_keys(recipe)}
    keys |= {f"trainer.{key}" for method in METHODS for key in trainer_settings(method)}
    assert set(hints.ELSEWHERE.values()) <= keys


def test_the_names_of_losses_are_those_of_the_objectives() -> None:
    objectives = pytest.importorskip("aligner.losses.catalogue")
    assert set(LOSSES) == set(objectives.OBJECTIVES) | set(objectives.REWARD_OBJECTIVES)


def test_the_names_of_strategies_are_those_of_the_launcher() -> None:
    launch = pytest.importorskip("aligner.launch.command")
    assert set(STRATEGIES) == set(launch.STRATEGIES)
    assert set(ACCELERATE_CONFIGS.values()) <= set(STRATEGIES)


def test_every_method_has_its_section() -> None:
    for name, recipe in recipes().items():
        assert name in recipe.model_fields
        assert recipe.model_fields["method"].default == name


@pytest.mark.parametrize("recipe", recipes().values(), ids=list(METHODS))
def test_every_key_is_documented(recipe: type[Section]) -> None:
    for key, section in walk(recipe):
        text = docs.text_of(section, key.rsplit(".", 1)[-1])
        assert text.endswith((".", ")")), f"{key}: {text}"


def test_the_recipe_reference_is_the_one_that_the_schema_gives() -> None:
    """When this fails: `python -m aligner.config.docs > docs/recipe.md`."""
    assert (ROOT / "docs" / "recipe.md").read_text("utf-8") == docs.document()
