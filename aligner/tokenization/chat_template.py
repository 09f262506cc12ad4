"""Conversations rendered by a chat template: their token ids, and where each answer lies in them.

The tokenizer's own template decides the form; we keep no list of templates. A few renderings of a
question with two different answers show what has to be known of it (`facts_of`): which token ends
an answer, what the generation prompt adds, and whether the template marks the assistant's part with
`{% generation %}`.

The span of an answer starts where the prompt, rendered with the generation prompt, stops being a
token prefix of the conversation. It ends with the stop token of the rendering that ends there, if
that is a prefix too. Both fail where a template renders an earlier turn in another way once later
ones follow (Qwen3 drops the thinking of earlier turns, Mistral moves the system prompt to the last
question). Then the same conversation with another text in one turn shows which tokens depend on
that turn. Text is never searched for role names.

Two things save time and change nothing. Marks are used where they are there. And where a rendering
is a prefix of the conversation as text, and the generation prompt's tokens stand there, it need not
be tokenized: so a conversation of n turns is tokenized once, and not 2n times.

A turn that is closed by a token which does not end a generation (gpt-oss closes all but the last
with `<|end|>`) is trained without that token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from aligner.data.rows import Messages, variables_of
from aligner.data.turn_weight import without_weights
from aligner.errors import DataError
from aligner.tokenization.call_arguments import with_fitting_arguments
from aligner.tokenization.control_tokens import as_seen, reader_of
from aligner.tokenization.rendered import (
    Rendered,
    Span,
    common_prefix,
    common_suffix,
    marked_spans,
)
from aligner.tokenization.template_limits import REFUSALS, BeyondLimitError, apply_template
from aligner.tokenization.template_probe import file_of, refuse_endless

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION, PROBES = "x", ("a", "b")
MARKER = re.compile(r"\{%[-+]?\s*generation\b")
MARKED: dict[str, Any] = {
    "tokenize": True,
    "return_dict": True,
    "return_assistant_tokens_mask": True,
    "tokenizer_kwargs": {"verbose": False},
}
"""How a template is asked for the tokens that it marks."""
NO_STOP_HINT = (
    "choose another with model.chat_template (TRL's own for training end in `_training`), "
    "or let the template end the turn with the end-of-sequence token"
)


@dataclass(frozen=True, slots=True)
class TemplateInfo:
    """What probing showed of a template under its tokenizer."""

    problem: str = ""
    """Why nothing can be trained with it; empty when it is fit."""
    stop: int | None = None
    """The token that ends an answer."""
    special: frozenset[int] = frozenset()
    """Ids of all special and added tokens."""
    opening: list[int] = field(default_factory=list)
    """What the generation prompt adds."""
    marked: bool = False
    """Whether the template's own marks can be used."""
    opened_inside: list[int] = field(default_factory=list)
    """The part of the generation prompt that lies inside the marks: it is given, so it is not
    trained."""
    opens_otherwise: str = ""
    """The end of the generation prompt that training rows do not have (`<think>`, say)."""


class UnstableTemplateError(Exception):
    """One conversation gave two renderings: the template writes the date, and midnight passed.
    Render again."""


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text and nothing else: no BOS, no EOS that the tokenizer would add."""
    reader = reader_of(tokenizer)
    if reader is not None:
        return reader.encode(text, add_special_tokens=False)[0]
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


Marked = tuple[list[int], list[Span]]
"""Ids, and the runs of them that the template marks as the assistant's."""


@dataclass(slots=True)
class Ahead:
    """What is known of a conversation because it was rendered together with others."""

    facts: TemplateInfo
    texts: dict[tuple[int, bool], str] = field(default_factory=dict)
    """(number of messages, opened) -> their rendering."""
    whole: Rendered | None = None
    marked: Marked | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages under one tokenizer's template, rendered on demand, or `ahead` with others
    (`aligner.tokenization.ahead`)."""

    tokenizer: PreTrainedTokenizerBase
    messages: Messages
    tools: list | None = None
    origin: str = ""
    ahead: Ahead | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the template that the row sets."""

    @classmethod
    def of_row(
        cls, tokenizer: PreTrainedTokenizerBase, messages: Messages, row: Any
    ) -> Conversation:
        """Return messages of a row with its tools and variables."""
        tools = getattr(row, "tools", None)
        return cls(tokenizer, messages, tools, row.origin, variables=variables_of(row))

    @property
    def facts(self) -> TemplateInfo:
        """What probing showed of the template."""
        return facts_of(self.tokenizer, self.variables) if self.ahead is None else self.ahead.facts

    def text(self, messages: Messages, *, opened: bool = False) -> str:
        """Render messages as text.

        Raises: DataError with the template's own words, when it refuses them.
        """
        text: str = self._rendered(messages, tokenize=False, add_generation_prompt=opened)
        reader = reader_of(self.tokenizer)
        return text if reader is None else reader.in_sight(text)

    def prefix(self, count: int, *, opened: bool = False) -> str:
        """Render the first `count` messages as text."""
        known = None if self.ahead is None else self.ahead.texts.get((count, opened))
        return self.text(self.messages[:count], opened=opened) if known is None else known

    def text_with(self, turn: int, content: str) -> str:
        """Render the whole conversation with another text in one turn."""
        other = {**self.messages[turn], "content": content}
        return self.text([*self.messages[:turn], other, *self.messages[turn + 1 :]])

    def ids(self, count: int | None = None, *, opened: bool = False) -> list[int]:
        """Return the ids of the first `count` messages, `opened` for an answer by the generation
        prompt."""
        return text_ids(self.tokenizer, self.text(self.messages[:count], opened=opened))

    def whole(self) -> Rendered:
        """Render and tokenize the whole conversation."""
        if self.ahead is not None and self.ahead.whole is not None:
            return self.ahead.whole
        text, reader = self.text(self.messages), reader_of(self.tokenizer)
        if reader is not None:
            ids, encoding = reader.encode(text, add_special_tokens=False)
        else:
            encoding = self.tokenizer(text, add_special_tokens=False, verbose=False)
            ids = list(encoding["input_ids"])
        return Rendered(text, ids, encoding.encodings[0] if encoding.is_fast else None)

    def marked(self) -> Marked:
        """Return the ids and the runs of tokens that the template marks as the assistant's."""
        if self.ahead is not None and self.ahead.marked is not None:
            return self.ahead.marked
        encoding = self._rendered(self.messages, **MARKED)
        return list(encoding["input_ids"]), marked_spans(encoding["assistant_masks"])

    def _rendered(self, messages: Messages, **options: Any) -> Any:
        from jinja2 import TemplateError

        refuse_endless(self.tokenizer)
        messages, tools = as_template_takes(self.tokenizer, messages), self.tools
        variables = self.variables
        reader = reader_of(self.tokenizer)
        if reader is not None:
            messages, tools = reader.out_of_sight(messages), reader.out_of_sight(tools)
            variables = reader.out_of_sight(variables)
        try:
            return apply_template(self.tokenizer, messages, tools=tools, **variables, **options)
        except (*REFUSALS, TemplateError) as error:
            where = f"{self.origin}: " if self.origin else ""
            does = "the chat template refuses this conversation"
            if isinstance(error, BeyondLimitError):
                does = f"the chat template in {file_of(self.tokenizer)} is beyond a limit here"
            raise DataError(
                f"{where}{does}: {str(error) or type(error).__name__}",
                "change the turns, or choose another template with model.chat_template",
            ) from error


def as_template_takes(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> Messages:
    """Return messages as the template of the tokenizer reads them: without weights, and calls with
    their arguments in its form."""
    return with_fitting_arguments(tokenizer, without_weights(messages))


# --- facts ----------------------------------------------------------------------------------------

_FACTS: WeakKeyDictionary[Any, dict[tuple, TemplateInfo]] = WeakKeyDictionary()
"""Tokenizer -> what decides over its facts -> facts. Nothing here keeps a tokenizer alive."""

MOST_FACTS = 100
"""How many of them are kept for a tokenizer: rows may each set variables of their own."""


def facts_of(
    tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any] | None = None
) -> TemplateInfo:
    """Probe the template, or recall what probing showed; a changed template, token or vocabulary is
    probed again, and so are other variables."""
    known = _FACTS.setdefault(tokenizer, {})
    key = (
        str(tokenizer.chat_template),
        tuple(tokenizer.special_tokens_map.items()),
        len(tokenizer),
        json.dumps(variables, sort_keys=True, default=str) if variables else "",
    )
    if key not in known:
        if len(known) >= MOST_FACTS:
            known.clear()
        known[key] = _probe(tokenizer, variables or {})
    return known[key]


def _probe(tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> TemplateInfo:
    question = {"role": "user", "content": QUESTION}
    chats = [
        Conversation(
            tokenizer, [question, {"role": "assistant", "content": probe}], variables=variables
        )
        for probe in PROBES
    ]
    try:
        sides = [chat.ids() for chat in chats]
        opened, bare = chats[0].ids(1, opened=True), chats[0].ids(1)
    except DataError as error:
        return TemplateInfo(
            f"the chat template cannot render one question and its answer: {error.__cause__}"
        )
    if sides[0] == sides[1]:
        return TemplateInfo(
            "the chat template writes nothing of an answer that is plain text (it may be made for "
            "images)"
        )
    special = frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder)
    stop = _stop_behind_answer(sides, special, tokenizer.eos_token_id)
    if stop is None:
        return TemplateInfo(
            "the chat template ends an answer with no special token, so a model trained on it "
            "never stops"
        )
    marked, opened_inside = _probe_marks(chats[0], opened)
    asked, whole = chats[0].text([question], opened=True), chats[0].text(chats[0].messages)
    return TemplateInfo(
        stop=stop,
        special=special,
        opening=opened[common_prefix(bare, opened) :],
        marked=marked,
        opened_inside=opened_inside,
        opens_otherwise=as_seen(tokenizer, asked[common_prefix(asked, whole) :]),
    )


def _stop_behind_answer(
    sides: Sequence[list[int]], special: frozenset[int], eos: int | None
) -> int | None:
    """Return the first special token behind the answer, or the EOS if that follows it at once
    (Cohere)."""
    tail = sides[0][len(sides[0]) - common_suffix(*sides) :]
    first = next((place for place, token in enumerate(tail) if token in special), len(tail))
    closing = list(takewhile(special.__contains__, tail[first:]))
    return eos if eos in closing else next(iter(closing), None)


def _probe_marks(chat: Conversation, opened: list[int]) -> tuple[bool, list[int]]:
    """Say whether marks are there and work, and what the generation prompt has already written
    inside them."""
    template = chat.tokenizer.get_chat_template()
    if not (MARKER.search(template) and chat.tokenizer.is_fast):
        return False, []
    ids, spans = chat.marked()
    if len(spans) != 1 or opened[: spans[0][0]] != ids[: spans[0][0]]:
        return False, []
    return True, opened[spans[0][0] :]


# --- spans ----------------------------------------------------------------------------------------


def answer_spans(chat: Conversation, wanted: Sequence[int]) -> tuple[list[int], list[Span]]:
    """Return the ids of a conversation and the span of each wanted turn, up to its stop token.

    Raises: DataError when a turn has no stop token; UnstableTemplateError when renderings disagree.
    """
    facts = chat.facts
    if not facts.marked or reader_of(chat.tokenizer) is not None:
        whole = chat.whole()
        return whole.ids, [answer_span(chat, whole, turn) for turn in wanted]
    ids, marks = chat.marked()
    turns = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
    found = dict(zip(turns, marks)) if len(marks) == len(turns) else {}
    marked = {
        turn: _marked_span(facts, ids, found[turn]) if turn in found else None for turn in wanted
    }
    if all(marked.values()):
        return ids, [span for span in marked.values() if span]
    whole = chat.whole()
    if whole.ids != ids:
        raise UnstableTemplateError
    return ids, [span or answer_span(chat, whole, turn) for turn, span in marked.items()]


def _marked_span(facts: TemplateInfo, ids: list[int], mark: Span) -> Span | None:
    """Return the marked span without what the generation prompt gives; None when no stop token is
    in it.

    None also where it begins like a part of that alone: the likeness may be the answer's.
    """
    given = common_prefix(facts.opened_inside, ids[mark[0] : mark[1]])
    if 0 < given < len(facts.opened_inside):
        return None
    start = mark[0] + given
    if facts.opening and ids[start] == facts.opening[-1] and ids[start] in facts.special:
        # a special token that swallows white space (Phi) has taken the answer's first blank with it
        start += 1
    stops = [place for place in range(start, mark[1]) if ids[place] == facts.stop]
    return (start, stops[-1] + 1) if stops else None


def answer_span(chat: Conversation, whole: Rendered, turn: int, opened: str | None = None) -> Span:
    """Find one answer by comparing renderings. `opened` is the text of its prompt, when that is
    rendered already.

    Raises: DataError when the answer ends with no stop token; UnstableTemplateError when renderings
    disagree.
    """
    facts = chat.facts
    if turn == 0:
        start = _start_in_place(chat, facts, whole, turn)
    else:
        opened = chat.prefix(turn, opened=True) if opened is None else opened
        quick = _start_in_text(chat, facts, whole, turn, opened)
        start = _start_in_tokens(chat, facts, whole, turn, opened) if quick is None else quick
    return start, _answer_stop(chat, facts, whole, start, turn)


def _start_in_text(
    chat: Conversation, facts: TemplateInfo, whole: Rendered, turn: int, opened: str
) -> int | None:
    """Return what `_start_in_tokens` would, from texts and the tokens of the generation prompt;
    None if unsure."""
    shared = common_prefix(opened, whole.text)
    start = whole.place(shared)
    if start is None:
        return None
    if shared == len(opened) and start and whole.is_first(shared):
        prompt = whole.ids[max(0, start - len(facts.opening)) : start]
        if whole.ids[start - 1] in facts.special or (prompt and prompt == facts.opening):
            return start
    before = chat.prefix(turn)
    bare = common_prefix(before, opened)
    begin = whole.place(bare)
    if begin is None or not common_prefix(before, whole.text) <= bare < shared:
        return None
    if not facts.opening or whole.ids[begin] != facts.opening[0]:
        return None
    # Answers open in another way than for generation; what is alike further on is a matter of this
    # answer's text.
    return min(
        begin + common_prefix(facts.opening, whole.ids[begin:]), _content_start(chat, whole, turn)
    )


def _start_in_tokens(
    chat: Conversation, facts: TemplateInfo, whole: Rendered, turn: int, opened: str
) -> int:
    """Return the place where the prompt stops being a token prefix, if that is in the generation
    prompt or behind."""
    prompt = text_ids(chat.tokenizer, opened)
    start = common_prefix(prompt, whole.ids)
    if start == len(prompt):
        return start
    before = chat.ids(turn)
    if common_prefix(before, whole.ids) <= common_prefix(before, prompt) < start:
        return min(start, _content_start(chat, whole, turn))
    return _start_in_place(chat, facts, whole, turn)


def _start_in_place(chat: Conversation, facts: TemplateInfo, whole: Rendered, turn: int) -> int:
    """Return an answer's start where its prompt alone is rendered in another way than within the
    conversation."""
    content = _content_start(chat, whole, turn)
    before = content_end(chat, whole, turn - 1) if turn else 0
    if chat.text(chat.messages) != whole.text:
        raise UnstableTemplateError
    length = len(facts.opening)
    for place in range(before, content - length + 1) if length else ():
        if whole.ids[place : place + length] == facts.opening:
            return place + length
    return content


def _content_start(chat: Conversation, whole: Rendered, turn: int) -> int:
    """Return the place of the first token that depends on the text of a turn."""
    others = [chat.text_with(turn, probe) for probe in PROBES]
    character = min(common_prefix(other, whole.text) for other in others)
    place = whole.place(character)
    if place is not None:
        swallowed = place < len(whole.ids) and whole.ids[place] in chat.facts.special
        return place + 1 if swallowed and not whole.is_first(character) else place
    return min(common_prefix(text_ids(chat.tokenizer, other), whole.ids) for other in others)


def _answer_stop(
    chat: Conversation, facts: TemplateInfo, whole: Rendered, start: int, turn: int
) -> int:
    """Return the place behind an answer's stop token, or behind its text where it is closed by
    another token."""
    last = turn == len(chat.messages) - 1
    if last:
        stop = _closed_at(chat, facts, whole.ids, start)
    else:
        stop = _closed_as_last(chat, facts, whole, start, turn) or _stop_before_next(
            chat, facts, whole, start, turn
        )
    if stop is not None:
        return stop
    content = content_end(chat, whole, turn)
    if not last and content > start and not chat.messages[turn].get("tool_calls"):
        return content
    token = chat.tokenizer.convert_ids_to_tokens(facts.stop)
    raise DataError(
        f"{chat.origin}: turn {turn + 1} ends with no stop token ({token}), so the model would "
        "not learn to stop",
        NO_STOP_HINT,
    )


def _closed_as_last(
    chat: Conversation, facts: TemplateInfo, whole: Rendered, start: int, turn: int
) -> int | None:
    """Return the end of a turn that is rendered as if it were the last; None where it is not."""
    text = chat.prefix(turn + 1)
    shared = common_prefix(text, whole.text)
    end = whole.place(shared)
    if end is not None and shared == len(text):
        return _closed_at(chat, facts, whole.ids[:end], start)
    if end is not None:
        return _last_stop(facts, whole.ids[:end], start)
    alone = text_ids(chat.tokenizer, text)
    stop = _closed_at(chat, facts, alone, start)
    return stop if stop is not None and whole.ids[:stop] == alone[:stop] else None


def _stop_before_next(
    chat: Conversation, facts: TemplateInfo, whole: Rendered, start: int, turn: int
) -> int | None:
    """Return the end of the last stop token before the text of the next turn."""
    following = str(chat.messages[turn + 1].get("content", "")).lstrip()
    other = chat.text_with(turn + 1, PROBES[following.startswith(PROBES[0])])
    shared = common_prefix(other, whole.text)
    bound = whole.place(shared)
    if bound is None:
        bound = common_prefix(text_ids(chat.tokenizer, other), whole.ids)
    return _last_stop(facts, whole.ids[:bound], start)


def _last_stop(facts: TemplateInfo, ids: list[int], start: int) -> int | None:
    return next(
        (place + 1 for place in range(len(ids) - 1, start - 1, -1) if ids[place] == facts.stop),
        None,
    )


def _closed_at(chat: Conversation, facts: TemplateInfo, alone: list[int], start: int) -> int | None:
    """Return the place behind the token that closes the last turn: the stop token, or another (of a
    tool call)."""
    stop = _last_stop(facts, alone, start)
    if stop is not None:
        return stop
    for place in range(len(alone) - 1, start - 1, -1):
        if alone[place] in facts.special:
            return place + 1
        if chat.tokenizer.decode([alone[place]]).strip():
            return None
    return None


def content_end(chat: Conversation, whole: Rendered, turn: int) -> int:
    """Return the place behind the last token that depends on the text of a turn."""
    others = [chat.text_with(turn, probe) for probe in PROBES]
    end = len(whole.text) - min(common_suffix(other, whole.text) for other in others)
    place = whole.place(end)
    if place is not None and whole.is_first(end):
        return place
    return len(whole.ids) - min(
        common_suffix(text_ids(chat.tokenizer, other), whole.ids) for other in others
    )
