"""Every command that takes a reward model's folder: nothing that came with it runs unless the user
allows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import save_reward_model, write_jsonl
from runner import aligner
from typer.testing import Result

OWN = """
from pathlib import Path
from transformers import AutoModel, LlamaConfig, LlamaForSequenceClassification, LlamaModel

Path({marker!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "own-llama"

class OwnBase(LlamaModel):
    config_class = OwnConfig

AutoModel.register(OwnConfig, OwnBase)

class OwnModel(LlamaForSequenceClassification):
    config_class = OwnConfig

def score(prompt, completion, reference):
    return 1.0
"""
PAIR = {"prompt": "sort: ba", "chosen": "ab", "rejected": "ba", "answer": "ab"}


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "code-was-run"


@pytest.fixture
def folder(tmp_path: Path, marker: Path) -> Path:
    """A reward model with code of its own, which its card asks to run."""
    card = "kind: bradley_terry\nmodel: .\ntrust_remote_code: true\n"
    folder = save_reward_model(tmp_path / "rm", card=card)
    (folder / "own_code.py").write_text(OWN.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    own = {
        "AutoConfig": "own_code.OwnConfig",
        "AutoModelForSequenceClassification": "own_code.OwnModel",
    }
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "own-llama", "auto_map": own})
    )
    return folder


@pytest.fixture
def verifying(folder: Path) -> Path:
    """One whose card is a verifier: the file beside it."""
    code = f"{folder / 'own_code.py'}:score"
    (folder / "reward_model.yaml").write_text(f"kind: verifier\nverifier: '{code}'\n")
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", [PAIR, {**PAIR, "prompt": "sort: cab"}])


def replies(rows: Path) -> Path:
    return write_jsonl(rows.with_name("replies.jsonl"), [{"reply": "no objective"}])


Ask = Callable[[Path, Path, Path], Result]
"""Folder, rows, a small world -> what the command said."""

COMMON = ("trainer.use_cpu=true", "trainer.max_steps=1", "report.num_prompts=0")
COMMANDS: dict[str, Ask] = {
    "score": lambda folder, rows, world: aligner("score", "--reward-model", folder, "--data", rows),
    "eval": lambda folder, rows, world: aligner("eval", "--reward-model", folder, "--data", rows),
    "eval of a model": lambda folder, rows, world: aligner(
        "eval", world / "model", "--trust-remote-code", "--scorer", folder, "--data", rows
    ),
    "select": lambda folder, rows, world: aligner(
        "data",
        "select",
        f"select.candidates={rows}",
        f"select.reward_models=['{folder}']",
        f"output_dir={rows.parent / 'run'}",
        "select.budget=1",
    ),
    "dpo": lambda folder, rows, world: aligner(
        "dpo",
        f"model.name_or_path={world / 'model'}",
        f"data.train={rows}",
        "dpo.loss=reward_distill",
        f"dpo.reward_models=['{folder}']",
        f"output_dir={rows.parent / 'run'}",
        *COMMON,
    ),
    "sapo": lambda folder, rows, world: aligner(
        "sapo",
        f"model.name_or_path={world / 'model'}",
        f"data.train={world / 'sft.jsonl'}",
        f"sapo.verifier={folder}",
        f"output_dir={rows.parent / 'run'}",
        *COMMON,
    ),
    "rlhf": lambda folder, rows, world: aligner(
        "rlhf",
        f"model.name_or_path={world / 'model'}",
        f"data.train={world / 'sft.jsonl'}",
        f"rlhf.reward_models=['{folder}']",
        f"output_dir={rows.parent / 'run'}",
        *COMMON,
    ),
    "rlhf by segments": lambda folder, rows, world: aligner(
        "rlhf",
        "tiny/rlhf",
        f"model.name_or_path={world / 'model'}",
        f"data.train={world / 'sft.jsonl'}",
        "rlhf.credit=location",
        "rlhf.alpha=0",
        "rlhf.reward_models=[]",
        f"rlhf.segment_model={folder}",
        f"output_dir={rows.parent / 'run'}",
        *COMMON,
    ),
    "discover": lambda folder, rows, world: aligner(
        "discover",
        "endpoint.backend=scripted",
        f"endpoint.script={replies(rows)}",
        "discover.task=recipe",
        "discover.recipe=tiny/dpo",
        f"discover.prompts={world / 'sft.jsonl'}",
        f"discover.reward_model={folder}",
        f"output_dir={rows.parent / 'run'}",
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_the_verifier_that_the_card_of_a_folder_names(
    command: str, verifying: Path, pairs: Path, small_world: Path, marker: Path
) -> None:
    result = COMMANDS[command](verifying, pairs, small_world)
    assert result.exit_code == 2, result.output
    said = " ".join(result.output.split())
    assert "reward_model.yaml:2: verifier: asks to run" in said
    assert "in a file of your own" in said
    assert not marker.exists()


@pytest.mark.parametrize("command", ["score", "eval"])
def test_code_of_a_model_runs_once_the_user_says_so(
    command: str, folder: Path, pairs: Path, marker: Path
) -> None:
    arguments = (command, "--reward-model", folder, "--data", pairs)
    result = aligner(*arguments)
    assert result.exit_code == 2
    assert "reward_model.yaml:3: trust_remote_code: asks to run" in " ".join(result.output.split())
    assert not marker.exists()
    result = aligner(*arguments, "--trust-remote-code")
    assert result.exit_code == 0, result.output
    assert marker.exists()


def test_a_model_named_by_its_kind_is_asked_for_its_code_by_the_flag_too(
    folder: Path, pairs: Path, marker: Path
) -> None:
    arguments = ("score", "--reward-model", f"bradley_terry:{folder}", "--data", pairs)
    result = aligner(*arguments)
    assert result.exit_code == 2
    assert "--trust-remote-code" in result.output
    assert not marker.exists()
    assert aligner(*arguments, "--trust-remote-code").exit_code == 0
    assert marker.exists()


def test_training_does_not_start_from_a_folder_whose_code_is_not_allowed(
    folder: Path, pairs: Path, marker: Path
) -> None:
    card = "kind: regression\nmodel: .\nattributes: [a]\ntrust_remote_code: true\n"
    (folder / "reward_model.yaml").write_text(card)
    rows = write_jsonl(
        pairs.with_name("rated.jsonl"), [{"prompt": "p", "completion": "c", "a": 1.0}]
    )
    result = aligner(
        "reward",
        f"model.name_or_path={folder}",
        f"data.train={rows}",
        "reward.kind=regression",
        "reward.attributes=[a]",
        f"output_dir={rows.parent / 'run'}",
    )
    assert result.exit_code == 2
    assert "trust_remote_code: asks to run" in " ".join(result.output.split())
    assert not marker.exists()


def test_an_environment_variable_that_a_card_names_is_sent_nowhere(
    folder: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "0123456789")
    (folder / "reward_model.yaml").write_text(
        "kind: judge\nendpoint:\n  {model: m, base_url: 'http://127.0.0.1:9/v1', "
        "api_key_env: A_SECRET, max_retries: 0}\n"
    )
    result = aligner("score", "--reward-model", folder, "--data", pairs)
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert "endpoint: asks to send what is judged to http://127.0.0.1:9/v1" in said
    assert "0123456789" not in said
