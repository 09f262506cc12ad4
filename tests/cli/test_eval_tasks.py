"""`aligner eval --tasks`: task files of one's own on a tiny random model, through
lm-evaluation-harness where it is installed."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from fakes import save_model, small_recipe, write_jsonl, write_small_world
from runner import aligner

needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="the extra `eval`")

FILE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}}}
{splits}
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: {target}
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
{more}
"""
TEST = "test_split: test"
OTHER = f"training_split: train\n{TEST}\nfewshot_split: train"
PLACE = '"{{choices.index(answer)}}"'


def row(number: int) -> dict[str, Any]:
    return {
        "question": f"what is {number} + 1?",
        "choices": [str(number), str(number + 1), str(number + 2)],
        "answer": str(number + 1),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), max_position_embeddings=512)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "test.jsonl", map(row, range(10, 18)))
    write_jsonl(tmp_path / "train.jsonl", map(row, range(30, 36)))
    write_task(tmp_path, "sums")
    return tmp_path


def write_task(
    folder: Path, name: str, splits: str = OTHER, target: str = PLACE, more: str = ""
) -> None:
    text = FILE.format(name=name, folder=folder, splits=splits, target=target, more=more)
    (folder / f"{name}.yaml").write_text(text)


def run(model: Path, folder: Path, names: str, *more: object) -> Any:
    return aligner("eval", model, "--tasks", names, "--task-dir", folder, *more)


def measured(model: Path, folder: Path, names: str, *more: object) -> dict[str, Any]:
    result = run(model, folder, names, *more, "--json")
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads(result.stdout)
    return record


@needs_harness
def test_a_task_file_is_measured_with_its_interval(model: Path, tasks: Path) -> None:
    record = measured(model, tasks, "sums")
    accuracy = record["metrics"]["sums/acc"]
    assert accuracy * 8 == round(accuracy * 8)
    error = math.sqrt(accuracy * (1 - accuracy) / 7)  # of a mean of eight
    assert record["metrics"]["sums/acc_stderr"] == pytest.approx(error)
    ends = record["intervals"]["sums/acc"]
    assert ends["low"] <= accuracy <= ends["high"]
    assert (
        record["tasks"] == [{"name": "sums", "version": 1.0, "num_fewshot": None, "questions": 8}]
        or record["tasks"][0]["num_fewshot"] == 0
    )


@needs_harness
def test_questions_are_limited_and_examples_stand_before_them(model: Path, tasks: Path) -> None:
    record = measured(model, tasks, "sums", "--limit", "3", "--num-fewshot", "2")
    assert (record["tasks"][0]["questions"], record["tasks"][0]["num_fewshot"]) == (3, 2)
    chat = measured(model, tasks, "sums", "--limit", "2", "--chat-template")
    assert chat["chat_template"] is True


@needs_harness
def test_two_models_are_compared_on_the_same_questions(
    model: Path, tasks: Path, tmp_path: Path
) -> None:
    other = save_model(tmp_path / "other", seed=1, max_position_embeddings=512)
    record = measured(model, tasks, "sums", "--compare", other)
    found = record["compared"]["figures"]["sums/acc"]
    assert found["value"] == record["metrics"]["sums/acc"]
    assert found["other"] == measured(other, tasks, "sums")["metrics"]["sums/acc"]
    assert found["ahead"] + found["behind"] + found["equal"] == 8
    file = tmp_path / "other.json"
    measured(other, tasks, "sums", "--output", file)
    later = measured(model, tasks, "sums", "--compare", file)["compared"]["figures"]["sums/acc"]
    assert later == found
    refused = run(model, tasks, "sums", "--limit", 3, "--compare", file)
    assert "--limit was None, and is 3 here" in " ".join(refused.stderr.split())
    text = run(model, tasks, "sums", "--compare", model).stdout
    assert "sums/acc: no difference is shown (p = 1)" in text


@needs_harness
def test_a_number_that_would_be_read_as_a_place_is_refused(model: Path, tasks: Path) -> None:
    rows = [{"question": "q", "choices": ["1", "2", "3"], "answer": "1"}]
    write_jsonl(tasks / "test.jsonl", rows)
    write_task(tasks, "digits", TEST, '"{{answer}}"')
    result = run(model, tasks, "digits")
    assert result.exit_code == 3
    assert "the right answer of question 1 is '1'" in result.stderr
    assert "reads as choice 2, '2'" in result.stderr
    right = {**rows[0], "choices": ["0", "1", "2"]}  # where the place is the number
    write_jsonl(tasks / "test.jsonl", [right, {**rows[0], "answer": "3"}])
    assert "answer of question 2 is '3'" in (said := run(model, tasks, "digits").stderr)
    assert "a choice that is not there" in said
    write_jsonl(tasks / "test.jsonl", [{**rows[0], "answer": "3"}])
    assert "read as the place of a choice" in run(model, tasks, "digits").stderr
    write_jsonl(tasks / "test.jsonl", [{**rows[0], "choices": ["a", "b", "c"]}])
    assert run(model, tasks, "digits").exit_code == 0  # the place of a choice, as it is meant


@needs_harness
def test_a_question_among_its_own_examples_is_refused(model: Path, tasks: Path) -> None:
    for name, splits in {
        "held": TEST,
        "named": "validation_split: test\nfewshot_split: test",
    }.items():
        write_task(tasks, name, splits)
        result = run(model, tasks, name, "--num-fewshot", "2")
        assert result.exit_code == 3, name
        assert "8 of 8 questions are among the few-shot examples" in result.stderr
        assert run(model, tasks, name, "--num-fewshot", "0").exit_code == 0
    for name, splits in {
        "same": f"{TEST}\nfewshot_split: test",
        "neither": "validation_split: test",
    }.items():
        write_task(tasks, name, splits)
        assert run(model, tasks, name, "--num-fewshot", "2").exit_code == 0, name


@needs_harness
@pytest.mark.parametrize(
    "splits", [TEST, "validation_split: test\nfewshot_split: test", OTHER, "validation_split: test"]
)
def test_the_check_says_what_the_harness_does(tasks: Path, splits: str) -> None:
    """Few-shot prompts of the harness itself, searched for their own question."""
    from lm_eval.tasks import TaskManager

    from aligner.evaluation.task_checks import problems

    write_task(tasks, "shown", splits)
    task = TaskManager(include_path=str(tasks), include_defaults=False).load(["shown"])["tasks"]
    loaded = task["shown"]
    loaded.set_fewshot_seed(0)
    prompts = [(doc, loaded.fewshot_context(doc, num_fewshot=5)) for doc in loaded.eval_docs]
    own = sum(prompt.count(doc["question"]) > 1 for doc, prompt in prompts)
    assert (own > 0) == bool(list(problems(loaded, 5, None)))


@needs_harness
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("process_docs: !function here.work", "runs code: !function here.work"),
        ("process_docs: !function os.system", "runs code: !function os.system"),
    ],
)
def test_code_in_a_task_file_is_not_run(model: Path, tasks: Path, more: str, words: str) -> None:
    (tasks / "here.py").write_text("open('ran', 'w').close()\ndef work(docs): return docs\n")
    write_task(tasks, "code", more=more)
    result = run(model, tasks, "code")
    assert (result.exit_code, words in result.stderr) == (2, True), result.output
    assert not Path("ran").exists()


@needs_harness
def test_code_of_a_trusted_task_file_is_run(
    model: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tasks)
    (tasks / "here.py").write_text("def work(docs): return docs.select(range(2))\n")
    write_task(tasks, "code", more="process_docs: !function here.work")
    record = measured(model, tasks, "code", "--trust-remote-code")
    assert record["tasks"][0]["questions"] == 2


@needs_harness
def test_templates_metrics_and_data_of_a_task_file_run_nothing(model: Path, tasks: Path) -> None:
    write_task(tasks, "template", target="\"{{''.__class__.__mro__}}\"")
    result = run(model, tasks, "template")
    assert result.exit_code in (2, 3)
    assert "unsafe" in result.stderr
    text = (tasks / "sums.yaml").read_text()
    (tasks / "metric.yaml").write_text(
        text.replace("task: sums", "task: metric").replace("metric: acc,", "metric: ./mine,")
    )
    assert "fetched and run as a program" in run(model, tasks, "metric").stderr
    (tasks / "pickle.yaml").write_text(
        text.replace("task: sums", "task: pickle").replace("path: json", "path: pandas")
    )
    assert "may run what it reads" in run(model, tasks, "pickle").stderr


@needs_harness
def test_a_stopped_measurement_keeps_the_tasks_that_are_done(
    model: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner.evaluation import tasks as module

    write_task(tasks, "second")
    healthy, ran = module._run, []

    def stopped(lm: Any, name: str, *more: Any) -> Any:
        ran.append(name)
        if name == "second" and len(ran) == 2:
            raise KeyboardInterrupt
        return healthy(lm, name, *more)

    monkeypatch.setattr(module, "_run", stopped)
    output = ("--output", tmp_path / "out" / "numbers.json")
    assert run(model, tasks, "sums,second", *output).exit_code == 130
    resumed = run(model, tasks, "sums,second", *output, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert ran == ["sums", "second", "second"]
    record = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert record["metrics"] == measured(model, tasks, "sums,second")["metrics"]


@needs_harness
def test_a_name_that_is_no_task_is_said_with_what_was_meant(model: Path, tasks: Path) -> None:
    result = run(model, tasks, "sum")
    assert result.exit_code == 2
    assert "there is no task 'sum'" in result.stderr
    assert "loading the model" not in result.stderr
    write_task(tasks, "gone")
    (tasks / "test.jsonl").unlink()
    result = run(model, tasks, "gone")
    assert result.exit_code == 3
    assert "task gone cannot be loaded" in result.stderr


def test_without_the_harness_it_is_said_what_to_install(
    model: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner.evaluation import tasks as module

    monkeypatch.setattr(module, "find_spec", lambda _: None)
    result = run(model, tasks, "sums")
    assert result.exit_code == 2
    assert 'pip install "aligner-toolkit[eval]"' in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to measure on"),
        (("--data", "x.jsonl", "--tasks", "a"), "both --data and --tasks"),
        (("--data", "x.jsonl", "--limit", "3"), "--limit has no effect for rows"),
        (("--tasks", "a", "--scorer", "toy"), "--scorer has no effect for tasks"),
        (("--tasks", "a,,b"), "empty name"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    from aligner.evaluation import tasks as module

    monkeypatch.setattr(module, "find_spec", lambda _: object())
    result = aligner("eval", "model", *arguments)
    assert (result.exit_code, words in result.stderr) == (2, True), result.output


@needs_harness
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_an_adapter_is_measured_on_its_base(
    tasks: Path, tmp_path: Path, quantization: str, own_cache: None
) -> None:
    from aligner.methods.pipeline import run_recipe

    world = write_small_world(tmp_path / "world", rows=16)
    settings: dict[str, Any] = {
        "model__lora": {"r": 4, "target_modules": "all-linear"},
        "model__quantization": quantization,
        "trainer__learning_rate": 0.1,
    }
    run_dir = run_recipe(small_recipe("sft", world, tmp_path / "run", **settings)).run_dir
    more = ("--quantization", quantization, "--limit", "4")
    record = measured(run_dir, tasks, "sums", *more, "--compare", world / "model")
    assert (
        record["metrics"]["sums/acc"]
        == measured(run_dir / "final", tasks, "sums", *more)["metrics"]["sums/acc"]
    )
    assert record["compared"]["figures"]["sums/acc"]["groups"] == 4
