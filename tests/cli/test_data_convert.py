"""`aligner data convert` at the front door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import write_jsonl
from runner import aligner

ROW = {"question": "2 + 2?", "answer": "4"}
COLUMNS = ("--column", "prompt=question", "--column", "completion=answer")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", [ROW, ROW])
    return tmp_path


def test_rows_are_converted_and_counted(folder: Path) -> None:
    done = aligner("data", "convert", "rows.jsonl", *COLUMNS, "--to", "messages", "-o", "out.jsonl")
    assert done.exit_code == 0, done.output
    assert "out.jsonl: 2 rows, prompt_completion -> messages" in done.output
    first = json.loads((folder / "out.jsonl").read_text().splitlines()[0])
    assert [turn["content"] for turn in first["messages"]] == ["2 + 2?", "4"]


def test_an_output_is_replaced_on_request_alone() -> None:
    arguments = ("data", "convert", "rows.jsonl", *COLUMNS, "-o", "out.csv", "--json")
    assert json.loads(aligner(*arguments).stdout)["rows"] == 2
    again = aligner(*arguments)
    assert again.exit_code == 2
    assert "--overwrite replaces it" in again.output
    assert aligner(*arguments, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("output", "to", "why"),
    [
        ("out.txt", "messages", "one of .jsonl, .csv, .parquet"),
        ("out.jsonl", "chatml", "one of messages"),
        ("none/out.jsonl", "messages", "no folder"),
        ("rows.jsonl", "messages", "the data itself"),
    ],
)
def test_what_is_in_the_way_is_said_first(output: str, to: str, why: str) -> None:
    done = aligner("data", "convert", "rows.jsonl", "-o", output, "--to", to)
    assert done.exit_code == 2
    assert why in done.output


def test_a_row_that_would_lose_something_ends_with_exit_code_3(folder: Path) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    write_jsonl(folder / "pairs.jsonl", [pair])
    done = aligner("data", "convert", "pairs.jsonl", "--to", "messages", "-o", "out.jsonl")
    assert done.exit_code == 3
    assert "pairs.jsonl:1: it holds two answers" in done.output
    assert not (folder / "out.jsonl").exists()
