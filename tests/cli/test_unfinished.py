"""`aligner generate` and `aligner eval` that are stopped: resumed, bit for bit, and never
mixed with anything else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import Answer, FakeEndpoint
from fakes import save_model, write_jsonl
from runner import aligner

from aligner.runs import journal

LONGER = """
def longer(prompt, completion, reference):
    return float(len(completion))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aligner.generation.decode.PART_BATCHES", 1)
    shutil.copytree(model, "model")
    words = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff", "g"]
    write_jsonl(Path("prompts.jsonl"), [{"prompt": word, "answer": word} for word in words])
    write_jsonl(Path("sft.jsonl"), [{"prompt": word, "completion": word * 2} for word in words])
    write_jsonl(
        Path("pairs.jsonl"),
        [
            {"prompt": word, "chosen": word * 2, "rejected": word + "!" * (place % 4)}
            for place, word in enumerate(words)
        ],
    )
    Path("longer.py").write_text(LONGER)
    return tmp_path


SMALL = ["--max-new-tokens", "5", "--batch-size", "2"]

COMMANDS: dict[str, list[Any]] = {
    "generate": ["generate", "model", "--data", "prompts.jsonl", "-n", "3", *SMALL],
    "eval sft": ["eval", "model", "--data", "sft.jsonl", *SMALL],
    "eval prompts": [
        "eval",
        "model",
        "--data",
        "prompts.jsonl",
        "--temperature",
        "1",
        "-n",
        "2",
        "--scorer",
        "verifier:exact",
        *SMALL,
    ],
    "eval preference": ["eval", "model", "--data", "pairs.jsonl", "--reference", "{other}", *SMALL],
    "eval rewards": [
        "eval",
        "--reward-model",
        "verifier:longer.py:longer",
        "--reward-model",
        "verifier:exact",
        "--data",
        "answered.jsonl",
    ],
}


def command(name: str, other: Path) -> list[Any]:
    return [str(word).format(other=other) for word in COMMANDS[name]]


class Killed(BaseException):
    """Stands for a kill: nothing in between catches it."""


def dies_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die in the middle of the n-th line that is kept."""
    real, kept = journal._append, []

    def deadly(path: Path, value: Any) -> str:
        kept.append(value)
        if len(kept) == moment:
            with path.open("ab") as file:
                file.write(b'{"part": 0, "made with": "')
            raise Killed
        return real(path, value)

    monkeypatch.setattr(journal, "_append", deadly)


@pytest.mark.parametrize("name", COMMANDS)
def test_stopped_at_any_part_and_resumed_equals_uninterrupted(
    name: str, here: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner.evaluation import pair_scores

    monkeypatch.setattr(
        pair_scores.judge, "__kwdefaults__", {**pair_scores.judge.__kwdefaults__, "at_once": 2}
    )
    monkeypatch.setattr(pair_scores, "AT_ONCE", 2)
    pairs = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    write_jsonl(Path("answered.jsonl"), [{**pair, "answer": pair["chosen"]} for pair in pairs])
    words = command(name, other)
    whole = aligner(*words, "--output", "whole.json")
    assert whole.exit_code == 0, whole.output
    attempts = 0
    while not Path("out.json").exists():
        with monkeypatch.context() as patch:
            dies_at(3, patch)  # two parts are kept each time
            with suppress(Killed):
                result = aligner(
                    *words, "--output", "out.json", *(["--resume"] if attempts else [])
                )
                assert result.exit_code == 0, result.output
        attempts += 1
    assert attempts >= 2
    assert Path("out.json").read_bytes() == Path("whole.json").read_bytes()
    assert not Path("out.json.part").exists()


def killed(words: list[Any], monkeypatch: pytest.MonkeyPatch, *, at: int = 3) -> None:
    with monkeypatch.context() as patch:
        dies_at(at, patch)
        with pytest.raises(Killed):
            aligner(*words, "--output", "out.json")


def said(result: Any) -> str:
    assert result.exit_code == 2, result.output
    return str(result.stderr)


@pytest.mark.parametrize("name", ["generate", "eval prompts"])
def test_what_was_begun_is_gone_on_with_or_replaced_and_not_by_mistake(
    name: str, here: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = command(name, other)
    killed(words, monkeypatch)
    kept = (here / "out.json.part" / "answers.jsonl").read_bytes()
    assert "was started and not finished" in said(aligner(*words, "--output", "out.json"))
    assert (here / "out.json.part" / "answers.jsonl").read_bytes() == kept
    assert aligner(*words, "--output", "out.json", "--overwrite").exit_code == 0
    done = Path("out.json").read_bytes()
    assert "out.json exists" in said(aligner(*words, "--output", "out.json"))
    assert "nothing is left to be resumed" in said(
        aligner(*words, "--output", "out.json", "--resume")
    )
    assert Path("out.json").read_bytes() == done
    assert "there is none" in said(aligner(*words, "--resume"))
    assert aligner(*words, "--output", "out.json", "--overwrite").exit_code == 0
    assert Path("out.json").read_bytes() == done


@pytest.mark.parametrize("name", ["generate", "eval sft"])
@pytest.mark.parametrize(
    "changed", ["the model", "the tokenizer or its template", "the data", "--batch-size"]
)
def test_what_was_begun_with_something_else_is_not_gone_on_with(
    name: str, changed: str, here: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = command(name, other)
    killed(words, monkeypatch)
    data = Path(words[words.index("--data") + 1])
    if changed == "the model":
        shutil.copytree(other, "model", dirs_exist_ok=True)
    elif changed == "the tokenizer or its template":
        template = Path("model/chat_template.jinja")
        template.write_text(template.read_text() + "{# #}")
    elif changed == "the data":
        data.write_text(data.read_text().replace("dddd", "dxdd"))
    else:
        words += ["--batch-size", "3"]
    message = said(aligner(*words, "--output", "out.json", "--resume"))
    what = "the prompts" if (changed, name) == ("the data", "generate") else changed
    is_of_folder = what == "the tokenizer or its template"
    what = f"the model and {what}" if is_of_folder else what
    assert f"out.json was started with something else: {what} changed since" in message
    data.rename("moved.jsonl")  # the place of the rows does not count
    words[words.index("--data") + 1] = "moved.jsonl"
    assert aligner(*words, "--output", "out.json", "--overwrite").exit_code == 0


def test_another_reward_model_under_the_same_name_is_not_gone_on_with(
    here: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner.evaluation import pair_scores

    monkeypatch.setattr(pair_scores, "AT_ONCE", 2)
    write_jsonl(
        Path("answered.jsonl"),
        [{"prompt": str(n), "chosen": "a", "rejected": "b", "answer": "a"} for n in range(9)],
    )
    words = command("eval rewards", other)
    killed(words, monkeypatch)
    Path("longer.py").write_text(LONGER.replace("len(completion)", "len(completion) + 1"))
    assert "started with a different model" in said(
        aligner(*words, "--output", "out.json", "--resume")
    )


def test_where_nothing_was_done_nothing_is_left(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt that the model has no room for is found before the first answer: the next command
    needs no --overwrite."""
    write_jsonl(Path("long.jsonl"), [{"prompt": "a" * 5000}])
    words = ["generate", "model", "--data", "long.jsonl", "--output", "out.json", *SMALL]
    result = aligner(*words)
    assert (result.exit_code, "positions" in result.stderr) == (3, True), result.output
    assert not Path("out.json.part").exists()
    write_jsonl(Path("long.jsonl"), [{"prompt": "a"}])
    assert aligner(*words).exit_code == 0


def test_a_stopped_command_says_how_to_go_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, value: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(journal, "_append", interrupted)
    for name, data in (("generate", "prompts.jsonl"), ("eval", "sft.jsonl")):
        words = [name, "model", "--data", data, *SMALL, "--output"]
        result = aligner(*words, "out.json")
        assert (result.exit_code, "the same command with --resume continues" in result.stderr) == (
            130,
            True,
        )
        result = aligner(*words, "out.json", "--overwrite")
        assert "--resume in place of --overwrite continues" in result.stderr


@pytest.mark.parametrize("name", ["generate", "eval sft", "eval rewards"])
def test_what_is_no_file_is_written_to_and_stays_what_it_is(
    name: str, here: Path, other: Path
) -> None:
    write_jsonl(
        Path("answered.jsonl"), [{"prompt": "p", "chosen": "aa", "rejected": "b", "answer": "aa"}]
    )
    words = command(name, other)
    assert aligner(*words, "--output", "plain.json").exit_code == 0
    os.mkfifo("pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE)
    result = aligner(*words, "--output", "pipe")
    found, _ = reader.communicate(timeout=120)
    assert result.exit_code == 0, result.output
    assert found == Path("plain.json").read_bytes()
    assert Path("pipe").is_fifo()
    assert aligner(*words, "--output", "/dev/null", "--overwrite").exit_code == 0
    assert Path("/dev/null").is_char_device()
    assert "nothing of it is kept" in said(aligner(*words, "--output", "/dev/null", "--resume"))


def test_scores_can_go_into_a_pipe(here: Path) -> None:
    write_jsonl(Path("scored.jsonl"), [{"prompt": "p", "completion": "aa", "answer": "aa"}])
    os.mkfifo("pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE)
    result = aligner(
        "score", "--data", "scored.jsonl", "--reward-model", "verifier:exact", "--output", "pipe"
    )
    found, _ = reader.communicate(timeout=120)
    assert result.exit_code == 0, result.output
    assert json.loads(found)["score"] == 1.0


@pytest.mark.parametrize("is_there", [True, False], ids=["to a file", "to nothing yet"])
def test_a_link_is_followed(is_there: bool, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["generate", "model", "--data", "prompts.jsonl", *SMALL]
    Path("disk").mkdir()
    if is_there:
        Path("disk/real.json").write_text("old")
    Path("out.json").symlink_to("disk/real.json")
    if is_there:
        assert "real.json exists" in said(aligner(*words, "--output", "out.json"))
    with monkeypatch.context() as patch:
        dies_at(2, patch)
        with pytest.raises(Killed):
            aligner(*words, "--output", "out.json", *(["--overwrite"] if is_there else []))
    assert Path("disk/real.json.part").is_dir()
    assert aligner(*words, "--output", "out.json", "--resume").exit_code == 0
    assert Path("out.json").is_symlink()
    assert len(Path("disk/real.json").read_text().splitlines()) == 7


def test_an_output_that_came_into_being_meanwhile_is_not_replaced(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner.cli import generate as command_module

    real = command_module.load_policy_of

    def late(section: Any, tokenizer: Any) -> Any:
        Path("out.json").write_text("of another process")
        return real(section, tokenizer)

    monkeypatch.setattr(command_module, "load_policy_of", late)
    message = said(
        aligner("generate", "model", "--data", "prompts.jsonl", "--output", "out.json", *SMALL)
    )
    assert "out.json exists" in message
    assert Path("out.json").read_text() == "of another process"
    assert not Path("out.json.part").exists()


@pytest.mark.parametrize(
    ("name", "output", "words"),
    [
        ("eval sft", "out.csv", "would hold JSON, which its name does not say"),
        ("generate", "out.csv", "would hold lines of JSON"),
        ("generate", "sft.jsonl/out.jsonl", "sft.jsonl is a file"),
        ("generate", "prompts.jsonl", "is the data itself"),
        ("generate", "model", "model is a folder"),
    ],
)
def test_an_output_that_cannot_be_is_told_before_anything_is_loaded(
    name: str, output: str, words: str, here: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "aligner.models.loading.load_policy", lambda *_, **__: pytest.fail("the model was loaded")
    )
    assert words in said(aligner(*command(name, other), "--output", output))


def test_a_kill_while_the_folder_is_removed_leaves_one_that_is_known(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["generate", "model", "--data", "prompts.jsonl", "--output", "out.json", *SMALL]
    real, gone = Path.unlink, []

    def deadly(self: Path, *arguments: Any, **options: Any) -> None:
        if self.parent.name == "out.json.part" and not self.name.startswith((".", "whole")):
            gone.append(self.name)
            if len(gone) >= 2:  # nothing is removed any more
                raise Killed
        real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", deadly)
        with pytest.raises(Killed):
            aligner(*words)
    done = Path("out.json").read_bytes()
    assert gone[:2] == ["answers.jsonl", "header.json"]
    assert aligner(*words, "--resume").exit_code == 0
    assert Path("out.json").read_bytes() == done
    assert not Path("out.json.part").exists()


@pytest.mark.usefixtures("own_cache")
def test_a_judges_budget_is_that_of_its_data(here: Path) -> None:
    pytest.importorskip("openai")
    for name in ("a", "b"):
        write_jsonl(
            Path(f"{name}.jsonl"),
            [{"prompt": f"{name}{n}", "chosen": "good", "rejected": "bad"} for n in range(2)],
        )
    with FakeEndpoint((Answer(text="Better: A"),)) as server:
        card = {
            "model": "judge",
            "base_url": server.base_url,
            "max_in_flight": 1,
            "budget": {"calls": 4},
        }
        Path("judge.yaml").write_text(f"kind: judge\nendpoint: {json.dumps(card)}\n")
        first = aligner(
            "eval", "--reward-model", "judge.yaml", "--data", "a.jsonl", "--output", "out.json"
        )
        assert first.exit_code == 0, first.output
        again = aligner(
            "eval",
            "--reward-model",
            "judge.yaml",
            "--data",
            "b.jsonl",
            "--output",
            "out.json",
            "--overwrite",
        )
        assert again.exit_code == 0, again.output


@pytest.mark.slow
def test_a_process_that_is_really_killed_loses_a_batch(here: Path) -> None:
    write_jsonl(Path("many.jsonl"), [{"prompt": f"number {number}"} for number in range(400)])
    words = [
        "generate",
        "model",
        "--data",
        "many.jsonl",
        "--max-new-tokens",
        "40",
        "--batch-size",
        "4",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "aligner", *words, "--output", "out.json"],
        stderr=subprocess.DEVNULL,
        env=os.environ,
    )
    kept = here / "out.json.part" / "answers.jsonl"
    while not (kept.exists() and kept.read_bytes().count(b"\n") > 3):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not Path("out.json").exists()
    assert aligner(*words, "--output", "out.json", "--resume").exit_code == 0
    assert aligner(*words, "--output", "whole.json").exit_code == 0
    assert Path("out.json").read_bytes() == Path("whole.json").read_bytes()
