"""A checkpoint that holds less than what `--resume` needs is refused, before anything is
read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import small_recipe

from aligner.config.load import Resolved
from aligner.errors import UsageError
from aligner.events import Notice, Warned
from aligner.methods.pipeline import run_recipe
from aligner.runs.resumable import missing_parts

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


def test_each_lost_part_is_named_and_a_whole_checkpoint_is_resumed(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = stopped(monkeypatch, small_world, tmp_path / "run", "sapo")
    checkpoint = tmp_path / "run/checkpoints/checkpoint-2"
    names = ["trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
    names += [f"sapo_{part}.safetensors" for part in ("average", "reference", "buffer")]
    for name in names:
        (checkpoint / name).rename(tmp_path / name)
        with pytest.raises(UsageError) as caught:
            run_recipe(recipe, resume=True)
        assert [problem.where for problem in caught.value.problems] == [name]
        (tmp_path / name).rename(checkpoint / name)
    events: list[Any] = []
    run_recipe(recipe, resume=True, on_event=events.append)
    assert any(
        "optimizer, schedule, random state" in event.text
        for event in events
        if isinstance(event, Notice)
    )


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
