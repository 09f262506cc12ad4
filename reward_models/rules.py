"""The kind `rules`: the share of written rules that an answer keeps to, each judged yes or no by a
language model (AutoRule, arXiv 2506.15651).

    kind: rules
    endpoint: {model: Qwen/Qwen3-8B, base_url: http://127.0.0.1:8000/v1, temperature: 0.0}
    rules:
    - The answer says what it assumes.
    - The answer ends when the question is answered.

`aligner data rules` draws such a card from preference pairs (`rule_extraction.py`); rules may be
written by hand as well. Each rule is a question of its own about each answer (`checks.py`), so the
calls are answers times rules; `attributes` of the scores say which rules hold. An answer with a
rule that has no verdict has no score. Weights, and a list for each prompt: `rubric.py`.

Where we differ from the paper: it adds this share to a reward model's score, which here is the
business of `reward_models` with two names, or of an `ensemble`.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from aligner.config.recipe import Endpoint
from aligner.endpoints.client import check_endpoint
from aligner.errors import RecipeError

from .base import SHARE, Prompt, Scorer, Scores, check_lengths
from .card import Card
from .checks import REMINDER, Checker, Form, by_item, remarks_in
from .rubric_items import fault_of

RULE = Form(
    "You check whether one answer to a conversation keeps to one rule. Nothing else about the "
    "answer counts, and the rule is not yours to judge.",
    "the rule",
    "Say whether the answer keeps to the rule.",
)


class Rules(Checker):
    """Asks a language model which rules an answer keeps to."""

    kind = "rules"
    form = RULE

    def __init__(self, name: str, endpoint: Endpoint, rules: Sequence[str]) -> None:
        super().__init__(name, endpoint)
        self.rules = list(rules)

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        """Ask about every rule for every answer. Raises: NoVerdict; EndpointError when the judge
        cannot be asked."""
        check_lengths(prompts, completions, references)
        by_row = self._checked(prompts, completions, [self.rules] * len(prompts))
        held = self._values(by_row, "verdict")
        attributes = by_item(self.rules, list(held.values()))
        return Scores([fmean(held[row]) for row in by_row], attributes, remarks_in(by_row))

    def _made_of(self) -> list[Any]:
        return [RULE.system, REMINDER, self.rules]


def make(card: Card) -> Scorer:
    """The scorer of a card of the kind `rules`. Asks nobody and loads nothing yet, but says what is
    missing."""
    assert card.endpoint is not None, "a card without an endpoint is refused when it is read"
    if card.range is not None and tuple(card.range) != SHARE:
        raise RecipeError(f"{card.name}: a share of rules goes from 0 to 1", "drop range")
    if fault := fault_of(card.rules):
        raise RecipeError(f"{card.name}: rule {fault[0]} {fault[1]}", "drop it")
    check_endpoint(card.endpoint)
    return Rules(card.name, card.endpoint, card.rules)
