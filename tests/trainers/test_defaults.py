"""Every value that a run was trained with stands in its record, given or not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from fakes import small_recipe
from runner import aligner
from transformers import Trainer
from trl import SFTConfig

from aligner.config.load import load_recipe
from aligner.methods.pipeline import run_recipe
from aligner.runs.files import read_json
from aligner.runs.run import Run
from aligner.training.arguments import training_arguments

pytestmark = pytest.mark.usefixtures("own_cache")

RATES = {
    "sft": ("2e-05", "default of TRL"),
    "dpo": ("1e-06", "default of dpo"),
    "sapo": ("5e-07", "default of sapo"),
    "reward": ("1e-05", "default of reward"),
}

ELSEWHERE = {
    "save_total_limit": "checkpoints are removed by us, so the trainer is told to keep them all",
    "hub_token": "a secret",
}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of each trainer at its start."""
    found: list[Any] = []
    train = Trainer.train

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(self.args)
        return train(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", watched)
    return found


def bare(method: str, world: Path, folder: Path, *changes: str) -> Any:
    """A recipe of a small world that says as little as it can."""
    data = "pairs.jsonl" if method in ("dpo", "reward") else "sft.jsonl"
    flags = {
        "model.name_or_path": str(world / "model"),
        "data.train": str(world / data),
        "output_dir": str(folder),
        "data.max_length": 128,
        "report.num_prompts": 0,
        "trainer.max_steps": 1,
    }
    return load_recipe(method, None, changes, flags)


@pytest.mark.parametrize("method", list(RATES))
def test_every_argument_of_the_trainer_stands_in_the_record(
    method: str, small_world: Path, tmp_path: Path, seen: list[Any]
) -> None:
    run = run_recipe(bare(method, small_world, tmp_path / "run", "data.eval=0.25")).run_dir
    resolved = read_json(run, "resolved.json")
    late = read_json(run, "environment.json")["arguments"]
    recorded = {**resolved["recipe"]["trainer"], **late}
    real = seen[0].to_dict()
    fields = [field.name for field in dataclasses.fields(seen[0]) if field.init]
    for key in fields:
        if key not in ELSEWHERE:
            assert recorded[key] == json.loads(json.dumps(real[key])), key
    assert set(resolved["recipe"]["trainer"]) <= set(fields)
    for key in ("bf16", "gradient_checkpointing", "dataloader_pin_memory"):
        assert key in late


@pytest.mark.parametrize("method", list(RATES))
def test_the_learning_rate_stands_in_record_card_report_and_plan(
    method: str, small_world: Path, tmp_path: Path
) -> None:
    rate, origin = RATES[method]
    folder = tmp_path / "run"
    run_recipe(bare(method, small_world, folder))
    resolved = read_json(folder, "resolved.json")
    assert resolved["recipe"]["trainer"]["learning_rate"] == float(rate)
    assert resolved["origins"]["trainer.learning_rate"] == origin
    assert "learning_rate:" not in (folder / "recipe.yaml").read_text("utf-8")
    card = (folder / "final" / "README.md").read_text("utf-8")
    assert f"| `trainer.learning_rate` | `{rate}` | {origin} |" in card
    assert "| `trainer.bf16` | `false` | set when the run started |" in card
    assert "`trainer.adam_beta2`" in card.partition("<details>")[2]
    report = (folder / "report.html").read_text("utf-8")
    row = f'trainer.learning_rate</td><td class="mono">{rate}</td><td>{origin}</td>'
    assert row in report
    assert "trainer.bf16</td>" in report


def test_a_dry_run_says_what_matters(small_world: Path, tmp_path: Path) -> None:
    result = aligner(
        *("dpo", "--model", str(small_world / "model"), "--data", str(small_world / "pairs.jsonl")),
        *("--output", str(tmp_path / "run"), "--dry-run"),
    )
    assert result.exit_code == 0, result.output
    lines = [line.split(maxsplit=2) for line in result.stderr.splitlines()]
    assert ["trainer.learning_rate", "1e-06", "default of dpo"] in lines
    assert ["trainer.num_train_epochs", "3", "default of transformers"] in lines
    assert ["dpo.loss", "sigmoid", "default"] in lines
    assert ["seed", "42", "default"] in lines
    assert "8 per device x 1 accumulated x 1 process = 8 rows a step" in result.stderr
    (precision,) = (line for line in lines if line[:1] == ["precision"])
    assert "batches are too small for bfloat16" in precision[2]
    for key in ("lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "max_grad_norm"):
        assert any(line[:1] == [f"trainer.{key}"] for line in lines), key


def test_what_another_device_decides_is_said_when_a_run_is_resumed(
    small_world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    resolved = small_recipe("sft", small_world, folder, "trainer.save_steps=1")
    run_recipe(resolved)
    (folder / "manifest.json").unlink()
    environment = read_json(folder, "environment.json")
    environment["arguments"]["bf16"] = True
    (folder / "environment.json").write_text(json.dumps(environment), "utf-8")
    told: list[str] = []
    run_recipe(resolved, resume=True, on_event=lambda event: told.append(str(event)))
    assert any("bf16 was true before this run was resumed" in text for text in told)
    assert read_json(folder, "environment.json")["arguments"]["bf16"] is False


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_both_names_of_gradient_checkpointing_are_heard(
    name: str, small_world: Path, tmp_path: Path
) -> None:
    recipe = bare("sft", small_world, tmp_path, f"trainer.{name}=true").recipe
    arguments = training_arguments(recipe, Run(tmp_path), SFTConfig)
    assert arguments.activation_checkpointing is True
