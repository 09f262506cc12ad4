"""Every command that reads rows warns of a column that is not used and looks as if it should be."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import write_jsonl
from typer.testing import CliRunner

from aligner.cli.app import app

PAIRS = [
    {"prompt": "1 + 1", "chosen": "2", "rejected": "3", "answer": "2", "context": "a sum"},
    {"prompt": "2 + 2", "chosen": "4", "rejected": "5", "answer": "4"},
]
TALKS = [
    {"prompt": "1 + 1", "completion": "2", "context": "a sum"},
    {"prompt": "2 + 2", "completion": "4"},
]
COMMANDS = {
    "mosaic": (TALKS, "mosaic --data {rows} --output out --dry-run"),
    "select": (
        PAIRS,
        "data select --model {model} --data {rows} --output out select.strategy=random --dry-run",
    ),
    "score": (PAIRS, "score --data {rows} --reward-model verifier:number"),
    "eval": (PAIRS, "eval --data {rows} --reward-model verifier:number"),
    "dpo": (PAIRS, "dpo --model {model} --data {rows} --output out --dry-run"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_column_that_looks_like_a_part_of_the_conversation_is_said(
    command: str, small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows, line = COMMANDS[command]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    words = line.format(rows=path, model=small_world / "model").split()
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert "the column `context` says something in 1 of the first 2 rows" in result.stderr
