"""How an answer is cut into segments (arXiv 2501.02790): the section of recipes and cards, and
which of its keys a rule reads. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from aligner.config.named import Names
from aligner.config.recipe import Section, Weight


class Segments(Section):
    """How an answer is cut into segments (arXiv 2501.02790)."""

    rule: Literal["entropy", "token", "sentence", "fixed", "delimiter", "whole"] = "entropy"
    """`entropy`: before each token that the reference could hardly foresee; `token`: after every
    token; `sentence`: after `.`, `!`, `?` and line ends; `fixed`: after every `length` tokens;
    `delimiter`: after each `delimiter`; `whole`: not at all, which is a Bradley-Terry model."""
    cutoff: Weight = 1.75
    """Entropy in nats above which a token opens a segment; 1.75 and 2.0 in the paper."""
    length: int = Field(16, ge=1)
    """`fixed`: tokens of a segment."""
    delimiter: str = Field("\n", min_length=1)
    """`delimiter`: the text that ends a segment."""
    min_length: int = Field(1, ge=1)
    """Tokens that a segment has at least; the last one of an answer may have fewer."""
    max_length: int | None = Field(None, ge=1)
    """Tokens that a segment has at most."""
    reference: Annotated[str | None, Names("model")] = None
    """Hub id or folder of the model whose entropies are taken; it must have the same tokenizer. In
    a recipe, absent: the model that training starts from."""
    revision: str | None = None
    """Its branch, tag or commit on the hub."""


RULES_OF_KEY: dict[str, tuple[str, ...]] = {
    "cutoff": ("entropy",),
    "target_length": ("entropy",),
    "reference": ("entropy",),
    "revision": ("entropy",),
    "length": ("fixed",),
    "delimiter": ("delimiter",),
    "min_length": ("entropy", "token", "sentence", "delimiter"),
    "max_length": ("entropy", "token", "sentence", "delimiter"),
}
"""Key -> the rules that read it."""


def settings_read(segments: Segments) -> dict[str, Any]:
    """What the rule of a section reads, and the rule."""
    values = segments.model_dump(mode="json", exclude_none=True)
    unread = dict(without_effect(segments.rule, values))
    return {key: value for key, value in values.items() if key not in unread}


def without_effect(rule: str, given: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the given keys that a rule does not read, each with the rules that do."""
    for key in given:
        rules = RULES_OF_KEY.get(key, (rule,))
        if rule not in rules:
            yield key, " or ".join(rules)
