"""`aligner toy`, `aligner quickstart` and `aligner doctor`: what the command line adds to the
library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runner import aligner

import aligner.doctor.checks as doctor
from aligner.toy import world


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `write_world` was asked, with a stand-in that writes nothing."""
    made: dict[str, Any] = {}

    def write_world(directory: Path, **options: Any) -> None:
        options.pop("on_progress")(1.0, "done")
        made.update(directory=directory, **options)

    monkeypatch.setattr(world, "write_world", write_world)
    return made


def test_the_toy_world_is_written_where_it_is_asked_for(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    result = aligner("toy", tmp_path / "world", "--seed", "3", "--overwrite")
    assert result.exit_code == 0, result.output
    assert asked == {"directory": tmp_path / "world", "seed": 3, "overwrite": True}
    assert "recipes/sft.yaml" in result.stdout


@pytest.mark.parametrize("command", [["toy"], ["quickstart", "--dir"]])
def test_a_folder_with_something_else_in_it_is_refused(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", "utf-8")
    for more in ([], ["--overwrite"]):
        result = aligner(*command, tmp_path, *more)
        assert result.exit_code == 2
        assert "hint:" in result.stderr
    assert (tmp_path / "thesis.txt").is_file()


def test_the_doctor_gives_findings_and_cures(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        doctor.Check("torch", "ok", "2.13"),
        doctor.Check("disk", "problem", "1 GB free", "make room"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: found)
    text = aligner("doctor").stdout
    assert "PROBLEM  disk   1 GB free\n" in text
    assert "-> make room" in text
    assert text.endswith("\n1 problem\n")
    assert json.loads(aligner("doctor", "--json").stdout)[1]["cure"] == "make room"


@pytest.mark.slow
def test_the_quickstart_ends_with_three_scores_and_a_report(
    toy_world: Path, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "toy"
    shutil.copytree(toy_world, folder)
    result = aligner("quickstart", "--dir", folder, "--resume")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines if line][:4] == ["model", "base", "SFT", "DPO"]
    report = folder / "runs" / "dpo" / "report.html"
    assert str(report) in result.stdout
    assert "gold score" in report.read_text("utf-8")
    again = aligner("quickstart", "--dir", folder, "--resume")
    assert again.exit_code == 0, again.output
    assert again.stdout == result.stdout
