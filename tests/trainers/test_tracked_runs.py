"""Trainings and builders with trackers: one continuous curve after a kill, one writer among several
processes, and the same record for what trains nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import small_recipe, write_jsonl, write_rounds_world, write_small_world
from killing import MOMENTS, ROUNDS, owner_of, run_in_process
from tracked import Points, differences, in_tensorboard, in_trackio, logged, texts_in_tensorboard

from aligner.builders.mosaic.build import run_mosaic
from aligner.config.load import load_recipe
from aligner.errors import RecipeError
from aligner.methods.online.rounds import run_online
from aligner.methods.pipeline import run_recipe

TRAINED: dict[str, Any] = {
    "data__eval": 0.2,
    "trainer__max_steps": 8,
    "trainer__eval_steps": 2,
    "trainer__save_steps": 3,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_world(tmp_path_factory.mktemp("world"))


def tracked_by(name: str, tmp_path: Path) -> dict[str, Any]:
    pytest.importorskip(name)
    return {"trainer__report_to": [name], "trainer__project": f"p{abs(hash(tmp_path))}"}


def points_of(name: str, run: Path, flags: dict[str, Any]) -> Points:
    if name == "trackio":
        return in_trackio(flags["trainer__project"])[run.name]
    return in_tensorboard(run)


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
@pytest.mark.parametrize(
    ("method", "moment", "count"),
    [
        ("sft", "in the middle of an epoch", 6),
        ("dpo", "after a line of metrics", 9),
        pytest.param("sapo", "before a checkpoint is declared whole", 2, marks=pytest.mark.slow),
        pytest.param("reward", "after the final weights", 1, marks=pytest.mark.slow),
        pytest.param("rlhf", "before the manifest", 1, marks=pytest.mark.slow),
    ],
)
def test_a_killed_training_has_one_curve(
    method: str, moment: str, count: int, name: str, world: Path, tmp_path: Path, own_cache: Path
) -> None:
    assert moment in MOMENTS
    run, flags = tmp_path / "run", {**TRAINED, **tracked_by(name, tmp_path)}
    assert run_in_process(method, world, run, flags=flags, moment=moment, count=count) == -9
    assert run_in_process(method, world, run, flags=flags, resume=True) == 0
    found, expected = points_of(name, run, flags), logged(run)
    assert {step for _, step in expected} == set(range(1, 9))
    assert not differences(found, expected)
    assert found["results/steps", 0] == [8.0]


def test_trainings_and_their_record_are_the_same_with_a_tracker(
    world: Path, tmp_path: Path
) -> None:
    tracked = run_recipe(
        small_recipe("sft", world, tmp_path / "a", **tracked_by("tensorboard", tmp_path))
    )
    plain = run_recipe(small_recipe("sft", world, tmp_path / "b"))
    assert tracked.results == plain.results
    files = [f"{folder}/final/model.safetensors" for folder in ("a", "b")]
    assert (tmp_path / files[0]).read_bytes() == (tmp_path / files[1]).read_bytes()
    texts = texts_in_tensorboard(tmp_path / "a")
    assert "| trainer.max_steps | 4 |" in texts["recipe"][0]
    assert f"| model: {world / 'model'} | " in texts["lineage"][-1]
    assert f"| data: {world / 'sft.jsonl'} | " in texts["lineage"][0]


def test_nothing_is_tracked_unless_asked(world: Path, tmp_path: Path) -> None:
    run_recipe(small_recipe("sft", world, tmp_path / "run"))
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert not (tmp_path / "run" / "trackers.json").exists()


def test_a_tracker_may_be_added_when_a_run_is_resumed(
    world: Path, tmp_path: Path, own_cache: Path
) -> None:
    run = tmp_path / "run"
    flags = {**TRAINED, **tracked_by("tensorboard", tmp_path)}
    moment = "in the middle of an epoch"
    assert run_in_process("sft", world, run, flags=TRAINED, moment=moment, count=6) == -9
    assert run_in_process("sft", world, run, flags=flags, resume=True) == 0
    assert not differences(in_tensorboard(run), logged(run))


def test_a_builder_is_tracked(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    rows = [{"instruction": f"say {word}", "output": word} for word in "abcdefgh"]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    run = tmp_path / "mosaics"
    settings = {"data.train": str(data), "output_dir": str(run), "report_to": "tensorboard"}
    result = run_mosaic(load_recipe("mosaic", None, (), settings))
    found = in_tensorboard(run)
    assert {f"results/{name}" for name in result.results} == {name for name, _ in found}
    texts = texts_in_tensorboard(run)
    assert "| method | mosaic |" in texts["recipe"][0]
    assert "rows.jsonl | " in texts["lineage"][-1]


@pytest.mark.parametrize("method", ["mosaic", "sft"])
def test_an_absent_package_is_known_before_anything_is_loaded(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligner.config.trainer_rules.is_installed", lambda package: False)
    key = "trainer.report_to" if method == "sft" else "report_to"
    settings = {"data.train": "x.jsonl", "model.name_or_path": "m", key: "mlflow"}
    if method == "mosaic":
        del settings["model.name_or_path"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(method, None, (), settings)
    (problem,) = caught.value.problems
    assert problem.key == key
    assert problem.message == "`mlflow` needs mlflow, not installed here"
    assert "pip install mlflow" in problem.hint


@pytest.mark.parametrize(("place", "wrong"), [("", 1), ("http://127.0.0.1:5000", 0)])
def test_an_mlflow_without_a_database_is_known_before_anything_is_loaded(
    place: str, wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligner.config.trainer_rules.is_installed", lambda one: one == "mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    settings = {"data.train": "x.jsonl", "report_to": "mlflow"}
    try:
        load_recipe("mosaic", None, (), settings)
    except RecipeError as error:
        (problem,) = error.problems
        assert "mlflow-skinny comes without one" in problem.message
        assert wrong
    else:
        assert not wrong


def test_an_unknown_tracker_of_a_builder_is_named() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("mosaic", None, (), {"data.train": "x.jsonl", "report_to": "tensorbord"})
    (problem,) = caught.value.problems
    assert problem.key == "report_to"
    assert "did you mean `tensorboard`?" in problem.hint


@pytest.mark.slow
def test_rounds_and_their_trainings_are_tracked(
    toy_world: Path, tmp_path: Path, own_cache: Path
) -> None:
    world = write_rounds_world(tmp_path / "world", toy_world)
    flags = tracked_by("trackio", tmp_path)
    run, moment = tmp_path / "online", "while the second round is trained"
    count = ROUNDS[moment][1]
    assert run_in_process("online", world, run, flags=flags, moment=moment, count=count) == -9
    assert run_in_process("online", world, run, flags=flags, resume=True) == 0
    found = in_trackio(flags["trainer__project"])
    inner = {name: run.parent / name / "run" for name in found if name != "online"}
    assert sorted(inner) == ["online/rounds/01/train", "online/rounds/02/train"]
    assert not differences(found["online"], logged(run))
    for name, folder in inner.items():
        assert not differences(found[name], logged(folder))


@pytest.mark.slow
def test_one_of_several_processes_writes(world: Path, tmp_path: Path) -> None:
    flags = tracked_by("tensorboard", tmp_path)
    run = tmp_path / "run"
    run_recipe(small_recipe("sft", world, run, "launch.num_processes=2", **flags))
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert not differences(in_tensorboard(run), logged(run))


def test_a_stage_is_not_trained_again_for_a_tracker(
    toy_world: Path, tmp_path: Path, own_cache: Path
) -> None:
    """Where a run is tracked decides no result."""
    world = write_rounds_world(tmp_path / "world", toy_world)
    run = tmp_path / "run"
    flags = {"online__rounds": 1}
    run_online(small_recipe("online", world, run, **flags))
    stage = next(run.rglob("train/stage.json")).read_text()
    flags |= tracked_by("tensorboard", tmp_path)
    (run / "manifest.json").unlink()
    run_online(small_recipe("online", world, run, **flags), resume=True)
    assert next(run.rglob("train/stage.json")).read_text() == stage
    assert not (run / "stale").exists()
    assert json.loads((run / "trackers.json").read_text())


def test_the_places_of_kills_exist() -> None:
    assert callable(owner_of(MOMENTS["after a line of metrics"], "sft").log_metrics)
