"""Where each turn of a conversation ends in its tokens, for people who look at a row.

A turn ends where the conversation up to it, rendered alone, ends; where the template renders an
earlier turn in another way once later ones follow (Qwen3 drops its thinking), behind the last token
that depends on its text. What a template writes between turns so belongs to the one before, and the
opening of an answer to the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from aligner.errors import DataError
from aligner.tokenization.chat_template import Conversation, content_end
from aligner.tokenization.rendered import Rendered, common_prefix


def turn_ends(chat: Conversation, ids: Sequence[int]) -> list[int]:
    """Return the place behind the last token of each turn, ascending, within `ids`, which may be
    the beginning of the conversation or go on after it."""
    whole = chat.whole()
    ends: list[int] = []
    for turn in range(len(chat.messages) - 1):
        end = _end(chat, whole, turn)
        ends.append(min(len(ids), max(end, ends[-1] if ends else 0)))
    return [*ends, min(len(ids), len(whole.ids))]


def _end(chat: Conversation, whole: Rendered, turn: int) -> int:
    try:
        text = chat.prefix(turn + 1)
    except DataError:  # the template refuses a conversation that ends there
        return content_end(chat, whole, turn)
    shared = common_prefix(text, whole.text)
    place = whole.place(shared) if shared == len(text) else None
    return content_end(chat, whole, turn) if place is None else place
