"""`aligner data check` at the front door: what it prints, its exit code, and its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import save_model, write_jsonl
from runner import aligner

GOOD = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(3)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "good.jsonl", GOOD)
    write_jsonl(tmp_path / "twice.jsonl", [*GOOD, GOOD[0]])
    write_jsonl(tmp_path / "test.jsonl", [{"question": "question 1", "answer": "no"}])
    return tmp_path


def test_good_data_pass(folder: Path) -> None:
    done = aligner("data", "check", "good.jsonl")
    assert done.exit_code == 0, done.output
    assert "good.jsonl: 3 rows, prompt_completion" in done.output
    assert "nothing was found" in done.output


def test_a_finding_ends_with_exit_code_3_and_can_be_allowed(folder: Path) -> None:
    done = aligner("data", "check", "twice.jsonl")
    assert done.exit_code == 3
    assert "duplicate: twice.jsonl:4: the same as twice.jsonl:1" in done.output
    assert "error: the data fails for duplicate" in done.output
    allowed = aligner("data", "check", "twice.jsonl", "--allow", "duplicate")
    assert allowed.exit_code == 0, allowed.output
    assert "allowed" in allowed.output
    unknown = aligner("data", "check", "twice.jsonl", "--allow", "same_prompt")
    assert unknown.exit_code == 2
    assert "nothing fails for it" in unknown.output


def test_held_out_files_are_compared_with(folder: Path) -> None:
    done = aligner(
        *("data", "check", "good.jsonl", "--held-out", "test.jsonl", "--json"),
        *("--held-out-column", "prompt=question"),
    )
    assert done.exit_code == 3
    record = json.loads(done.stdout)
    assert record["rows"] == 3
    assert record["failed"] == ["across_splits"]
    assert not record["passes"]
    (example,) = record["findings"]["across_splits"]["examples"]
    assert example == {"row": "good.jsonl:2", "what": "the prompt of test.jsonl:1"}


def test_a_model_adds_what_its_tokenizer_makes_of_the_rows(folder: Path) -> None:
    save_model(folder / "model")
    done = aligner("data", "check", "good.jsonl", "--model", "model", "--max-length", 8, "--json")
    record = json.loads(done.stdout)
    assert record["failed"] == ["too_long"]
    assert record["findings"]["too_long"]["rows"] == 3
    assert record["lengths"]["longest"] > 8
    alone = aligner("data", "check", "good.jsonl", "--max-length", 8)
    assert alone.exit_code == 2
    assert "add --model" in alone.output


def test_a_tokenizer_that_is_not_there_is_named_with_its_folder(folder: Path) -> None:
    result = aligner("data", "check", "good.jsonl", "--model", "runs/sft/final")
    assert result.exit_code == 2
    assert "there is no folder runs/sft/final" in result.output
