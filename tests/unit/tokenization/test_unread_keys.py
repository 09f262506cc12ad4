"""What a chat template leaves out of a row is counted; what it reads is not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from aligner.data.ledger import Ledger, SplitLedger
from aligner.data.rows import CompletionRow, ConversationRow, PreferenceRow
from aligner.tokenization.unread_keys import unread_beside_text, unread_of
from tests.unit.tokenization.test_chat_templates import tokenizer_for

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {}}}
]


def user(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def said(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def lost(name: str, messages: list[dict[str, Any]], tools: Any = None) -> dict[str, int]:
    return dict(unread_of(tokenizer_for(name), ConversationRow(messages, tools, origin="rows:1")))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("qwen3", {"`reasoning_content`": 1}),
        ("qwen2_5", {"`reasoning_content`": 2}),
        ("qwen3_8", {}),
    ],
)
def test_reasoning_is_counted_in_those_turns_in_which_the_template_drops_it(
    name: str, wanted: dict[str, int]
) -> None:
    turns = [
        user("a"),
        said("b", reasoning_content="early"),
        user("c"),
        said("d", reasoning_content="late"),
    ]
    assert lost(name, turns) == wanted


def test_thinking_inside_of_texts_is_counted_where_it_is_dropped() -> None:
    thinking = "<think>\nhow so\n</think>\n\nb"
    assert lost("qwen3", [user("a"), said(thinking), user("c"), said(thinking)]) == {
        "thinking in the text": 1
    }
    assert lost("qwen2_5", [user("a"), said(thinking), user("c"), said(thinking)]) == {}
    assert lost("qwen3", [user("a"), said("<think>\n\n</think>\n\nb"), user("c"), said("d")]) == {}
    assert lost("qwen3", [user("a"), said("how so\n</think>\n\nb"), user("c"), said("d")]) == {
        "thinking in the text": 1
    }


def test_names_tools_and_results_that_a_template_does_not_write_are_counted() -> None:
    turns = [
        user("a", name="Ann"),
        said("", tool_calls=[CALL]),
        {"role": "tool", "content": "drizzle", "tool_call_id": "c1"},
        said("b"),
    ]
    assert lost("qwen2_5", turns, TOOLS) == {"`name`": 1}
    assert lost("phi3", turns, TOOLS) == {
        "`name`": 1,
        "`tool_calls`": 1,
        "text of the tool": 1,
        "the column `tools`": 1,
    }


def test_a_weight_of_another_than_the_assistant_is_counted_unless_everything_is_trained() -> None:
    row = ConversationRow([user("a", weight=1), said("b")])
    note = "`weight` 1 of the user (only the assistant's turns are trained)"
    assert unread_of(tokenizer_for("qwen2_5"), row) == {note: 1}
    assert unread_of(tokenizer_for("qwen2_5"), row, trains_all=True) == {}
    assert lost("qwen2_5", [user("a", weight=0), said("b", weight=0), user("c"), said("d")]) == {}


def test_the_prompt_of_a_pair_is_counted_once() -> None:
    asked = [user("a", name="Ann")]
    row = PreferenceRow(asked, [said("b", mood="good")], [said("c", mood="bad")], origin="rows:1")
    assert unread_of(tokenizer_for("qwen2_5"), row) == {"`name`": 1, "`mood`": 2}
    assert unread_beside_text(row) == {"`name`": 1, "`mood`": 2}
    assert unread_beside_text(row, only_answer=True) == {"`mood`": 2}


def test_plain_rows_have_nothing_to_lose() -> None:
    assert unread_of(tokenizer_for("qwen2_5"), CompletionRow("a", "b")) == {}
    assert (
        lost("qwen2_5", [{"role": "system", "content": " Be brief. "}, user("a"), said("b")]) == {}
    )


def test_the_ledger_sums_it_up() -> None:
    books = SplitLedger()
    for found in (
        Counter({"`name`": 1, "`mood`": 2}),
        Counter({"`mood`": 1, "the column `tools`": 1}),
    ):
        books.note_unread(found)
    assert (
        "train not read",
        "`mood` in 3 turns, `name` in 1 turn, the column `tools` in 1 row",
    ) in books.table("train")
    ledger = Ledger(splits={"train": books})
    assert ledger.to_json()["splits"]["train"]["unread"] == {
        "`mood`": 3,
        "`name`": 1,
        "the column `tools`": 1,
    }
