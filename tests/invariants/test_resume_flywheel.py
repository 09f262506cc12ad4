"""A flywheel that is killed at any moment, and resumed, makes what an uninterrupted one makes: the
same battles and rows to the byte, the same weights and ratings, and nobody is judged twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flywheel_world import write_flywheel_world
from killing import FLYWHEEL, run_in_process


@pytest.fixture(scope="module")
def world(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flywheel_world(tmp_path_factory.mktemp("flywheel"), toy_world)


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run_in_process("flywheel", world, folder) == 0
    return folder


def games(run: Path) -> list[str]:
    lines = (run / "games.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["game_id"] for line in lines]


def assert_same(run: Path, whole: Path) -> None:
    names = ("battles.jsonl", "train.jsonl", "dropped.jsonl", "prompts.jsonl", "model.safetensors")
    files = [path.relative_to(whole) for name in names for path in whole.rglob(name)]
    assert len(files) >= 16
    for file in [*files, Path("flywheel.json")]:
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file
    results = [
        json.loads((folder / "manifest.json").read_text())["results"] for folder in (run, whole)
    ]
    assert results[0] == results[1]
    assert sorted(games(run)) == sorted(games(whole))
    assert len(set(games(run))) == len(games(run))
    assert not (run / "stale").exists(), "nothing was taken for something else"
    assert not list(run.rglob("*.unfinished"))
    assert not list(run.rglob(".*.tmp"))


def kill_and_resume(world: Path, run: Path, moment: str) -> None:
    code = run_in_process("flywheel", world, run, moment=moment, count=FLYWHEEL[moment][1])
    assert code == -9
    assert not (run / "manifest.json").exists()
    assert run_in_process("flywheel", world, run, resume=True) == 0


@pytest.mark.parametrize("moment", ["behind games in the log"])
def test_killed_and_resumed_equals_uninterrupted(
    world: Path, whole: Path, tmp_path: Path, own_cache: Path, moment: str
) -> None:
    kill_and_resume(world, tmp_path / "run", moment)
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("moment", FLYWHEEL)
def test_killed_inside_every_stage_and_resumed_equals_uninterrupted(
    world: Path, whole: Path, tmp_path: Path, own_cache: Path, moment: str
) -> None:
    kill_and_resume(world, tmp_path / "run", moment)
    assert_same(tmp_path / "run", whole)
