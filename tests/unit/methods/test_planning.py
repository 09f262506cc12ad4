"""What a plan finds out: the same as the training, without its end at rows that are too long."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from fakes import small_recipe

from aligner.errors import DataError
from aligner.memory.estimate import estimate
from aligner.memory.footprint import Lengths
from aligner.methods.pipeline import run_recipe
from aligner.methods.plan_memory import LEAST_FREE, MemoryPlan
from aligner.methods.planning import TrainingPlan, plan_training


def planned(world: Path, method: str, *overrides: str, **flags: Any) -> TrainingPlan:
    resolved = small_recipe(method, world, world / "runs/plan", *overrides, **flags)
    return plan_training(resolved, ["recipe.yaml", *overrides])


def test_a_plan_is_what_the_training_then_does(small_world: Path, tmp_path: Path) -> None:
    overrides = ("data.eval=0.25", "trainer.num_train_epochs=2")
    found = planned(small_world, "sft", *overrides)
    run_recipe(small_recipe("sft", small_world, tmp_path / "run", *overrides))
    books = json.loads((tmp_path / "run/data.json").read_text())["splits"]
    logged = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert found.books == books
    assert found.counts.tokens == books["train"]["tokens"]
    assert found.counts.trained_tokens == books["train"]["trained_tokens"]
    assert found.counts.steps == max(json.loads(line)["step"] for line in logged)
    assert found.lengths.rows == books["train"]["rows"]
    assert found.refused is None
    assert not (small_world / "runs/plan").exists(), "nothing is written"


def test_rows_that_are_too_long_are_counted_and_refused(small_world: Path, tmp_path: Path) -> None:
    overrides = ("data.max_length=60", "data.eval=0.25")
    found = planned(small_world, "sft", *overrides)
    assert found.refused is not None
    with pytest.raises(DataError) as trained:
        run_recipe(small_recipe("sft", small_world, tmp_path / "run", *overrides))
    assert found.refused.message == trained.value.message
    assert found.refused.problems == trained.value.problems
    own = found.lengths.settings[0]
    assert own.longer == found.books["train"]["too_long_dropped"] > 0
    assert [one.setting for one in found.advice] == ["data.max_length=128", "data.on_too_long=drop"]
    assert found.recipe.data.on_too_long == "error", "the recipe stays what it is"


def test_held_out_rows_that_are_too_long_are_refused_too(small_world: Path) -> None:
    short = small_world / "short.jsonl"
    rows = (small_world / "sft.jsonl").read_text().splitlines(keepends=True)
    ordered = sorted(rows, key=len)
    short.write_text("".join(ordered[: len(rows) // 2]))
    overrides = ("data.max_length=60", f"data.eval={small_world / 'sft.jsonl'}")
    found = planned(small_world, "sft", *overrides, data__train=str(short))
    assert found.lengths.settings[0].longer == 0
    assert found.refused is not None
    assert f"of {len(rows)} rows" in found.refused.message


def test_padding_that_the_recipe_asks_for_is_advised_against(small_world: Path) -> None:
    found = planned(small_world, "sft", "trainer.train_sampling_strategy=random")
    settings = [one.setting for one in found.advice]
    assert settings == ["trainer.train_sampling_strategy=group_by_length", "sft.packing=true"]
    pairs = planned(small_world, "dpo", "trainer.train_sampling_strategy=random")
    assert [one.setting for one in pairs.advice] == settings[:1]


def test_pairs_are_as_long_as_their_longer_answer(small_world: Path) -> None:
    found = planned(small_world, "dpo")
    assert dict(found.table)["prompts"].startswith("shared by the answers of a pair")
    assert found.lengths.settings[0].packed is None
    assert found.lengths.quantiles == found.books["train"]["lengths"]


def test_the_line_that_starts_it(small_world: Path) -> None:
    alone = planned(small_world, "sft", "trainer.max_steps=3")
    assert alone.launch == dataclasses.replace(alone.launch, ranks=None, problem="")
    assert alone.launch.line == "aligner sft recipe.yaml trainer.max_steps=3"
    assert alone.counts.steps == 3
    sharded = ("launch.num_processes=2", "launch.strategy=fsdp")
    found = planned(small_world, "sft", *sharded)
    assert found.launch.ranks is not None
    assert found.launch.ranks.startswith("accelerate launch --use_fsdp")
    assert found.launch.ranks.endswith(f"-m aligner sft recipe.yaml {' '.join(sharded)}")
    assert found.counts.rows_a_step == 2 * 4


def test_memory_is_that_of_the_rows_that_were_tokenized(small_world: Path) -> None:
    found = planned(small_world, "sft", "trainer.bf16=false", "sft.loss_on=all")
    own = found.lengths.quantiles[-1]
    estimated = found.memory.estimate
    assert found.memory.fits is None
    at_most = estimate(found.recipe, cuda=False)
    assert estimated.peak_bytes < at_most.peak_bytes, "no row is as long as data.max_length"
    lengths = Lengths(own, trained=own - 1)  # the first token predicts nothing
    longest = estimate(found.recipe, lengths, cuda=False)
    words = {part.name: part.how for part in longest.parts}
    assert {part.name: part.how for part in estimated.parts}["activations"] == words["activations"]
    assert longest.peak_bytes / 2 < estimated.peak_bytes <= longest.peak_bytes


def test_a_gpu_that_is_too_small_is_told_with_what_would_fit(small_world: Path) -> None:
    resolved = small_recipe("sft", small_world, small_world / "runs/plan")
    large = plan_training(resolved, ["recipe.yaml"], limit=8 * 2**30).memory
    assert large.fits is True
    assert large.usable == 7 * 2**30
    larger = plan_training(resolved, ["recipe.yaml"], limit=20 * 2**30).memory
    assert larger.usable == 18 * 2**30
    small = plan_training(resolved, ["recipe.yaml"], limit=2**29).memory
    assert small.fits is False, "CUDA alone takes as much"
    assert small.changes == []


def test_changes_that_are_named_make_it_fit(small_world: Path) -> None:
    overrides = ("trainer.gradient_checkpointing=false", "data.eval=null")

    def memory(limit: int, *more: str) -> MemoryPlan:
        resolved = small_recipe("sft", small_world, small_world / "runs/plan", *overrides, *more)
        return plan_training(resolved, ["recipe.yaml"], limit=limit).memory

    peak = memory(8 * 2**30).estimate.peak_bytes
    limit = int(0.8 * peak) + LEAST_FREE
    found = memory(limit)
    assert found.fits is False
    cheapest = found.changes[0]
    assert cheapest.overrides[0] == "trainer.per_device_train_batch_size=2"
    after = memory(limit, *cheapest.overrides)
    assert after.fits is True
    assert after.estimate.peak_bytes == cheapest.estimate.peak_bytes
