"""What is found out before a row becomes tokens: settings that this machine cannot run, lengths,
and weights not all there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import save_model, small_recipe
from runner import aligner

from aligner.config.load import load_recipe
from aligner.errors import DataError, RecipeError
from aligner.events import Notice
from aligner.methods.pipeline import run_recipe
from aligner.models.files import check_model_path
from aligner.models.positions import sizes_of, within_model
from aligner.training.rehearsal import rehearse

REFUSED = [
    ("tf32", {"tf32": True}, "trainer.tf32", "Ampere"),
    ("a device without bfloat16", {"bf16": True, "use_cpu": False}, "trainer.bf16", "bf16"),
    (
        "a rate below its end",
        {"lr_scheduler_type": "polynomial", "learning_rate": 1e-8},
        "lr_scheduler_type",
        "lr_end",
    ),
    (
        "offloading to where it is",
        {"activation_offloading": True},
        "trainer.activation_offloading",
        "on the CPU",
    ),
    (
        "nesterov without momentum",
        {"optim": "sgd", "optim_args": "nesterov=true"},
        "trainer.optim",
        "momentum",
    ),
]


@pytest.mark.parametrize(("what", "trainer", "key", "words"), REFUSED)
def test_a_setting_that_does_not_work_here_is_told_by_its_key(
    what: str,
    trainer: dict[str, Any],
    key: str,
    words: str,
    small_world: Path,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    flags = {f"trainer__{name}": value for name, value in trainer.items()}
    resolved = small_recipe("sft", small_world, tmp_path / "run", **flags)
    with pytest.raises(RecipeError) as caught:
        rehearse(resolved.recipe, {f"trainer.{next(iter(trainer))}": "r.yaml:7"})
    (problem,) = caught.value.problems
    assert key in problem.key, what
    assert words in problem.message


@pytest.mark.parametrize(
    "optim",
    ["adamw_torch_fused", "adafactor", "ademamix", "sgd", "adagrad", "rmsprop", "lion_32bit"],
)
def test_optimizers_that_work_here_pass(optim: str, small_world: Path, tmp_path: Path) -> None:
    rehearse(small_recipe("sft", small_world, tmp_path / "run", trainer__optim=optim).recipe)


def test_a_dry_run_tries_the_settings_and_names_the_line(small_world: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"model: {{name_or_path: {small_world / 'model'}}}\ndata: {{train: "
        f"{small_world / 'sft.jsonl'}, max_length: 128}}\n"
        f"output_dir: {tmp_path / 'run'}\ntrainer:\n  use_cpu: true\n  optim: sgd\n  optim_args: "
        "nesterov=true\n"
    )
    outcome = aligner("sft", recipe, "--dry-run")
    assert outcome.exit_code == 2
    assert "r.yaml:6: trainer.optim: Nesterov momentum requires" in outcome.stderr
    assert "tokenizing" not in outcome.stderr


def test_dropping_every_batch_is_refused_before_and_after_rows_are_tokens(
    small_world: Path, tmp_path: Path
) -> None:
    drop = {"trainer__dataloader_drop_last": True, "trainer__per_device_train_batch_size": 48}
    with pytest.raises(DataError, match="48 rows do not fill one of 50"):
        run_recipe(
            small_recipe(
                "sft",
                small_world,
                tmp_path / "a",
                **{**drop, "trainer__per_device_train_batch_size": 50},
            ),
            dry_run=True,
        )
    with pytest.raises(DataError, match="do not fill one of 48"):
        run_recipe(
            small_recipe(
                "sft",
                small_world,
                tmp_path / "b",
                data__on_too_long="drop",
                data__max_length=60,
                **drop,
            ),
            dry_run=True,
        )


# --- lengths and ranks ----------------------------------------------------------------------------


def recipe_of(method: str, **flags: Any) -> Any:
    named = {key.replace("__", "."): value for key, value in flags.items()}
    return load_recipe(
        method, None, [], {"model.name_or_path": "m", "data.train": "d.jsonl", **named}
    ).recipe


@pytest.mark.parametrize("sizes", [{"max_position_embeddings": 512}, {"n_positions": 512}])
def test_a_length_beyond_the_models_positions_is_refused_and_the_default_becomes_theirs(
    sizes: dict[str, int],
) -> None:
    within, remark = within_model(recipe_of("sft"), sizes)
    assert within.data.max_length == 512
    assert "512" in remark
    assert within_model(recipe_of("sft", data__max_length=512), sizes)[1] == ""
    for key in ("data__max_length", "data__mosaic"):
        value: Any = 513 if key == "data__max_length" else {"max_tokens": 513}
        with pytest.raises(RecipeError, match="is 513, and the model has 512 positions"):
            within_model(recipe_of("sft", **{key: value}), sizes)


def test_padding_beyond_the_positions_is_refused() -> None:
    recipe = recipe_of("sft", data__max_length=500, trainer__pad_to_multiple_of=64)
    assert within_model(recipe, {"max_position_embeddings": 512})[1] == ""
    with pytest.raises(RecipeError, match="padded to 512 tokens, and the model has 500 positions"):
        within_model(recipe, {"max_position_embeddings": 500})


def test_a_model_without_positions_sets_no_limit() -> None:
    recipe = recipe_of("sft", data__max_length=1_000_000)
    assert within_model(recipe, {"hidden_size": 64}) == (recipe, "")


def test_a_rank_above_the_width_is_refused() -> None:
    with pytest.raises(RecipeError, match="r is 65, and the model is 64 wide"):
        within_model(recipe_of("sft", model__lora={"r": 65}), {"hidden_size": 64})


def test_sizes_are_those_of_the_text_model_and_of_an_adapters_base(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir(), adapter.mkdir()
    (base / "config.json").write_text(
        '{"text_config": {"max_position_embeddings": 9, "hidden_size": 8}}'
    )
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    model = recipe_of("sft", model__name_or_path=str(adapter)).model
    assert sizes_of(model)["max_position_embeddings"] == 9
    assert sizes_of(recipe_of("sft").model) == {}


def test_the_default_length_is_told_and_resumed_with(small_world: Path, tmp_path: Path) -> None:
    said: list[str] = []
    resolved = load_recipe(
        "sft",
        None,
        [],
        {
            "model.name_or_path": str(small_world / "model"),
            "data.train": str(small_world / "sft.jsonl"),
            "output_dir": str(tmp_path / "run"),
            "trainer.max_steps": 1,
            "trainer.use_cpu": True,
            "report.num_prompts": 0,
        },
    )
    run_recipe(
        resolved,
        on_event=lambda event: said.append(event.text) if isinstance(event, Notice) else None,
    )
    assert any("data.max_length is 512" in text for text in said)
    assert (
        json.loads((tmp_path / "run" / "resolved.json").read_text())["recipe"]["data"]["max_length"]
        == 512
    )
    run_recipe(resolved, resume=True)  # the same recipe, not a changed one


# --- weights --------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    from fakes import byte_tokenizer, tiny_llama

    tokenizer = byte_tokenizer()
    tiny_llama(tokenizer).save_pretrained(tmp_path / "m", max_shard_size="50KB")
    tokenizer.save_pretrained(tmp_path / "m")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    return tmp_path / "m"


def refused(folder: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        check_model_path(recipe_of("sft", model__name_or_path=str(folder)).model)
    assert caught.value.hint
    return caught.value.message


def test_whole_weights_pass(sharded: Path) -> None:
    check_model_path(recipe_of("sft", model__name_or_path=str(sharded)).model)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    file = sorted(sharded.glob("*.safetensors"))[1]
    file.unlink()
    assert f"missing: {file.name}" in refused(sharded)


def test_shards_without_their_index_are_refused(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    assert "holds neither model.safetensors nor model.safetensors.index.json" in refused(sharded)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_index_without_its_map_is_refused(sharded: Path, text: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    assert "has no `weight_map`" in refused(sharded)


@pytest.mark.parametrize(
    ("size", "words"),
    [(-1, "is cut off"), (40, "is cut off"), (4, "its beginning is damaged"), (0, "is damaged")],
)
def test_weights_that_are_cut_off_are_refused_with_their_sizes(
    tmp_path: Path, size: int, words: str
) -> None:
    file = save_model(tmp_path / "m") / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:size])
    message = refused(tmp_path / "m")
    assert words in message
    if size == -1:
        assert f"{len(content) - 1:,} bytes of {len(content):,}" in message


def test_more_bytes_than_the_header_promises_are_refused(tmp_path: Path) -> None:
    with (save_model(tmp_path / "m") / "model.safetensors").open("ab") as stream:
        stream.write(b"\0")
    assert "is longer than it says" in refused(tmp_path / "m")
