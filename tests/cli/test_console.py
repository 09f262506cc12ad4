"""Names and texts from files cannot steer the terminal: they are shown written out."""

from __future__ import annotations

import ast
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
from fakes import write_jsonl
from runner import aligner

from aligner.cli import console, render
from aligner.cli.console import content, guard_libraries, say_content, say_json, shown
from aligner.events import Notice, Plan, StageProgress, StageStarted, TableRow, Warned

CLI = Path(__file__).parents[2] / "cli"

NAME = "a\x1b[31m\x07[red]b\nwarning: c\u202ed\x9b2J"
WRITTEN = r"a\x1b[31m\x07[red]b\nwarning: c\u202ed\x9b2J"

UNSAFE = "\x1b\x07\x9b\u202e"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_name_is_written_out_and_other_text_stays() -> None:
    assert shown(NAME) == WRITTEN
    assert shown("\ud800\u2066x\u2028\t") == r"\ud800\u2066x\u2028\t"
    plain = "Zoë, 北京, naïve — “ok” 👩‍👩‍👧 [bold]"
    assert (shown(plain), content(plain)) == (plain, plain)
    assert content("one\r\n\ttwo\rthree\x1b[2J") == "one\r\n\ttwo\\rthree\\x1b[2J"


def test_no_other_module_of_the_command_line_prints() -> None:
    found = []
    for path in sorted(CLI.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and path.name != "console.py":
                name = ast.unparse(node.func)
                if name in ("typer.echo", "typer.secho", "print", "sys.stdout.write"):
                    found.append(f"{path.name}:{node.lineno}")
    assert found == []


def bad_rows(folder: Path) -> tuple[object, ...]:
    write_jsonl(folder / f"{NAME}.jsonl", [{"prompt": "x", "completion": "y", NAME: 1}, {NAME: 2}])
    return ("score", "--reward-model", "toy", "--data", folder / f"{NAME}.jsonl")


def no_file(folder: Path) -> tuple[object, ...]:
    return ("score", "--reward-model", "toy", "--data", folder / NAME)


def no_scorer(folder: Path) -> tuple[object, ...]:
    return ("score", "--reward-model", NAME, "--data", folder)


def no_column(folder: Path) -> tuple[object, ...]:
    write_jsonl(folder / "x.jsonl", [{"prompt": "x", "completion": "y"}])
    data = ("--data", folder / "x.jsonl", "--column", f"prompt={NAME}")
    return ("score", "--reward-model", "toy", *data)


def no_option(folder: Path) -> tuple[object, ...]:
    return ("score", f"--{NAME}")


def too_many_arguments(folder: Path) -> tuple[object, ...]:
    return ("runs", "show", folder, NAME)


def no_command(folder: Path) -> tuple[object, ...]:
    return (NAME,)


def no_recipe(folder: Path) -> tuple[object, ...]:
    return ("sft", folder / f"{NAME}.yaml")


def no_key(folder: Path) -> tuple[object, ...]:
    return ("sft", f"{NAME}=1")


def no_model(folder: Path) -> tuple[object, ...]:
    return ("generate", folder / NAME, "hello")


def no_runs(folder: Path) -> tuple[object, ...]:
    (folder / NAME).mkdir()
    return ("runs", "list", folder / NAME)


def damaged_run(folder: Path) -> tuple[object, ...]:
    (folder / NAME).mkdir()
    (folder / NAME / "resolved.json").write_text("{")
    return ("runs", "list", folder)


@pytest.mark.parametrize(
    "case",
    [
        *(bad_rows, no_file, no_scorer, no_column, no_option, too_many_arguments, no_command),
        *(no_recipe, no_key, no_model, no_runs, damaged_run),
    ],
)
def test_whatever_a_command_says_names_are_written_out(case: Any, tmp_path: Path) -> None:
    found = aligner(*case(tmp_path))
    said = found.stdout + found.stderr
    assert "internal error" not in said
    assert not set(said) & set(UNSAFE), ascii(said)
    assert "\nwarning: c" not in said
    said = said.replace("'", "").replace("\\\\", "\\").replace(r"\x0a", r"\n")  # as typer writes it
    assert r"a\x1b[31m\x07[red]b\nwarning" in said


def test_what_is_drawn_on_a_terminal_is_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with render.Screen() as screen:
        screen.on_event(Plan([(NAME, NAME, NAME)]))
        screen.on_event(StageStarted(NAME))
        screen.on_event(StageProgress(NAME, 1, 2))
        screen.on_event(Warned(f"{NAME} :warning:"))
        screen.on_event(Notice(NAME))
        screen.on_event(TableRow(NAME, {NAME: NAME}, NAME, is_best=True))
        screen.on_event(StageProgress(NAME, 1, 2))
    said = stream.getvalue()
    assert "[red]" in said
    assert ":warning:" in said
    assert not set(said) & set(UNSAFE[1:])
    assert "\x1b[31m\\x07" not in said
    assert "a\x1b[31m" not in said
    assert "\nwarning: c" not in said


def test_answers_keep_their_lines_and_steer_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "one\n\ttwo\x1b]0;title\x07 \u202e"
    for stream, expected in ((Terminal(), content(text)), (io.StringIO(), text)):
        monkeypatch.setattr("sys.stdout", stream)
        say_content(text)
        assert stream.getvalue() == expected + "\n"
    assert content(text) == "one\n\ttwo\\x1b]0;title\\x07 \u202e"


def test_json_stays_the_same_json(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {NAME: ["é", NAME]}
    text = json.dumps(value, ensure_ascii=False)
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr("sys.stdout", stream)
        say_json(text)
        assert json.loads(stream.getvalue()) == value
        assert bool(set(stream.getvalue()) & set(UNSAFE)) == (not stream.isatty())


def test_what_other_libraries_warn_of_and_log_is_written_out_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", console._PLAIN_WARNING)
    guard_libraries()
    text = warnings.formatwarning(UserWarning(NAME), UserWarning, NAME, 1, "x = 1")
    assert not set(text) & set(UNSAFE[:3])
    before = logging.getLogRecordFactory()
    stream = io.StringIO()
    logger = logging.Logger("of a library")
    logger.addHandler(logging.StreamHandler(stream))
    try:
        guard_libraries()
        logger.warning("%s is odd", NAME)
    finally:
        logging.setLogRecordFactory(before)
    assert not set(stream.getvalue()) & set(UNSAFE[:3])
