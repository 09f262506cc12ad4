"""The JSON Schema of recipes: it takes what is right, and marks what is wrong."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from aligner.config.json_schema import recipe_schema
from aligner.config.load import load_recipe
from aligner.config.shipped import shipped_recipes
from aligner.config.yaml_lines import read_document
from aligner.errors import RecipeError, UsageError
from aligner.methods.catalogue import METHODS

SHIPPED = {recipe.name: recipe for recipe in shipped_recipes()}
START: dict[str, Any] = {"model": {"name_or_path": "model"}, "data": {"train": "rows.jsonl"}}

BROKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "no such section": ("sft", {"modle": {}}),
    "no such key": ("sft", {"data": {"train": "rows.jsonl", "max_len": 5}}),
    "no such key of the trainer": ("dpo", {"trainer": {"learnig_rate": 1e-5}}),
    "a key of another trainer": ("dpo", {"trainer": {"packing_strategy": "bfd"}}),
    "a key that is set elsewhere": ("sft", {"trainer": {"max_length": 5}}),
    "a choice that there is not": ("sft", {"model": {"name_or_path": "m", "dtype": "bf16"}}),
    "a choice of the trainer": ("sft", {"trainer": {"optim": "adamw_8bitt"}}),
    "a text for a number": ("dpo", {"dpo": {"beta": "small"}}),
    "a text for a number of the trainer": ("dpo", {"trainer": {"learning_rate": "fast"}}),
    "beyond a bound": ("dpo", {"dpo": {"label_smoothing": 0.5}}),
    "the section of another method": ("sft", {"dpo": {}}),
    "no sources": ("sft", {"data": {"train": []}}),
    "a source without a path": ("sft", {"data": {"train": [{"split": "train"}]}}),
    "a share of all rows": ("sft", {"data": {"train": "rows.jsonl", "eval": 1.5}}),
    "no model": ("sft", {"model": {}}),
    "a section of a mapping's place": ("sft", {"trainer": []}),
}


@functools.cache
def validator(method: str | None = None) -> Draft202012Validator:
    schema = recipe_schema(method)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_taken(name: str) -> None:
    recipe = SHIPPED[name]
    values = read_document(recipe.path.read_text("utf-8"), name).values
    for wanted in (None, recipe.method):
        assert not [error.message for error in validator(wanted).iter_errors(values)]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_recipe_is_marked_and_is_refused_by_the_loader_too(
    name: str, tmp_path: Path
) -> None:
    method, wrong = BROKEN[name]
    values = {"method": method, **START, **wrong}
    assert list(validator().iter_errors(values))
    assert list(validator(method).iter_errors(values))
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values), "utf-8")
    with pytest.raises(RecipeError):
        load_recipe(method, file)


def test_sources_may_be_written_in_short() -> None:
    for train in ("a.jsonl", ["a.jsonl", {"path": "b.jsonl", "weight": 2}], {"path": "a.jsonl"}):
        values = {"method": "sft", **START, "data": {"train": train, "eval": train}}
        assert not list(validator().iter_errors(values)), train
    assert validator().is_valid({"method": "sft", **START, "data": {"train": "a", "eval": 0.1}})


def test_the_method_must_be_named_where_the_schema_is_of_all() -> None:
    assert not validator().is_valid(START)
    assert validator("sft").is_valid(START)
    assert not validator().is_valid({"method": "sftt", **START})


def test_every_key_has_its_text() -> None:
    schema = recipe_schema()
    for name, section in schema["$defs"].items():
        for key, field in section.get("properties", {}).items():
            assert field["description"], f"{name}.{key}"
    beta = schema["$defs"]["Dpo"]["properties"]["beta"]
    assert beta["default"] == 0.1
    assert "reference" in beta["description"]
    assert set(METHODS) == set(schema["properties"]["method"]["enum"])


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(UsageError, match="no method is called `dop`") as caught:
        recipe_schema("dop")
    assert "dpo" in caught.value.hint
