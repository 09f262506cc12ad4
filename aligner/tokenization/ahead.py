"""Render and tokenize the conversations of many rows together.

A chat template and a tokenizer are quicker asked once for five hundred conversations than five
hundred times for one; what they say is the same. What stays per row is where its answers lie
(`encode.py`), which finds the renderings that it needs already made. Conversations with tools,
with variables of their own or without turns, tokenizers that are not fast, and control tokens read
as text are left to their rows, and so is a conversation that the template refuses: its row then
says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from aligner.data.rows import (
    SAMPLED,
    CompletionRow,
    ConversationRow,
    PreferenceRow,
    Row,
    as_turns,
)
from aligner.errors import DataError, RecipeError
from aligner.tokenization.chat_template import (
    MARKED,
    Ahead,
    Conversation,
    as_template_takes,
    facts_of,
    has_template,
)
from aligner.tokenization.control_tokens import reader_of
from aligner.tokenization.encode import Ready
from aligner.tokenization.rendered import Rendered, marked_spans
from aligner.tokenization.template_limits import REFUSALS, apply_template
from aligner.tokenization.template_probe import refuse_endless
from aligner.tokenization.turns import turns_of, wanted_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from aligner.config.recipe import LossOn
    from aligner.data.rows import Messages

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Request:
    """A conversation, and what will be asked of it: either the template's marks, or the whole and
    the renderings of its beginnings, as (number of messages, opened for an answer)."""

    chat: Conversation
    prefixes: Sequence[tuple[int, bool]] = ()
    marks: bool = False


class ChatsAhead:
    """The conversations of the rows that are encoded next.

    `requests_of` says what encoding a row will ask for; DataError and RecipeError are left to the
    row itself.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, requests_of: Callable[[Row], list[Request]]
    ) -> None:
        self.tokenizer = tokenizer
        self.requests_of = requests_of
        self._ready: dict[int, Ready] = {}
        self._rows: Sequence[Row] = ()

    def look_ahead(self, rows: Sequence[Row]) -> None:
        """Render and tokenize these rows' conversations, and forget those before."""
        self._ready, self._rows = {}, rows  # the rows are kept, so that no id is used twice
        if not _may_look_ahead(self.tokenizer):
            return
        asked = [(id(row), self._requests(row)) for row in rows]
        made = iter(_made_together(self.tokenizer, [one for _, some in asked for one in some]))
        self._ready = {row: list(islice(made, len(some))) for row, some in asked}

    def of(self, row: Row) -> Ready:
        """Return the conversations of a row that `look_ahead` was given; none for another row."""
        return self._ready.get(id(row), ())

    def _requests(self, row: Row) -> list[Request]:
        try:
            requests = self.requests_of(row)
        except (DataError, RecipeError):
            return []
        chats = [request.chat for request in requests]
        fit = all(chat.messages and not chat.tools and not chat.variables for chat in chats)
        return requests if fit else []


def answers_ahead(
    tokenizer: PreTrainedTokenizerBase, loss_on: Callable[[Row], LossOn]
) -> ChatsAhead:
    """Look ahead for `encode_sft`; `loss_on` is what it will be told of a row."""

    def requests_of(row: Row) -> list[Request]:
        if not isinstance(row, ConversationRow | CompletionRow):
            return []
        messages, first = turns_of(row)
        chat, last = Conversation.of_row(tokenizer, messages, row), len(messages) - 1
        wanted = wanted_turns(messages, first, row, loss_on(row))
        if loss_on(row) == "all":
            return [Request(chat)]
        opened = [(turn, True) for turn in wanted if turn]
        closed = [(turn + 1, False) for turn in wanted if turn < last]
        return [Request(chat, [*opened, *closed], facts_of(tokenizer).marked)]

    return ChatsAhead(tokenizer, requests_of)


def pairs_ahead(tokenizer: PreTrainedTokenizerBase) -> ChatsAhead:
    """Look ahead for `encode_pair`, which is not asked about what was sampled."""

    def requests_of(row: Row) -> list[Request]:
        if not isinstance(row, PreferenceRow) or row.extra.get(SAMPLED) is not None:
            return []
        prompt = as_turns(row.prompt, "user")
        chosen, rejected = (
            Conversation.of_row(tokenizer, [*prompt, *as_turns(side, "assistant")], row)
            for side in (row.chosen, row.rejected)
        )
        opened = [(len(prompt), True)] if prompt else []
        return [Request(chosen, opened), Request(rejected)]

    return ChatsAhead(tokenizer, requests_of)


def _may_look_ahead(tokenizer: PreTrainedTokenizerBase) -> bool:
    return (
        has_template(tokenizer)
        and tokenizer.is_fast
        and reader_of(tokenizer) is None
        and not facts_of(tokenizer).problem
    )


def _made_together(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request]
) -> list[Conversation]:
    """Return the conversations with what was asked of them; what the template refuses is left
    out."""
    refuse_endless(tokenizer)
    facts = facts_of(tokenizer)
    taken = [as_template_takes(tokenizer, request.chat.messages) for request in requests]
    made = [Ahead(facts) for _ in requests]
    marked = [place for place, request in enumerate(requests) if request.marks]
    found = _one_by_one_if_refused(_marks(tokenizer), [taken[place] for place in marked])
    for place, marks in zip(marked, found):
        made[place].marked = marks
    whole = [place for place, ahead in enumerate(made) if ahead.marked is None]
    for opened in (False, True):
        asked = [
            (place, count)
            for place in whole
            for count, is_opened in _renderings(requests[place])
            if is_opened == opened
        ]
        texts = _one_by_one_if_refused(
            _texts(tokenizer, opened), [taken[place][:count] for place, count in asked]
        )
        for (place, count), text in zip(asked, texts):
            if text is not None:
                made[place].texts[count, opened] = text
    _tokenize_whole(tokenizer, requests, made)
    return [replace(request.chat, ahead=ahead) for request, ahead in zip(requests, made)]


def _renderings(request: Request) -> list[tuple[int, bool]]:
    return list(dict.fromkeys([(len(request.chat.messages), False), *request.prefixes]))


def _tokenize_whole(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], made: Sequence[Ahead]
) -> None:
    texts = [
        (ahead, text)
        for request, ahead in zip(requests, made)
        if (text := ahead.texts.get((len(request.chat.messages), False))) is not None
    ]
    if not texts:
        return
    encoded = tokenizer(
        [text for _, text in texts],
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    for (ahead, text), encoding in zip(texts, encoded.encodings, strict=True):
        ahead.whole = Rendered(text, encoding.ids, encoding)


def _texts(
    tokenizer: PreTrainedTokenizerBase, opened: bool
) -> Callable[[list[Messages]], list[str]]:
    def render(chats: list[Messages]) -> list[str]:
        return list(apply_template(tokenizer, chats, tokenize=False, add_generation_prompt=opened))

    return render


def _marks(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Messages]], list[Any]]:
    def render(chats: list[Messages]) -> list[Any]:
        encoded = apply_template(tokenizer, chats, **MARKED)
        return [
            (ids, marked_spans(mask))
            for ids, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        ]

    return render


def _one_by_one_if_refused(work: Callable[[list[T]], list[U]], items: list[T]) -> list[U | None]:
    """Return what `work` makes of all items; where it refuses one, None for that one alone."""
    from jinja2 import TemplateError

    if not items:
        return []
    try:
        return [*work(items)]
    except (*REFUSALS, TemplateError):
        if len(items) == 1:
            return [None]
    half = len(items) // 2
    return _one_by_one_if_refused(work, items[:half]) + _one_by_one_if_refused(work, items[half:])
