"""Ranks of several machines: one folder for all."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from fakes import small_recipe

from aligner.errors import AlignerError, DataError, RecipeError, UsageError
from aligner.launch import meeting
from aligner.launch.command import free_port
from aligner.methods import ranks
from aligner.methods.pipeline import run_recipe


def test_a_folder_that_machine_0_does_not_write_to_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ranks, "FOLDER_S", 0.5)
    file = tmp_path / ranks.RANKS_RECIPE
    file.parent.mkdir()
    file.write_text("{}")
    digest = ranks._digest(file)
    ranks._refuse_other_folder(tmp_path, digest)
    file.write_text('{"older": "run"}')
    with pytest.raises(UsageError, match="is not the folder that machine 0 writes to"):
        ranks._refuse_other_folder(tmp_path, digest)
    with pytest.raises(UsageError, match="is not the folder that machine 0 writes to"):
        ranks._refuse_other_folder(tmp_path / "empty", digest)


def test_a_network_may_take_moments_to_show_a_file(tmp_path: Path) -> None:
    file = tmp_path / ranks.RANKS_RECIPE
    file.parent.mkdir()
    file.write_text("{}")
    digest = ranks._digest(file)
    file.unlink()

    def appear() -> None:
        time.sleep(0.7)
        file.write_text("{}")

    threading.Thread(target=appear).start()
    ranks._refuse_other_folder(tmp_path, digest)
    assert file.exists()


class MetError(Exception):
    """The machines would meet now."""


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that meets no other one."""

    def meet(*_: object) -> None:
        raise MetError

    monkeypatch.setattr(ranks, "meet", meet)
    monkeypatch.setattr(meeting, "DECLINE_S", 0.1)


def on_machine(number: int, world: Path, run: Path, *overrides: str, method: str = "sft") -> None:
    """Run the command of one of two machines."""
    launch = (
        *("launch.num_processes=2", "launch.num_machines=2", f"launch.machine_rank={number}"),
        *("launch.main_process_ip=127.0.0.1", f"launch.main_process_port={free_port()}"),
    )
    run_recipe(small_recipe(method, world, run, *launch, *overrides))


def test_machine_0_reads_its_rows_before_the_machines_meet(
    small_world: Path, tmp_path: Path, apart: None
) -> None:
    run = tmp_path / "run"
    with pytest.raises(DataError, match=r"there is no file or folder .*rwos.jsonl"):
        on_machine(0, small_world, run, f"data.train={tmp_path / 'rwos.jsonl'}")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt"\n')
    with pytest.raises(DataError, match=r"broken.jsonl:2"):
        on_machine(0, small_world, run, f"data.train={tmp_path / 'broken.jsonl'}")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty.jsonl"):
        on_machine(0, small_world, run, f"data.train={tmp_path / 'empty.jsonl'}")
    with pytest.raises(MetError):
        on_machine(0, small_world, run)
    assert not run.exists(), "nothing is written before all are there"


def test_rows_of_the_hub_may_take_longer_than_the_others_wait(
    small_world: Path, tmp_path: Path, apart: None
) -> None:
    with pytest.raises(MetError):
        on_machine(0, small_world, tmp_path / "run", "data.train=some/dataset")


@pytest.mark.parametrize("number", [0, 1])
def test_each_machine_looks_for_models_and_scorers_before_they_meet(
    number: int, small_world: Path, tmp_path: Path, apart: None
) -> None:
    run, nowhere = tmp_path / "run", tmp_path / "nowhere"

    def told(*overrides: str, method: str = "sft") -> str:
        with pytest.raises(AlignerError) as caught:
            on_machine(number, small_world, run, *overrides, method=method)
        assert isinstance(caught.value, RecipeError)
        return caught.value.message

    assert f"model.name_or_path: there is no folder {nowhere}" in told(
        f"model.name_or_path={nowhere}"
    )
    assert str(nowhere) in told(f"rlhf.reward_models=[{nowhere}]", method="rlhf")
    assert str(nowhere) in told(f"dpo.reference_model={nowhere}", method="dpo")


def test_rows_are_read_on_machine_0_alone(small_world: Path, tmp_path: Path, apart: None) -> None:
    with pytest.raises(MetError):
        on_machine(1, small_world, tmp_path / "run", f"data.train={tmp_path / 'elsewhere.jsonl'}")
