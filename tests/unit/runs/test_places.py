"""Places where nothing can be written: told before any work, by every command that writes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from runner import aligner

from aligner.errors import UsageError
from aligner.runs.places import make_room, refuse_unusable

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    refuse_unusable(tmp_path / "a" / "b" / "c", "output_dir")
    refuse_unusable(tmp_path, "output_dir")
    assert list(tmp_path.iterdir()) == []


def refused(place: Path) -> str:
    with pytest.raises(UsageError) as caught:
        refuse_unusable(place, "output_dir")
    assert caught.value.hint
    return caught.value.message


def test_a_place_below_a_file_is_refused_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert f"{tmp_path / 'file'} is a file" in refused(tmp_path / "file" / "a" / "b")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "is a link to nothing" in refused(tmp_path / "dangling" / "a")


@LINUX
def test_a_virtual_file_system_is_refused() -> None:
    message = refused(Path("/proc/aligner-run"))
    assert "nothing can be made in /proc: " in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "Permission denied" in refused(tmp_path / "a")


def test_a_name_that_no_file_system_takes_is_refused(tmp_path: Path) -> None:
    assert "NUL" in refused(Path("a\0b"))
    assert "has 300 bytes" in refused(tmp_path / ("x" * 300) / "a")
    assert "the path 6" in refused(tmp_path.joinpath(*["x" * 200] * 30))
    assert "has 300 bytes" in refused(tmp_path / ("ü" * 150))


def test_the_folder_of_a_picture_is_made_and_a_folder_is_no_file(tmp_path: Path) -> None:
    make_room(tmp_path / "new" / "plot.html", "--plot")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(UsageError, match="is a folder"):
        make_room(tmp_path / "new", "--plot")


COMMANDS = {
    "a training": ("sft", "--model", "model", "--data", "rows.jsonl", "--output", "file/run"),
    "a dry run": (
        "sft",
        "--model",
        "model",
        "--data",
        "rows.jsonl",
        "--output",
        "file/run",
        "--dry-run",
    ),
    "mosaics": ("mosaic", "--data", "rows.jsonl", "--output", "file/run"),
    "a dry run of mosaics": ("mosaic", "--data", "rows.jsonl", "--output", "file/run", "--dry-run"),
    "a selection": (
        "data",
        "select",
        "--candidates",
        "rows.jsonl",
        "--output",
        "file/run",
        "select.strategy=random",
    ),
    "scores": (
        "score",
        "--reward-model",
        "toy",
        "--data",
        "rows.jsonl",
        "--output",
        "file/scores.jsonl",
    ),
    "a picture of losses": ("dpo", "--loss-plot", "file/plot.html"),
    "a copied recipe": ("recipes", "copy", "tiny/sft", "file/r.yaml"),
    "a toy world": ("toy", "file/world"),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_every_command_refuses_an_output_below_a_file(
    what: str, small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(small_world / "model")
    (tmp_path / "rows.jsonl").symlink_to(small_world / "sft.jsonl")
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    outcome = aligner(*COMMANDS[what])
    assert outcome.exit_code == 2, outcome.stderr
    assert "file is a file" in outcome.stderr
