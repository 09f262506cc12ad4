"""`aligner plan` at the front door: what it prints, its exit codes, and its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runner import aligner


@pytest.fixture
def world(small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft.yaml").write_text(
        f"method: sft\nmodel: {{name_or_path: {small_world / 'model'}}}\n"
        f"data: {{train: {small_world / 'sft.jsonl'}, eval: 0.25, max_length: 128}}\n"
        "trainer: {per_device_train_batch_size: 4, max_steps: 3}\n"
    )
    return tmp_path


def test_a_plan_says_values_data_lengths_steps_and_the_line(world: Path) -> None:
    done = aligner("plan", "sft.yaml", "trainer.learning_rate=1e-3")
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "trainer.learning_rate 0.001 trainer.learning_rate=1e-3" in lines
    assert "trainer.max_steps 3 sft.yaml:4" in lines
    assert "steps 3 9 an epoch" in lines
    assert "aligner sft sft.yaml trainer.learning_rate=1e-3" in lines
    for title in ("data", "lengths", "training", "memory of a device", "start"):
        assert title in lines
    assert not any(line.startswith("trainer.adam_beta2") for line in lines)
    assert not (world / "runs").exists()


def test_all_shows_each_default_and_whose_it_is(world: Path) -> None:
    lines = [
        " ".join(line.split()) for line in aligner("plan", "sft.yaml", "--all").stdout.split("\n")
    ]
    assert "trainer.adam_beta2 0.999 default of transformers" in lines
    assert "trainer.logging_steps 10 default of aligner" in lines
    assert "launch.num_processes 1 default" in lines


def test_json_holds_all_of_it(world: Path) -> None:
    done = aligner("plan", "sft.yaml", "--json")
    record = json.loads(done.stdout)
    assert record["recipe"]["method"] == "sft"
    assert record["origins"]["trainer.max_steps"] == "sft.yaml:4"
    assert record["origins"]["trainer.adam_beta2"] == "default of transformers"
    assert record["training"]["steps"] == 3
    assert record["lengths"]["rows"] == record["data"]["train"]["rows"] == 36
    assert record["launch"]["line"] == "aligner sft sft.yaml"
    assert record["refused"] is None


def test_rows_that_are_too_long_end_it_with_exit_code_3_behind_the_plan(world: Path) -> None:
    done = aligner("plan", "sft.yaml", "data.max_length=60")
    assert done.exit_code == 3
    assert "data.max_length=128" in done.stdout
    assert "are longer than data.max_length=60 tokens" in done.output
    record = json.loads(aligner("plan", "sft.yaml", "data.max_length=60", "--json").stdout)
    assert "are longer than" in record["refused"]


def test_a_gpu_that_is_too_small_ends_it_with_exit_code_6_behind_the_plan(world: Path) -> None:
    fits = aligner("plan", "sft.yaml", "--gpu", "8GB")
    assert fits.exit_code == 0, fits.output
    assert "  fits in 8.00 GiB, of which a training can use about 7.00 GiB" in fits.stdout
    done = aligner("plan", "sft.yaml", "--gpu", "500MB")
    assert done.exit_code == 6
    assert "  does not fit in 0.49 GiB" in done.stdout
    assert "error: the training takes about" in done.output
    record = json.loads(aligner("plan", "sft.yaml", "--gpu", "8g", "--json").stdout)["memory"]
    assert record["fits"] is True
    assert record["limit_bytes"] == 8 * 2**30
    peak = record["phases"][record["phase"]]
    assert record["peak_bytes"] == sum(part["bytes"] for part in peak)
    assert {"weights", "optimizer"} <= {part["name"] for part in peak}


def test_a_recipe_that_is_no_single_training(world: Path, toy_world: Path) -> None:
    (world / "seeds.jsonl").write_text('{"prompt": "Name a colour."}\n')
    (world / "replies.jsonl").write_text('{"reply": "red"}\n')
    (world / "evolve.yaml").write_text(
        "method: evolve\ndata: {train: seeds.jsonl}\n"
        "endpoint: {backend: scripted, script: replies.jsonl}\n"
        "evolve: {mode: classic, rounds: 2}\n"
    )
    done = aligner("plan", "evolve.yaml")
    assert done.exit_code == 0, done.output
    assert "requests" in done.stdout
    assert "evolve.rounds" in done.stdout
    record = json.loads(aligner("plan", "evolve.yaml", "--json").stdout)
    assert record["estimate"] is not None
    assert record["plan"]


def test_a_training_within_another_recipe_has_changes_typed_for_that(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f'{{"prompt": "What is {number}?"}}\n' for number in range(12))
    (tmp_path / "prompts.jsonl").write_text(rows)
    (tmp_path / "online.yaml").write_text(
        f"method: online\nmodel: {{name_or_path: {small_world / 'model'}}}\n"
        "data: {train: prompts.jsonl, max_length: 128, eval: 0.25}\n"
        "online: {rounds: 2, reward_models: [toy], max_new_tokens: 8}\n"
        "trainer: {per_device_train_batch_size: 32}\n"
    )
    done = aligner("plan", "online.yaml", "--gpu", "1.2GB", "--json")
    assert done.exit_code == 6, done.output
    (training,) = json.loads(done.stdout)["trainings"]
    assert training["memory"]["fits"] is False, done.output
    first = training["memory"]["changes"][0]["overrides"]
    assert first[0].startswith("trainer.per_device_train_batch_size=")
    assert f"the cheapest change is {' '.join(first)}" in done.output
    again = aligner("plan", "online.yaml", "--gpu", "1.2GB", *first)
    assert again.exit_code == 0, again.output
    small = aligner("plan", "online.yaml", "--gpu", "1025MB")
    assert "no change of the recipe makes it fit: with trainer.per_device_train" in small.output
    assert small.exit_code == 6


def test_what_cannot_be_planned_is_refused(world: Path) -> None:
    for arguments, told in (
        ((), "none is named"),
        (("trainer.max_steps=3",), "none is named"),
        (("sft.yaml", "trainer.max_stesp=3"), "max_stesp"),
        (("none.yaml",), "none.yaml"),
        (("sft.yaml", "--gpu", "much"), "no amount of memory"),
        (("tiny/mosaic", "--gpu", "8GB"), "does none"),
        (("sft.yaml", "method=sfd"), "no method is called `sfd`"),
    ):
        done = aligner("plan", *arguments)
        assert done.exit_code == 2, done.output
        assert told in done.output
