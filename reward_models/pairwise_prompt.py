"""How a language model is asked which of two answers is better: the text of the question, and the
tokens of A and B.

The form is that of the pairwise preference model of "RLHF Workflow" (arXiv 2405.07863): one user
turn with context and both answers, and the answer is the single letter. The markers of the form are
written with round brackets where they occur in a text, so that an answer cannot speak for the other
one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aligner.data.rows import Messages, PreferenceRow, as_turns
from aligner.errors import RecipeError
from aligner.tokenization.chat_template import has_template
from aligner.tokenization.encode import encode_pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = re.compile(r"\[(CONTEXT|RESPONSE [AB])\]")


@dataclass(frozen=True, slots=True)
class PairwisePrompt:
    """Ids up to the place that predicts the letter, and the ids of both letters there."""

    input_ids: list[int]
    first_id: int
    second_id: int


def question_text(prompt: str | Messages, first: str, second: str) -> str:
    """Return the question as one text: the conversation so far, answer A and answer B.

    One newline between turns and one behind them, as the authors' template *renders*: Jinja, as
    transformers sets it up, drops the newline behind each of its tags, and the last one of a
    template.
    """
    turns = as_turns(prompt, "user")
    context = "".join(f"\n<turn> {turn['role']}\n {_plain(str(turn['content']))}" for turn in turns)
    return f"[CONTEXT] \n{context}\n [RESPONSE A] {_plain(first)} [RESPONSE B] {_plain(second)} \n"


def encode_question(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    first: str,
    second: str,
    origin: str = "",
) -> PairwisePrompt:
    """Return the question as token ids, with the letters as they are written at that place ("A" and
    " A" differ).

    Raises: RecipeError when the letters are the same token to this tokenizer, or when it has no
    chat template to ask in.
    """
    if not has_template(tokenizer):
        raise RecipeError(
            "a pairwise model is asked in a turn of a chat, and the tokenizer has no chat template",
            "name one with model.chat_template (a Jinja file, or a name such as qwen3)",
        )
    asked: Messages = [{"role": "user", "content": question_text(prompt, first, second)}]
    letters: list[Messages] = [[{"role": "assistant", "content": letter}] for letter in "AB"]
    pair = encode_pair(tokenizer, PreferenceRow(asked, letters[0], letters[1], origin=origin))
    for place, (a, b) in enumerate(zip(pair.chosen_ids, pair.rejected_ids)):
        if a != b:
            return PairwisePrompt([*pair.prompt_ids, *pair.chosen_ids[:place]], a, b)
    raise RecipeError(
        "the tokenizer writes A and B as the same token", "a pairwise model needs another tokenizer"
    )


def length_of_answers(tokenizer: PreTrainedTokenizerBase, first: str, second: str) -> int:
    """Return the tokens of a question that asks about nothing: what a cut must leave for both
    answers to be whole."""
    return len(encode_question(tokenizer, "", first, second).input_ids)


def _plain(text: str) -> str:
    return _MARK.sub(r"(\1)", text)
