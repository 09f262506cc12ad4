"""The checkpoints in a folder: which count, which are removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from aligner.runs import checkpoints
from aligner.runs.checkpoints import (
    checkpoint_at,
    checkpoints_in,
    latest_checkpoint,
    mark_complete,
    remove_incomplete,
    remove_old,
    step_of,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Whole checkpoints of four steps."""
    for step in (2, 9, 10, 100):
        checkpoint_at(tmp_path, step).mkdir()
        (checkpoint_at(tmp_path, step) / "model.safetensors").write_bytes(b"weights")
        mark_complete(checkpoint_at(tmp_path, step))
    return tmp_path


def steps(folder: Path) -> list[int]:
    return [step_of(path) for path in checkpoints_in(folder)]


def test_checkpoints_stand_in_the_order_of_their_steps(folder: Path) -> None:
    assert steps(folder) == [2, 9, 10, 100]
    assert steps(folder / "nowhere") == []


def test_the_oldest_are_removed_but_the_best_stays(folder: Path) -> None:
    remove_old(folder, 2, best=str(checkpoint_at(folder, 2)))
    assert steps(folder) == [2, 10, 100]
    remove_old(folder, 1, best=None)
    assert steps(folder) == [100]


def test_what_a_user_put_beside_them_is_left_alone(folder: Path) -> None:
    (folder / "checkpoint-best").mkdir()
    (folder / "checkpoint-3").write_text("a file")
    remove_old(folder, 1, best=None)
    remove_incomplete(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint-100",
        "checkpoint-3",
        "checkpoint-best",
    ]


def test_one_that_a_kill_left_half_removed_does_not_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        (path / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_old(folder, 3, best=None)
    for path in checkpoints_in(folder)[1:]:
        checkpoints.shutil.rmtree(path)
    assert steps(folder) == [2]
    assert latest_checkpoint(folder) is None
    remove_incomplete(folder)
    assert steps(folder) == []
