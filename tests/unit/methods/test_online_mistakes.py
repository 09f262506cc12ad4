"""What somebody gets told who makes a mistake with `aligner online`, or changes a run that is
there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from online_run import online_run
from runner import aligner


def resolved_error(world: Path, folder: Path, *more: str) -> str:
    found = online_run(world, folder / "run", "--dry-run", *more)
    assert found.exit_code in (2, 3), found.output
    return found.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["online.num_sample=4"], "did you mean `online.num_samples`?"),
        (["online.reward_models=[]"], "online.reward_models: is missing"),
        (["data.eval=null"], "data.eval: is missing: there are no held-out prompts"),
        (["online.temperatures=[1.0,0.9,0.8]"], "3 temperatures share them evenly"),
        (["online.reward_models=[toy]"], "online.evaluation.gold: is `toy`, which `reward_models`"),
        (["online.reward_models=[nothing]"], "online.reward_models: there is no scorer 'nothing'"),
        (["online.evaluation.gold=nobody"], "online.evaluation.gold: there is no scorer 'nobody'"),
        (["online.rounds=99"], "99 rounds of 1 prompts need 99 different ones, and there are 30"),
        (["online.serve=x {model}"], "online.serve: has no effect with `engine: auto`"),
    ],
)
def test_a_mistake_is_named_with_its_key(
    given: list[str], said: str, toy_world: Path, tmp_path: Path
) -> None:
    assert said in resolved_error(toy_world, tmp_path, *given)


def test_a_missing_server_is_said_once(toy_world: Path, tmp_path: Path) -> None:
    said = resolved_error(toy_world, tmp_path, "generation.engine=endpoint")
    assert said.count("generation.endpoint: is missing") == 1
    assert said.count("online.serve: is missing") == 1


@pytest.fixture(scope="module")
def finished(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("online") / "run"
    assert online_run(toy_world, folder, "online.rounds=1").exit_code == 0
    return folder


def test_a_finished_run_names_resume_for_changed_settings(toy_world: Path, finished: Path) -> None:
    found = online_run(toy_world, finished, "online.rounds=1")
    assert found.exit_code == 2
    assert "--resume to carry out changed settings" in found.stderr


def test_a_finished_run_that_is_resumed_says_what_came_out(toy_world: Path, finished: Path) -> None:
    found = online_run(toy_world, finished, "online.rounds=1", "--resume")
    assert found.exit_code == 0, found.output
    assert "is finished already" in found.stderr
    assert "best round" in found.stdout


def test_a_change_that_cannot_be_leaves_a_finished_run_finished(
    toy_world: Path, finished: Path
) -> None:
    before = (finished / "resolved.json").read_bytes()
    found = online_run(toy_world, finished, "online.rounds=99", "--resume")
    assert found.exit_code == 3, found.output
    assert (finished / "resolved.json").read_bytes() == before
    assert aligner("online", "status", finished).stdout.splitlines()[-1].startswith("done")


def test_a_changed_setting_is_carried_out_and_said(toy_world: Path, finished: Path) -> None:
    folder = finished
    sampled = (folder / "rounds/01/sample/done.json").read_bytes()
    found = online_run(
        toy_world, folder, "online.rounds=1", "online.pairing.rule=random", "--resume"
    )
    assert found.exit_code == 0, found.output
    assert "changed since this run was started: online.pairing.rule" in found.stderr
    assert "rounds/01/pair is made again, since pairing.rule changed" in found.stderr
    assert "rounds/01/sample is made again" not in found.stderr
    assert (folder / "rounds/01/sample/done.json").read_bytes() == sampled
    record = json.loads((folder / "resolved.json").read_text())
    assert record["recipe"]["online"]["pairing"]["rule"] == "random"
