"""`aligner eval` on a tiny random model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from fakes import save_model, write_jsonl
from runner import aligner


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    pair = {"prompt": "a", "chosen": "b", "rejected": "cc"}
    return {
        "sft": write_jsonl(folder / "sft.jsonl", [{"prompt": "a", "completion": "b"}] * 3),
        "preference": write_jsonl(folder / "pairs.jsonl", [pair] * 3),
        "prompts": write_jsonl(
            folder / "prompts.jsonl",
            [{"prompt": "a", "answer": "b"}, {"prompt": "b", "answer": "c"}],
        ),
        "questions": write_jsonl(folder / "questions.jsonl", [{"question": "a", "answer": "b"}]),
    }


def measured(*arguments: object) -> dict:
    result = aligner("eval", *arguments, "--max-new-tokens", "4", "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("sft", {"loss", "perplexity", "token_accuracy"}),
        ("preference", {"accuracy", "accuracy_stderr"}),
        ("prompts", {"mean_tokens", "stopped"}),
    ],
)
def test_the_rows_decide_what_is_measured(
    model: Path, data: dict[str, Path], task: str, names: set[str]
) -> None:
    record = measured(model, "--data", data[task])
    assert record["task"] == task
    assert names <= set(record["metrics"])


def test_a_random_model_has_about_the_loss_of_guessing(model: Path, data: dict[str, Path]) -> None:
    loss = measured(model, "--data", data["sft"])["metrics"]["loss"]
    assert loss == pytest.approx(math.log(260), rel=0.1)


def test_a_scorer_judges_answers_and_columns_can_be_mapped(
    model: Path, data: dict[str, Path]
) -> None:
    arguments = (
        "--data",
        data["questions"],
        "--scorer",
        "verifier:exact",
        "--column",
        "prompt=question",
    )
    record = measured(model, *arguments)
    assert (record["task"], record["scorer"], record["metrics"]["score"]) == (
        "prompts",
        "verifier:exact",
        0.0,
    )


def test_a_model_is_compared_with_a_reference(model: Path, data: dict[str, Path]) -> None:
    metrics = measured(model, "--data", data["preference"], "--reference", model)["metrics"]
    assert (metrics["reward_accuracy"], metrics["reward_margin"]) == (0.5, 0.0)


def test_the_table_shows_standard_errors_beside_the_values(
    model: Path, data: dict[str, Path]
) -> None:
    lines = aligner("eval", model, "--data", data["preference"]).stdout.splitlines()
    assert lines[0].split() == ["preference", "value"]
    assert lines[1].split()[0] == "accuracy"
    assert "+/-" in lines[1]
    assert not any("_stderr" in line for line in lines)


def test_the_numbers_go_to_a_file(model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "numbers.json"
    assert aligner("eval", model, "--data", data["sft"], "--output", out).exit_code == 0
    assert json.loads(out.read_text("utf-8"))["task"] == "sft"


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("sft", ["--scorer", "verifier:exactly"], "verifier"),
        ("sft", ["--scorer", "toyy"], "toy"),
        ("preference", ["--task", "preference", "--scorer", "toy"], "--scorer"),
        ("sft", ["--reference", "x"], "--reference"),
        ("prompts", ["--column", "prompt"], "--column prompt"),
        ("preference", ["--task", "sft"], "preference pairs"),
    ],
)
def test_what_cannot_be_measured_is_said(
    model: Path, data: dict[str, Path], name: str, arguments: list[str], words: str
) -> None:
    result = aligner("eval", model, "--data", data[name], *arguments)
    assert result.exit_code in (2, 3)
    assert words in result.stderr
    assert "Traceback" not in result.output
