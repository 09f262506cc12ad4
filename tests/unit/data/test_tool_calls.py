"""Calls of tools: every form that they come in becomes one, and what is not a call is named by row,
turn and call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aligner.config.recipe import Data
from aligner.data.loading import load_rows
from aligner.data.rows import ConversationRow, PreferenceRow
from aligner.errors import DataError
from aligner.tokenization.call_arguments import wants_text
from aligner.tokenization.encode import encode_pair, encode_sft
from tests.unit.tokenization.test_chat_templates import FIT, tokenizer_for

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1, "city": None}}}
FUNCTION = CALL["function"]
assert isinstance(FUNCTION, dict)
IN_TEXT = {"name": "f", "arguments": json.dumps(FUNCTION["arguments"])}


def load(path: Path, turn: dict[str, Any], form: str = "messages") -> Any:
    question = {"role": "user", "content": "And now?"}
    if form == "conversations":
        question = {"from": "human", "value": "And now?"}
    path.write_text(json.dumps({form: [question, turn]}) + "\n", encoding="utf-8")
    return load_rows(Data.model_validate({"train": str(path)}), "sft", seed=0).train[0].messages[1]


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        [{"type": "function", "function": IN_TEXT}],
        [{"function": FUNCTION}],
        [FUNCTION],
        [IN_TEXT],
        [{"name": "f", "parameters": FUNCTION["arguments"]}],
        [{"type": "function", "function": "f", "arguments": IN_TEXT["arguments"]}],
        json.dumps([CALL]),
        [json.dumps(CALL)],
    ],
)
def test_every_form_of_a_call_becomes_the_same_one(calls: Any, tmp_path: Path) -> None:
    turn = load(tmp_path / "x.jsonl", {"role": "assistant", "content": None, "tool_calls": calls})
    assert turn == {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize("arguments", [None, "", "{}", {}])
def test_a_call_without_arguments_has_an_empty_object(arguments: Any, tmp_path: Path) -> None:
    calls = [{"id": "c1", "function": {"name": "f", "arguments": arguments}}]
    turn = load(tmp_path / "x.jsonl", {"role": "assistant", "tool_calls": calls})
    assert turn["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {}}}
    ]


def test_the_older_form_of_a_call_and_its_result_are_calls_and_results_of_tools(
    tmp_path: Path,
) -> None:
    rows = {
        "messages": [
            {"role": "user", "content": "And now?"},
            {"role": "assistant", "content": None, "function_call": IN_TEXT},
            {"role": "function", "name": "f", "content": "3"},
            {"role": "assistant", "content": "Three."},
        ],
        "functions": [{"name": "f", "parameters": {}}],
    }
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    row = load_rows(Data.model_validate({"train": str(path)}), "sft", seed=0).train[0]
    assert row.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert row.messages[2] == {"role": "tool", "name": "f", "content": "3"}
    assert row.tools == [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def test_a_turn_of_sharegpt_may_speak_several_calls(tmp_path: Path) -> None:
    said = json.dumps([FUNCTION, {"name": "g", "arguments": "{}"}])
    path = tmp_path / "x.jsonl"
    turns = [
        {"from": "human", "value": "And now?"},
        {"from": "function_call", "value": said},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "Three."},
    ]
    path.write_text(json.dumps({"conversations": turns}) + "\n", encoding="utf-8")
    row = load_rows(Data.model_validate({"train": str(path)}), "sft", seed=0).train[0]
    assert [call["function"]["name"] for call in row.messages[1]["tool_calls"]] == ["f", "g"]


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ({"name": "f"}, "tool_calls of turn 2 of messages is an object, not a list of calls"),
        ("f(x)", "tool_calls of turn 2 of messages is text, not a list of calls"),
        (3, "tool_calls of turn 2 of messages is a number, not a list of calls"),
        ([None], "turn 2 of messages is a function call that is not a JSON object"),
        (
            [{"id": "c1", "type": "function"}],
            "turn 2 of messages is a tool call without the `name` of a function",
        ),
        (
            [{"function": {"arguments": {}}}],
            "turn 2 of messages is a tool call without the `name` of a function",
        ),
        (
            [{"function": None}],
            "turn 2 of messages is a tool call whose `function` is null, not an object",
        ),
        (
            [{"function": {"name": 7}}],
            "the name of the function that turn 2 of messages calls is a number, not text",
        ),
        (
            [{"function": {"name": " "}}],
            "the name of the function that turn 2 of messages calls is empty",
        ),
        (
            [{"name": "f", "arguments": "x=1"}],
            "the arguments of `f` in turn 2 of messages are text that is not JSON: 'x=1'",
        ),
        ([{"name": "f", "arguments": json.dumps("{}")}], "they were encoded twice"),
        (
            [{"name": "f", "arguments": [1]}],
            "the arguments of `f` in turn 2 of messages are a list, not an object",
        ),
        (
            [{"name": "f", "arguments": "3"}],
            "the arguments of `f` in turn 2 of messages are a number, not an object",
        ),
        (
            [CALL, {"name": "g", "arguments": 1}],
            "the arguments of `g` in call 2 of turn 2 of messages are a number",
        ),
        (
            [{"type": "custom", "custom": {}}],
            "is a tool call of the type 'custom'; only calls of functions",
        ),
    ],
)
def test_what_is_no_call_is_named_by_row_turn_and_call(
    calls: Any, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.jsonl"
    with pytest.raises(DataError) as caught:
        load(path, {"role": "assistant", "content": "", "tool_calls": calls})
    (problem,) = caught.value.problems
    assert problem.where == f"{path}:1"
    assert reason in problem.message


def test_both_forms_of_a_call_in_one_turn_are_refused(tmp_path: Path) -> None:
    turn = {"role": "assistant", "tool_calls": [CALL], "function_call": FUNCTION}
    with pytest.raises(DataError, match="both `tool_calls` and `function_call`"):
        load(tmp_path / "x.jsonl", turn)


def test_tools_that_are_no_objects_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path.write_text(
        json.dumps({"messages": turns, "tools": [{"name": "f"}, "g"]}) + "\n", encoding="utf-8"
    )
    with pytest.raises(DataError, match="tool 2 of tools is text, not an object"):
        load_rows(Data.model_validate({"train": str(path)}), "sft", seed=0)


def test_of_the_templates_of_trl_one_wants_arguments_as_text() -> None:
    assert [name for name in FIT if wants_text(tokenizer_for(name))] == ["deepseekv3"]


@pytest.mark.parametrize("name", ["deepseekv3", "qwen2_5", "qwen3", "llama3_1", "gptoss"])
def test_json_arguments_are_written_once_and_letters_stay_letters(name: str) -> None:
    tokenizer = tokenizer_for(name)
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": "Köln", "n": 2}}}
    turns = [
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    text = tokenizer.decode(
        encode_sft(tokenizer, ConversationRow(turns, origin="rows:1")).input_ids
    )
    assert '{"city": "Köln", "n": 2}' in text


def test_a_pair_whose_call_the_template_leaves_out_is_refused() -> None:
    asked = [{"role": "user", "content": "And now?"}]
    sides = [
        [{"role": "assistant", "content": "", "tool_calls": [call]}]
        for call in (CALL, {**CALL, "id": "c2"})
    ]
    with pytest.raises(DataError, match="writes nothing of the tool call 'f' in turn 2"):
        encode_pair(
            tokenizer_for("llama3"), PreferenceRow(asked, sides[0], sides[1], origin="rows:1")
        )
