"""A checkpoint that holds less than what `--resume` needs is refused, before anything is read; one
that was damaged is not believed; and a save leaves nothing of one that was killed before it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import small_recipe

from aligner.config.load import Resolved
from aligner.errors import UsageError
from aligner.events import Notice, Warned
from aligner.methods.pipeline import run_recipe
from aligner.runs.checkpoints import mark_complete
from aligner.runs.resumable import missing_parts
from aligner.training import fit

pytestmark = pytest.mark.usefixtures("own_cache")


class Killed(Exception):
    """Raised behind the second step."""


def stopped(
    monkeypatch: pytest.MonkeyPatch, world: Path, folder: Path, method: str, *overrides: str
) -> Resolved:
    """A run of four steps with a checkpoint at the second, and no more."""
    recipe = small_recipe(method, world, folder, "trainer.save_steps=2", *overrides)

    def end(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("aligner.training.callbacks.Recorder.on_step_begin", end_at_third(end))
        with pytest.raises(Killed):
            run_recipe(recipe)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-2"]
    return recipe


def end_at_third(end: Any) -> Any:
    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            end()

    return on_step_begin


@pytest.mark.parametrize(
    "method",
    ["sft", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dpo", "reward", "sapo"))],
)
def test_weights_alone_are_not_resumed_as_if_they_were_all(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    recipe = stopped(
        monkeypatch, small_world, tmp_path / "run", method, "trainer.save_only_model=true"
    )
    with pytest.raises(UsageError, match="holds less than --resume needs") as caught:
        run_recipe(recipe, resume=True)
    assert [problem.where for problem in caught.value.problems] == [
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
    ]
    assert "trainer.save_only_model=true leaves everything but the weights out" in str(
        caught.value.hint
    )
    assert not (tmp_path / "run" / "lock").exists()


NAMES = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth")
SAPO_NAMES = tuple(f"sapo_{part}.safetensors" for part in ("average", "reference", "buffer"))


def test_each_part_that_was_never_there_is_named(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = stopped(monkeypatch, small_world, tmp_path / "run", "sapo")
    checkpoint = tmp_path / "run/checkpoints/checkpoint-2"
    for name in (*NAMES, *SAPO_NAMES):
        (checkpoint / name).rename(tmp_path / name)
        mark_complete(checkpoint)
        with pytest.raises(UsageError) as caught:
            run_recipe(recipe, resume=True)
        assert [problem.where for problem in caught.value.problems] == [name]
        (tmp_path / name).rename(checkpoint / name)
    mark_complete(checkpoint)
    events: list[Any] = []
    run_recipe(recipe, resume=True, on_event=events.append)
    assert any(
        "optimizer, schedule, random state" in event.text
        for event in events
        if isinstance(event, Notice)
    )


def lose(file: Path) -> None:
    file.unlink()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "name"),
    [(lose, "optimizer.pt"), (flip, "model.safetensors")],
    ids=["a lost optimizer", "a flipped bit"],
)
def test_a_damaged_checkpoint_changes_no_result(
    small_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path], None],
    name: str,
) -> None:
    """What is trained again from the checkpoint before it ends with the same weights."""
    weights = []
    for damaged in (False, True):
        run = tmp_path / str(damaged)
        recipe = small_recipe(
            "sft", small_world, run, "trainer.save_steps=1", "trainer.max_steps=3"
        )
        if damaged:
            with monkeypatch.context() as patch:
                patch.setattr("aligner.training.fit.save_final", killed)
                with pytest.raises(Killed):
                    run_recipe(recipe)
            harm(run / "checkpoints" / "checkpoint-3" / name)
        events: list[Any] = []
        run_recipe(recipe, resume=damaged, on_event=events.append)
        weights.append((run / "final" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    warned = [event.text for event in events if isinstance(event, Warned)]
    assert any("checkpoint-2 is resumed from" in text and name in text for text in warned)


def test_damaged_tokens_are_made_again(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = stopped(monkeypatch, small_world, tmp_path / "run", "sft")
    rows = next((tmp_path / "run" / "prepared" / "train").glob("*.arrow"))
    written = rows.read_bytes()
    flip(rows)
    events: list[Any] = []
    run_recipe(recipe, resume=True, on_event=events.append)
    warned = [event.text for event in events if isinstance(event, Warned)]
    assert f"{rows} is damaged: it is not what was written there: the rows are tokenized again" in (
        warned
    )
    assert rows.read_bytes() == written


@pytest.mark.parametrize("damage", [lambda file: file.write_text("[7]"), Path.unlink])
def test_damaged_questions_are_chosen_again(
    small_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], object],
) -> None:
    recipe = stopped(monkeypatch, small_world, tmp_path / "run", "sft")
    questions = tmp_path / "run" / "prepared" / "questions.json"
    asked = questions.read_bytes()
    damage(questions)
    run_recipe(recipe, resume=True)
    assert questions.read_bytes() == asked


def killed(*_: Any) -> None:
    raise Killed


def test_each_of_several_processes_has_a_random_state(small_world: Path, tmp_path: Path) -> None:
    recipe = small_recipe("sft", small_world, tmp_path / "run", "launch.num_processes=3").recipe
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_2.pth"):
        (tmp_path / name).touch()
    state = {"global_step": 2, "max_steps": 4, "stateful_callbacks": {}}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert list(missing_parts(tmp_path, recipe)) == [("rng_state_1.pth", "the random state")]  # type: ignore[arg-type]
    state["global_step"] = 4  # training is over, and the optimizer has nothing left to do
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert not list(missing_parts(tmp_path, recipe))  # type: ignore[arg-type]


def test_small_checkpoints_are_told_before_training(small_world: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    recipe = small_recipe(
        "sft", small_world, tmp_path / "run", "trainer.save_only_model=true", "trainer.max_steps=1"
    )
    run_recipe(recipe, on_event=events.append)
    assert any(
        "--resume will refuse them" in event.text for event in events if isinstance(event, Warned)
    )


def test_a_save_begins_with_an_empty_folder_and_readable_files(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed save left is neither in the result nor in its manifest."""
    run, save = tmp_path / "run", fit.save_final

    def begun_before(trainer: Any, *rest: Any) -> None:
        (run / "final.unfinished").mkdir()
        (run / "final.unfinished" / ".tmpleft").write_text("half of the weights")
        save(trainer, *rest)

    monkeypatch.setattr(fit, "save_final", begun_before)
    run_recipe(small_recipe("sft", small_world, run, "trainer.max_steps=1"))
    names = {f"final/{path.name}" for path in (run / "final").iterdir()}
    assert "final/model.safetensors" in names
    assert "final/.tmpleft" not in names
    assert json.loads((run / "manifest.json").read_text())["files"].keys() == names
    weights = run.rglob("model.safetensors")
    assert {file.stat().st_mode for file in weights} == {(run / "manifest.json").stat().st_mode}


def test_lines_of_metrics_that_are_lost_are_told(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint remembers what was logged, so a gap is not silent; whole ones say nothing."""
    warned: dict[str, str] = {}
    for name, kept in {"whole": 2, "cut": 0}.items():
        recipe = stopped(monkeypatch, small_world, tmp_path / name, "sft")
        metrics = tmp_path / name / "metrics.jsonl"
        lines = metrics.read_text().splitlines(keepends=True)
        assert len(lines) == 2
        metrics.write_text("".join(lines[:kept]))
        events: list[Any] = []
        run_recipe(recipe, resume=True, on_event=events.append)
        warned[name] = " ".join(event.text for event in events if isinstance(event, Warned))
    assert "metrics.jsonl lacks" not in warned["whole"]
    assert "metrics.jsonl lacks what was logged at 2 steps, from 1 to 2" in warned["cut"]
