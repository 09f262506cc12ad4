"""Responses of a round, sampled by several processes: the journal of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aligner.config.recipe import Generation, Model
from aligner.data.rows import PromptRow
from aligner.errors import TrainingError
from aligner.generation import shard_ranks
from aligner.generation.shard_ranks import FOLDER, sample
from aligner.generation.shards import RESPONSES, Asking
from aligner.runs.stages import Stages

ROWS = [PromptRow([{"role": "user", "content": f"say {word}"}]) for word in "abcdefghij"]


def sampled(model: Path, folder: Path, processes: int, done: int = 0) -> bytes:
    """What the journal holds behind it; `done`: shards that are there already."""
    asking = Asking(
        section=Model(name_or_path=str(model)),
        generation=Generation(),
        temperatures=[1.0, 0.7],
        num_samples=4,
        max_new_tokens=6,
        max_length=64,
        seed=3,
        shard_size=2,
        batch_size=8,
        stream="rounds/01",
        processes=processes,
    )
    stage = Stages(folder).open("sample", {"model": str(model)})
    journal = stage.journal(RESPONSES)
    found = []
    for number in sample(stage, ROWS, asking, journal):
        assert number in journal
        found.append(number)
        if done and len(found) == done:
            return b""
    assert found == [0, 1, 2, 3, 4]
    assert not (stage.folder / FOLDER).exists()
    return (stage.folder / f"{RESPONSES}.jsonl").read_bytes()


def test_two_processes_write_the_journal_of_one(small_world: Path, tmp_path: Path) -> None:
    model = small_world / "model"
    one = sampled(model, tmp_path / "one", processes=1)
    assert sampled(model, tmp_path / "two", processes=2) == one
    sampled(model, tmp_path / "resumed", processes=1, done=2)
    left = tmp_path / "resumed" / "sample" / FOLDER / "2.json"
    left.parent.mkdir()
    line = one.splitlines()[2].decode()
    left.write_text(line[line.index('"result": ') + 10 : line.rindex(', "sum"')])
    assert sampled(model, tmp_path / "resumed", processes=2) == one


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"sampling process [01] ended with 1: .*nowhere"):
        sampled(tmp_path / "nowhere", tmp_path / "run", processes=2)


def test_processes_that_end_and_leave_a_shard_out_are_noticed(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(folder: Path, rank: int, processes: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr(shard_ranks, "_start", start)
    with pytest.raises(TrainingError, match=r"every sampling process has ended, and .*0\.json"):
        sampled(small_world / "model", tmp_path / "run", processes=2)
