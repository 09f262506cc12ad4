"""Names of files that are not UTF-8, and names that no file can have: used as they are, or refused
where they stand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fakes import save_model, write_jsonl
from runner import aligner

ODD = os.fsdecode(b"odd-\xff")
ROWS = [{"prompt": "sort: ba", "completion": "ab", "answer": "ab"}]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    try:
        return write_jsonl(tmp_path / f"{ODD}.jsonl", ROWS)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")


def test_scores_are_written_beside_a_file_whose_name_is_not_utf_8(data: Path) -> None:
    output = data.with_name(f"{ODD}-scored.jsonl")
    result = aligner("score", "--reward-model", "toy", "--data", data, "--output", output)
    assert result.exit_code == 0, result.output
    assert json.loads(output.read_text())["score"] == 1.0


def test_the_record_of_an_evaluation_names_a_file_whose_name_is_not_utf_8(
    data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "eval.json"
    result = aligner("eval", save_model(tmp_path / "m"), "--data", data, "--output", output)
    assert result.exit_code == 0, result.output
    assert json.loads(output.read_text())["data"] == str(data)


def test_a_recipe_refuses_names_that_are_not_utf_8() -> None:
    result = aligner("sft", "--output_dir", ODD, "--model_name_or_path", ODD, "--dry-run")
    assert result.exit_code == 2, result.output
    for key in ("output_dir", "model.name_or_path"):
        assert f"{key}: holds bytes that are not UTF-8: 'odd-" in result.output


@pytest.mark.parametrize(
    "card",
    [
        'kind: bradley_terry\nmodel: ".\\0"\n',
        'kind: verifier\nverifier: "a\\0.py:f"\n',
        'kind: ensemble\nmembers: [toy, "a\\0"]\n',
    ],
)
def test_a_card_refuses_a_name_that_no_file_can_have(
    card: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    for place in ("mine.yaml", "m/reward_model.yaml"):
        Path(place).parent.mkdir(exist_ok=True)
        Path(place).write_text(card)
        result = aligner("score", "--reward-model", place, "--data", "rows.jsonl")
        assert result.exit_code == 2, result.output
        assert f"{place}:2: {card.split()[2][:-1]}" in result.output
        assert "holds a NUL character" in result.output
