"""What a turn says of its own training is done, and what cannot be done is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aligner.config.recipe import Data
from aligner.data.loading import load_rows
from aligner.data.rows import Task
from aligner.errors import DataError
from aligner.tokenization.encode import IGNORED, encode_pair, encode_prompt, encode_sft
from tests.unit.tokenization.test_chat_templates import FIT, tokenizer_for


def load(folder: Path, row: dict[str, Any], task: Task = "sft") -> Any:
    path = folder / "x.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return load_rows(Data.model_validate({"train": str(path)}), task, seed=0).train[0]


def talk(**second: Any) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "Ask one."},
        {"role": "assistant", "content": "Answer one.", **second},
        {"role": "user", "content": "Ask two."},
        {"role": "assistant", "content": "Answer two."},
    ]


def trained(name: str, row: Any, loss_on: Any = "auto") -> str:
    encoded = encode_sft(tokenizer_for(name), row, loss_on)
    return str(tokenizer_for(name).decode([label for label in encoded.labels if label != IGNORED]))


@pytest.mark.parametrize(
    "switch",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"train": False},
        {"training": False},
        {"loss": False},
        {"loss_mask": 0},
    ],
)
def test_a_turn_that_says_no_is_not_trained(switch: dict[str, Any], tmp_path: Path) -> None:
    row = load(tmp_path, {"messages": talk(**switch)})
    assert trained("qwen2_5", row) == "Answer two.<|im_end|>"
    everything = trained("qwen2_5", row, "all")
    assert "Ask one." in everything
    assert "Answer one." not in everything


@pytest.mark.parametrize("name", FIT)
def test_weights_are_never_seen_by_a_template(name: str, tmp_path: Path) -> None:
    plain, weighted = (load(tmp_path, {"messages": talk(**extra)}) for extra in ({}, {"weight": 0}))
    tokenizer = tokenizer_for(name)
    whole, part = encode_sft(tokenizer, plain), encode_sft(tokenizer, weighted)
    assert whole.input_ids == part.input_ids
    kept = [a for a, b in zip(whole.labels, part.labels) if b == IGNORED and a != IGNORED]
    assert "Answer one." in tokenizer.decode(kept)
    assert "Answer two." not in tokenizer.decode(kept)


@pytest.mark.parametrize(
    "switch", [{"weight": 1}, {"train": True}, {"weight": None}, {"weight": 1, "train": True}]
)
def test_a_turn_that_says_yes_is_like_one_that_says_nothing(
    switch: dict[str, Any], tmp_path: Path
) -> None:
    assert load(tmp_path, {"messages": talk(**switch)}).messages == talk()


def test_sharegpt_turns_have_weights_too(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "a", "train": False},
        {"from": "function_call", "value": '{"name": "f"}', "weight": 0},
        {"from": "observation", "value": "1"},
        {"from": "gpt", "value": "b"},
    ]
    row = load(tmp_path, {"conversations": turns})
    assert [turn.get("weight") for turn in row.messages] == [0, 0, None, None]


@pytest.mark.parametrize(
    ("switch", "reason"),
    [
        (
            {"weight": 0.5},
            "`weight` of turn 2 of messages is 0.5; a turn is trained (1 or true) or not (0 or "
            "false)",
        ),
        ({"weight": "no"}, "`weight` of turn 2 of messages is 'no'"),
        ({"loss_mask": [0, 1]}, "`loss_mask` of turn 2 of messages is [0, 1]"),
        (
            {"weight": 0, "train": True},
            "to be trained and not to be trained: `weight`, `train` differ",
        ),
        (
            {"train_detail": [{"begin_offset": 0}]},
            "`train_detail`; parts of a turn cannot be trained",
        ),
    ],
)
def test_what_is_neither_yes_nor_no_is_refused(
    switch: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, {"messages": talk(**switch)})
    assert reason in caught.value.problems[0].message


def test_a_row_of_which_nothing_is_trained_is_refused(tmp_path: Path) -> None:
    row = load(
        tmp_path, {"messages": [*talk()[:1], {"role": "assistant", "content": "x", "weight": 0}]}
    )
    with pytest.raises(
        DataError, match="the answer has weight 0, so nothing of this row would be trained"
    ):
        encode_sft(tokenizer_for("qwen2_5"), row)
    last = load(
        tmp_path, {"messages": [*talk()[:3], {"role": "assistant", "content": "x", "weight": 0}]}
    )
    assert trained("qwen2_5", last) == "Answer one.<|im_end|>"
    with pytest.raises(DataError, match="has weight 0"):
        encode_sft(tokenizer_for("qwen2_5"), last, "last_assistant")


def test_another_turn_of_weight_0_cannot_be_left_out_of_everything(tmp_path: Path) -> None:
    turns = talk()
    turns[0]["train"] = False
    row = load(tmp_path, {"messages": turns})
    assert trained("qwen2_5", row) == "Answer one.<|im_end|>Answer two.<|im_end|>"
    with pytest.raises(DataError, match=r"turn 1, of the user, has weight 0, and sft\.loss_on=all"):
        encode_sft(tokenizer_for("qwen2_5"), row, "all")


def test_weights_of_a_completion_count_within_it(tmp_path: Path) -> None:
    turns = talk(weight=0)
    turns[2] = {"role": "tool", "content": "3"}
    row = load(tmp_path, {"prompt": turns[:1], "completion": turns[1:]})
    assert trained("qwen2_5", row) == "Answer two.<|im_end|>"


def test_pairs_take_no_notice_of_weights_in_what_comes_before(tmp_path: Path) -> None:
    sides = {
        "chosen": [*talk(weight=0)[:3], {"role": "assistant", "content": "a", "weight": 1}],
        "rejected": [*talk()[:3], {"role": "assistant", "content": "b"}],
    }
    row = load(tmp_path, sides, "preference")
    assert row.prompt == talk()[:3]
    assert encode_pair(tokenizer_for("qwen2_5"), row).prompt_ids == encode_prompt(
        tokenizer_for("qwen2_5"), talk()[:3]
    )
    sides["rejected"][-1]["weight"] = 0
    with pytest.raises(DataError, match="rejected holds a turn of weight 0"):
        load(tmp_path, sides, "preference")


def test_prompts_have_no_weights(tmp_path: Path) -> None:
    assert load(tmp_path, {"messages": talk(weight=0)}, "prompts").prompt == talk()[:3]
    assert load(tmp_path, {"prompt": talk(weight=0)[:3]}, "prompts").prompt == talk()[:3]
