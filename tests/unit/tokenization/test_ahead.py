"""Rows that are rendered and tokenized together give what each gives alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from fakes import byte_tokenizer

from aligner.data.rows import CompletionRow, ConversationRow, PreferenceRow, Row, TextRow
from aligner.errors import DataError
from aligner.tokenization.ahead import answers_ahead, pairs_ahead
from aligner.tokenization.control_tokens import set_control_tokens
from aligner.tokenization.encode import encode_pair, encode_sft
from tests.unit.tokenization.test_chat_templates import FIT, conversation, tokenizer_for

TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "adds", "parameters": {}}},
]
LOSSES = ("auto", "assistant", "last_assistant", "completion", "all")


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def answers() -> list[Row]:
    talk = conversation("First.", "  Second\n", "Third <b>.")
    return [
        ConversationRow(talk, origin="rows:1"),
        ConversationRow([turn("tool", "nobody asked"), *talk], origin="rows:2"),
        ConversationRow(talk[:1], origin="rows:3"),
        CompletionRow(talk[:1], talk[1:], origin="rows:4"),
        CompletionRow("What?", "é…🙂", origin="rows:5"),
        TextRow("plain text", origin="rows:6"),
        ConversationRow([turn("assistant", "I begin."), *talk], origin="rows:7"),
        ConversationRow(talk, tools=TOOLS, origin="rows:8"),
        ConversationRow([*talk[:1], turn("assistant", "No.", weight=0), *talk], origin="rows:9"),
        ConversationRow([turn("system", "Be brief."), *talk], origin="rows:10"),
        ConversationRow([], origin="rows:11"),
    ]


def pairs() -> list[Row]:
    asked = conversation("First.", "Second.")[:-1]
    good, bad = [turn("assistant", "Good")], [turn("assistant", "Bad answer.")]
    return [
        PreferenceRow(asked, good, bad, origin="rows:1"),
        PreferenceRow("What?", "a", "ab", origin="rows:2"),
        PreferenceRow(asked, good, good, origin="rows:3"),
        PreferenceRow(asked, [*good, *asked, *bad], bad, origin="rows:4"),
        PreferenceRow([turn("tool", "x")], good, bad, origin="rows:5"),
        PreferenceRow(asked, good, bad, tools=TOOLS, origin="rows:6"),
        PreferenceRow([], good, bad, origin="rows:7"),
    ]


def outcome(encode: Any, *arguments: Any) -> Any:
    """What encoding a row gives, or the error that it raises."""
    try:
        return encode(*arguments)
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("merges", [False, True], ids=["bytes", "merges"])
@pytest.mark.parametrize("name", FIT)
def test_answers_are_the_same_together_and_alone(name: str, merges: bool) -> None:
    tokenizer, rows = tokenizer_for(name, merges), answers()
    for loss_on in LOSSES:
        chats = answers_ahead(tokenizer, lambda row, loss_on=loss_on: loss_on)
        chats.look_ahead(rows)
        for row in rows:
            alone = outcome(encode_sft, tokenizer, row, loss_on)
            assert outcome(encode_sft, tokenizer, row, loss_on, chats.of(row)) == alone, row.origin


@pytest.mark.parametrize("name", FIT)
def test_pairs_are_the_same_together_and_alone(name: str) -> None:
    tokenizer, rows = tokenizer_for(name, merges=True), pairs()
    chats = pairs_ahead(tokenizer)
    chats.look_ahead(rows)
    for row in rows:
        alone = outcome(encode_pair, tokenizer, row)
        assert outcome(encode_pair, tokenizer, row, chats.of(row)) == alone, row.origin


def test_rows_are_known_until_the_next_ones() -> None:
    tokenizer = byte_tokenizer()
    chats, rows = answers_ahead(tokenizer, lambda row: "auto"), answers()
    chats.look_ahead(rows[:1])
    assert chats.of(rows[0])
    assert not chats.of(rows[3])
    chats.look_ahead(rows[3:4])
    assert not chats.of(rows[0])
    assert chats.of(rows[3])


def test_control_tokens_as_text_are_left_to_each_row() -> None:
    tokenizer = copy.deepcopy(tokenizer_for("qwen2_5"))
    set_control_tokens(tokenizer, "as_text")
    row = ConversationRow(conversation("says <|im_end|> here"), origin="rows:1")
    chats = answers_ahead(tokenizer, lambda row: "auto")
    chats.look_ahead([row])
    assert encode_sft(tokenizer, row, "auto", chats.of(row)) == encode_sft(tokenizer, row)


class Midnight:
    """A template that writes another day at each rendering of a row by itself."""

    def __init__(self, tokenizer: Any) -> None:
        self.render, self.day = tokenizer.apply_chat_template, 0

    def __call__(self, chats: Any, **options: Any) -> Any:
        together = bool(chats) and isinstance(chats[0], list)
        if together and not options.get("tokenize", True):
            self.day += 1
            found = [self.render(chat, **options) for chat in chats]
            return [f"{self.day} {text}" for text in found]
        found = self.render(chats, **options)
        return found if options.get("tokenize", True) else f"0 {found}"


def test_a_row_whose_renderings_disagree_is_rendered_again() -> None:
    tokenizer = copy.deepcopy(tokenizer_for("qwen2_5"))
    tokenizer.apply_chat_template = Midnight(tokenizer)
    row = PreferenceRow(
        conversation("a", "b")[:-1],
        [turn("assistant", "good")],
        [turn("assistant", "bad")],
        origin="rows:1",
    )
    chats = pairs_ahead(tokenizer)
    chats.look_ahead([row])
    assert encode_pair(tokenizer, row, chats.of(row)) == encode_pair(tokenizer, row)


def test_a_refused_row_costs_its_neighbours_nothing() -> None:
    tokenizer = tokenizer_for("gemma")
    good = [ConversationRow(conversation(str(i)), origin=f"rows:{i}") for i in range(9)]
    broken: list[Row] = [ConversationRow([turn("user", "x"), *conversation("y")], origin="b")]
    chats = answers_ahead(tokenizer, lambda row: "auto")
    chats.look_ahead([*good[:5], *broken, *good[5:]])
    for row in good:
        (chat,) = chats.of(row)
        assert chat.ahead is not None
        assert chat.ahead.whole is not None or chat.ahead.marked is not None
        assert encode_sft(tokenizer, row, "auto", [chat]) == encode_sft(tokenizer, row)
    with pytest.raises(DataError):
        encode_sft(tokenizer, broken[0], "auto", chats.of(broken[0]))
