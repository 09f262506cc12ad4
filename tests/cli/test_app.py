"""The root command: help, version, and how every kind of error ends."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from runner import aligner
from typer.testing import Result

import aligner.config.load as load_module
from aligner import __version__, errors
from aligner.cli.app import Root, app
from aligner.cli.errors import KEPT_TRACEBACKS, MAX_PROBLEMS

COMMANDS = typer.main.get_command(app).commands

Failing = Callable[..., Result]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """Run `aligner dpo` with a given exception coming out of the library."""

    def run(error: BaseException, *before: str) -> Result:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(load_module, "load_recipe", fail)
        return aligner(*before, "dpo", "x.yaml")

    return run


def test_every_command_stands_under_one_heading_of_the_help() -> None:
    listed = [name for names in Root.sections.values() for name in names]
    assert sorted(listed) == sorted(COMMANDS)


def test_the_help_gives_every_command_one_line_that_is_not_cut() -> None:
    lines = aligner("--help").output.splitlines()
    for name in COMMANDS:
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert not line.endswith("..."), line


def test_no_argument_prints_the_help() -> None:
    assert "Start here:" in aligner().output


def test_the_version_is_printed() -> None:
    result = aligner("--version")
    assert (result.exit_code, result.output) == (0, f"aligner {__version__}\n")


def test_a_mistyped_command_is_answered_with_the_right_one() -> None:
    result = aligner("dop")
    assert result.exit_code == 2
    assert "'dpo'" in result.output


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.RecipeError, 2),
        (errors.UsageError, 2),
        (errors.DataError, 3),
        (errors.EndpointError, 4),
        (errors.TrainingError, 5),
    ],
)
def test_an_error_of_the_user_is_a_sentence_a_hint_and_its_exit_code(
    failing: Failing, kind: type, code: int
) -> None:
    result = failing(kind("pairs.jsonl has no row", "add some"))
    assert result.exit_code == code
    assert result.stderr == "error: pairs.jsonl has no row\nhint: add some\n"
    assert result.stdout == ""


def test_all_problems_are_listed_but_no_more_than_a_screen(failing: Failing) -> None:
    problems = [
        errors.Problem(f"bad {number}", "r.yaml:1", "data.x", "fix it") for number in range(40)
    ]
    lines = failing(
        errors.RecipeError("r.yaml has 40 problems", problems=problems)
    ).stderr.splitlines()
    assert lines[1] == "  r.yaml:1: data.x: bad 0 (fix it)"
    assert lines[-1] == f"  ... and {40 - MAX_PROBLEMS} more"
    assert len(lines) <= 24


def test_a_bug_of_ours_is_one_line_that_names_the_file_of_the_traceback(
    failing: Failing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ALIGNER_CACHE", str(tmp_path))
    result = failing(KeyError("loss"))
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("internal error, please report it: KeyError at ")
    (kept,) = (tmp_path / "crashes").iterdir()
    assert str(kept) in line
    assert "KeyError: 'loss'" in kept.read_text(encoding="utf-8")


def test_only_the_last_tracebacks_are_kept(
    failing: Failing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ALIGNER_CACHE", str(tmp_path))
    for number in range(KEPT_TRACEBACKS + 2):
        failing(KeyError(f"number {number}"))
    kept = sorted((tmp_path / "crashes").iterdir())
    assert len(kept) == KEPT_TRACEBACKS
    assert f"number {KEPT_TRACEBACKS + 1}" in kept[-1].read_text(encoding="utf-8")


def test_a_cache_that_cannot_be_written_does_not_hide_the_bug(
    failing: Failing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALIGNER_CACHE", str(tmp_path / "file"))
    assert "internal error, please report it: KeyError" in failing(KeyError("loss")).stderr


def test_debug_shows_the_traceback_and_keeps_the_exit_code(failing: Failing) -> None:
    result = failing(errors.DataError("no row"), "--debug")
    assert result.exit_code == 3
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: no row\n")


def test_debug_may_follow_the_command(failing: Failing) -> None:
    failing(errors.DataError("no row"))
    assert "Traceback" in aligner("dpo", "x.yaml", "--debug").stderr


def test_ctrl_c_ends_with_130(failing: Failing) -> None:
    result = failing(KeyboardInterrupt())
    assert result.exit_code == 130
    assert "Traceback" not in result.output


def test_a_full_disk_or_a_forbidden_folder_is_no_bug_of_ours(failing: Failing) -> None:
    result = failing(OSError(errno.EACCES, "Permission denied", "/runs/x"))
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == "error: /runs/x: Permission denied"


def test_a_reader_that_goes_away_causes_no_noise() -> None:
    command = f"{sys.executable} -m aligner --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_words_beyond_the_encoding_of_a_pipe_do_not_break_it() -> None:
    command = (
        "from aligner.cli.environment import make_streams_safe as s; s(); print('\\u2192 \\u00fc')"
    )
    for encoding in ("ascii", "cp1252"):
        environment = {"PYTHONIOENCODING": encoding, "PATH": ""}
        done = subprocess.run(
            [sys.executable, "-c", command], capture_output=True, env=environment, check=True
        )
        assert done.stdout.startswith(b"?")
