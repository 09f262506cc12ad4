"""Trackers hold what `metrics.jsonl` says, each point once, whatever was killed, added later or
logged again."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tracked import (
    Points,
    differences,
    gathered,
    in_mlflow,
    in_tensorboard,
    in_trackio,
    in_wandb,
    texts_in_tensorboard,
)

from aligner.errors import TrainingError
from aligner.events import Event, Warned
from aligner.runs.files import dumps
from aligner.runs.trackers import mirror
from aligner.runs.trackers.facts import facts_of, points_of, trackers_in
from aligner.runs.trackers.mirror import Trackers

RECORDS = [
    {"step": step, "split": split, "loss": 1 / step, "epoch": step / 4, "time_s": 0.5 * step}
    for step in (1, 2, 3)
    for split in ("train", "eval")
]
MANIFEST = {
    "results": {"steps": 4.0, "train_loss": 0.5},
    "parents": [{"kind": "model", "path": "org/model", "fingerprint": "f00d"}],
}


def run_folder(folder: Path, *trackers: str, project: str = "", **recipe: Any) -> Path:
    """A run directory as it is when training starts."""
    folder.mkdir(parents=True)
    trainer = {"report_to": list(trackers), "learning_rate": 1e-3, "betas": [0.9, None]}
    trainer["project"] = project or f"p{uuid.uuid4().hex[:8]}"
    values = {"method": "sft", "trainer": trainer, "data": {"train": [{"path": "a.jsonl"}]}}
    resolved = {"recipe": {**values, **recipe}, "recipe_hash": "abc"}
    files = {
        "resolved.json": resolved,
        "environment.json": {"versions": {"aligner": "0.1"}, "sessions": []},
        "inputs.json": {"fingerprint": "all", "sources": {"a.jsonl": "d1"}},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def read_back(name: str, run: Path) -> Points:
    if name == "trackio":
        facts = facts_of(run, "TRACKIO_PROJECT")
        return in_trackio(facts.project)[facts.name]
    if name == "mlflow":
        return in_mlflow(json.loads((run / "trackers.json").read_text())["mlflow"]["id"])
    if name == "wandb":  # its own process writes, also after it was told to finish
        until(lambda: in_wandb(run))
        time.sleep(0.2)
        return in_wandb(run)
    return in_tensorboard(run)


def until(is_true: Callable[[], object]) -> None:
    for _ in range(2400):
        if is_true():
            return
        time.sleep(0.05)


def expected(records: list[dict[str, Any]]) -> Points:
    return gathered(point for record in records for point in points_of(record))


@pytest.fixture(params=["tensorboard", "trackio", "wandb", "mlflow"])
def tracker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip(request.param)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    return str(request.param)


def test_a_tracker_holds_each_line_and_the_results(tracker: str, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", tracker)
    trackers = Trackers(run)
    trackers.begin([])
    for record in RECORDS:
        trackers.add(record)
    trackers.add({"step": 4, "split": "train", "loss": 0.25, "words": "no number"})
    trackers.finish(MANIFEST)
    found = read_back(tracker, run)
    records = [*RECORDS, {"step": 4, "split": "train", "loss": 0.25}]
    assert not differences(found, expected(records))
    if tracker != "wandb":  # there they are in the summary
        assert found["results/steps", 0] == [4.0]


def test_a_run_that_was_stopped_continues_its_curve(tracker: str, tmp_path: Path) -> None:
    """Steps behind the checkpoint are logged again, with other values."""
    run = run_folder(tmp_path / "run", tracker)
    killed = Trackers(run)
    killed.begin([])
    for record in RECORDS:
        killed.add(record)
    killed.abandon()  # what a kill lets through at most; in the test of trainings it is a kill
    resumed = Trackers(run)
    resumed.begin(RECORDS[:4])
    again = [{**record, "loss": 9.0} for record in RECORDS[4:]]
    for record in again:
        resumed.add(record)
    resumed.finish(MANIFEST)
    keeps_the_first = tracker == "mlflow"
    records = RECORDS if keeps_the_first else [*RECORDS[:4], *again]
    assert not differences(read_back(tracker, run), expected(records))


def test_a_tracker_that_is_named_later_gets_the_whole_curve(tracker: str, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", tracker)
    trackers = Trackers(run)
    trackers.begin(RECORDS[:4])
    for record in RECORDS[4:]:
        trackers.add(record)
    trackers.finish(MANIFEST)
    assert not differences(read_back(tracker, run), expected(RECORDS))


def test_records_that_change_are_followed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = run_folder(tmp_path / "run", "tensorboard")
    trackers = Trackers(run)
    trackers.begin([])
    trackers.follow(RECORDS[:2])
    trackers.follow(RECORDS)
    changed = [{**RECORDS[0], "loss": 7.0}, *RECORDS[1:3]]
    trackers.follow(changed)
    trackers.add(RECORDS[4])
    trackers.finish(MANIFEST)
    assert not differences(in_tensorboard(run), expected([*changed, RECORDS[4]]))


def test_points_keep_the_time_at_which_they_were_first_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = run_folder(tmp_path / "run", "tensorboard")
    first = Trackers(run)
    first.begin([])
    first.add(RECORDS[0])
    before = times_of(run)
    second = Trackers(run)
    second.begin(RECORDS[:1])
    second.add(RECORDS[2])
    after = times_of(run)
    assert after.items() > before.items()


def times_of(run: Path) -> dict[tuple[str, int], float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(run / "tensorboard"))
    reader.Reload()
    points = {name: reader.Scalars(name) for name in reader.Tags()["scalars"]}
    return {(name, one.step): one.wall_time for name, ones in points.items() for one in ones}


def test_tensorboard_shows_recipe_and_lineage(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = run_folder(tmp_path / "run", "tensorboard")
    trackers = Trackers(run)
    trackers.begin([])
    trackers.finish(MANIFEST)
    texts = texts_in_tensorboard(run)
    assert "| trainer.learning_rate | 0.001 |" in texts["recipe"][0]
    assert "| data.train.0.path | a.jsonl |" in texts["recipe"][0]
    assert "| data: a.jsonl | d1 |" in texts["lineage"][0]
    assert "| model: org/model | f00d |" in texts["lineage"][-1]


def test_trackio_has_recipe_and_lineage(tmp_path: Path) -> None:
    trackio = pytest.importorskip("trackio")
    run = run_folder(tmp_path / "run", "trackio", project="facts")
    trackers = Trackers(run)
    trackers.begin(RECORDS[:1])
    trackers.finish(MANIFEST)
    (found,) = trackio.Api().runs("facts")
    assert found.name == "run"
    assert found.config["trainer.learning_rate"] == 1e-3
    assert found.config["data: a.jsonl"] == "d1"


def test_the_screen_gets_nothing_of_a_tracker(
    tracker: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trackers = Trackers(run_folder(tmp_path / "run", tracker))
    trackers.begin(RECORDS)
    trackers.finish(MANIFEST)
    assert capsys.readouterr().out == ""


class Broken:
    """A tracker that fails at one of its calls."""

    def __init__(self, at: str) -> None:
        self.at = at

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*_: Any) -> dict[str, Any]:
            if name == self.at:
                raise OSError("the disk is full")
            return {}

        return call


def with_broken(
    monkeypatch: pytest.MonkeyPatch, run: Path, at: str, on_event: Callable[[Event], None]
) -> Trackers:
    monkeypatch.setattr(mirror, "import_module", lambda _: BrokenModule(at))
    return Trackers(run, on_event)


class BrokenModule:
    def __init__(self, at: str) -> None:
        self.at = at

    def Writer(self) -> Broken:
        return Broken(self.at)


@pytest.mark.parametrize("at", ["add", "finish", "abandon"])
def test_a_tracker_that_fails_is_left_behind_with_a_warning(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Event] = []
    run = run_folder(tmp_path / "run", "tensorboard")
    trackers = with_broken(monkeypatch, run, at, heard.append)
    trackers.begin([])
    trackers.add(RECORDS[0])
    trackers.add(RECORDS[1])
    trackers.abandon() if at == "abandon" else trackers.finish(MANIFEST)
    (warning,) = heard
    assert isinstance(warning, Warned)
    assert "tensorboard failed" in warning.text
    assert "the disk is full; metrics.jsonl has everything" in warning.text


def test_a_tracker_that_cannot_be_opened_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder(tmp_path / "run", "tensorboard")
    trackers = with_broken(monkeypatch, run, "begin", lambda _: None)
    with pytest.raises(TrainingError, match=r"report_to: tensorboard cannot be opened: the disk"):
        trackers.begin([])


def test_words_of_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trackers_in({"trainer": {"report_to": "none"}}) == []
    assert trackers_in({"trainer": {"report_to": ["wandb", "wandb"]}}) == ["wandb"]
    assert trackers_in({"report_to": ["trackio", "none"]}) == ["trackio"]
    assert trackers_in({"method": "mosaic"}) == []
    assert mirror.ours(["clearml", "trackio"]) == ["trackio"]
    monkeypatch.setattr(mirror, "is_installed", lambda package: package in ("wandb", "trackio"))
    assert mirror.ours(["all"]) == ["trackio", "wandb"]


def test_the_training_of_a_stage_has_the_name_of_its_place(tmp_path: Path) -> None:
    outer = run_folder(tmp_path / "online", "trackio")
    inner = run_folder(outer / "rounds" / "1" / "train" / "run", "trackio")
    facts = facts_of(inner, "")
    assert (facts.name, facts.group) == ("online/rounds/1/train", "online")
    assert facts_of(outer, "").group is None


def test_the_environment_names_the_project_before_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder(tmp_path / "run", "wandb", project="of the recipe")
    assert facts_of(run, "WANDB_PROJECT").project == "of the recipe"
    monkeypatch.setitem(os.environ, "WANDB_PROJECT", "mine")
    assert facts_of(run, "WANDB_PROJECT").project == "mine"


def test_ids_are_kept_beside_the_run(tracker: str, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", tracker)
    opened = Trackers(run)
    opened.begin([])
    opened.abandon()
    first = json.loads((run / "trackers.json").read_text())
    assert list(first) == [tracker]
    Trackers(run).begin(RECORDS)
    second = json.loads((run / "trackers.json").read_text())
    if tracker in ("wandb", "mlflow", "tensorboard"):
        assert dumps(first) == dumps(second)
