"""`aligner sft` and `aligner dpo`, without training: what is asked of the library, and what is
printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes import write_jsonl
from runner import aligner

import aligner.methods.pipeline as methods
from aligner import events
from aligner.errors import TrainingError

RECIPE = """\
model: {name_or_path: base}
data: {train: pairs.jsonl, eval: 0.1}
output_dir: runs/x
trainer:
  learning_rate: 1.0e-5
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 4
"""


@dataclass
class RunResult:
    run_dir: Path
    results: dict[str, float]
    report: Path | None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE, "utf-8")
    write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4)
    return tmp_path


@pytest.fixture
def calls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `run_recipe` was asked, with a stand-in that trains nothing."""
    made: list[dict[str, Any]] = []

    def run_recipe(
        resolved: Any, *, on_event: Callable[[events.Event], None], **options: Any
    ) -> RunResult:
        made.append({"recipe": resolved.recipe, **options})
        on_event(events.StageStarted("training"))
        on_event(events.Metrics(1, 1, {"loss": 0.5}))
        return RunResult(Path("runs/x"), {"eval_loss": 0.25}, Path("runs/x/report.html"))

    monkeypatch.setattr(methods, "run_recipe", run_recipe, raising=False)
    return made


def test_the_recipe_overrides_and_flags_reach_the_library(calls: list) -> None:
    result = aligner(
        "dpo", "recipe.yaml", "dpo.beta=0.3", "--learning-rate", "1e-4", "--use_peft", "--resume"
    )
    assert result.exit_code == 0, result.output
    (call,) = calls
    assert call["recipe"].dpo.beta == 0.3
    assert call["recipe"].trainer["learning_rate"] == 1e-4
    assert call["recipe"].model.lora is not None
    assert (call["resume"], call["overwrite"], call["dry_run"]) == (True, False, False)


@pytest.mark.parametrize("flag", ["--num-processes", "--num_processes"])
def test_the_number_of_processes_is_a_key_of_the_recipe(calls: list, flag: str) -> None:
    assert aligner("dpo", "recipe.yaml", flag, "3").exit_code == 0
    assert calls[0]["recipe"].launch.num_processes == 3


def test_no_recipe_is_needed(calls: list) -> None:
    result = aligner("dpo", "--model", "base", "--data", "pairs.jsonl", "-o", "runs/y")
    assert result.exit_code == 0, result.output
    assert calls[0]["recipe"].output_dir == "runs/y"


def test_what_will_run_is_said_first_with_the_origin_of_each_value(calls: list) -> None:
    text = aligner("dpo", "recipe.yaml", "dpo.beta=0.3").stderr
    assert "2 per device x 4 accumulated x 1 process = 8 rows a step" in text
    assert "10.0% of the training rows" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["trainer.learning_rate", "1e-05", "recipe.yaml:5"] in lines
    assert ["dpo.beta", "0.3", "dpo.beta=0.3"] in lines


def test_the_result_is_a_table_and_the_paths(calls: list) -> None:
    result = aligner("dpo", "recipe.yaml")
    assert result.stdout.split() == [
        "result",
        "value",
        "eval_loss",
        "0.25",
        "run",
        "runs/x",
        "report",
        "runs/x/report.html",
    ]


def test_json_is_all_there_is_on_stdout(calls: list) -> None:
    answer = json.loads(aligner("dpo", "recipe.yaml", "--json").stdout)
    assert answer == {
        "run_dir": "runs/x",
        "results": {"eval_loss": 0.25},
        "report": "runs/x/report.html",
        "dry_run": False,
    }


def test_a_dry_run_prints_the_resolved_recipe(calls: list) -> None:
    answer = json.loads(aligner("dpo", "recipe.yaml", "--dry-run", "--json").stdout)
    assert calls[0]["dry_run"] is True
    assert answer["dry_run"] is True
    assert answer["recipe"]["recipe"]["model"]["name_or_path"] == "base"


def test_ctrl_c_says_how_to_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(methods, "run_recipe", interrupted, raising=False)
    result = aligner("dpo", "recipe.yaml")
    assert result.exit_code == 130
    assert "--resume" in result.stderr.splitlines()[-1]


def test_training_that_fails_ends_with_5(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TrainingError("the loss is not a number at step 3", "lower the learning rate")

    monkeypatch.setattr(methods, "run_recipe", fail, raising=False)
    result = aligner("sft", "recipe.yaml")
    assert result.exit_code == 5
    assert result.stderr.endswith(
        "error: the loss is not a number at step 3\nhint: lower the learning rate\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recipe.yaml", "dpo.betta=1"], "dpo.beta"),
        (["recipe.yaml", "--learnig_rate", "1"], "learning_rate"),
        (["recipe.yaml", "trainer.learnig_rate=1"], "learning_rate"),
        (["recipe.yaml", "dpo.loss=sigmod"], "sigmoid"),
        (["recipes.yaml"], "recipe.yaml"),
        ([], "--model"),
        (["recipe.yaml", "dpo.beta=fast"], "dpo.beta"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_answered_on_one_screen_with_the_cure(
    calls: list, arguments: list[str], words: str
) -> None:
    result = aligner("dpo", *arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert len(result.stderr.splitlines()) <= 24
    assert "Traceback" not in result.output
    assert calls == []


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_help_fits_two_screens_and_names_the_flags(method: str) -> None:
    lines = aligner(method, "--help").stdout.splitlines()
    assert len(lines) <= 60
    text = "\n".join(lines)
    assert f"aligner {method} [RECIPE] [KEY=VALUE ...]" in text
    for name in (
        "learning_rate",
        "use_peft",
        "lora_r",
        "load_in_4bit",
        "max_length",
        "num_train_epochs",
        "--dry-run",
    ):
        assert name in text
