"""Every form of row is recognized and becomes the typed row that it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aligner.config.recipe import Data
from aligner.data.loading import Loaded, load_rows
from aligner.data.rows import (
    CompletionRow,
    ConversationRow,
    PreferenceRow,
    PromptRow,
    TextRow,
    prompt_text,
)


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}

SFT = [
    ({"messages": [user("a"), said("b")]}, ConversationRow([user("a"), said("b")]), "messages"),
    (
        {"messages": [user("a"), said("b")], "tools": '[{"name": "f"}]'},
        ConversationRow([user("a"), said("b")], [{"name": "f"}]),
        "messages",
    ),
    (
        {
            "messages": [
                user("a"),
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                said("b"),
            ]
        },
        ConversationRow(
            [user("a"), {"role": "assistant", "content": "", "tool_calls": [CALL]}, said("b")]
        ),
        "messages",
    ),
    (
        {
            "messages": [
                {**user("a"), "name": None},
                {"role": "assistant", "content": [{"type": "text", "text": "b"}, "c"]},
            ]
        },
        ConversationRow([user("a"), said("bc")]),
        "messages",
    ),
    ({"prompt": "a", "completion": " b"}, CompletionRow("a", " b"), "prompt_completion"),
    (
        {"prompt": [user("a")], "completion": [said("b")]},
        CompletionRow([user("a")], [said("b")]),
        "prompt_completion",
    ),
    (
        {"prompt": "a", "completion": [said("b")]},
        CompletionRow([user("a")], [said("b")]),
        "prompt_completion",
    ),
    (
        {"prompt": [user("a")], "completion": "b"},
        CompletionRow([user("a")], [said("b")]),
        "prompt_completion",
    ),
    (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        ConversationRow([user("a"), said("b")]),
        "sharegpt",
    ),
    (
        {
            "system": "Be brief.",
            "conversations": [{"from": "user", "value": "a"}, {"from": "model", "value": "b"}],
        },
        ConversationRow([SYSTEM, user("a"), said("b")]),
        "sharegpt",
    ),
    (
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "b"},
            ]
        },
        ConversationRow(
            [
                user("a"),
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": "1"},
                said("b"),
            ]
        ),
        "sharegpt",
    ),
    (
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        CompletionRow([user("Add.\n\n1 1")], [said("2")]),
        "alpaca",
    ),
    (
        {
            "instruction": "a",
            "input": "",
            "output": "b",
            "system": "Be brief.",
            "history": [["c", "d"]],
        },
        CompletionRow([SYSTEM, user("c"), said("d"), user("a")], [said("b")]),
        "alpaca",
    ),
    ({"text": "a b"}, TextRow("a b"), "text"),
]

PREFERENCE = [
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, PreferenceRow("a", "b", "c")),
    (
        {"prompt": "a", "chosen": "b", "rejected": "c", "weight": 2},
        PreferenceRow("a", "b", "c", 2.0),
    ),
    (
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        PreferenceRow("The sky is", " blue.", " black."),
    ),
    (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: I am well",
            "rejected": "\n\nHuman: Hi\n\nAssistant: I am ill",
        },
        PreferenceRow("\n\nHuman: Hi\n\nAssistant:", " I am well", " I am ill"),
    ),
    (
        {"prompt": [user("a")], "chosen": [said("b")], "rejected": [said("c")]},
        PreferenceRow([user("a")], [said("b")], [said("c")]),
    ),
    (
        {"prompt": [user("a")], "chosen": "b", "rejected": "c"},
        PreferenceRow([user("a")], [said("b")], [said("c")]),
    ),
    (
        {"prompt": "a", "chosen": [said("b")], "rejected": [said("c")]},
        PreferenceRow([user("a")], [said("b")], [said("c")]),
    ),
    (
        {"chosen": [user("a"), said("b")], "rejected": [user("a"), said("c")]},
        PreferenceRow([user("a")], [said("b")], [said("c")]),
    ),
    (
        {
            "prompt": "a",
            "chosen": [SYSTEM, user("a"), said("b")],
            "rejected": [SYSTEM, user("a"), said("c")],
        },
        PreferenceRow([SYSTEM, user("a")], [said("b")], [said("c")]),
    ),
    (
        {
            "prompt": [user("a")],
            "chosen": [user("a"), said("b")],
            "rejected": [user("a"), said("c")],
        },
        PreferenceRow([user("a")], [said("b")], [said("c")]),
    ),
    (
        {
            "chosen": [user("a"), said("b"), user("c"), said("d")],
            "rejected": [user("a"), said("b"), user("c"), said("e")],
        },
        PreferenceRow([user("a"), said("b"), user("c")], [said("d")], [said("e")]),
    ),
]

PROMPTS = [
    ({"prompt": "a", "answer": 4, "level": "easy"}, PromptRow("a", "4", {"level": "easy"})),
    ({"prompt": [user("a")]}, PromptRow([user("a")])),
    ({"prompt": "a", "completion": "b"}, PromptRow("a", "b")),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, PromptRow("a")),
    (
        {"messages": [user("a"), said("b"), user("c"), said("d")]},
        PromptRow([user("a"), said("b"), user("c")], "d"),
    ),
    ({"messages": [user("a")]}, PromptRow([user("a")])),
    (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        PromptRow([user("a")], "b"),
    ),
    ({"instruction": "a", "input": "b", "output": "c"}, PromptRow([user("a\n\nb")], "c")),
]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load rows given as objects; `source` settings stand beside the path."""

    def load_objects(task: Any, rows: list[Any], **source: Any) -> Loaded:
        monkeypatch.chdir(tmp_path)
        Path("x.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
        return load_rows(Data(train=[{"path": "x.jsonl", **source}]), task, seed=0)

    return load_objects


def without_origin(row: Any) -> list[Any]:
    assert row.origin == "x.jsonl:1" or not row.origin
    return [
        getattr(row, name) for name in row.__slots__ if name not in ("origin", "group", "extra")
    ]


@pytest.mark.parametrize(("raw", "expected", "form"), SFT)
def test_rows_for_supervised_training_are_recognised_and_mapped(
    raw: Any, expected: Any, form: str, load: Any
) -> None:
    loaded = load("sft", [raw])
    assert type(loaded.train[0]) is type(expected)
    assert without_origin(loaded.train[0]) == without_origin(expected)
    assert loaded.ledger.sources[0].format == form
    assert "the only row" in loaded.ledger.sources[0].evidence


@pytest.mark.parametrize(("raw", "expected"), PREFERENCE)
def test_rows_of_preference_pairs_are_recognised_and_mapped(
    raw: Any, expected: Any, load: Any
) -> None:
    loaded = load("preference", [raw])
    assert without_origin(loaded.train[0]) == without_origin(expected)
    assert loaded.ledger.sources[0].format == "preference"


@pytest.mark.parametrize(("raw", "expected"), PROMPTS)
def test_rows_for_prompting_are_recognised_and_mapped(raw: Any, expected: Any, load: Any) -> None:
    assert without_origin(load("prompts", [raw]).train[0]) == without_origin(expected)


def test_the_task_decides_between_forms_that_stand_side_by_side(load: Any) -> None:
    row = {"prompt": "a", "messages": [user("a"), said("b")]}
    row |= {"chosen": [user("a"), said("b")], "rejected": [user("a"), said("c")]}
    assert load("sft", [row]).ledger.sources[0].format == "messages"
    assert load("preference", [row]).ledger.sources[0].format == "preference"


def test_mapped_columns_decide_between_forms(load: Any) -> None:
    loaded = load(
        "sft", [{"text": "t", "q": "a", "a": "b"}], columns={"prompt": "q", "completion": "a"}
    )
    assert without_origin(loaded.train[0]) == ["a", "b", None, None]


def test_a_given_format_decides_between_forms(load: Any) -> None:
    row = {"text": "t", "instruction": "a", "output": "b"}
    assert without_origin(load("sft", [row], format="text").train[0]) == ["t"]
    assert (
        load("sft", [row], format="alpaca").ledger.sources[0].evidence == "as given in the recipe"
    )


def test_the_evidence_counts_the_rows_that_agree(load: Any) -> None:
    rows = [{"prompt": "a", "completion": "b"}] * 150
    assert (
        load("sft", rows).ledger.sources[0].evidence
        == "found `prompt`, `completion` in all of the first 100 rows"
    )


def test_columns_that_are_not_used_are_named(load: Any) -> None:
    assert load("sft", [{"text": "a", "id": 1, "url": "b"}]).ledger.sources[0].unused_columns == [
        "id",
        "url",
    ]


def test_columns_reach_into_objects_and_lists_and_can_be_swapped(load: Any) -> None:
    row = {"prompt": "b", "completion": "a", "deep": {"er": [{"text": "c"}]}, "dot.ted": "d"}
    assert without_origin(
        load("sft", [row], columns={"prompt": "completion", "completion": "prompt"}).train[0]
    ) == ["a", "b", None, None]
    assert without_origin(load("sft", [row], columns={"text": "deep.er.0.text"}).train[0]) == ["c"]
    assert without_origin(load("sft", [row], columns={"text": "dot.ted"}).train[0]) == ["d"]


def test_training_on_the_chosen_answers_works_as_the_hint_says(load: Any) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert without_origin(
        load("sft", [row], columns={"prompt": "prompt", "completion": "chosen"}).train[0]
    ) == ["a", "b", None, None]
    pair = {"chosen": [user("a"), said("b")], "rejected": [user("a"), said("c")]}
    assert without_origin(load("sft", [pair], columns={"messages": "chosen"}).train[0]) == [
        [user("a"), said("b")],
        None,
        None,
    ]


def test_a_few_rows_of_another_form_are_broken_rows_not_a_mixture(
    load: Any, tmp_path: Path
) -> None:
    rows = [{"prompt": "a", "completion": "b"}] * 20 + [{"text": "c"}]
    with pytest.raises(ValueError, match=r"x\.jsonl:21: `prompt` is missing"):
        load("sft", rows)


def test_a_function_maps_drops_and_multiplies_rows(load: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def make(row):\n"
        "    if row['n'] == 0:\n"
        "        return None\n"
        "    rows = [{'text': f\"{row['n']}.{i}\"} for i in range(row['n'])]\n"
        "    return rows if len(rows) > 1 else rows[0]\n"
    )
    loaded = load("sft", [{"n": 0}, {"n": 1}, {"n": 3}], function="mine.py:make")
    assert [row.text for row in loaded.train] == ["1.0", "3.0", "3.1", "3.2"]
    assert [row.origin for row in loaded.train] == [
        "x.jsonl:2",
        "x.jsonl:3#1",
        "x.jsonl:3#2",
        "x.jsonl:3#3",
    ]
    entry = loaded.ledger.sources[0]
    assert (
        entry.rows_read,
        entry.dropped_by_function,
        entry.added_by_function,
        entry.rows_out,
    ) == (3, 1, 2, 4)


def test_what_a_function_raises_is_reported_with_the_row_and_the_line(
    load: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def make(row):\n    return {'text': row['name']}\n")
    with pytest.raises(
        ValueError, match=r"x\.jsonl:2: the function `make` raised KeyError: 'name' \(line 2\)"
    ):
        load("sft", [{"name": "a"}, {"nom": "b"}], function="mine.py:make")


def test_a_function_that_returns_something_else_is_reported(load: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def make(row):\n    return row['text']\n")
    with pytest.raises(
        ValueError, match=r"x\.jsonl:1: the function `make` returned text; return a dict"
    ):
        load("sft", [{"text": "a"}], function="mine.py:make")


def test_a_function_that_drops_every_row_is_reported(load: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def make(row):\n    return None\n")
    with pytest.raises(
        ValueError,
        match=r"no row is left in `data\.train`: 1 read - 1 dropped by the function = 0 rows",
    ):
        load("sft", [{"text": "a"}], function="mine.py:make")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def other(row): ...", "it has other"),
        ("1 / 0", "does not run: ZeroDivisionError"),
        ("x = (", "does not run: Syn"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_reported(
    code: str, says: str, load: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(ValueError, match=says):
        load("sft", [{"text": "a"}], function="mine.py:make")


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (CompletionRow(" a ", "b"), "a"),
        (CompletionRow([SYSTEM, user("a")], [said("b")]), "a"),
        (ConversationRow([user("a"), said("b"), user("c"), said("d")]), "a"),
        (
            PreferenceRow([user("a"), said("b"), user("c")], [said("d")], [said("e")]),
            "user: a\nassistant: b\nuser: c",
        ),
        (TextRow("a"), "a"),
    ],
)
def test_the_same_question_in_another_form_has_the_same_prompt_text(row: Any, text: str) -> None:
    assert prompt_text(row) == text
