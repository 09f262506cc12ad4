"""What a run was run with, and what must not be written down."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from example_run import resolved

from aligner.runs.environment import REDACTED, command_line, git_state, redact
from aligner.runs.run import Run

TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrSt"
KEY = "sk-" + "proj-0123456789abcdefghij"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--hub_token", TOKEN],
        ["--hub-token=plainsecret"],
        ["--hub_token", "plainsecret"],
        ["trainer.hub_token=plainsecret"],
        ["--api-key", "plainsecret"],
        ["--note", f"use {KEY}"],
        ["https://me:plainsecret@host/x"],
        ["Authorization: Bearer plainsecretplainsecret"],
    ],
)
def test_secrets_are_not_in_the_command_line(arguments: list[str]) -> None:
    shown = command_line(["aligner", "sft", *arguments])
    assert REDACTED in shown
    assert "plainsecret" not in shown
    assert TOKEN not in shown
    assert KEY not in shown


@pytest.mark.parametrize(
    "argument",
    [
        "--eos_token=<|im_end|>",
        "model.pad_token=<pad>",
        "--max_new_tokens=5",
        "report.max_new_tokens=128",
    ],
)
def test_ordinary_tokens_stay(argument: str) -> None:
    assert REDACTED not in command_line([argument])


def test_the_command_can_be_typed_again() -> None:
    assert (
        command_line(["aligner", "sft", "a b.yaml", "x=[1, 2]"])
        == "aligner sft 'a b.yaml' 'x=[1, 2]'"
    )


def test_values_of_secret_variables_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_API_KEY", "swordfish-swordfish")
    assert redact("it was swordfish-swordfish all along") == f"it was {REDACTED} all along"


def test_no_secret_reaches_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_API_KEY", "swordfish-swordfish")
    monkeypatch.setattr(
        "sys.argv", ["aligner", "sft", "--hub_token", "plainsecret", "swordfish-swordfish"]
    )
    recipe = resolved(tmp_path / "run", trainer={"hub_token": "plainsecret"})
    object.__setattr__(recipe, "text", recipe.text + "  hub_token: plainsecret\n")
    Run.create(recipe).close()
    for path in (tmp_path / "run").iterdir():
        assert "plainsecret" not in path.read_text()
        assert "swordfish" not in path.read_text()
    Run.create(recipe, resume=True).close()


def git(folder: Path, *arguments: str) -> None:
    identity = [
        "-c",
        "user.name=T",
        "-c",
        "user.email=t@example.org",
        "-c",
        "init.defaultBranch=main",
    ]
    subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True
    )


def test_commit_and_uncommitted_changes_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "code"
    repository.mkdir()
    git(repository, "init")
    (repository / "mapping.py").write_text("A = 1\n")
    git(repository, "add", ".")
    git(repository, "commit", "-m", "first")
    monkeypatch.chdir(repository)
    clean = Run.create(resolved(tmp_path / "clean"))
    clean.close()
    state = clean.read_json("environment.json")["git"]
    assert len(state["commit"]) == 40
    assert not state["dirty"]
    assert not (clean.dir / "code.diff").exists()
    (repository / "mapping.py").write_text(f"A = 2\nKEY = '{TOKEN}'\n")
    dirty = Run.create(resolved(tmp_path / "dirty"))
    dirty.close()
    assert dirty.read_json("environment.json")["git"]["dirty"]
    diff = (dirty.dir / "code.diff").read_text()
    assert "+A = 2" in diff
    assert TOKEN not in diff


def test_no_repository_is_no_error(tmp_path: Path) -> None:
    assert git_state(tmp_path) == (None, "")
