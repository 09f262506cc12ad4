"""What makes a training fit: each change offered fits, and none could be left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from aligner.config.load import load_recipe
from aligner.config.recipe import Model, TrainRecipe
from aligner.memory.changes import Around, Change, cheaper, lines_of, options, with_values
from aligner.memory.estimate import estimate
from aligner.memory.footprint import Lengths
from aligner.models import configs

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4000,
    "tie_word_embeddings": True,
    "dtype": "float32",
}
LONG = Lengths(1024, 1536, 512)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def given(model: Path, method: str = "sft", *settings: str) -> list[str]:
    names = [f"model.name_or_path={model}", "data.train=rows.jsonl", "output_dir=run"]
    return [*names, "trainer.per_device_train_batch_size=8", *settings]


def recipe_of(model: Path, method: str = "sft", *settings: str) -> TrainRecipe:
    recipe = load_recipe(method, None, given(model, method, *settings)).recipe
    assert isinstance(recipe, TrainRecipe)
    return recipe


def found(model: Path, share: float, *settings: str, cuda: bool = False) -> list[Change]:
    """Changes that bring the peak below a share of what it is."""
    recipe = recipe_of(model, "sft", *settings)
    limit = int(share * estimate(recipe, LONG, cuda=cuda).peak_bytes)
    changes = cheaper(recipe, limit, LONG, cuda=cuda)
    assert all(change.estimate.peak_bytes <= limit for change in changes)
    return changes


def test_smaller_batches_come_first_and_leave_the_rows_of_a_step(model: Path) -> None:
    first, *_ = found(model, 0.9)
    assert first.overrides == (
        "trainer.per_device_train_batch_size=4",
        "trainer.gradient_accumulation_steps=2",
    )
    assert "as many rows a step" in first.price


def test_changes_are_alternatives(model: Path) -> None:
    changes = found(model, 0.6)
    assert len(changes) == 3
    keys = [set(change.overrides) for change in changes]
    assert ("trainer.gradient_checkpointing=true",) in [change.overrides for change in changes]
    for one in keys:
        assert not any(one < other for other in keys)


def test_what_is_offered_can_be_pasted_and_gives_the_estimate(model: Path) -> None:
    for change in found(model, 0.25):
        settings = given(model, "sft", *change.overrides)
        recipe = load_recipe("sft", None, settings).recipe
        assert isinstance(recipe, TrainRecipe)
        longest = LONG.within(recipe.data.max_length)
        again = estimate(recipe, longest, cuda=False)
        assert again.peak_bytes == change.estimate.peak_bytes


def test_little_memory_takes_several_changes_together(model: Path) -> None:
    changes = found(model, 0.05)
    assert changes
    assert any("model.quantization=nf4" in change.overrides for change in changes)


def test_too_little_memory_has_no_answer(model: Path) -> None:
    assert cheaper(recipe_of(model), 1000, LONG, cuda=False) == []


def test_a_gpu_is_offered_eight_bits_and_no_second_checkpointing(model: Path) -> None:
    recipe = recipe_of(model, "sft", "trainer.per_device_train_batch_size=1")
    now = estimate(recipe, Lengths(64, 64, 32), cuda=True).peak_bytes
    offered = cheaper(recipe, now - 50_000_000, Lengths(64, 64, 32), cuda=True)
    texts = [text for change in offered for text in change.overrides]
    assert "trainer.optim=adamw_bnb_8bit" in texts
    assert "trainer.gradient_checkpointing=true" not in texts


def offered(model: Path, share: float, *settings: str, method: str = "sft") -> list[Change]:
    """Changes for a GPU with a share of what a training takes there."""
    recipe = recipe_of(model, method, *settings)
    limit = int(share * estimate(recipe, LONG, cuda=True).peak_bytes)
    return cheaper(recipe, limit, LONG, cuda=True)


def test_batches_of_any_size_become_smaller_and_keep_the_rows_of_a_step(model: Path) -> None:
    recipe = recipe_of(model, "sft", "trainer.per_device_train_batch_size=12")
    batches = next(lines_of(recipe, LONG, cuda=True))
    keys = ("trainer.per_device_train_batch_size", "trainer.gradient_accumulation_steps")
    assert [tuple(step.values[key] for key in keys) for step in batches] == [
        (6, 2),
        (3, 4),
        (1, 12),
    ]


def test_a_loss_with_a_statistic_over_the_batch_makes_smaller_ones_dearer(model: Path) -> None:
    plain, *_ = offered(model, 0.9, "data.eval=null", method="dpo")
    assert plain.overrides[0] == "trainer.per_device_train_batch_size=4"
    changes = offered(model, 0.9, "dpo.loss=kto_pair", method="dpo")
    told = [change for change in changes if "kto_pair takes a mean over fewer" in change.price]
    assert changes[0] not in told
    assert told


def test_several_processes_share_the_model_before_another_one_is_trained(model: Path) -> None:
    settings = ("launch.num_processes=8", "trainer.per_device_train_batch_size=1")
    first, *rest = offered(model, 0.8, *settings)
    assert first.overrides == ("launch.strategy=fsdp",)
    assert all("launch.strategy=fsdp" not in change.overrides for change in rest)
    (first, *_) = offered(model, 0.9, *settings, "sapo.offload=true", method="sapo")
    assert first.overrides == ("launch.strategy=zero2",), "each process samples from all weights"


def test_a_split_model_is_offered_neither_eight_bits_nor_four_without_an_end_to_it(
    model: Path,
) -> None:
    settings = ("launch.num_processes=8", "launch.strategy=fsdp")
    for share in (0.8, 0.5, 0.3):
        for change in offered(model, share, *settings):
            assert "trainer.optim=adamw_bnb_8bit" not in change.overrides
            in_four_bits = "model.quantization=nf4" in change.overrides
            assert in_four_bits == ("launch.strategy=ddp" in change.overrides)


def test_rows_that_may_be_cut_are_cut(model: Path) -> None:
    alone = ("trainer.per_device_train_batch_size=1", "model.lora={}", "data.on_too_long=truncate")
    texts = [" ".join(change.overrides) for change in offered(model, 0.8, *alone)]
    assert "data.max_length=512" in texts


def test_what_is_left_is_known_where_nothing_makes_it_fit(model: Path) -> None:
    recipe = recipe_of(model)
    nothing = options(recipe, 1000, LONG, cuda=True)
    assert nothing.changes == []
    assert nothing.least is not None
    assert "model.quantization=nf4" in nothing.least.overrides
    assert nothing.least.estimate.peak_bytes < estimate(recipe, LONG, cuda=True).peak_bytes
    something = options(recipe, nothing.least.estimate.peak_bytes, LONG, cuda=True)
    assert something.changes
    assert something.least is None


def test_what_the_rules_refuse_is_not_offered(model: Path) -> None:
    recipe = recipe_of(model)
    limit = int(0.6 * estimate(recipe, LONG, cuda=True).peak_bytes)

    def again(overrides: Sequence[str], values: Mapping[str, Any]) -> TrainRecipe | None:
        return None if "model.lora={}" in overrides else with_values(recipe, values)

    free = options(recipe, limit, LONG, cuda=True)
    bound = options(recipe, limit, LONG, cuda=True, around=Around(again=again))
    assert any("model.lora={}" in change.overrides for change in free.changes)
    assert not any("model.lora={}" in change.overrides for change in bound.changes)


def test_a_config_is_read_once_for_all_changes(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, times = configs._read, []

    def counted(section: Model) -> Any:
        times.append(section.name_or_path)
        return read(section)

    monkeypatch.setattr(configs, "_read", counted)
    recipe = recipe_of(model, "dpo")
    assert options(recipe, 2**27, LONG, cuda=True)
    assert times == [str(model)]
    estimate(recipe, LONG, cuda=True)
    assert len(times) > 1, "a file may change in between"


def test_sampling_can_be_done_in_smaller_parts(model: Path) -> None:
    settings = (
        "rlhf.reward_models=[verifier:number]",
        "rlhf.max_new_tokens=900",
        "trainer.per_device_train_batch_size=1",
        "trainer.gradient_accumulation_steps=32",
        "model.lora={}",
        "trainer.gradient_checkpointing=true",
    )
    recipe = recipe_of(model, "rlhf", *settings)
    prompts = Lengths(100, 100, 0)
    before = estimate(recipe, prompts, cuda=False)
    assert before.phase == "sampling"
    first, *_ = cheaper(recipe, int(before.peak_bytes * 0.8), prompts, cuda=False)
    assert first.overrides == ("rlhf.generation_batch_size=128",)
