"""Rules drawn from preference pairs by a language model (AutoRule, arXiv 2506.15651).

Each pair is a question: why is the one answer preferred, and which general rules does that follow?
Then rules that say the same are merged, some dozens at a time, until one list is left. Both come
back as lines `- ...` below a last line `Rules:`, and nothing else is read. A pair without a usable
reply gives no rules, and is counted. Replies are kept like those of any judge (`judge_base.py`), so
a second try pays for what is missing alone.

Where we differ from the paper: it reads the rules of a pair out of the reasoning of a model that
has such a trace; here one reply holds the reasons, and the rules below them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from aligner.config.recipe import Endpoint
from aligner.errors import DataError

from .base import Prompt
from .card import Card, card_text
from .judge_base import JudgeBase
from .judge_prompts import FRAME, Messages, Unusable, as_messages, lines_below, material
from .judge_session import Question

LONGEST = 300
"""Characters of a rule; a longer one is not a rule but an answer."""
MOST = 10
"""Rules of a pair."""
TOGETHER = 60
"""Rules that are merged in one question."""

_FORM = """end with a line `Rules:` and below it one rule a line, each after `- `, with nothing \
after them:
Rules:
- ...
- ..."""

EXTRACT = f"""Of two answers to a conversation, people preferred the one that is called preferred. \
You find out why, and write down rules that would tell good answers from bad ones elsewhere too.

{FRAME}

A rule is one sentence that is true or false of one answer by itself, whatever the question. It \
does not speak of this conversation, nor of another answer. First give your reasons, in a few \
sentences: what makes the preferred answer better. Then {_FORM}
At most {MOST} rules. Where nothing general can be said, write `- none`."""

MERGE = f"""You are given rules for good answers, one a line. Many say the same in other words. \
Merge them into a short list without repetition: of rules that say the same keep one, say it in \
one sentence, and drop what is true of one conversation only. Put first what came up most often.

{FRAME}

Write nothing else, and {_FORM}"""

REMINDER = f"Your reply does not end in a usable list. Write it again: {_FORM}"

Report = Callable[[str], None]


def rules_in(reply: str, most: int) -> str:
    """The rules below the last line `Rules:` of a reply, as a JSON list of at most `most`, the
    first ones. Raises: Unusable."""
    found = lines_below(reply, "rules:")
    kept = [rule for rule in found if rule.lower().rstrip(".") != "none"]
    if any(len(rule) > LONGEST or not rule for rule in kept):
        raise Unusable(f"a rule has more than {LONGEST} characters, or none")
    return json.dumps(list(dict.fromkeys(kept))[:most])


class PairShown(Protocol):
    """A pair as it is shown."""

    @property
    def prompt(self) -> Prompt:
        """What was asked."""
        ...

    @property
    def chosen(self) -> str:
        """The preferred answer."""
        ...

    @property
    def rejected(self) -> str:
        """The other one."""
        ...


@dataclass(frozen=True)
class Found:
    """The rules, and how they came about."""

    rules: list[str]
    pairs: int
    silent: int
    """Pairs without a usable reply."""
    before_merging: int


def extracting(pair: PairShown) -> Messages:
    """The messages that ask why an answer is preferred."""
    further = {"the other answer": pair.rejected}
    parts, mark = material(pair.prompt, pair.chosen, name="the preferred answer", further=further)
    parts.append(f"Give reasons, and the rules behind them. The mark is {mark}.")
    return as_messages(EXTRACT, parts)


def merging(rules: Sequence[str], most: int) -> Messages:
    """The messages that ask to merge rules."""
    listed = "\n".join(f"- {rule}" for rule in rules)
    parts, mark = material("Which rules do good answers keep to?", listed, name="the rules")
    parts.append(f"Merge the rules into at most {most}. The mark is {mark}.")
    return as_messages(MERGE, parts)


def most_calls(pairs: int) -> int:
    """The most new requests that `pairs` can lead to: reminders, and the merging of as many rules
    as there can be, included."""
    questions, left = pairs, pairs * MOST
    while left > TOGETHER:
        groups = -(-left // TOGETHER)
        questions, left = questions + groups, groups * (TOGETHER // 2)
    return 2 * (questions + 1)


class RuleFinder(JudgeBase):
    """Asks a language model for rules."""

    kind = "rule_extraction"

    def find(self, pairs: Sequence[PairShown], most: int, report: Report) -> Found:
        """Draw at most `most` rules from pairs.

        Raises: DataError where there are none; EndpointError when the model cannot be asked.
        """
        report(f"asking about {len(pairs):,} pairs")
        replies = self._lists([extracting(pair) for pair in pairs], MOST)
        rules: list[str] = []
        for reply in replies:
            rules += reply or []
        silent = replies.count(None)
        if not rules:
            raise DataError(
                f"{self.name} drew no rule from {len(pairs):,} pairs; {silent:,} replies could not "
                "be read",
                "use a stronger model, or more pairs",
            )
        merged = self._merged(rules, most, report)
        return Found(merged, len(pairs), silent, len(rules))

    def _merged(self, rules: Sequence[str], most: int, report: Report) -> list[str]:
        """Merge until one list is left. What each group keeps is at most half of what it held."""
        left = list(dict.fromkeys(rules))
        while True:
            is_last = len(left) <= TOGETHER
            report(f"merging {len(left):,} rules")
            size = most if is_last else TOGETHER // 2
            groups = [left[start : start + TOGETHER] for start in range(0, len(left), TOGETHER)]
            replies = self._lists([merging(group, size) for group in groups], size)
            merged: list[str] = []
            for number, reply in enumerate(replies):
                if not reply:
                    raise DataError(
                        f"{self.name} could not merge rules (group {number + 1} of {len(groups)})",
                        "start again: what is answered is kept; or use a stronger model",
                    )
                merged += reply
            left = list(dict.fromkeys(merged))
            if is_last:
                return left

    def _lists(self, asked: Sequence[Messages], most: int) -> list[list[str] | None]:
        """The lists of the replies; None where one could not be read."""
        read = partial(rules_in, most=most)
        replies = self._session.ask([Question(messages, read, REMINDER) for messages in asked])
        return [None if reply.value is None else json.loads(reply.value) for reply in replies]

    def _made_of(self) -> list[Any]:
        return [EXTRACT, MERGE, REMINDER]


def card_of(found: Found, endpoint: Endpoint, origin: str, digest: str) -> str:
    """The text of a card with the rules, which the same model checks; its head says where they come
    from. `digest`: of the pairs that were read."""
    model = endpoint.model or endpoint.backend
    head = (
        f"# {len(found.rules)} rules that {model} drew from {found.pairs} pairs of {origin}\n"
        f"# (SHA-256 of these: {digest}), {found.silent} of them without a usable reply; "
        f"{found.before_merging} rules before they were merged.\n"
        "# Read them before you train on them: drop what is not meant, and change the rest.\n"
    )
    description = f"The share of {len(found.rules)} rules drawn from {origin} that hold."
    card = Card(kind="rules", endpoint=endpoint, rules=found.rules, description=description)
    return head + card_text(card)
