"""Where a chat template lets the user speak: what it writes before a user's words and behind them.

A model that is aligned continues the first with what users ask (Magpie, arXiv 2406.08464). Found by
rendering a word that no template has, so that we keep no list of templates; what the template adds
by itself, such as a system prompt, is part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aligner.data.rows import Messages
from aligner.errors import RecipeError
from aligner.tokenization.chat_template import Conversation, has_template, text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD = "Qzwxv7Kjqzx"
HINT = "choose a chat model, or another template"


@dataclass(frozen=True)
class UserTurn:
    """`ids` and `text` end where a user's words begin. `ends`: what stands behind them, and what
    ends any text. `control`: tokens that are no part of a text."""

    ids: tuple[int, ...]
    text: str
    ends: tuple[str, ...]
    control: frozenset[str]


def user_turn(tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> UserTurn:
    """Return where the first user's turn begins, below a system prompt where one is given.

    Raises: RecipeError where the template does not write what a user says once and as it is, or
    nothing behind it; DataError where it refuses a system prompt.
    """
    if not has_template(tokenizer):
        raise RecipeError("the tokenizer has no chat template, so nobody speaks as a user", HINT)
    head: Messages = [] if system is None else [{"role": "system", "content": system}]
    turns = [*head, {"role": "user", "content": WORD}]
    before, *behind = Conversation(tokenizer, turns).text(turns, opened=True).split(WORD)
    if len(behind) != 1:
        raise RecipeError(
            f"the chat template writes what a user says {len(behind)} times, so it has no one "
            "place for it",
            HINT,
        )
    before = before.rstrip(" ")  # a blank belongs to the first word
    control = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    control |= set(tokenizer.all_special_tokens)
    ends = [_first_mark(behind[0], control), str(tokenizer.eos_token or "")]
    if not ends[0]:
        raise RecipeError("the chat template writes nothing behind what a user says", HINT)
    return UserTurn(
        ids=tuple(text_ids(tokenizer, before)),
        text=before,
        ends=tuple(dict.fromkeys(end for end in ends if end)),
        control=frozenset(control),
    )


def text_of_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str | None:
    """Return a text that the tokenizer, which adds its special tokens, turns into these ids; None
    where there is no such text."""
    for first in (0, 1):
        text = tokenizer.decode(
            ids[first:], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        if list(tokenizer(text, verbose=False)["input_ids"]) == list(ids):
            return str(text)
    return None


def _first_mark(text: str, control: set[str]) -> str:
    """Return the control token that a text begins with, blanks aside, or else its first word."""
    text = text.strip()
    known = [token for token in control if text.startswith(token)]
    return max(known, key=len) if known else text.partition(" ")[0].partition("\n")[0]
