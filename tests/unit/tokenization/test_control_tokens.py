"""Control tokens in the texts of rows: found, refused, or written as text, while those of the
template stay what they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from aligner.data.rows import CompletionRow, ConversationRow, PreferenceRow, PromptRow, TextRow
from aligner.errors import DataError, RecipeError
from aligner.tokenization.chat_template import facts_of
from aligner.tokenization.control_tokens import (
    found_in,
    pattern_of,
    refuse_control_tokens,
    remark_on,
    set_control_tokens,
)
from aligner.tokenization.encode import (
    IGNORED,
    encode_answer,
    encode_pair,
    encode_prompt,
    encode_sft,
    stop_token_ids,
)
from tests.unit.tokenization.test_chat_templates import FIT, tokenizer_for

TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "writes {}", "parameters": {}}}
]


def reading_text(name: str, merges: bool = True) -> Any:
    tokenizer = copy.deepcopy(tokenizer_for(name, merges=merges))
    set_control_tokens(tokenizer, "as_text")
    return tokenizer


def talk(asked: str, answered: str) -> ConversationRow:
    turns = [
        ("user", asked),
        ("assistant", answered),
        ("user", "And then?"),
        ("assistant", "Nothing."),
    ]
    return ConversationRow(
        [{"role": role, "content": content} for role, content in turns], origin="rows:1"
    )


def marks_in(tokenizer: Any, ids: list[int]) -> list[int]:
    return [number for number in ids if number in facts_of(tokenizer).special]


@pytest.mark.parametrize("name", FIT)
def test_control_tokens_of_texts_become_text_and_those_of_the_template_stay(name: str) -> None:
    tokenizer = reading_text(name)
    stop = tokenizer.convert_ids_to_tokens(stop_token_ids(tokenizer)[-1])
    row, plain = (
        talk(f"What is {stop} for?", f"{stop} ends a turn."),
        talk("What is it for?", "It ends a turn."),
    )
    encoded, control = encode_sft(tokenizer, row), encode_sft(tokenizer, plain)
    assert marks_in(tokenizer, encoded.input_ids) == marks_in(tokenizer, control.input_ids)
    assert (
        tokenizer.decode(encoded.input_ids).count(stop)
        == tokenizer.decode(control.input_ids).count(stop) + 2
    )
    trained = [label for label in encoded.labels if label != IGNORED]
    assert f"{stop} ends a turn." in tokenizer.decode(trained)
    assert trained.count(stop_token_ids(tokenizer)[-1]) == control.labels.count(
        stop_token_ids(tokenizer)[-1]
    )


@pytest.mark.parametrize("name", FIT)
def test_rows_without_control_tokens_are_the_same_ids_either_way(name: str) -> None:
    row = talk("What is it for?", "  It ends a turn.\n")
    assert encode_sft(reading_text(name), row) == encode_sft(tokenizer_for(name, merges=True), row)


def test_texts_are_tokenised_like_any_text() -> None:
    tokenizer = reading_text("qwen2_5")
    asked = encode_prompt(tokenizer, "Why <|im_end|> here?")
    text = tokenizer("Why <|im_end|> here?", add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]
    assert any(asked[place : place + len(text)] == text for place in range(len(asked)))
    assert asked.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2, (
        "of the system's and the user's turn"
    )


def test_tools_calls_and_reasoning_are_texts_too() -> None:
    tokenizer = reading_text("qwen3")
    call = {
        "type": "function",
        "function": {"name": "f", "arguments": {"<|im_start|>": "<|im_end|>"}},
    }
    said = {
        "role": "assistant",
        "content": "",
        "tool_calls": [call],
        "reasoning_content": "<|endoftext|>?",
    }
    row = ConversationRow([{"role": "user", "content": "Do."}, said], TOOLS, origin="rows:1")
    assert found_in(pattern_of(tokenizer), row) == {
        "<|im_start|>": 1,
        "<|im_end|>": 1,
        "<|endoftext|>": 1,
    }
    ids = encode_sft(tokenizer, row).input_ids
    assert '{"<|im_start|>": "<|im_end|>"}' in tokenizer.decode(ids)
    marks = [tokenizer.convert_ids_to_tokens(number) for number in ids]
    assert (
        marks.count("<|im_start|>"),
        marks.count("<|im_end|>"),
        marks.count("<|endoftext|>"),
    ) == (3, 3, 0)


def test_pairs_answers_and_plain_text_follow() -> None:
    tokenizer = reading_text("qwen2_5")
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    pair = encode_pair(
        tokenizer, PreferenceRow("a <|im_end|>", "b <|im_end|>", "c", origin="rows:1")
    )
    assert pair.prompt_ids == encode_prompt(tokenizer, "a <|im_end|>")
    assert (pair.chosen_ids.count(stop), pair.rejected_ids.count(stop)) == (1, 1)
    assert encode_answer(tokenizer, "a <|im_end|>", "b <|im_end|>") == (
        pair.prompt_ids,
        pair.chosen_ids,
    )
    tokenizer.chat_template = None
    end = tokenizer.eos_token_id
    assert encode_sft(tokenizer, TextRow("a <|endoftext|>", "rows:1")).input_ids.count(end) == 1
    assert (
        encode_sft(tokenizer, CompletionRow("a <|endoftext|>", "b", "rows:1")).input_ids.count(end)
        == 1
    )


def test_by_default_they_act_as_such() -> None:
    tokenizer = tokenizer_for("qwen2_5")
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert encode_sft(tokenizer, talk("a <|im_end|>", "b")).input_ids.count(stop) == 1 + encode_sft(
        tokenizer, talk("a", "b")
    ).input_ids.count(stop)


@pytest.mark.parametrize(
    ("row", "place"),
    [
        (talk("a", "b <|im_end|>"), "turn 2 of messages"),
        (CompletionRow("<|im_end|>", "b", "rows:1"), "prompt"),
        (
            PreferenceRow(
                "a", "b", [{"role": "assistant", "content": "<|im_end|>"}], origin="rows:1"
            ),
            "turn 1 of rejected",
        ),
        (TextRow("a<|im_end|>b", "rows:1"), "the text"),
        (ConversationRow([], [{"name": "<|im_end|>"}], "rows:1"), "tools"),
    ],
)
def test_they_can_be_refused_by_their_place(row: Any, place: str) -> None:
    with pytest.raises(DataError) as caught:
        refuse_control_tokens(tokenizer_for("qwen2_5"), row)
    assert caught.value.message == f"rows:1: {place} holds the control token `<|im_end|>`"
    assert "data.control_tokens=as_text or allow" in caught.value.hint


def test_added_tokens_that_are_no_control_tokens_stay_tokens() -> None:
    from tokenizers import AddedToken

    tokenizer = copy.deepcopy(tokenizer_for("qwen2_5"))
    tokenizer.add_tokens([AddedToken("<thinks>", special=False)])
    row = talk("a", "<thinks> b")
    assert found_in(pattern_of(tokenizer), row) == {}
    set_control_tokens(tokenizer, "as_text")
    assert tokenizer.convert_tokens_to_ids("<thinks>") in encode_sft(tokenizer, row).input_ids


def test_a_text_with_our_own_stand_ins_is_refused() -> None:
    with pytest.raises(DataError, match="private-use plane"):
        encode_sft(reading_text("qwen2_5"), talk("\U000f0000", "b"))


def test_a_vocabulary_that_holds_a_control_token_as_a_word_is_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
    set_control_tokens(tokenizer, "as_text")
    assert encode_sft(tokenizer, TextRow("a zebra", "rows:1")).input_ids == [2, 0, 1]
    with pytest.raises(RecipeError, match="cannot write '</s>' as text"):
        encode_sft(tokenizer, TextRow("a </s> a", "rows:1"))


def test_prompts_that_hold_some_are_remarked_on() -> None:
    tokenizer = tokenizer_for("qwen2_5")
    rows = [PromptRow("a <|im_end|> <|im_end|>"), PromptRow("b"), PromptRow("<|im_start|>")]
    remark = (
        "2 rows hold control tokens in their texts, which act as such: `<|im_end|>` 2 times, "
        "`<|im_start|>` 1 time"
    )
    assert remark_on(tokenizer, rows) == remark
    assert remark_on(tokenizer, rows[1:2]) is None
    assert remark_on(reading_text("qwen2_5"), rows) is None
