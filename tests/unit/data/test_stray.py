"""Columns beside those of a form: used where they belong to the conversation, refused where they
would be missed, else said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aligner.config.recipe import Data
from aligner.data.loading import Loaded, load_rows
from aligner.data.rows import CompletionRow, PreferenceRow, Task, refuse_tools
from aligner.errors import DataError
from aligner.tokenization.encode import IGNORED, encode_pair, encode_prompt, encode_sft
from tests.unit.tokenization.test_chat_templates import tokenizer_for

TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "Looks out.", "parameters": {}},
    }
]
ASKED = [{"role": "user", "content": "Rain?"}]
SYSTEM = {"role": "system", "content": "Be brief."}


def said(content: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": content}]


def load(folder: Path, rows: list[dict[str, Any]], task: Task = "sft", **source: Any) -> Loaded:
    path = folder / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_rows(Data.model_validate({"train": [{"path": str(path), **source}]}), task, seed=0)


# --- tools and system -----------------------------------------------------------------------------


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
def test_tools_of_pairs_completions_and_prompts_are_rendered(tools: Any, tmp_path: Path) -> None:
    tokenizer = tokenizer_for("qwen2_5")
    prompt = encode_prompt(tokenizer, ASKED, TOOLS)
    assert "Looks out." in tokenizer.decode(prompt)
    pair = load(
        tmp_path,
        [{"prompt": "Rain?", "chosen": "Yes.", "rejected": "No.", "tools": tools}],
        "preference",
    )
    assert encode_pair(tokenizer, pair.train[0]).prompt_ids == prompt
    single = load(tmp_path, [{"prompt": "Rain?", "completion": "Yes.", "tools": tools}])
    encoded = encode_sft(tokenizer, single.train[0])
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels[: len(prompt)] == [IGNORED] * len(prompt)
    for row in (
        {"prompt": "Rain?"},
        {"prompt": "Rain?", "completion": "Yes."},
        {"messages": [*ASKED, *said("Yes.")]},
    ):
        asked = load(tmp_path, [{**row, "tools": tools}], "prompts").train[0]
        assert encode_prompt(tokenizer, asked.prompt, asked.tools) == prompt


def test_tools_without_a_template_to_write_them_are_refused() -> None:
    from fakes import byte_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    for row in (
        CompletionRow("a", "b", "rows:1", tools=TOOLS),
        PreferenceRow("a", "b", "c", origin="rows:1", tools=TOOLS),
    ):
        with pytest.raises(
            DataError, match="rows:1 has `tools`, and the tokenizer has no chat template"
        ):
            (encode_sft if isinstance(row, CompletionRow) else encode_pair)(tokenizer, row)
    with pytest.raises(DataError, match="a prompt has `tools`"):
        encode_prompt(tokenizer, "a", TOOLS)


def test_tools_are_refused_where_their_reader_is_not_told_of_them(tmp_path: Path) -> None:
    from aligner.evaluation.answer_rows import read_answers

    rows = [{"prompt": "Rain?", "completion": "Yes.", "tools": TOOLS}]
    loaded = load(tmp_path, rows)
    with pytest.raises(
        DataError, match=r"x\.jsonl:1 has `tools`, and a reward model is asked without them"
    ):
        refuse_tools(loaded.train, "a reward model")
    source = Data.model_validate({"train": str(tmp_path / "x.jsonl")}).train[0]
    with pytest.raises(DataError, match="has `tools`, and a scorer is asked without them"):
        read_answers(source, 0)


@pytest.mark.parametrize("prompt", ["Rain?", ASKED])
def test_a_system_column_is_the_system_turn_in_every_form(prompt: Any, tmp_path: Path) -> None:
    rows: list[tuple[Task, dict[str, Any]]] = [
        ("preference", {"prompt": prompt, "chosen": "Yes.", "rejected": "No."}),
        ("preference", {"chosen": [*ASKED, *said("Yes.")], "rejected": [*ASKED, *said("No.")]}),
        ("sft", {"prompt": prompt, "completion": "Yes."}),
        ("sft", {"prompt": ASKED, "completion": [*ASKED, *said("Yes.")]}),
        ("prompts", {"prompt": prompt}),
    ]
    for task, row in rows:
        found = load(tmp_path, [{**row, "system": "Be brief."}], task).train[0]
        assert found.prompt == [SYSTEM, *ASKED], row
    talk = {"messages": [*ASKED, *said("Yes.")], "system": "Be brief."}
    assert load(tmp_path, [talk]).train[0].messages == [SYSTEM, *ASKED, *said("Yes.")]
    assert load(tmp_path, [talk], "prompts").train[0].prompt == [SYSTEM, *ASKED]
    twice = {"messages": [SYSTEM, *ASKED, *said("Yes.")], "system": "Be brief."}
    assert load(tmp_path, [twice]).train[0].messages == twice["messages"]
    empty = load(tmp_path, [{"prompt": "Rain?", "completion": "Yes.", "system": ""}]).train[0]
    assert empty.prompt == "Rain?"


# --- questions beside pairs -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["question", "instruction", "query", "input"])
@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("The sum is 4.", "The sum is 5."), ([*ASKED, *said("a")], [*ASKED, *said("b")])],
)
def test_a_question_beside_pairs_is_not_overlooked(
    name: str, chosen: Any, rejected: Any, tmp_path: Path
) -> None:
    row = {name: "What is 2 + 2?", "chosen": chosen, "rejected": rejected}
    with pytest.raises(DataError) as caught:
        load(tmp_path, [row], "preference")
    assert (
        f"`{name}` stands beside `chosen` and `rejected`, and there is no `prompt`"
        in caught.value.message
    )
    assert f"`columns: {{prompt: {name}}}`" in caught.value.hint
    assert "`format: preference`" in caught.value.hint
    assert load(tmp_path, [row], "preference", format="preference").train


def test_a_question_that_the_pair_itself_asks_is_no_stray_one(tmp_path: Path) -> None:
    talk = {
        "question": "Rain?",
        "chosen": [*ASKED, *said("Yes.")],
        "rejected": [*ASKED, *said("No.")],
    }
    assert load(tmp_path, [talk], "preference").train[0].prompt == ASKED
    text = {
        "question": "Rain?",
        "chosen": "\n\nHuman: Rain?\n\nAssistant: Yes.",
        "rejected": "\n\nHuman: Rain?\n\nAssistant: No.",
    }
    assert load(tmp_path, [text], "preference").train[0].chosen == " Yes."


def test_the_cure_makes_the_question_the_prompt(tmp_path: Path) -> None:
    row = {
        "system": "Be brief.",
        "question": "What is 2 + 2?",
        "chosen": "The sum is 4.",
        "rejected": "The sum is 5.",
    }
    found = load(tmp_path, [row], "preference", columns={"prompt": "question"}).train[0]
    assert found.prompt == [SYSTEM, {"role": "user", "content": "What is 2 + 2?"}]
    assert (found.chosen, found.rejected) == (said("The sum is 4."), said("The sum is 5."))


# --- images, and whatever else is left ------------------------------------------------------------


@pytest.mark.parametrize(
    "media",
    [
        {"images": [{"bytes": "abc", "path": None}]},
        {"image": {"path": "a.png"}},
        {"images": ["a.png"]},
        {"image": "a.png"},
        {"videos": ["a.mp4"]},
    ],
)
@pytest.mark.parametrize("form", ["messages", "conversations", "prompt", "preference"])
def test_a_row_with_images_is_broken(media: dict[str, Any], form: str, tmp_path: Path) -> None:
    asked = "<image>\nWhat is this?"
    row = {
        "messages": {"messages": [{"role": "user", "content": asked}, *said("A cat.")]},
        "conversations": {
            "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": "A cat."}]
        },
        "prompt": {"prompt": asked, "completion": "A cat."},
        "preference": {"prompt": asked, "chosen": "A cat.", "rejected": "A dog."},
    }[form]
    (name,) = media
    with pytest.raises(DataError) as caught:
        load(tmp_path, [{**row, **media}], "preference" if form == "preference" else "sft")
    assert caught.value.problems[0].message.startswith(
        f"`{name}` is filled in, and only text can be trained on"
    )


def test_a_row_that_has_no_image_or_names_one_in_passing_is_read(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "b", **media}
        for media in ({"images": []}, {"images": None}, {"image": "a.png"})
    ]
    loaded = load(tmp_path, rows)
    assert len(loaded.train) == 3
    assert loaded.ledger.sources[0].unused_columns == ["image", "images"]


def test_what_looks_like_a_part_of_the_conversation_and_is_not_used_is_said(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "b", "context": "Paris is large.", "id": 3},
        {"prompt": "a", "completion": "b", "context": ""},
        {"prompt": "Say: c", "completion": "b", "query": "Say: c"},
    ]
    entry = load(tmp_path, rows).ledger.sources[0]
    assert entry.unused_parts == {"context": 1}
    (remark,) = entry.remarks()
    assert "the column `context` says something in 1 of the first 3 rows and is not used." in remark
    as_dolly = load(
        tmp_path,
        [{"instruction": "a", "context": "Paris is large.", "response": "b"}],
        columns={"input": "context", "output": "response"},
    )
    assert as_dolly.train[0].prompt[0]["content"] == "a\n\nParis is large."
    assert as_dolly.ledger.sources[0].remarks() == []
