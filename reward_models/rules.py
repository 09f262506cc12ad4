"""The kind `rules`: the share of written rules that an answer keeps to, each judged yes or no by a
language model (AutoRule, arXiv 2506.15651).

    kind: rules
    endpoint: {model: Qwen/Qwen3-8B, base_url: http://127.0.0.1:8000/v1, temperature: 0.0}
    rules:
    - The answer says what it assumes.
    - The answer ends when the question is answered.

`aligner data rules` draws such a card from preference pairs (`rule_extraction.py`); rules may be
written by hand as well. Each rule is a question of its own about each answer, so the calls are
answers times rules; `attributes` of the scores say which rules hold. How questions are framed,
read, kept and paid stands in `judge_base.py`. An answer with a rule that has no verdict has no
score.

Where we differ from the paper: it adds this share to a reward model's score, which here is the
business of `reward_models` with two names, or of an `ensemble`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from aligner.config.recipe import Endpoint
from aligner.endpoints.client import check_endpoint
from aligner.errors import RecipeError

from .base import SHARE, Prompt, Range, Scorer, Scores, check_lengths
from .card import Card
from .judge_base import JudgeBase, remarks_of
from .judge_prompts import FRAME, Messages, Unusable, as_messages, last_line, material, shown_line
from .judge_session import Question

SYSTEM = f"""You check whether one answer to a conversation keeps to one rule. Nothing else about \
the answer counts, and the rule is not yours to judge.

{FRAME} The rule stands between such lines as well.

First give your reason, in one sentence. Then end with one line, with nothing after it, that is \
one of these:
Holds: yes
Holds: no"""

REMINDER = """Your reply does not end in a usable verdict. Give your reason again in one sentence, \
and end with one line, with nothing after it, that is one of these:
Holds: yes
Holds: no"""

_LINE = re.compile(r"holds\s*:\s*(yes|no)\s*\.?", re.ASCII | re.IGNORECASE)


def checking(prompt: Prompt, completion: str, rule: str) -> Messages:
    """The messages that ask whether an answer keeps to a rule."""
    parts, mark = material(prompt, completion, name="the answer", further={"the rule": rule})
    parts.append(f"Say whether the answer keeps to the rule. The mark is {mark}.")
    return as_messages(SYSTEM, parts)


def holds_in(reply: str) -> float:
    """1 where the last line of a reply says yes, 0 for no. Raises: Unusable."""
    line = last_line(reply)
    found = _LINE.fullmatch(line)
    if found is None:
        raise Unusable(f"the reply ends in {shown_line(line)}, not in yes or no")
    return float(found[1].lower() == "yes")


class Rules(JudgeBase):
    """Asks a language model which rules an answer keeps to."""

    kind = "rules"

    def __init__(self, name: str, endpoint: Endpoint, rules: Sequence[str]) -> None:
        super().__init__(name, endpoint)
        self.rules = list(rules)

    @property
    def range(self) -> Range:
        """No rule to all of them."""
        return SHARE

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        """Ask about every rule for every answer. Raises: NoVerdict; EndpointError when the judge
        cannot be asked."""
        check_lengths(prompts, completions, references)
        questions = [
            Question(checking(prompt, completion, rule), holds_in, REMINDER)
            for prompt, completion in zip(prompts, completions)
            for rule in self.rules
        ]
        replies, count = self._session.ask(questions), len(self.rules)
        by_row = {row: replies[row * count : (row + 1) * count] for row in range(len(prompts))}
        held = self._values(by_row, "verdict")
        columns = zip(*(held[row] for row in by_row)) if by_row else ([] for _ in self.rules)
        attributes = dict(zip(self.rules, map(list, columns)))
        said = [(row, reply) for row, found in by_row.items() for reply in found]
        return Scores([fmean(held[row]) for row in by_row], attributes, remarks_of(said))

    def _made_of(self) -> list[Any]:
        return [SYSTEM, REMINDER, self.rules]


def make(card: Card) -> Scorer:
    """The scorer of a card of the kind `rules`. Asks nobody and loads nothing yet, but says what is
    missing."""
    assert card.endpoint is not None, "a card without an endpoint is refused when it is read"
    if card.range is not None and tuple(card.range) != SHARE:
        raise RecipeError(f"{card.name}: a share of rules goes from 0 to 1", "drop range")
    for place, rule in enumerate(card.rules):
        if not rule.strip() or rule in card.rules[:place]:
            what = "twice" if rule.strip() else "without a word"
            raise RecipeError(f"{card.name}: rule {place + 1} is there {what}", "drop it")
    check_endpoint(card.endpoint)
    return Rules(card.name, card.endpoint, card.rules)
