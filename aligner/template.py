"""Conversations rendered by a chat template: their token ids, and where each answer lies in them.

The tokenizer's own template decides the form; we keep no list of templates. A few renderings of a question with two
different answers show what has to be known of it (`facts_of`): which token ends an answer, what the generation prompt
adds, and whether the template marks the assistant's part with `{% generation %}`.

The span of an answer starts where the prompt, rendered with the generation prompt, stops being a token prefix of the
conversation. It ends with the stop token of the rendering that ends there, if that is a prefix too. Both fail where a
template renders an earlier turn in another way once later ones follow (Qwen3 drops the thinking of earlier turns,
Mistral moves the system prompt to the last question). Then the same conversation with another text in one turn shows
which tokens depend on that turn. Marks are used for speed, where they agree with this. Text is never searched for
role names.

A turn that is closed by a token which does not end a generation (gpt-oss closes all but the last with `<|end|>`) is
trained without that token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from aligner.data.rows import Messages
from aligner.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""Half-open range of token places."""

QUESTION, PROBES = "x", ("a", "b")
MARKER = re.compile(r"\{%[-+]?\s*generation\b")
NO_STOP_HINT = (
    "choose another with model.chat_template (TRL's own for training end in `_training`), "
    "or let the template end the turn with the end-of-sequence token"
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What probing showed of a template under its tokenizer."""

    problem: str = ""
    """Why nothing can be trained with it; empty when it is fit."""
    stop: int | None = None
    """The token that ends an answer."""
    special: frozenset[int] = frozenset()
    """Ids of all special and added tokens."""
    opening: Sequence[int] = ()
    """What the generation prompt adds."""
    marked: bool = False
    """Whether the template's own marks can be used."""
    opened_inside: Sequence[int] = ()
    """The part of the generation prompt that lies inside the marks: it is given, so it is not trained."""
    opens_otherwise: str = ""
    """The end of the generation prompt that training rows do not have (`<think>`, say)."""


class Moved(Exception):
    """One conversation gave two renderings: the template writes the date, and midnight passed. Render again."""


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text and nothing else: no BOS, no EOS that the tokenizer would add."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages under one tokenizer's template, rendered on demand."""

    tokenizer: PreTrainedTokenizerBase
    messages: Messages
    tools: list | None = None
    origin: str = ""

    def text(self, messages: Messages, *, opened: bool = False) -> str:
        """Render messages as text.

        Raises: DataError with the template's own words, when it refuses them.
        """
        return self._rendered(messages, tokenize=False, add_generation_prompt=opened)

    def ids(self, count: int | None = None, *, opened: bool = False) -> list[int]:
        """Return the ids of the first `count` messages, `opened` for an answer by the generation prompt."""
        return text_ids(self.tokenizer, self.text(self.messages[:count], opened=opened))

    def ids_with(self, turn: int, content: str) -> list[int]:
        """Return the ids of the whole conversation with another text in one turn."""
        other = {**self.messages[turn], "content": content}
        messages = [*self.messages[:turn], other, *self.messages[turn + 1 :]]
        return text_ids(self.tokenizer, self.text(messages))

    def marked(self) -> tuple[list[int], list[Span]]:
        """Return the ids and the runs of tokens that the template marks as the assistant's."""
        encoding = self._rendered(
            self.messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
            tokenizer_kwargs={"verbose": False},
        )  # fmt: skip
        mask = [*encoding["assistant_masks"], 0]
        starts = [i for i, bit in enumerate(mask) if bit and (i == 0 or not mask[i - 1])]
        return list(encoding["input_ids"]), [(start, mask.index(0, start)) for start in starts]

    def _rendered(self, messages: Messages, **options: Any) -> Any:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(messages, tools=self.tools, **options)
        except (TemplateError, TypeError, ValueError, AttributeError) as error:
            where = f"{self.origin}: " if self.origin else ""
            raise DataError(
                f"{where}the chat template refuses this conversation: {error}",
                "change the turns, or choose another template with model.chat_template",
            ) from error


# --- facts ---------------------------------------------------------------------------------------------------------

_FACTS: WeakKeyDictionary[Any, dict[tuple, Facts]] = WeakKeyDictionary()
"""Tokenizer -> what decides over its facts -> facts. Nothing here keeps a tokenizer alive."""


def facts_of(tokenizer: PreTrainedTokenizerBase) -> Facts:
    """Probe the template, or recall what probing showed; a changed template, token or vocabulary is probed again."""
    known = _FACTS.setdefault(tokenizer, {})
    key = (str(tokenizer.chat_template), tuple(tokenizer.special_tokens_map.items()), len(tokenizer))
    if key not in known:
        known[key] = _probe(tokenizer)
    return known[key]


def _probe(tokenizer: PreTrainedTokenizerBase) -> Facts:
    question = {"role": "user", "content": QUESTION}
    chats = [Conversation(tokenizer, [question, {"role": "assistant", "content": probe}]) for probe in PROBES]
    try:
        sides = [chat.ids() for chat in chats]
        opened, bare = chats[0].ids(1, opened=True), chats[0].ids(1)
    except DataError as error:
        return Facts(f"the chat template cannot render one question and its answer: {error.__cause__}")
    if sides[0] == sides[1]:
        return Facts("the chat template writes nothing of an answer that is plain text (it may be made for images)")
    special = frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder)
    stop = _stop_behind_answer(sides, special, tokenizer.eos_token_id)
    if stop is None:
        return Facts("the chat template ends an answer with no special token, so a model trained on it never stops")
    marked, opened_inside = _probe_marks(chats[0], opened)
    return Facts(
        stop=stop,
        special=special,
        opening=opened[common_prefix(bare, opened) :],
        marked=marked,
        opened_inside=opened_inside,
        opens_otherwise=_opens_otherwise(chats[0]),
    )


def _stop_behind_answer(sides: Sequence[list[int]], special: frozenset[int], eos: int | None) -> int | None:
    """Return the first special token behind the answer, or the EOS if that follows it at once (Cohere)."""
    tail = sides[0][len(sides[0]) - common_suffix(*sides) :]
    first = next((place for place, token in enumerate(tail) if token in special), len(tail))
    closing = list(takewhile(special.__contains__, tail[first:]))
    return eos if eos in closing else next(iter(closing), None)


def _probe_marks(chat: Conversation, opened: list[int]) -> tuple[bool, list[int]]:
    """Say whether marks are there and work, and what the generation prompt has already written inside them."""
    template = chat.tokenizer.get_chat_template()
    if not (MARKER.search(template) and chat.tokenizer.is_fast):
        return False, []
    ids, spans = chat.marked()
    if len(spans) != 1 or opened[: spans[0][0]] != ids[: spans[0][0]]:
        return False, []
    return True, opened[spans[0][0] :]


def _opens_otherwise(chat: Conversation) -> str:
    opened, whole = chat.text(chat.messages[:1], opened=True), chat.text(chat.messages)
    return opened[common_prefix(opened, whole) :]


# --- spans ---------------------------------------------------------------------------------------------------------


def answer_spans(chat: Conversation, wanted: Sequence[int]) -> tuple[list[int], list[Span]]:
    """Return the ids of a conversation and the span of each wanted turn, up to its stop token.

    Raises: DataError when a turn has no stop token. `Moved` when renderings disagree.
    """
    facts = facts_of(chat.tokenizer)
    if not facts.marked:
        ids = chat.ids()
        return ids, [_compared_span(chat, facts, ids, turn) for turn in wanted]
    ids, marks = chat.marked()
    turns = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
    found = dict(zip(turns, marks)) if len(marks) == len(turns) else {}
    spans = [
        (_marked_span(facts, ids, found[turn]) if turn in found else None) or _compared_span(chat, facts, ids, turn)
        for turn in wanted
    ]
    return ids, spans


def _marked_span(facts: Facts, ids: list[int], mark: Span) -> Span | None:
    """Return the marked span without what the generation prompt gives; None when no stop token is in it."""
    start = mark[0] + common_prefix(facts.opened_inside, ids[mark[0] : mark[1]])
    stops = [place for place in range(start, mark[1]) if ids[place] == facts.stop]
    return (start, stops[-1] + 1) if stops else None


def _compared_span(chat: Conversation, facts: Facts, ids: list[int], turn: int) -> Span:
    start = answer_start(chat, ids, turn)
    return start, answer_stop(chat, ids, start, turn)


def answer_start(chat: Conversation, ids: list[int], turn: int, opened: list[int] | None = None) -> int:
    """Return the place of an answer's first token: behind the prompt with its generation prompt (`opened`)."""
    if turn == 0:
        return _start_in_place(chat, ids, turn)
    opened = chat.ids(turn, opened=True) if opened is None else opened
    start = common_prefix(opened, ids)
    if start == len(opened) or start >= common_prefix(chat.ids(turn), opened):
        return start  # the whole prompt, or the answer is opened in another way than for generation
    return _start_in_place(chat, ids, turn)


def _start_in_place(chat: Conversation, ids: list[int], turn: int) -> int:
    """Return an answer's start where its prompt alone is rendered in another way than within the conversation."""
    content = min(common_prefix(chat.ids_with(turn, probe), ids) for probe in PROBES)
    before = _content_end(chat, ids, turn - 1) if turn else 0
    if chat.ids() != ids:
        raise Moved
    opening = facts_of(chat.tokenizer).opening
    if opening:
        for place in range(before, content - len(opening) + 1):
            if ids[place : place + len(opening)] == opening:
                return place + len(opening)
    return content


def answer_stop(chat: Conversation, ids: list[int], start: int, turn: int) -> int:
    """Return the place behind an answer's stop token, where it has one.

    Raises: DataError when the answer ends with none.
    """
    facts, last = facts_of(chat.tokenizer), turn == len(chat.messages) - 1
    alone = ids if last else chat.ids(turn + 1)
    stop = _closed_at(chat, facts, alone, start)
    if stop is not None and ids[:stop] == alone[:stop]:
        return stop
    if not last:
        following = str(chat.messages[turn + 1].get("content", "")).lstrip()
        bound = common_prefix(chat.ids_with(turn + 1, PROBES[following.startswith(PROBES[0])]), ids)
        stops = [place for place in range(start, bound) if ids[place] == facts.stop]
        if stops:
            return stops[-1] + 1
        content = _content_end(chat, ids, turn)
        if content > start and not chat.messages[turn].get("tool_calls"):
            return content
    token = chat.tokenizer.convert_ids_to_tokens(facts.stop)
    raise DataError(
        f"{chat.origin}: turn {turn + 1} ends with no stop token ({token}), so the model would not learn to stop",
        NO_STOP_HINT,
    )


def _closed_at(chat: Conversation, facts: Facts, alone: list[int], start: int) -> int | None:
    """Return the place behind the token that closes the last turn: the stop token, or another (of a tool call)."""
    for place in range(len(alone) - 1, start - 1, -1):
        if alone[place] == facts.stop:
            return place + 1
    for place in range(len(alone) - 1, start - 1, -1):
        if alone[place] in facts.special:
            return place + 1
        if chat.tokenizer.decode([alone[place]]).strip():
            return None
    return None


def _content_end(chat: Conversation, ids: list[int], turn: int) -> int:
    """Return the place behind the last token that depends on the text of a turn."""
    return len(ids) - min(common_suffix(chat.ids_with(turn, probe), ids) for probe in PROBES)


# --- sequences -----------------------------------------------------------------------------------------------------


def common_prefix(left: Sequence, right: Sequence) -> int:
    """Return how many items two sequences share at their start."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next((place for place in range(shorter) if left[place] != right[place]), shorter)


def common_suffix(left: Sequence, right: Sequence) -> int:
    """Return how many items two sequences share at their end."""
    return common_prefix(left[::-1], right[::-1])
