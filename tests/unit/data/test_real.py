"""Rows that people really feed such a tool: read where the folder is there, skipped with its reason
where it is not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from aligner.config.recipe import Data
from aligner.data.loading import Loaded, load_rows

FOLDER = Path(
    os.environ.get("ALIGNER_REAL_DATA") or Path(__file__).parents[3].parent / "shared" / "data"
)

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no real rows: {FOLDER} is absent (ALIGNER_REAL_DATA)"
)

FUNCTIONS = '''
def seed_task(row):
    """One row for each instance of a seed task."""
    return [{"instruction": row["instruction"], **instance} for instance in row["instances"]]


def right_and_wrong(row):
    """Every right solution against every wrong one."""
    solutions = [value for value in row.values() if isinstance(value, dict)]
    right = [s["solution"] for s in solutions if s["is_correct"]]
    wrong = [s["solution"] for s in solutions if not s["is_correct"]]
    prompt = row["question"]
    return [{"prompt": prompt, "chosen": c, "rejected": r} for c in right for r in wrong] or None


def arena(row):
    """A model's answer as a conversation."""
    asked, answered = row["messages"]
    return {"messages": [asked, {"role": "assistant", "content": answered["content"]["answer"]}]}
'''


@pytest.fixture
def load(tmp_path: Path) -> Any:
    (tmp_path / "functions.py").write_text(FUNCTIONS)

    def load_real(
        task: Any, name: str, function: str | None = None, eval: Any = 0.05, **source: Any
    ) -> Loaded:
        spec = None if function is None else f"{tmp_path / 'functions.py'}:{function}"
        train = [{"path": str(FOLDER / name), "function": spec, **source}]
        loaded = load_rows(Data(train=train, eval=eval, deduplicate=True), task, seed=42)
        loaded.ledger.check()
        return loaded

    return load_real


def test_worked_solutions_load_with_mapped_columns(load: Any) -> None:
    loaded = load(
        "sft", "gsm8k_train.jsonl", columns={"prompt": "question", "completion": "answer"}
    )
    assert len(loaded.train) + len(loaded.eval) + loaded.ledger.sources[0].duplicates == 7473
    assert {row.prompt for row in loaded.train}.isdisjoint(row.prompt for row in loaded.eval)


def test_talk_in_sharegpt_form_loads(load: Any) -> None:
    loaded = load("sft", "sharegpt_dummy.json")
    entry = loaded.ledger.sources[0]
    assert (entry.rows_read, entry.bad, entry.format, entry.unused_columns) == (
        500,
        0,
        "sharegpt",
        ["id"],
    )
    assert all(row.messages[-1]["role"] == "assistant" for row in loaded.train)


def test_seed_tasks_load_through_a_function(load: Any) -> None:
    entry = load("sft", "seed_tasks.jsonl", "seed_task").ledger.sources[0]
    assert (entry.rows_read, entry.format) == (175, "alpaca")
    assert entry.rows_out + entry.duplicates == 175 + entry.added_by_function


def test_right_and_wrong_solutions_become_pairs_through_a_function(load: Any) -> None:
    loaded = load("preference", "gsm8k_model_solutions.jsonl", "right_and_wrong")
    entry = loaded.ledger.sources[0]
    assert entry.rows_read == 1319
    assert entry.dropped_by_function > 0
    assert len(loaded.train) > 1000
    assert {row.prompt for row in loaded.train}.isdisjoint(row.prompt for row in loaded.eval)


def test_nested_solutions_become_pairs_with_dotted_columns(load: Any) -> None:
    columns = {
        "prompt": "question",
        "chosen": "175b_verification.solution",
        "rejected": "6b_finetuning.solution",
    }
    entry = load("preference", "gsm8k_model_solutions.jsonl", columns=columns).ledger.sources[0]
    assert entry.rows_out + entry.duplicates == 1319


def test_arena_prompts_and_answers_load(load: Any) -> None:
    prompts = load("prompts", "arena_hard_questions.jsonl", eval=None)
    assert len(prompts.train) == 500
    assert {"uid", "category", "cluster"} <= set(prompts.train[0].extra)
    answers = load("sft", "arena_hard_answers_gpt-4-0314.jsonl", "arena", eval=None)
    assert len(answers.train) == 500


def test_columns_that_nobody_knows_are_answered_with_the_line_to_write(load: Any) -> None:
    with pytest.raises(ValueError, match=r"columns: \{prompt: question, completion: answer\}"):
        load("sft", "gsm8k_test.jsonl")
