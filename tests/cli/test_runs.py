"""`aligner runs`: read from the run directories alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runner import aligner

DONE = {"method": "dpo", "finished": "2026-01-01T12:00:00+00:00", "seconds": 3.0}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, manifest in (
        ("done", {**DONE, "results": {"steps": 7, "eval/loss": 0.5}}),
        ("cut", None),
    ):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "resolved.json").write_text(
            json.dumps({"recipe": {"method": "dpo"}, "recipe_hash": "0"}), "utf-8"
        )
        if manifest:
            (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return tmp_path / "runs"


def test_runs_are_listed_with_state_and_results(runs: Path) -> None:
    lines = aligner("runs", "list", runs).stdout.splitlines()
    results = ["steps", "train_loss", "eval/loss", "eval/rewards/accuracies", "eval/accuracy"]
    assert lines[0].split() == ["run", "method", "state", *results]
    assert lines[1].split() == [f"{runs}/cut", "dpo", "unfinished"]
    assert lines[2].split() == [f"{runs}/done", "dpo", "done", "7", "0.5"]


def test_the_list_is_readable_by_a_program(runs: Path) -> None:
    listed = json.loads(aligner("runs", "list", runs, "--json").stdout)
    assert [(run["state"], run["results"]) for run in listed] == [
        ("unfinished", {}),
        ("done", {"steps": 7, "eval/loss": 0.5}),
    ]


def test_no_run_is_no_error(tmp_path: Path) -> None:
    result = aligner("runs", "list", tmp_path)
    assert result.exit_code == 0
    assert "no runs" in result.stdout


def test_a_run_is_shown(runs: Path) -> None:
    assert "eval/loss  0.5" in aligner("runs", "show", runs / "done").stdout
    assert json.loads(aligner("runs", "show", runs / "done", "--json").stdout)["seconds"] == 3.0


@pytest.mark.parametrize("command", ["show", "report"])
def test_a_folder_that_is_no_run_is_refused(command: str, tmp_path: Path) -> None:
    result = aligner("runs", command, tmp_path)
    assert result.exit_code == 2
    assert "not a run directory" in result.stderr
