"""The toy world's tokenizer: nothing lost, one BOS, and a mask that holds the answers and their
stop tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from aligner.toy.tokenizer import BOS, END, PAD, RESERVED, ROLES, build_tokenizer

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "sort: dbca; count"},
    {"role": "assistant", "content": "abcd\n4"},
    {"role": "user", "content": "copy: z"},
    {"role": "assistant", "content": "z"},
]


@pytest.fixture(params=["built", "loaded"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedTokenizerBase:
    built = build_tokenizer()
    if request.param == "built":
        return built
    built.save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_the_mask_holds_exactly_the_answers_with_their_stop_tokens(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    encoded = tokenizer.apply_chat_template(
        TALK, return_dict=True, return_assistant_tokens_mask=True
    )
    trained = [
        token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"]) if mask
    ]
    assert tokenizer.decode(trained) == f"abcd\n4{END}z{END}"


def test_a_conversation_and_a_plain_text_have_one_bos_each(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert (
        tokenizer.apply_chat_template(TALK, return_dict=True)["input_ids"].count(
            tokenizer.bos_token_id
        )
        == 1
    )
    assert tokenizer("plain text")["input_ids"].count(tokenizer.bos_token_id) == 1


def test_the_prompt_is_a_prefix_of_the_whole_conversation(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    prompt = tokenizer.apply_chat_template(TALK[:2], add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    assert (
        tokenizer.apply_chat_template(TALK, return_dict=True)["input_ids"][: len(prompt)] == prompt
    )


@pytest.mark.parametrize(
    "text",
    ["sort: dbca", " two  blanks\n\n", "naïve 3 € \N{GRINNING FACE}\t\x00", "don't , stop ."],
)
def test_any_text_survives(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text.encode())


def test_special_tokens_are_single_and_apart(tokenizer: PreTrainedTokenizerBase) -> None:
    special = [PAD, BOS, END, *ROLES, *RESERVED]
    ids = [tokenizer(token, add_special_tokens=False)["input_ids"] for token in special]
    assert ids == [[number] for number in range(len(special))]
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == (PAD, BOS, END)
    assert tokenizer.decode([number for (number,) in ids], skip_special_tokens=True) == ""


def test_an_unknown_role_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(TemplateError, match="unknown role narrator"):
        tokenizer.apply_chat_template([{"role": "narrator", "content": "once"}])
