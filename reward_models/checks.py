"""One yes-or-no question about one answer, for scorers that add up many of them (`rules`,
`rubric`).

Each item is a question of its own, so that no verdict leans on another, and the calls are answers
times items. What an item is called and how it is asked about is the scorer's (`Form`); the reply
ends in `Holds: yes` or `Holds: no` for all. Framing, keeping and paying stand in `judge_base.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import fsum

from .base import SHARE, Prompt, Range
from .judge_base import JudgeBase, remarks_of
from .judge_prompts import FRAME, Messages, Unusable, as_messages, last_line, material, shown_line
from .judge_session import Question, Reply

REMINDER = """Your reply does not end in a usable verdict. Give your reason again in one sentence, \
and end with one line, with nothing after it, that is one of these:
Holds: yes
Holds: no"""

_ENDING = """First give your reason, in one sentence. Then end with one line, with nothing after \
it, that is one of these:
Holds: yes
Holds: no"""

_LINE = re.compile(r"holds\s*:\s*(yes|no)\s*\.?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Form:
    """How a scorer asks: what the judge does, what an item is called, and the last request."""

    task: str
    name: str
    request: str

    @property
    def system(self) -> str:
        """The instructions of the judge."""
        stands = f"{self.name.capitalize()} stands between such lines as well."
        return f"{self.task}\n\n{FRAME} {stands}\n\n{_ENDING}"


def checking(
    form: Form, prompt: Prompt, completion: str, item: str, reference: str | None = None
) -> Messages:
    """The messages that ask whether an item holds for an answer."""
    further = {form.name: item}
    parts, mark = material(prompt, completion, reference, "the answer", further)
    parts.append(f"{form.request} The mark is {mark}.")
    return as_messages(form.system, parts)


def holds_in(reply: str) -> float:
    """1 where the last line of a reply says yes, 0 for no. Raises: Unusable."""
    line = last_line(reply)
    found = _LINE.fullmatch(line)
    if found is None:
        raise Unusable(f"the reply ends in {shown_line(line)}, not in yes or no")
    return float(found[1].lower() == "yes")


def weighted_share(held: Sequence[float], weights: Sequence[float]) -> float:
    """The weight of what holds, as a share of all weight."""
    return fsum(one * weight for one, weight in zip(held, weights, strict=True)) / fsum(weights)


def by_item(items: Sequence[str], held: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Item -> its verdict in each row, from the verdicts of each row, all on the same items."""
    columns = zip(*held) if held else ([] for _ in items)
    return dict(zip(items, map(list, columns)))


def remarks_in(replies: Mapping[int, Sequence[Reply]]) -> dict[int, str]:
    """Rows with a question that was asked more than once."""
    return remarks_of((row, reply) for row, found in replies.items() for reply in found)


class Checker(JudgeBase):
    """Asks a language model which items hold for an answer. A subclass has a `form`."""

    form: Form

    @property
    def range(self) -> Range:
        """Nothing to all of it."""
        return SHARE

    def _checked(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        lists: Sequence[Sequence[str]],
        references: Sequence[str | None] | None = None,
    ) -> dict[int, list[Reply]]:
        """Row -> the replies on its items, all asked at once."""
        known = [None] * len(prompts) if references is None else references
        questions = [
            Question(checking(self.form, prompt, text, item, right), holds_in, REMINDER)
            for prompt, text, items, right in zip(prompts, completions, lists, known, strict=True)
            for item in items
        ]
        replies = iter(self._session.ask(questions))
        return {row: list(islice(replies, len(items))) for row, items in enumerate(lists)}
