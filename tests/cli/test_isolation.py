"""Commands that run the programs of answers say which walls are missing, before they run one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import small_recipe, write_jsonl
from runner import aligner

from aligner.events import Warned
from aligner.sandbox import worker

MISSING = "warning: here the programs that verifier:tests runs can read your files, the right"
ROWS: dict[str, dict[str, Any]] = {
    "score": {"prompt": "one", "completion": "value = 1", "answer": "assert value == 1"},
    "eval": {
        "prompt": "one",
        "chosen": "value = 1",
        "rejected": "value = 2",
        "answer": "assert value == 1",
    },
}


def judge(command: str, folder: Path, *arguments: object) -> Any:
    """Judge one row with its tests."""
    data = folder / "rows.jsonl"
    write_jsonl(data, [ROWS[command]])
    found = aligner(command, "--reward-model", "verifier:tests", "--data", data, *arguments)
    assert found.exit_code == 0, found.output
    return found


@pytest.mark.parametrize("command", ROWS)
def test_a_missing_wall_is_named_once_before_the_first_program_runs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "WITHOUT", ["landlock", "unshare"])
    found = judge(command, tmp_path, "--json")
    assert found.stderr.count(MISSING) == 1
    assert "(this system has no Landlock)" in found.stderr
    assert "judge answers that you do not trust in a container" in found.stderr
    first = [found.stderr.find(word) for word in ("scoring", "judging with")]
    assert found.stderr.index(MISSING) < max(first)
    assert json.loads(found.stdout)["isolation"]["reading"] == "this system has no Landlock"


@pytest.mark.parametrize("command", ROWS)
def test_nothing_is_said_where_all_walls_stand(command: str, tmp_path: Path) -> None:
    found = judge(command, tmp_path, "--json")
    isolation = json.loads(found.stdout)["isolation"]
    if set(isolation.values()) == {"yes"}:
        assert "warning" not in found.stderr


def test_a_selection_says_it_too_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "WITHOUT", ["landlock", "unshare"])
    answers = ["value = 1", "value = 2"]
    row = {"prompt": "one", "responses": answers, "answer": "assert value == 1"}
    write_jsonl(tmp_path / "candidates.jsonl", [row, {**row, "prompt": "two"}])
    found = aligner(
        *("data", "select", f"select.candidates={tmp_path / 'candidates.jsonl'}"),
        *("select.reward_models=[verifier:tests]", "select.budget=1"),
        *(f"output_dir={tmp_path / 'run'}", "--json"),
    )
    asked = aligner("data", "select", tmp_path / "run", "--oracle", "verifier:tests", "--json")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["isolation"]["reading"] == "this system has no Landlock"
    for one in (found, asked):
        assert one.exit_code == 0, one.output
        assert one.stderr.count(MISSING) == 1
        assert json.loads(one.stdout)["isolation"] == environment["isolation"]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("sapo", ["trainer.max_steps=1", "sapo.verifier=JUDGE"]),
        ("dpo", ["trainer.max_steps=1", "dpo.loss=reward_distill", "dpo.reward_models=[JUDGE]"]),
    ],
)
def test_a_training_says_it_too_and_keeps_it(
    small_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    settings: list[str],
) -> None:
    from aligner.methods.pipeline import run_recipe

    (tmp_path / "judge.py").write_text("def judge(p, c, r): return float(len(c))\n")
    judge = f"verifier:{tmp_path / 'judge.py'}:judge"
    monkeypatch.setattr(worker, "WITHOUT", ["landlock", "unshare"])
    # the toy's answers are no programs; which scorers run some is tested with `score`
    monkeypatch.setattr("aligner.reward_models.isolation.runs_programs", lambda card: True)
    events: list[Any] = []
    overrides = [setting.replace("JUDGE", judge) for setting in settings]
    recipe = small_recipe(method, small_world, tmp_path / "run", *overrides)
    run = run_recipe(recipe, on_event=events.append).run_dir
    warned = [event.text for event in events if isinstance(event, Warned)]
    assert sum("runs can read your files" in text for text in warned) == 1
    environment = json.loads((run / "environment.json").read_text())
    assert environment["isolation"]["reading"] == "this system has no Landlock"


def test_a_rule_that_runs_nothing_is_not_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "WITHOUT", ["landlock", "unshare"])
    write_jsonl(tmp_path / "rows.jsonl", [ROWS["score"]])
    found = aligner("score", "--reward-model", "verifier:exact", "--data", tmp_path / "rows.jsonl")
    assert found.exit_code == 0, found.output
    assert "warning" not in found.stderr
