"""`aligner generate` on a tiny random model."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from fake_endpoint import Continues, FakeEndpoint
from fakes import save_model, write_jsonl
from runner import aligner
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def generated(model: Path, *arguments: object, **options: object) -> list[dict]:
    result = aligner("generate", model, "--max-new-tokens", "4", "--json", *arguments, **options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_prompts_come_from_the_arguments(model: Path) -> None:
    records = generated(model, "one", "two", "-n", "3")
    assert [record["prompt"] for record in records] == ["one", "two"]
    assert [len(record["completions"]) for record in records] == [3, 3]
    assert records[0]["completions"][0]["num_tokens"] <= 4


def test_the_same_seed_gives_the_same_answers(model: Path) -> None:
    assert generated(model, "one", "--seed", "5") == generated(model, "one", "--seed", "5")
    assert generated(model, "one", "--seed", "5") != generated(model, "one", "--seed", "6")


def test_prompts_come_from_standard_input_one_a_line(model: Path) -> None:
    records = generated(model, "--temperature", "0", input="one\n\ntwo\n")
    assert [record["prompt"] for record in records] == ["one", "two"]


def test_prompts_come_from_a_file_and_answers_go_to_one(model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "one", "answer": "1"}, {"prompt": "two", "answer": "2"}]
    data = write_jsonl(tmp_path / "prompts.jsonl", rows)
    out = tmp_path / "new" / "answers.jsonl"
    result = aligner("generate", model, "--data", data, "--max-new-tokens", "4", "--output", out)
    assert result.exit_code == 0, result.output
    written = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [(record["prompt"], record["answer"]) for record in written] == [
        ("one", "1"),
        ("two", "2"),
    ]


def test_control_tokens_in_a_prompt_are_remarked_on(model: Path) -> None:
    stop = AutoTokenizer.from_pretrained(model).eos_token
    result = aligner("generate", model, f"a {stop} b", "--max-new-tokens", "2")
    assert result.exit_code == 0, result.output
    assert (
        f"one row holds control tokens in their texts, which act as such: `{stop}` 1 time"
        in result.stderr
    )
    assert "control tokens" not in aligner("generate", model, "a b", "--max-new-tokens", "2").stderr


def test_one_answer_is_printed_alone(model: Path) -> None:
    (record,) = generated(model, "one", "--temperature", "0")
    result = aligner("generate", model, "one", "--temperature", "0", "--max-new-tokens", "4")
    assert result.stdout == record["completions"][0]["text"] + "\n"


def test_a_run_stands_for_its_model(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(model, run / "final")
    (run / "resolved.json").write_text("{}")
    unfinished = aligner("generate", run, "one")
    assert unfinished.exit_code == 2
    assert f"the run {run} has not finished" in unfinished.stderr
    manifest = {"finished": "2026-01-01T00:00:00+00:00", "results": {}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert generated(run, "one", "--temperature", "0") == generated(
        model, "one", "--temperature", "0"
    )


def test_a_model_without_adapters_is_asked_without_peft(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # importing it takes longer than loading a small model
    monkeypatch.setitem(sys.modules, "peft", None)
    result = aligner("generate", model, "one", "--max-new-tokens", "4")
    assert result.exit_code == 0, result.output


def test_nothing_but_our_own_lines_goes_to_stderr(
    model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # the command line's environment switches them off, too late for a transformers that is imported
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar

    disable_progress_bar()
    result = aligner("generate", model, "one", "--max-new-tokens", "4")
    enable_progress_bar()
    assert result.stderr.splitlines() == ["loading the model ...", "answering: 1/1"]
    # what libraries log goes past the streams of typer's runner
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "there is no prompt"),
        (["a", "--data", "x.jsonl"], "both"),
        (["a", "--top-p", "0"], "--top-p"),
        (["a", "--temperature", "nan"], "--temperature"),
        (["a", "--dtype", "float8"], "float8"),
        (["a", "--num-samples", "0"], "--num-samples"),
    ],
)
def test_what_cannot_be_done_is_said(model: Path, arguments: list[str], words: str) -> None:
    result = aligner("generate", model, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_model_that_is_not_there_is_said() -> None:
    result = aligner("generate", "runs/nothing/final", "a")
    assert result.exit_code == 2
    assert "runs/nothing/final" in result.stderr


def test_engines_that_load_the_model_here_write_the_same(model: Path) -> None:
    plain = generated(model, "one", "two", "-n", "2")
    assert generated(model, "one", "two", "-n", "2", "--engine", "hf") == plain
    assert generated(model, "one", "two", "-n", "2", "--engine", "hf_cb") == plain


def test_a_server_of_the_model_writes(model: Path) -> None:
    greedy = ("one", "two", "--temperature", "0")
    plain = generated(model, *greedy)
    tokenizer = AutoTokenizer.from_pretrained(model)
    continues = Continues(AutoModelForCausalLM.from_pretrained(model).eval(), tokenizer)
    with FakeEndpoint(continues) as server:
        asked = ("--engine", "endpoint", "--base-url", server.base_url)
        assert generated(model, *greedy, *asked) == plain
        assert {body["model"] for body in server.bodies} == {str(model)}
        generated(model, *greedy, *asked, "--served-model", "mine")
        assert server.bodies[-1]["model"] == "mine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--engine", "endpoint"), "--base-url is missing"),
        (("--base-url", "http://127.0.0.1:1/v1"), "--base-url has no effect with --engine auto"),
        (("--engine", "vllm"), "pip install 'aligner-toolkit[vllm]'"),
        (
            ("--engine", "endpoint", "--base-url", "http://127.0.0.1:1/v1", "--dtype", "float16"),
            "the server has the weights",
        ),
    ],
)
def test_an_engine_without_its_parts_is_refused_before_a_model_is_loaded(
    model: Path, options: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligner.models.loading.load_policy", None)
    result = aligner("generate", model, "one", *options)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


def test_weights_in_bfloat16_are_said_where_nobody_asked_for_them(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligner.models.dtypes.has_bf16_gpu", lambda: True)
    result = aligner("generate", model, "one", "--max-new-tokens", "2")
    assert result.exit_code == 0, result.output
    assert "weights in bfloat16" in " ".join(result.output.split())
    for dtype in ("float32", "bfloat16"):
        result = aligner("generate", model, "one", "--max-new-tokens", "2", "--dtype", dtype)
        assert "weights in bfloat16" not in result.output


def test_a_cpu_with_bfloat16_writes_in_it_with_large_models_alone(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligner.launch.devices.native_bf16", lambda device: True)
    asked = ("generate", model, "one", "--max-new-tokens", "2")
    assert "bfloat16" not in aligner(*asked).output
    monkeypatch.setattr("aligner.cli.models.LARGE_ENOUGH", 1)
    assert "weights in bfloat16, which this CPU" in " ".join(aligner(*asked).output.split())
    assert "bfloat16" not in aligner(*asked, "--dtype", "float32").output
