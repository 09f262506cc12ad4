"""The examples do what they say: the program runs, the walk-through's recipes resolve, its
functions give rows."""

from __future__ import annotations

import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aligner.config.load import load_recipe
from aligner.config.recipe import Data, Source
from aligner.data.loading import load_rows

ROOT = Path(__file__).parents[2]
GSM8K = ROOT / "examples" / "gsm8k"


@pytest.mark.slow
def test_the_library_example_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "examples" / "library.py"), "--quick"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "gold score" in done.stdout.splitlines()[-1]


def test_the_example_of_battles_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "battles.py"), run_name="__main__")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rating = {name: float(value) for name, value, *_ in lines}
    assert rating["novice"] == 1000.0
    assert rating["expert"] > rating["clerk"] > rating["novice"]


def test_the_mosaic_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "mosaic.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "sequences: 6 rows become 2 samples an epoch" in said
    assert "read again: Reading(strategy=" in said


def test_a_loop_of_ones_own_lowers_the_loss(toy_world: Path) -> None:
    losses = example("dpo_loop")["main"](toy_world, steps=4)
    assert len(losses) == 4
    assert losses[0] == pytest.approx(math.log(2))
    assert losses[-1] < losses[0]


def test_a_loss_of_ones_own_is_trained(toy_world: Path, tmp_path: Path) -> None:
    accuracy = example("custom_loss")["main"](toy_world, tmp_path / "run", steps=3)
    assert 0.0 <= accuracy <= 1.0
    recorded = json.loads((tmp_path / "run" / "resolved.json").read_text(encoding="utf-8"))
    assert ":squared sha256:" in recorded["recipe"]["dpo"]["loss"]


def test_a_reward_of_ones_own_makes_the_pairs_and_measures(toy_world: Path, tmp_path: Path) -> None:
    before, after = example("custom_reward")["main"](toy_world, tmp_path / "run", steps=3)
    assert 0.0 <= min(before, after) <= max(before, after) <= 1.0


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def test_rows_of_helpsteer2_become_pairs_with_a_strength() -> None:
    pair = runpy.run_path(str(ROOT / "examples" / "helpsteer2.py"))["pair"]
    row = {"prompt": "p", "response_1": "one", "response_2": "two"}
    sides = {strength: pair({**row, "preference_strength": strength}) for strength in (-3, 0, 1)}
    assert [(made["chosen"], made["strength"]) for made in sides.values()] == [
        ("one", 3),
        ("one", 0),
        ("two", 1),
    ]


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_recipes_of_the_walk_through_resolve(method: str) -> None:
    resolved = load_recipe(method, GSM8K / f"{method}.yaml")
    assert resolved.recipe.method == method


def solution(text: str, right: bool) -> dict[str, object]:
    return {"solution": text, "is_correct": right}


def test_pairs_join_every_right_solution_with_every_wrong_one(tmp_path: Path) -> None:
    names = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    mixed = [
        solution("r1", True),
        solution("w1", False),
        solution("r2", True),
        solution("w1", False),
    ]
    solved = [solution(text, True) for text in "abcd"]
    rows = [
        {"question": "q1", **dict(zip(names, mixed))},
        {"question": "q2", **dict(zip(names, solved))},
    ]
    file = tmp_path / "solutions.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    source = Source(path=str(file), function=f"{GSM8K / 'pairs.py'}:make_pairs")
    loaded = load_rows(Data(train=[source]), "preference", 0)
    assert sorted((row.chosen, row.rejected) for row in loaded.train) == [
        ("r1", "w1"),
        ("r2", "w1"),
    ]
    assert loaded.ledger.sources[0].dropped_by_function == 1


def test_the_model_of_the_walk_through_is_made_from_any_questions_and_answers(
    tmp_path: Path,
) -> None:
    rows = [
        {"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"}
        for i in range(50)
    ]
    (tmp_path / "gsm8k_train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    module = runpy.run_path(str(GSM8K / "make_model.py"))
    module["main"](tmp_path, tmp_path / "model")
    from aligner.config.recipe import Model
    from aligner.models.tokenizers import load_tokenizer
    from aligner.tokenization.encode import check_tokenizer

    tokenizer = load_tokenizer(Model(name_or_path=str(tmp_path / "model")))
    assert check_tokenizer(tokenizer) == []


THREE_LINES = runpy.run_path(str(ROOT / "examples" / "three_lines.py"))


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("- Mix the flour.\n- Add two eggs.\n- Bake it.", 1.0),
        ("- Mix the flour.\n- Add two eggs.", 2 / 3),
        ("Mix the flour.\n\nAdd two eggs.\nBake it.", 2 / 3),
        ("- Mix the flour.\n- Add two eggs.\n- Then you bake it all slowly.", 8 / 9),
        ("- Mix the flour.\n- Mix the flour.\n- Bake it.", (2 / 3 + 2 / 3) / 3),
        ("- eat more fruit\n- sleep early\n- take a walk.", 0.0),
        ("It depends on what you like most of all.", 0.0),
        ("\n", 0.0),
    ],
)
def test_three_lines_are_scored_by_the_share_of_what_was_asked(answer: str, share: float) -> None:
    assert THREE_LINES["share"](None, answer, None) == pytest.approx(share)


def test_prompts_of_three_lines_come_from_tasks_of_both_forms(tmp_path: Path) -> None:
    tasks = [
        {"instruction": "Name", "input": "one."},
        {"instruction": "Name", "instances": [{"input": "two.", "output": "2"}]},
        {"instruction": "long " * 40},
        {"instruction": "Sort it.", "is_classification": True},
    ]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tasks), "utf-8")
    THREE_LINES["main"](tmp_path / "tasks.jsonl", tmp_path / "prompts.jsonl")
    rows = load_rows(Data(train=str(tmp_path / "prompts.jsonl")), task="prompts", seed=0).train
    asked = [row.prompt for row in rows]
    assert [text.split("\n\nAnswer")[0] for text in asked] == ["Name\n\none.", "Name\n\ntwo."]
    assert all("exactly three lines" in text for text in asked)


def test_scored_answers_become_pairs_of_the_best_and_the_worst(tmp_path: Path) -> None:
    texts = ["worst", "good", "bad", "best", " ", "same"]
    row = {
        "prompt": "p",
        "completions": [{"text": text} for text in texts],
        "scores": [0.0, 0.6, 0.1, 1.0, 0.0, 0.1],
    }
    file = tmp_path / "scored.jsonl"
    file.write_text(json.dumps(row) + "\n", "utf-8")
    source = Source(path=str(file), function=f"{ROOT / 'examples' / 'three_lines.py'}:pairs")
    rows = load_rows(Data(train=[source]), task="preference", seed=0).train
    said = [(row.chosen, row.rejected) for row in rows]
    assert said == [("best", "worst"), ("good", "bad")]
