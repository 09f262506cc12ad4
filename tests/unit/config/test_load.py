"""Recipes that are right: what is laid over what, where each value came from, what is derived."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydantic
import pytest

from aligner.config.defaults import as_given
from aligner.config.load import Resolved, load_recipe, recipe_hash
from aligner.config.overrides import FlagValue
from aligner.errors import RecipeError

RECIPE = """\
method: dpo
output_dir: runs/x
model:
  name_or_path: base
data:
  train: pairs.jsonl
dpo: {beta: 0.2}
trainer:
  learning_rate: 5e-6
  max_steps: 3
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE, "utf-8")
    return "r.yaml"


def test_the_file_beats_the_defaults_and_the_command_line_beats_the_file(recipe: str) -> None:
    resolved = load_recipe(
        "dpo", recipe, ["dpo.beta=0.3"], {"trainer.max_steps": FlagValue(7, "--max_steps")}
    )
    assert resolved.recipe.dpo.beta == 0.3
    assert as_given(resolved.recipe, resolved.origins).trainer == {
        "learning_rate": 5e-6,
        "max_steps": 7,
    }
    assert resolved.recipe.seed == 42
    origins = resolved.origins
    assert origins["dpo.beta"] == "dpo.beta=0.3"
    assert origins["trainer.max_steps"] == "--max_steps"
    assert origins["trainer.learning_rate"] == "r.yaml:9"
    assert origins["data.train"] == "r.yaml:6"
    assert origins["seed"] == "default"
    assert origins["model.dtype"] == "default"


def test_every_value_has_an_origin(recipe: str) -> None:
    resolved = load_recipe("dpo", recipe, ["model.lora={}"])
    assert resolved.origins["model.lora.r"] == "default"

    def leaves(values: dict[str, Any], prefix: str = "") -> set[str]:
        found: set[str] = set()
        for key, value in values.items():
            nested = isinstance(value, dict) and value
            found |= leaves(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}"}
        return found

    assert set(resolved.origins) == leaves(resolved.recipe.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("model.lora.r=8", "model.lora.r", 8),
        ("model.lora={r: 4, lora_alpha: 8}", "model.lora.lora_alpha", 8),
        ("model.revision=1234567", "model.revision", "1234567"),
        ("model.revision=1e5", "model.revision", "1e5"),
        ("model.name_or_path=a=b", "model.name_or_path", "a=b"),
        (
            "model.lora.target_modules=[q_proj, v_proj]",
            "model.lora.target_modules",
            ["q_proj", "v_proj"],
        ),
        ("trainer.learning_rate=1e-4", "trainer.learning_rate", 1e-4),
        ("trainer.ddp_timeout=60", "trainer.ddp_timeout", 60),
        ("trainer.run_name=12", "trainer.run_name", "12"),
        ("trainer.save_strategy=no", "trainer.save_strategy", "no"),
        ("launch.mixed_precision=no", "launch.mixed_precision", "no"),
        ("data.eval=0.1", "data.eval", 0.1),
        ("data.eval=null", "data.eval", None),
        ("early_stopping=null", "early_stopping", None),
        ("dpo.reference_model=x/y", "dpo.reference_model", "x/y"),
    ],
)
def test_an_override_sets_a_dotted_key(
    recipe: str, override: str, path: str, value: object
) -> None:
    found: Any = load_recipe("dpo", recipe, [override]).recipe.model_dump()
    for part in path.split("."):
        found = found[part]
    assert found == value
    assert type(found) is type(value)


def test_lists_are_replaced_whole(recipe: str) -> None:
    sources = load_recipe(
        "dpo", recipe, ["data.train=[a.jsonl, {path: b.jsonl, weight: 2.0}]"]
    ).recipe.data.train
    assert [(source.path, source.weight) for source in sources] == [
        ("a.jsonl", 1.0),
        ("b.jsonl", 2.0),
    ]


def test_a_key_below_data_train_goes_into_the_only_source(recipe: str) -> None:
    resolved = load_recipe(
        "dpo", recipe, ["data.train.max_rows=10", "data.train.columns.prompt=question"]
    )
    (source,) = resolved.recipe.data.train
    assert (source.path, source.max_rows, source.columns) == (
        "pairs.jsonl",
        10,
        {"prompt": "question"},
    )
    assert (
        resolved.origins["data.train"]
        == "r.yaml:6 + data.train.columns.prompt=question + data.train.max_rows=10"
    )


def test_the_test_split_of_the_training_data_is_an_evaluation_source(recipe: str) -> None:
    overrides = ["data.eval.split=test", "data.train.subset=main"]
    (source,) = load_recipe("dpo", recipe, overrides).recipe.data.eval
    assert (source.path, source.split, source.subset) == ("pairs.jsonl", "test", "main")


def test_several_sources_cannot_be_meant_by_one_key(recipe: str) -> None:
    with pytest.raises(RecipeError, match="exactly one source"):
        load_recipe("dpo", recipe, ["data.train=[a.jsonl, b.jsonl]", "data.train.max_rows=10"])


def test_the_later_of_two_overrides_counts(recipe: str) -> None:
    assert load_recipe("dpo", recipe, ["seed=1", "seed=2"]).recipe.seed == 2


def test_a_flag_and_an_override_may_agree_but_not_contradict(recipe: str) -> None:
    assert load_recipe("dpo", recipe, ["seed=1"], {"seed": FlagValue(1, "--seed")}).recipe.seed == 1
    with pytest.raises(RecipeError, match="set twice, by `seed=1` and by `--seed`"):
        load_recipe("dpo", recipe, ["seed=1"], {"seed": FlagValue(2, "--seed")})


def test_use_peft_keeps_the_adapter_section_of_the_recipe(recipe: str) -> None:
    Path(recipe).write_text(
        RECIPE.replace("name_or_path: base", "name_or_path: base\n  lora: {r: 4}"), "utf-8"
    )
    assert (
        load_recipe(
            "dpo", recipe, flags={"model.lora": FlagValue({}, "--use_peft")}
        ).recipe.model.lora.r
        == 4
    )
    assert (
        load_recipe(
            "dpo", recipe, flags={"model.lora": FlagValue(None, "--no-use_peft")}
        ).recipe.model.lora
        is None
    )


def test_a_recipe_is_frozen(recipe: str) -> None:
    loaded = load_recipe("dpo", recipe).recipe
    with pytest.raises(pydantic.ValidationError):
        loaded.seed = 1
    with pytest.raises(pydantic.ValidationError):
        loaded.dpo.beta = 1.0


@pytest.mark.parametrize(
    ("method", "ref", "model", "expected"),
    [
        ("dpo", "mine.yaml", "x/y", "runs/mine-dpo"),
        ("dpo", "dpo.yaml", "x/y", "runs/dpo"),
        ("sft", "qwen-sft.yaml", "x/y", "runs/qwen-sft"),
        ("sft", None, "Qwen/Qwen3-0.6B", "runs/Qwen3-0.6B-sft"),
    ],
)
def test_without_output_dir_the_run_is_named_after_the_recipe_or_the_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    ref: str | None,
    model: str,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if ref:
        Path(ref).write_text("seed: 1\n", "utf-8")
    resolved = load_recipe(method, ref, [f"model.name_or_path={model}", "data.train=rows.jsonl"])
    assert resolved.recipe.output_dir == expected
    assert resolved.origins["output_dir"].startswith("derived from")


def test_a_shipped_recipe_is_found_by_its_name() -> None:
    resolved = load_recipe("dpo", "tiny/dpo")
    assert resolved.recipe.method == "dpo"
    assert resolved.path is not None
    assert resolved.text == resolved.path.read_text("utf-8")
    assert resolved.origins["output_dir"].startswith("tiny/dpo.yaml:")


def test_without_a_file_the_text_is_what_the_flags_amount_to(tmp_path: Path) -> None:
    resolved = load_recipe(
        "sft", None, flags={"model.name_or_path": "x/y", "data.train": "a.jsonl"}
    )
    (tmp_path / "again.yaml").write_text(resolved.text, "utf-8")
    assert load_recipe("sft", tmp_path / "again.yaml").recipe == resolved.recipe


def test_the_hash_is_of_what_is_run_and_not_of_where_it_is_put(recipe: str) -> None:
    base = recipe_hash(load_recipe("dpo", recipe).recipe)
    assert base == recipe_hash(load_recipe("dpo", recipe, ["output_dir=elsewhere"]).recipe)
    assert base == recipe_hash(
        load_recipe("dpo", recipe, ["trainer.learning_rate=0.000005"]).recipe
    )
    assert base != recipe_hash(load_recipe("dpo", recipe, ["seed=1"]).recipe)
    assert base != recipe_hash(load_recipe("dpo", recipe, ["trainer.max_steps=4"]).recipe)


def test_what_was_resolved_survives_json(recipe: str) -> None:
    resolved = load_recipe(
        "dpo", recipe, ["model.lora.r=8", "data.eval=[{path: b.jsonl, split: test}]"]
    )
    record = json.loads(json.dumps(resolved.as_json()))
    again = Resolved.from_json(record, resolved.text, resolved.path)
    assert again == resolved
    assert record["recipe_hash"] == recipe_hash(again.recipe)


def test_numbers_of_the_trainer_have_the_types_of_its_class(recipe: str) -> None:
    overrides = ["trainer.num_train_epochs=2", "trainer.max_steps=1e3", "trainer.warmup_steps=0.1"]
    resolved = load_recipe("dpo", recipe, overrides)
    assert as_given(resolved.recipe, resolved.origins).trainer == {
        "learning_rate": 5e-6,
        "num_train_epochs": 2,
        "max_steps": 1000,
        "warmup_steps": 0.1,
    }
    assert isinstance(resolved.recipe.trainer["max_steps"], int)


def test_the_same_number_written_differently_is_the_same_recipe(recipe: str) -> None:
    hashes = {
        recipe_hash(load_recipe("dpo", recipe, [f"trainer.num_train_epochs={number}"]).recipe)
        for number in ("2", "2.0", "2e0", "'2'")
    }
    assert len(hashes) == 1


def test_no_heavy_library_is_loaded() -> None:
    code = (
        "import sys; from aligner.config.flags import parse_arguments; from aligner.config.load "
        "import load_recipe\n"
        "a = parse_arguments(['tiny/dpo', '--learning_rate', '1e-4'], 'dpo')\n"
        "load_recipe('dpo', a.ref, a.overrides, a.flags)\n"
        "print([name for name in ('torch', 'transformers', 'trl', 'datasets', 'peft', 'numpy') if "
        "name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
