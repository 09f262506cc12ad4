"""A checkpoint that holds code is refused by name, and none of it runs; markers are files that
would appear."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as parts
from fakes import save_model, small_recipe, write_jsonl

from aligner.errors import DataError
from aligner.methods.pipeline import run_recipe
from aligner.runs.checkpoints import mark_complete
from aligner.runs.run import Run
from aligner.training.checkpoint_code import named_by_pickle, only_plain_data, refuse_code


class Marker:
    """Leaves a file where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place,)


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world whose run was stopped after its first checkpoint."""
    world = tmp_path_factory.mktemp("world")
    save_model(world / "model")
    write_jsonl(world / "sft.jsonl", [{"prompt": f"{i}?", "completion": f"{i}!"} for i in range(8)])

    def stop(event: Any) -> None:
        if getattr(event, "step", 0) >= 3:
            raise Stop

    with pytest.raises(Stop):
        run_recipe(recipe(world), on_event=stop)
    Run(world / "run").close()
    shutil.copytree(world / "run", world / "kept")
    return world


def recipe(world: Path) -> Any:
    return small_recipe(
        *("sft", world, world / "run"),
        trainer__max_steps=4,
        trainer__save_steps=2,
        trainer__logging_steps=1,
    )


@pytest.fixture
def checkpoint(stopped: Path) -> Path:
    """A checkpoint of a run that was stopped, as it was then."""
    shutil.rmtree(stopped / "run")
    shutil.copytree(stopped / "kept", stopped / "run")
    return stopped / "run" / "checkpoints" / "checkpoint-2"


def resume(checkpoint: Path) -> Path:
    return run_recipe(recipe(checkpoint.parents[2]), resume=True).run_dir


READ = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "pytorch_model.bin")


@pytest.mark.parametrize("form", ["torch.save", "a bare pickle"])
@pytest.mark.parametrize("name", READ)
def test_a_file_of_a_checkpoint_that_holds_code_is_named_and_not_run(
    name: str, form: str, tmp_path: Path
) -> None:
    marker, file = tmp_path / "marker", tmp_path / "checkpoint-2" / name
    file.parent.mkdir()
    if form == "torch.save":
        torch.save({"state": Marker(marker)}, file)
    else:
        file.write_bytes(pickle.dumps(Marker(marker)))
    with pytest.raises(DataError, match=f"{name} is not plain data: reading it would run"):
        refuse_code(file.parent)
    assert not marker.exists()


def test_resume_refuses_a_planted_optimizer_and_runs_nothing_of_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    torch.save({"state": Marker(tmp_path / "marker")}, checkpoint / "optimizer.pt")
    mark_complete(checkpoint)
    with pytest.raises(DataError, match=r"optimizer\.pt is not plain data") as caught:
        resume(checkpoint)
    assert str(checkpoint) in caught.value.hint
    assert not (tmp_path / "marker").exists()


def test_a_run_leaves_no_pickled_arguments_and_reads_none(checkpoint: Path, tmp_path: Path) -> None:
    assert not list(checkpoint.parents[2].rglob("training_args.bin"))
    torch.save(Marker(tmp_path / "marker"), checkpoint / "training_args.bin")
    run = resume(checkpoint)
    assert (run / "manifest.json").exists()
    assert not (tmp_path / "marker").exists()
    assert not list(run.rglob("checkpoint-4/training_args.bin"))
    assert not list((run / "final").glob("*.bin"))


STATE = {"state": {"w": torch.ones(3, dtype=torch.bfloat16)}, "groups": [{"lr": 0.1, "b": (0, 1)}]}


def test_a_checkpoint_in_parts_is_read_and_its_list_of_parts_may_name_values_alone(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "checkpoint-2" / "optimizer_0"
    parts.save(STATE, checkpoint_id=folder, no_dist=True)
    refuse_code(folder.parent)
    read = {"state": {"w": torch.zeros(3, dtype=torch.bfloat16)}, "groups": [{"lr": 0.0}]}
    with only_plain_data():
        parts.load(read, checkpoint_id=folder, no_dist=True)
    assert read["groups"] == [{"lr": 0.1}]
    (folder / ".metadata").write_bytes(pickle.dumps(Marker(tmp_path / "marker")))
    with pytest.raises(DataError, match=r"\.metadata is not plain data: .* pathlib\.Path\.touch"):
        refuse_code(folder.parent)
    assert not (tmp_path / "marker").exists()


def test_code_in_a_part_itself_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    folder = tmp_path / "checkpoint-2" / "optimizer_0"
    parts.save({"lr": Marker(tmp_path / "marker")}, checkpoint_id=folder, no_dist=True)
    refuse_code(folder.parent)
    with pytest.raises(DataError, match="not plain data"), only_plain_data():
        parts.load({"lr": 0.1}, checkpoint_id=folder, no_dist=True)
    assert not (tmp_path / "marker").exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


HIDDEN = {
    "by a name that was taken off again": b"\x80\x04\x8c\x05posix\x8c\x06system\x8c\x01x0\x93.",
    "by a name that is put together": b"\x80\x04\x8c\x05posix(\x8c\x06systeml\x93.",
    "by a number": b"\x80\x02\x82\x01.",
    "in an older way": b"(S'true'\niposix\nsystem\n.",
    "cut short": b"\x80\x04\x8c\x05posix",
}


@pytest.mark.parametrize("way", HIDDEN)
def test_an_import_that_is_hidden_is_no_plain_one(way: str) -> None:
    assert named_by_pickle(HIDDEN[way]) & {"something unnamed", "posix system"}


def test_the_names_in_a_pickle_are_those_that_it_imports() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        content = pickle.dumps([Path, Path, pickle.PickleError], protocol)
        assert named_by_pickle(content) >= {"pathlib Path"}, protocol
        assert "something unnamed" not in named_by_pickle(content)
