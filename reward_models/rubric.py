"""The kind `rubric`: the weighted share of a checklist that an answer meets, each item judged yes
or no by a language model (the checklists of WildBench, arXiv 2406.04770, with prompts of our own).

    kind: rubric
    endpoint: {model: Qwen/Qwen3-8B, base_url: http://127.0.0.1:8000/v1, temperature: 0.0}
    items:                      # the same for all prompts, or one of the two below
    - The answer says what it assumes.
    - {text: The answer does all that was asked., weight: 3}
    write: {items: 6}           # a list for each prompt, written by the same model
    items_from: answer          # a list for each row, as JSON in its column `answer`

A list that a model writes takes one request for each prompt, and is kept like every reply, so all
answers to a prompt are held against the same list, in later runs too. It has exactly the items that
were asked for, each with a weight from 1 to 3, or it is asked for again and then counts as none. An
answer with an item that has no verdict, or without a list, has no score. Where the row has a right
answer, it is shown to the model that writes and to the one that checks.

Questions and verdicts are those of `checks.py`; `rules` is the same with one list, in which all
weigh the same.

Where we differ from the paper: its judge sees the whole list and gives one grade, and two models
write it; here each item is a question, and the score can be worked out by hand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from aligner.config.recipe import Endpoint
from aligner.endpoints.client import check_endpoint
from aligner.errors import DataError, RecipeError

from .base import SHARE, Prompt, Scorer, Scores, check_lengths, required_references
from .card import Card
from .checks import REMINDER, Checker, Form, by_item, remarks_in, weighted_share
from .judge_prompts import FRAME, Messages, Unusable, as_messages, lines_below, material
from .judge_session import Question, Reply
from .rubric_items import Item, Write, fault_of, read_items

ITEM = Form(
    "You check one answer to a conversation against one item of a checklist. The item is a "
    "statement that shall be true of the answer, or a question about it whose answer shall be yes. "
    "Nothing else about the answer counts, and whether the item is a good one is not yours to "
    "judge.",
    "the item",
    "Say whether the item holds for the answer.",
)

_WRITE = """\
You write a checklist for one conversation. Answers to its last message will be held against it, \
one item at a time.

{frame} No answer is shown to you, unless one that is right.

An item is one sentence that is true of a good answer to this conversation, and false of a bad \
one. Whoever sees the conversation, one answer and this item alone can say yes or no. Together the \
items cover what was asked, its parts and limits, what must be correct, and the mistakes that are \
likely. No two of them want the same. Each has a weight: 3 where an answer that misses it is of no \
use, 2 where it matters, 1 where it is welcome.

First say in a few sentences what a good answer needs. Then {form}"""

_FORM = """end with a line `Checklist:` and below it exactly {count}, one a line, each after `- `, \
its weight and a colon, with nothing after the last:
Checklist:
- 3: ...
- 1: ..."""

LONGEST = 300
"""Characters of an item that a model writes; a longer one is not an item but an essay."""

_LINE = re.compile(r"([1-3])\s*:\s*(\S.*)", re.ASCII)


def writing(prompt: Prompt, reference: str | None, count: int) -> Messages:
    """The messages that ask for a checklist."""
    parts, mark = material(prompt, None, reference)
    parts.append(f"Write the checklist, {_counted(count)}. The mark is {mark}.")
    return as_messages(_WRITE.format(frame=FRAME, form=_form(count)), parts)


def writing_reminder(count: int) -> str:
    """The reminder after a reply without a usable checklist."""
    return f"Your reply does not end in a usable checklist. Write it again: {_form(count)}"


def written_in(reply: str, count: int) -> list[Item]:
    """The `count` items below the last line `Checklist:` of a reply, each `- weight: text`. Raises:
    Unusable."""
    lines = [_LINE.fullmatch(line) for line in lines_below(reply, "checklist:")]
    items = [Item(text=line[2], weight=float(line[1])) for line in lines if line is not None]
    if len(items) < len(lines):
        raise Unusable("an item of the checklist has no weight from 1 to 3, or no text")
    if len(items) != count:
        raise Unusable(f"the checklist is {len(items)} long, not {count}")
    if fault := fault_of([item.text for item in items]):
        raise Unusable(f"item {fault[0]} of the checklist {fault[1]}")
    if any(len(item.text) > LONGEST for item in items):
        raise Unusable(f"an item of the checklist has more than {LONGEST} characters")
    return items


def _form(count: int) -> str:
    return _FORM.format(count=_counted(count))


def _counted(count: int) -> str:
    return f"{count} items" if count > 1 else "1 item"


class Rubric(Checker):
    """Asks a language model which items of a checklist an answer meets: of `items`, of a list that
    `write` asks for, or, without both, of the one in the row's answer."""

    kind = "rubric"
    form = ITEM

    def __init__(
        self, name: str, endpoint: Endpoint, items: Sequence[Item] = (), write: Write | None = None
    ) -> None:
        assert not (items and write), "one list for all, or one for each"
        super().__init__(name, endpoint)
        self.items = list(items)
        self.write = write
        self.needs_references = not (items or write)

    def checklists(
        self, prompts: Sequence[Prompt], references: Sequence[str | None] | None = None
    ) -> list[list[Item]]:
        """The list that answers to each prompt are held against; it is written now where there is
        none. Raises: NoVerdict where none could be; DataError for a row that holds no list."""
        replies = self._lists(prompts, references)
        found = self._values({row: [reply] for row, reply in enumerate(replies)}, "checklist")
        return [found[row][0] for row in range(len(prompts))]

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        """Ask about every item for every answer. Raises: NoVerdict; DataError for a row that holds
        no list; EndpointError when the judge cannot be asked."""
        check_lengths(prompts, completions, references)
        lists = self._lists(prompts, references)
        texts: list[list[str]] = []
        weights: list[list[float]] = []
        for found in lists:
            items: list[Item] = found.value or []
            texts.append([item.text for item in items])
            weights.append([item.weight for item in items])
        shown = None if self.needs_references else references
        replies = self._checked(prompts, completions, texts, shown)
        missing = {row: [found] for row, found in enumerate(lists) if found.value is None}
        held = self._values(replies | missing, "verdict")
        shares = [weighted_share(held[row], weights[row]) for row in replies]
        return Scores(shares, self._attributes(list(held.values())), remarks_in(replies))

    def _attributes(self, held: Sequence[Sequence[float]]) -> dict[str, list[float]]:
        """Which items are met where all rows have the same ones, elsewhere how many of how many."""
        if self.items:
            return by_item([item.text for item in self.items], held)
        return {"met": [sum(row) for row in held], "items": [float(len(row)) for row in held]}

    def _lists(
        self, prompts: Sequence[Prompt], references: Sequence[str | None] | None
    ) -> list[Reply]:
        """The items of each row's list, or the reason why it has none."""
        if self.items:
            return [Reply(self.items)] * len(prompts)
        if self.write is None:
            known = required_references(
                self.name, references, len(prompts), "reads its checklist from the row's answer"
            )
            return [Reply(self._of_row(row, text)) for row, text in enumerate(known, start=1)]
        count = self.write.items
        read, reminder = partial(written_in, count=count), writing_reminder(count)
        shown = [None] * len(prompts) if references is None else references
        questions = [
            Question(writing(prompt, right, count), read, reminder)
            for prompt, right in zip(prompts, shown)
        ]
        return [
            replace(reply, reason=reply.reason and f"no checklist: {reply.reason}")
            for reply in self._session.ask(questions)
        ]

    def _of_row(self, row: int, text: str) -> list[Item]:
        try:
            return read_items(text)
        except ValueError as error:
            raise DataError(
                f"row {row}: the answer holds no checklist that {self.name} can read: {error}",
                'write a JSON list of texts and of {"text": ..., "weight": ...}, as one text',
            ) from error

    def _made_of(self) -> list[Any]:
        items = [item.model_dump() for item in self.items]
        count = None if self.write is None else self.write.items
        asked = [] if count is None else [writing("", None, count), writing_reminder(count)]
        return [ITEM.system, ITEM.request, REMINDER, items, *asked]


def make(card: Card) -> Scorer:
    """The scorer of a card of the kind `rubric`. Asks nobody and loads nothing yet, but says what
    is missing."""
    assert card.endpoint is not None, "a card without an endpoint is refused when it is read"
    if card.range is not None and tuple(card.range) != SHARE:
        raise RecipeError(f"{card.name}: a share of items goes from 0 to 1", "drop range")
    if fault := fault_of([item.text for item in card.items]):
        raise RecipeError(f"{card.name}: item {fault[0]} {fault[1]}", "drop it")
    check_endpoint(card.endpoint)
    return Rubric(card.name, card.endpoint, card.items, card.write)
