"""`aligner eval` on a tiny random model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from fakes import (
    CHAT_TEMPLATE,
    byte_tokenizer,
    save_model,
    small_recipe,
    write_jsonl,
    write_small_world,
)
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
    assert lines[0].split() == ["preference", "value", "95%", "interval"]
    assert lines[1].split()[0] == "accuracy"
    assert "+/-" in lines[1]
    assert not any("_stderr" in line for line in lines)


def test_every_number_has_an_interval_and_rows_of_one_prompt_count_once(
    model: Path, tmp_path: Path
) -> None:
    talks = [{"prompt": f"question {number}", "completion": "b" * number} for number in range(1, 7)]
    record = measured(model, "--data", write_jsonl(tmp_path / "rows.jsonl", talks))
    for name, (low, high) in {
        n: tuple(ends.values()) for n, ends in record["intervals"].items()
    }.items():
        assert low <= record["metrics"][name] <= high, name
    assert set(record["intervals"]) == {*record["metrics"]} - {"tokens", "rows", "row_loss_stderr"}
    alike = [{**row, "prompt": "the same"} for row in talks]
    record = measured(model, "--data", write_jsonl(tmp_path / "alike.jsonl", alike))
    assert {ends["low"] for ends in record["intervals"].values()} == {None}
    none = measured(model, "--data", tmp_path / "rows.jsonl", "--resamples", "0")
    assert {ends["high"] for ends in none["intervals"].values()} == {None}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("other"), seed=1)


def test_two_models_are_compared_on_the_same_rows(model: Path, other: Path, tmp_path: Path) -> None:
    pairs = [{"prompt": f"p{n}", "chosen": "b" * n, "rejected": "c" * 4} for n in range(1, 9)]
    data = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    record = measured(model, "--data", data, "--compare", other)
    alone = [measured(one, "--data", data)["metrics"] for one in (model, other)]
    found = record["compared"]["figures"]
    assert set(found) == {"accuracy", "accuracy_per_token"}
    for name, one in found.items():
        assert (one["value"], one["other"]) == (alone[0][name], alone[1][name])
        assert one["difference"] == one["value"] - one["other"]
        assert one["ahead"] + one["behind"] + one["equal"] == one["groups"] == 8
    assert record["rows_sha256"] == measured(model, "--data", data)["rows_sha256"]


@pytest.mark.parametrize("task", ["sft", "preference", "prompts"])
def test_a_saved_evaluation_stands_for_its_model(
    task: str, model: Path, other: Path, tmp_path: Path
) -> None:
    """The same comparison, to the last digit, as with both models at hand."""
    data = varied(tmp_path, task)
    more = ("--scorer", "verifier:regex=[a-m]") if task == "prompts" else ()
    both = measured(model, "--data", data, *more, "--compare", other)
    file = tmp_path / "other.json"
    assert "per_row" not in measured(other, "--data", data, *more, "--output", file)
    later = measured(model, "--data", data, *more, "--compare", file)
    assert later["compared"].pop("file") == str(file)
    assert later == {**both, "compared": {**both["compared"], "model": str(other)}}
    kept = json.loads(file.read_text())
    assert set(kept["per_row"]["tables"]["rows"]["figures"]) == set(later["compared"]["figures"])
    assert file.read_text().count("\n") < 80


def varied(folder: Path, task: str) -> Path:
    rows = [{"prompt": f"p{n}", "chosen": "b" * n, "rejected": "c" * 4} for n in range(1, 9)]
    if task == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    if task == "prompts":
        rows = [{"prompt": row["prompt"]} for row in rows]
    return write_jsonl(folder / f"{task}.jsonl", rows)


def test_an_evaluation_of_something_else_is_refused_by_name(
    model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "one.json"
    ask = ("--data", data["prompts"], "--task", "prompts")
    measured(model, *ask, "--output", file)

    def refused(*arguments: object) -> str:
        result = aligner("eval", model, *arguments, "--compare", file)
        assert result.exit_code == 2, result.output
        assert "one.json was measured otherwise: " in result.stderr
        return " ".join(result.stderr.split())

    assert "the data is not the same" in refused(*ask, "--max-new-tokens", 4, "--max-rows", 1)
    told = refused(*ask, "--max-new-tokens", 5, "--temperature", 1)
    assert "--max-new-tokens was 4, and is 5 here" in told
    assert "--temperature was 0.0, and is 1.0 here" in told
    scored = refused(*ask, "--max-new-tokens", 4, "--scorer", "verifier:exact")
    assert "the scorer was None, and is verifier:exact here" in scored
    told = refused("--data", data["sft"])
    assert "the task was prompts, and is sft here" in told


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "is not JSON"),
        ("[]", "is not an evaluation of a model"),
        ('{"metrics": {}}', "does not hold what single rows add"),
        ('{"metrics": {}, "model": "m", "per_row": {"asked": {}}}', "`per_row` is damaged"),
        (
            '{"metrics": {}, "model": "m", "per_row": {"asked": {}, "tokens_sha256": null, '
            '"loaded": "", "tables": {"rows": {"groups": [0, 1], "figures": {"loss": {"better": 1, '
            '"of_tokens": true, "parts": [1.0], "sizes": 1}}}}}}',
            "`per_row` is damaged: ValueError('1 numbers of 2 rows')",
        ),
    ],
)
def test_a_file_that_holds_no_evaluation_is_refused(
    content: str | None, said: str, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "x.json"
    if content is not None:
        file.write_text(content)
    result = aligner("eval", model, "--data", data["sft"], "--compare", file)
    assert result.exit_code == 3
    assert said in " ".join(result.stderr.split())
    assert "aligner eval MODEL --output FILE.json" in " ".join(result.stderr.split())


def test_a_saved_evaluation_with_other_tokens_or_weights_is_compared_as_far_as_it_can_be(
    model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    cut, file = save_model(tmp_path / "cut"), tmp_path / "cut.json"
    byte_tokenizer(CHAT_TEMPLATE.replace("assistant\\n", "model\\n")).save_pretrained(cut)
    measured(cut, "--data", data["sft"], "--dtype", "bfloat16", "--output", file)
    record = measured(model, "--data", data["sft"], "--compare", file)["compared"]
    assert set(record["figures"]) == {"row_loss"}
    assert "so loss and token_accuracy are not compared" in record["notes"][0]
    assert record["notes"][1].endswith(f"was measured in bfloat16, {model} in float32")


def test_numbers_per_token_are_not_compared_where_tokens_differ(
    model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    cut = save_model(tmp_path / "cut")
    byte_tokenizer(CHAT_TEMPLATE.replace("assistant\\n", "model\\n")).save_pretrained(cut)
    record = measured(model, "--data", data["sft"], "--compare", cut)["compared"]
    assert set(record["figures"]) == {"row_loss"}
    assert "so loss and token_accuracy are not compared" in record["notes"][0]
    alike = byte_tokenizer()  # another file, and the same tokens
    alike.padding_side = "left"
    alike.save_pretrained(cut)
    record = measured(model, "--data", data["sft"], "--compare", cut)["compared"]
    assert (set(record["figures"]), record["notes"]) == ({"loss", "token_accuracy", "row_loss"}, [])
    unlike = byte_tokenizer(CHAT_TEMPLATE.replace("assistant\\n", "model\\n"))
    unlike.save_pretrained(cut)
    record = measured(model, "--data", data["preference"], "--compare", cut)["compared"]
    assert record["notes"] == []  # nothing of it is per token


def test_a_model_does_not_differ_from_itself(model: Path, data: dict[str, Path]) -> None:
    result = aligner(
        "eval", model, "--data", data["prompts"], "--task", "prompts", "--compare", model
    )
    assert result.exit_code == 0, result.output
    assert "stopped: no difference is shown (p = 1)" in result.stdout


def test_a_run_stands_for_its_model(tmp_path: Path, data: dict[str, Path]) -> None:
    from aligner.methods.pipeline import run_recipe

    world = write_small_world(tmp_path / "world", rows=8)
    run = run_recipe(small_recipe("sft", world, tmp_path / "run", "trainer.max_steps=1")).run_dir
    record = measured(run, "--data", data["sft"], "--compare", run / "final")
    assert record["compared"]["figures"]["loss"]["difference"] == 0.0
    (run / "manifest.json").unlink()
    result = aligner("eval", run, "--data", data["sft"])
    assert result.exit_code == 2
    assert "has not finished" in result.stderr


def test_a_comparison_that_cannot_be_made_is_said_first(
    model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    result = aligner("eval", model, "--data", data["sft"], "--compare", tmp_path / "none")
    assert result.exit_code == 2
    assert "none" in result.stderr


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
