"""`aligner runs`: read from the run directories alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from fakes import small_recipe, write_small_world
from runner import aligner

from aligner.methods.pipeline import run_recipe

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two short trainings, started in it, one of which starts from the other."""
    folder = write_small_world(tmp_path_factory.mktemp("runs"))
    before = Path.cwd()
    os.chdir(folder)
    try:
        start = small_recipe("sft", Path("."), Path("runs/sft"), data__eval=0.2)
        run_recipe(start)
        run_recipe(
            small_recipe("dpo", Path("."), Path("runs/dpo"), model__name_or_path="runs/sft/final")
        )
    finally:
        os.chdir(before)
    return folder


def test_runs_are_compared(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    page, picture = tmp_path / "page.html", tmp_path / "plots.png"
    result = aligner(*("runs", "compare", "runs/sft", "runs/dpo", "--html", page, "--png", picture))
    assert result.exit_code == 0, result.stderr
    assert "model.name_or_path" in result.stdout
    assert "runs/sft/final" in result.stdout
    assert "difference" in result.stdout
    assert page.read_text().startswith("<!doctype html>")
    assert picture.read_bytes().startswith(b"\x89PNG")
    facts = json.loads(aligner("runs", "compare", "runs/sft", "runs/dpo", "--json").stdout)
    assert len(facts["curves"]["train/loss"][0]) == 4
    assert aligner("runs", "compare", "runs/sft").exit_code == 2
    assert aligner("runs", "compare", "runs/sft", "runs").exit_code == 2


def test_a_run_shows_its_tree(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    lines = aligner("runs", "tree", "runs/dpo").stdout.splitlines()
    assert lines[0].startswith("runs/dpo  (dpo run, finished ")
    assert lines[1].startswith("├─ runs/sft/final  (sft run, finished ")
    assert [line.split("─ ")[1] for line in lines[2:]] == [
        "model  model",
        "data  sft.jsonl",
        "data  pairs.jsonl",
    ]
    facts = json.loads(aligner("runs", "tree", "runs/dpo", "--json").stdout)
    assert facts["parents"][0]["method"] == "sft"


def test_a_run_is_reproduced_from_another_folder(trained: Path, tmp_path: Path) -> None:
    run, again = trained / "runs" / "sft", tmp_path / "again"
    looked = aligner("runs", "reproduce", run)
    assert looked.exit_code == 0, looked.stderr
    assert "data: 1 of 1 the same" in looked.stdout
    assert not again.exists()
    done = aligner("runs", "reproduce", run, "-o", again, "--run")
    assert done.exit_code == 0, done.stderr
    assert "the results and every logged number are equal" in done.stdout
    assert "files of the result are the same, byte for byte" in done.stdout
    assert aligner("runs", "reproduce", run, "-o", again, "--run").exit_code == 2
    facts = json.loads(
        aligner("runs", "reproduce", run, "-o", again, "--run", "--overwrite", "--json").stdout
    )
    assert facts["outcome"]["is_equal"]
    assert facts["outcome"]["has_same_files"]


def test_another_outcome_is_said(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained / "runs" / "sft", tmp_path / "changed")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["results"]["train_loss"] += 0.5
    (run / "manifest.json").write_text(json.dumps(manifest))
    result = aligner("runs", "reproduce", run, "--run")
    assert result.exit_code == 6
    assert "did not come out as" in result.stderr
    assert "train_loss" in result.stdout


def test_a_run_whose_data_changed_is_not_run_again(trained: Path, tmp_path: Path) -> None:
    world = shutil.copytree(trained, tmp_path / "world")
    run = world / "runs" / "sft"
    environment = json.loads((run / "environment.json").read_text())
    environment["working_directory"] = str(world)
    (run / "environment.json").write_text(json.dumps(environment))
    with open(world / "sft.jsonl", "a") as file:
        file.write("\n")
    looked = aligner("runs", "reproduce", run)
    assert looked.exit_code == 0
    assert "differs" in looked.stdout
    result = aligner("runs", "reproduce", run, "--run")
    assert result.exit_code == 3
    assert "sft.jsonl" in result.stderr
    assert not (world / "runs" / "sft-again").exists()


def test_a_run_that_is_not_finished_is_not_reproduced(runs: Path) -> None:
    (runs / "cut" / "environment.json").write_text('{"versions": {}, "sessions": []}')
    result = aligner("runs", "reproduce", runs / "cut", "--run")
    assert result.exit_code == 2
    assert "is not finished" in result.stderr
