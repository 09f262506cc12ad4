"""Rows that set variables of the chat template: what is rendered, trained, shown and refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes import byte_tokenizer, write_jsonl

from aligner.config.recipe import Data
from aligner.data.convert import meaning, written
from aligner.data.loading import load_rows
from aligner.data.mapping import map_row
from aligner.data.rows import CompletionRow, ConversationRow, PreferenceRow, refuse_tools
from aligner.errors import DataError
from aligner.tokenization import chat_template
from aligner.tokenization.ahead import answers_ahead, pairs_ahead
from aligner.tokenization.chat_template import Conversation, facts_of
from aligner.tokenization.encode import (
    IGNORED,
    encode_pair,
    encode_prompt,
    encode_sft,
    length_of,
)
from aligner.tokenization.unread_keys import unread_of
from tests.unit.tokenization.test_chat_templates import conversation, tokenizer_for, trained

THINKS = """\
{{- bos_token -}}{{- '<start>system\\n' + (style or 'plain') + eos_token -}}
{%- for message in messages -%}
{{- '<start>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' and enable_thinking is defined and not enable_thinking -%}
{{- '(quiet) ' -}}
{%- endif -%}
{{- message.content + eos_token -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<start>assistant\\n' -}}
{%- if enable_thinking is defined and not enable_thinking -%}{{- '(quiet) ' -}}{%- endif -%}
{%- endif -%}
"""
VARIABLES: Sequence[dict[str, Any]] = (
    {},
    {"enable_thinking": True},
    {"enable_thinking": False},
    {"enable_thinking": False, "style": "short"},
    {"style": "long"},
)


def row_with(variables: dict[str, Any], *answers: str) -> ConversationRow:
    return ConversationRow(
        conversation(*answers), origin="rows:1", chat_template_kwargs=variables or None
    )


@pytest.mark.parametrize("variables", VARIABLES)
@pytest.mark.parametrize("name", ["own", "qwen3", "qwen3_training", "glm4moe_training", "qwen3_8"])
def test_a_row_is_rendered_with_its_variables(name: str, variables: dict[str, Any]) -> None:
    tokenizer = byte_tokenizer(THINKS) if name == "own" else tokenizer_for(name)
    row = row_with(variables, "one", "two")
    encoded = encode_sft(tokenizer, row)
    whole = tokenizer.apply_chat_template(row.messages, return_dict=True, **variables)
    assert encoded.input_ids == whole["input_ids"]
    assert length_of(tokenizer, row) == len(encoded.input_ids)
    spans = trained(tokenizer, encoded)
    stop = tokenizer.decode([facts_of(tokenizer, variables).stop])
    assert [span.endswith(f"{answer}{stop}") for span, answer in zip(spans, ("one", "two"))] == [
        True,
        True,
    ]
    if name == "own":  # what opens an answer is given, not learned
        assert spans == [f"one{stop}", f"two{stop}"]
        opened = encode_prompt(tokenizer, row.messages[:-1], None, variables)
        assert encoded.input_ids[: len(opened)] == opened
        assert encoded.labels[len(opened) - 1 : len(opened) + 1] == [
            IGNORED,
            encoded.input_ids[len(opened)],
        ]


@pytest.mark.parametrize("variables", VARIABLES)
def test_a_pair_is_rendered_with_its_variables(variables: dict[str, Any]) -> None:
    tokenizer = byte_tokenizer(THINKS)
    prompt = [{"role": "user", "content": "q"}]
    sides = [[{"role": "assistant", "content": text}] for text in ("good", "bad")]
    row = PreferenceRow(prompt, *sides, chat_template_kwargs=variables or None)
    pair = encode_pair(tokenizer, row)
    for side, ids in zip(sides, (pair.chosen_ids, pair.rejected_ids)):
        whole = tokenizer.apply_chat_template([*prompt, *side], return_dict=True, **variables)
        assert pair.prompt_ids + ids == whole["input_ids"]
    assert pair.prompt_ids == encode_prompt(tokenizer, prompt, None, variables)


def test_rows_with_variables_and_without_are_encoded_together_as_one_by_one() -> None:
    tokenizer = byte_tokenizer(THINKS)
    rows = [row_with(variables, "one", "two") for variables in VARIABLES * 2]
    chats = answers_ahead(tokenizer, lambda _: "auto")
    chats.look_ahead(rows)
    assert [bool(chats.of(row)) for row in rows] == [not one for one in VARIABLES * 2]
    for row in rows:
        assert encode_sft(tokenizer, row, ready=chats.of(row)) == encode_sft(tokenizer, row)
    pairs = [
        PreferenceRow("q", "good", "bad", chat_template_kwargs=one or None) for one in VARIABLES
    ]
    chats = pairs_ahead(tokenizer)
    chats.look_ahead(pairs)
    found = [encode_pair(tokenizer, pair, chats.of(pair)) for pair in pairs]
    assert found == [encode_pair(tokenizer, pair) for pair in pairs]
    assert len({tuple(pair.prompt_ids) for pair in found}) == 4


def test_facts_of_many_variables_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MOST_FACTS", 3)
    tokenizer = byte_tokenizer(THINKS)
    for number in range(9):
        encode_sft(tokenizer, row_with({"style": f"s{number}"}, "a"))
    assert len(chat_template._FACTS[tokenizer]) <= 3


def test_variables_that_make_a_template_unfit_name_the_row() -> None:
    broken = THINKS.replace("{{- bos_token -}}", "{{- bos_token + ('' if ok else none) -}}", 1)
    tokenizer = byte_tokenizer(
        "{%- if ok is not defined -%}{%- set ok = true -%}{%- endif -%}" + broken
    )
    assert encode_sft(tokenizer, row_with({}, "a"))
    with pytest.raises(
        DataError, match="rows:1: with the variables of this row, the chat template"
    ):
        encode_sft(tokenizer, row_with({"ok": False}, "a"))
    row = CompletionRow("q", "a", "rows:1", chat_template_kwargs={"x": 1})
    with pytest.raises(
        DataError, match="has `chat_template_kwargs`, and the tokenizer has no chat"
    ):
        encode_sft(byte_tokenizer(None), row)


def test_control_tokens_in_a_variable_are_text_where_they_are_to_be() -> None:
    from aligner.tokenization.control_tokens import found_in, pattern_of, set_control_tokens

    tokenizer = byte_tokenizer(THINKS)
    row = row_with({"style": "say <eos> twice"}, "a")
    assert found_in(pattern_of(tokenizer), row) == {"<eos>": 1}
    before = encode_sft(tokenizer, row).input_ids.count(tokenizer.eos_token_id)
    set_control_tokens(tokenizer, "as_text")
    assert encode_sft(tokenizer, row).input_ids.count(tokenizer.eos_token_id) == before - 1


def test_a_variable_that_the_template_does_not_read_is_counted() -> None:
    tokenizer = byte_tokenizer(THINKS)
    row = row_with({"enable_thinking": True, "python_tools": [], "style": ""}, "a")
    assert dict(unread_of(tokenizer, row)) == {"`python_tools` of `chat_template_kwargs`": 1}


# --- rows -----------------------------------------------------------------------------------------

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
RAW: dict[str, dict[str, Any]] = {
    "messages": {"messages": TALK},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "prompt_completion": {"prompt": "q", "completion": "a"},
    "alpaca": {"instruction": "q", "output": "a"},
    "preference": {"prompt": "q", "chosen": "a", "rejected": "b"},
}
SET = {"enable_thinking": False, "python_tools": ["f"]}


@pytest.mark.parametrize("value", [SET, '{"enable_thinking": false, "python_tools": ["f"]}'])
@pytest.mark.parametrize("form", RAW)
def test_each_form_takes_the_column_and_gives_it_back(form: str, value: Any) -> None:
    task = "preference" if form == "preference" else "sft"
    read = partial(map_row, form=form, task=task, origin="rows:1")
    row = read({**RAW[form], "chat_template_kwargs": value})
    assert row.chat_template_kwargs == SET
    assert written(row, form)["chat_template_kwargs"] == SET
    assert meaning(row) != meaning(read(RAW[form]))
    assert meaning(read(written(row, form))) == meaning(row)


@pytest.mark.parametrize("value", [None, {}, "", {"enable_thinking": None}])
def test_nothing_and_nulls_are_absent(value: Any) -> None:
    row = map_row({"messages": TALK, "chat_template_kwargs": value}, "messages", "sft", "rows:1")
    assert not row.chat_template_kwargs


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1], "chat_template_kwargs is a list, not an object"),
        ("{", "chat_template_kwargs is a string that is not JSON"),
        ('{"a": 1, "a": 2}', "in chat_template_kwargs, "),
        ({"chat_template": "{{ x }}"}, "sets `chat_template`, which is not for a row to say"),
        ({"add_generation_prompt": True}, "sets `add_generation_prompt`"),
        ({"tools": []}, "sets `tools`"),
    ],
)
def test_what_is_no_set_of_variables_makes_a_row_broken(
    value: Any, said: str, tmp_path: Path
) -> None:
    rows = [{"messages": TALK}, {"messages": TALK, "chat_template_kwargs": value}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load_rows(Data(train=str(path)), "sft", 0)
    (problem,) = caught.value.problems
    assert problem.where == f"{path}:2"
    assert said in problem.message


def test_where_variables_are_not_read_it_is_said(tmp_path: Path) -> None:
    row = {"messages": TALK[:1], "chat_template_kwargs": SET}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    loaded = load_rows(Data(train=str(path)), "prompts", 0)
    assert "`chat_template_kwargs`" in " ".join(loaded.ledger.remarks())
    path = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "q", "chat_template_kwargs": SET}])
    loaded = load_rows(Data(train=str(path)), "prompts", 0)
    assert "`chat_template_kwargs`" in " ".join(loaded.ledger.remarks())
    with pytest.raises(DataError, match="`chat_template_kwargs`, and a reward model is asked"):
        refuse_tools([row_with(SET, "a")], "a reward model")


def test_a_turn_is_counted_and_shown_with_the_variables_of_its_row() -> None:
    from aligner.methods.show import encode_as_is
    from aligner.tokenization.row_view import RowViewer

    tokenizer = byte_tokenizer(THINKS)
    row = row_with({"enable_thinking": False}, "one")
    shown = RowViewer(tokenizer, encode_as_is(tokenizer)).show(row)
    assert "(quiet) " in "".join(token.text for token in shown.sequences[0].tokens)
    assert sum(turn.tokens for turn in shown.turns) == len(shown.sequences[0].tokens)
    assert shown.turns[-1].trained == len("one") + 1
    chat = Conversation.of_row(tokenizer, row.messages, row)
    assert chat.text(row.messages).count("(quiet)") == 1
