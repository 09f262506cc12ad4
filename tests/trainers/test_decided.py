"""What is decided before the first step is said, recorded, and kept by a resumed run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import small_recipe

from aligner.config.load import recipe_hash
from aligner.events import Plan
from aligner.methods import decisions
from aligner.methods.pipeline import run_recipe
from aligner.runs.files import read_json, read_metrics
from aligner.training import precision
from aligner.training.cadence import Cadence

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A CPU with bf16 and a trial whose outcome, and number, a test sets."""
    found: dict[str, Any] = {"share": 0.5, "asked": 0}

    def measure(*_: Any) -> float:
        found["asked"] += 1
        return float(found["share"])

    monkeypatch.setattr(precision, "native_bf16", lambda device: True)
    monkeypatch.setattr(precision, "TINY", 0.0)
    monkeypatch.setattr(precision, "time_share", measure)
    return found


def train(resolved: Any, **options: Any) -> dict[str, str]:
    """Train, and return the plan that was told."""
    told: dict[str, str] = {}

    def listen(event: Any) -> None:
        if isinstance(event, Plan):
            told.update({what: f"{value} | {why}" for what, value, why in event.rows})

    run_recipe(resolved, on_event=listen, **options)
    return told


def arguments_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder, "environment.json")["arguments"]
    return found


@pytest.mark.parametrize("method", ["sft", "dpo", "sapo", "reward"])
def test_bf16_that_gains_is_said_recorded_and_trained_with(
    method: str, small_world: Path, tmp_path: Path, trial: dict[str, Any]
) -> None:
    resolved = small_recipe(method, small_world, tmp_path / "run", "data.eval=0.25")
    planned = train(resolved, dry_run=True)
    told = train(resolved)
    assert "mixed, bf16 and float32 | bfloat16 takes 0.50" in told["precision"]
    assert told == {key: planned[key] for key in told}
    assert arguments_of(tmp_path / "run")["bf16"] is True
    dtypes = weights_of(tmp_path / "run" / "final")
    assert dtypes == {"F32"}
    assert read_json(tmp_path / "run", "resolved.json")["recipe_hash"] == recipe_hash(
        resolved.filled().recipe
    )


def weights_of(folder: Path) -> set[str]:
    """The data types in which weights are saved."""
    from safetensors import safe_open

    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def test_bf16_that_does_not_gain_is_not_trained_with(
    small_world: Path, tmp_path: Path, trial: dict[str, Any]
) -> None:
    trial["share"] = 0.97
    told = train(small_recipe("sft", small_world, tmp_path / "run"))
    assert told["precision"].startswith("that of the weights | bfloat16 takes 0.97")
    assert arguments_of(tmp_path / "run")["bf16"] is False


@pytest.mark.parametrize("given", [True, False])
def test_what_the_recipe_says_wins(
    given: bool, small_world: Path, tmp_path: Path, trial: dict[str, Any]
) -> None:
    trial["share"] = 2.0 if given else 0.5
    told = train(small_recipe("sft", small_world, tmp_path / "run", trainer__bf16=given))
    assert "precision" not in told
    assert trial["asked"] == 0
    recorded = read_json(tmp_path / "run", "resolved.json")["recipe"]["trainer"]
    assert recorded["bf16"] is given


def test_bf16_that_a_recipe_asks_for_needs_no_use_cpu(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligner.training.arguments.native_bf16", lambda device: True)
    monkeypatch.setattr("aligner.training.arguments.trains_on_cpu", lambda recipe: True)
    flags = {"trainer__bf16": True, "trainer__use_cpu": False}
    train(small_recipe("sft", small_world, tmp_path / "run", **flags))
    assert arguments_of(tmp_path / "run")["use_cpu"] is True


def test_a_resumed_run_computes_as_it_began(
    small_world: Path, tmp_path: Path, trial: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after training and resumed on a day when the trial comes out otherwise: the same
    bytes."""
    flags = {"trainer__save_steps": 2, "data__eval": 0.25}
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(small_recipe("sft", small_world, whole, **flags))
    with monkeypatch.context() as patched:
        patched.setattr("aligner.training.fit.refuse_broken_weights", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(small_recipe("sft", small_world, run, **flags))
    checkpoints = sorted((run / "checkpoints").iterdir())
    (checkpoints[-1] / "complete").unlink()  # the one at the end: two steps are trained again
    trial["share"], asked = 2.0, trial["asked"]
    monkeypatch.setattr(decisions, "choose_cadence", _other_cadence)
    told = train(small_recipe("sft", small_world, run, **flags), resume=True)
    assert "bfloat16 takes 0.50" in told["precision"]
    assert trial["asked"] == asked
    for name in ("model.safetensors", "config.json"):
        assert (run / "final" / name).read_bytes() == (whole / "final" / name).read_bytes()
    steps = [[line["step"] for line in read_metrics(one)] for one in (run, whole)]
    assert steps[0] == steps[1]


def _interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def _other_cadence(*_: Any) -> Any:
    raise AssertionError("a resumed run decides nothing again")


def test_a_run_that_an_older_version_started_computes_as_it_began(
    small_world: Path, tmp_path: Path, trial: dict[str, Any]
) -> None:
    resolved = small_recipe("sft", small_world, tmp_path / "run", "trainer.save_steps=1")
    trial["share"] = 2.0
    run_recipe(resolved)
    (tmp_path / "run" / "manifest.json").unlink()
    (tmp_path / "run" / "decided.json").unlink()
    trial["share"] = 0.5
    told = train(resolved, resume=True)
    assert "precision" not in told
    assert arguments_of(tmp_path / "run")["bf16"] is False


# --- how often ------------------------------------------------------------------------------------


def evaluated(folder: Path) -> list[int]:
    return [line["step"] for line in read_metrics(folder) if line["split"] == "eval"]


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


@pytest.fixture
def rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cadence as a large model would have it."""

    def choose(work: Any, free: Any) -> Cadence:
        found = Cadence(
            3 if free.evaluations else None,
            0 if free.checkpoints else None,
            held_out_rows=5 if free.evaluations else work.held_out_rows,
            prompts=1 if free.prompts else work.prompts,
            max_new_tokens=4 if free.max_new_tokens else work.max_new_tokens,
        )
        return replace(found, evaluation_share=0.12, checkpoint_share=0.0, answer_share=0.03)

    monkeypatch.setattr(decisions, "choose_cadence", choose)


def without(resolved: Any, *keys: str) -> Any:
    """The recipe without some of the keys that small worlds give."""
    trainer = {key: value for key, value in resolved.recipe.trainer.items() if key not in keys}
    return replace(resolved, recipe=resolved.recipe.model_copy(update={"trainer": trainer}))


@pytest.mark.parametrize("method", ["sft", "dpo", "sapo", "reward"])
def test_the_cadence_is_told_and_followed(
    method: str, small_world: Path, tmp_path: Path, rare: None
) -> None:
    resolved = small_recipe(method, small_world, tmp_path / "run", "data.eval=0.25")
    told = train(without(resolved, "save_steps"))
    assert told["held-out evaluation"] == (
        "every 3 steps, 2 times | about 12% of the training's time"
    )
    assert told["held-out rows"].startswith("5 of 12, drawn with the seed")
    assert told["checkpoints"].startswith("none")
    assert evaluated(tmp_path / "run") == [3, 4]  # the last step is always one of them
    assert saved(tmp_path / "run") == []
    assert arguments_of(tmp_path / "run")["eval_steps"] == 3
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()
    for page in ("report.html", "final/README.md"):
        text = (tmp_path / "run" / page).read_text(encoding="utf-8")
        assert "Held-out numbers are of 5 of 12 rows." in text


def test_what_the_recipe_says_of_the_cadence_wins(
    small_world: Path, tmp_path: Path, rare: None
) -> None:
    flags = {"data__eval": 0.25, "trainer__eval_steps": 2, "trainer__save_steps": 2}
    flags |= {"report__num_prompts": 3, "report__max_new_tokens": 2}
    told = train(small_recipe("sft", small_world, tmp_path / "run", **flags))
    assert not {"held-out evaluation", "held-out rows", "checkpoints"} & told.keys()
    assert told["answers"].startswith("3 prompts, 2 tokens each")
    assert evaluated(tmp_path / "run") == [2, 4]
    assert saved(tmp_path / "run") == ["checkpoint-2", "checkpoint-4"]
    assert len(json.loads((tmp_path / "run" / "samples.json").read_text())) == 3


def test_early_stopping_keeps_its_evaluations(
    small_world: Path, tmp_path: Path, rare: None
) -> None:
    flags = {"data__eval": 0.25, "early_stopping": {"patience": 3}}
    resolved = small_recipe("sft", small_world, tmp_path / "run", **flags)
    told = train(without(resolved, "save_steps", "eval_steps"))
    assert "held-out evaluation" not in told
    assert evaluated(tmp_path / "run") == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "trainer",
    [
        {"lr_scheduler_type": "reduce_lr_on_plateau", "warmup_steps": 0},
        {"save_strategy": "best"},
    ],
)
def test_what_follows_the_held_out_loss_keeps_its_evaluations(
    trainer: dict[str, Any], small_world: Path, tmp_path: Path, rare: None
) -> None:
    flags = {"data__eval": 0.25, **{f"trainer__{key}": value for key, value in trainer.items()}}
    resolved = small_recipe("sft", small_world, tmp_path / "run", **flags)
    told = train(without(resolved, "save_steps", "eval_steps"))
    assert not {"held-out evaluation", "held-out rows"} & told.keys()
    assert evaluated(tmp_path / "run") == [1, 2, 3, 4]


def test_null_leaves_a_key_to_what_was_decided(
    small_world: Path, tmp_path: Path, rare: None, trial: dict[str, Any]
) -> None:
    flags = {"data__eval": 0.25, "trainer__eval_steps": None, "trainer__bf16": None}
    told = train(small_recipe("sft", small_world, tmp_path / "run", **flags))
    assert told["held-out evaluation"].startswith("every 3 steps")
    assert "mixed, bf16" in told["precision"]
    found = arguments_of(tmp_path / "run")
    assert (found["eval_steps"], found["bf16"]) == (3, True)


def test_of_a_tiny_training_seconds_are_told(small_world: Path, tmp_path: Path) -> None:
    flags = {"data__eval": 0.25, "report__num_prompts": 2}
    told = train(small_recipe("sft", small_world, tmp_path / "run", **flags))
    assert told["answers"].endswith("| a second or less")
    assert told["held-out evaluation"].endswith("| a second or less")


def test_a_run_killed_before_it_was_decided_decides_when_it_is_resumed(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"data__eval": 0.25}
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(small_recipe("sft", small_world, whole, **flags))
    with monkeypatch.context() as patched:
        patched.setattr("aligner.methods.preparation.write_decided", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(small_recipe("sft", small_world, run, **flags))
    train(small_recipe("sft", small_world, run, **flags), resume=True)
    assert read_json(run, "decided.json") == read_json(whole, "decided.json")
    weights = "final/model.safetensors"
    assert (run / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.mark.parametrize(("held_out", "title"), [(0.25, "Held-out rows"), (None, "Training rows")])
def test_the_report_says_whose_prompts_were_answered(
    held_out: float | None, title: str, small_world: Path, tmp_path: Path
) -> None:
    flags = {"data__eval": held_out, "report__num_prompts": 2, "report__max_new_tokens": 2}
    train(small_recipe("sft", small_world, tmp_path / "run", **flags))
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert f"{title}: answers before and after" in report
