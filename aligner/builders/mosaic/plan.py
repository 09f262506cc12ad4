"""The plan of one mosaic: its examples, its strategy and rule, its wording. Everything random is
decided here.

Drawn in this order: strategy, numbers, tags, rule, wording, places. A rule that would say nothing
clear about these instructions is put aside and another one drawn; numbers that a rule speaks of are
always printed; where neither numbers nor tags were drawn, tags are used, since nothing else would
tell one answer from the next. A mark that occurs in an example's text is drawn again, up to
`REDRAWS` times, and then made up of random letters.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from aligner.builders.mosaic.examples import Example
from aligner.builders.mosaic.phrasings import Phrasings, Text
from aligner.builders.mosaic.rules import RULES, Choice, Rule
from aligner.config.recipe import Mosaic

T = TypeVar("T")

REDRAWS = 20
NUMBERED_SHARE = 0.9
TAGGED_SHARE = 0.5
SILENT_SHARE = 0.5
"""Share of samples with neither tags nor a rule that have no meta-instruction at all."""
SEPARATORS = ("\n", "\n\n")
PRIMARY_SEPARATORS = ("\n\n", "\n\n---\n\n", "\n\n***\n\n", "\n\n===\n\n")
REPLY_SEPARATOR = "\n\n"
NONCE_LETTERS = "bcdfghjkmnpqrstvwxz23456789"

Place = tuple[bool, str]
"""Whether a meta-instruction stands above what it belongs to, and the newlines in between."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a mosaic looks. Empty strings stand for what is not there."""

    number: str = ""
    """A template with `{n}`."""
    gap: str = ""
    """What follows a number: a blank or a newline."""
    begin: str = ""
    end: str = ""
    separator: str = "\n\n"
    """Between instructions; in `primary` between answers too."""
    format_line: str = ""
    format_place: Place = (True, "\n\n")
    rule_line: str = ""
    rule_place: Place = (True, "\n\n")

    def numbered(self, index: int) -> str:
        """Return what stands before the instruction or the answer of this number."""
        return self.number.replace("{n}", str(index)) + self.gap if self.number else ""


@dataclass(frozen=True, slots=True)
class Plan:
    """One mosaic: `order` holds the 1-based indices of the answered examples, in the order of the
    answers."""

    examples: tuple[int, ...]
    strategy: str
    rule: str | None
    order: tuple[int, ...]
    dropped: tuple[int, ...]
    style: Style


PLAIN = "plain"
PRIMARY = "primary"


def plain_plan(example: int) -> Plan:
    """Return the plan of an example that stands alone, as it is."""
    return Plan((example,), PLAIN, None, (1,), (), Style())


class Planner:
    """Draws plans by the settings of a recipe. `counts` takes what was put aside, by its reason."""

    def __init__(self, settings: Mosaic, phrasings: Phrasings, counts: Counter[str]) -> None:
        self.settings, self.phrasings, self.counts = settings, phrasings, counts
        self.strategies = {name: weight for name, weight in settings.strategies if weight > 0}
        named = {"permute": settings.permute_rules, "maskout": settings.mask_rules}
        self.rules = {}
        for strategy, rules in RULES.items():
            self.rules[strategy] = [rules[name] for name in (named[strategy] or rules)]
        low, high = settings.mask_ratio
        self.mask_ratio = (float(low), float(high))

    def plan(
        self,
        numbers: Sequence[int],
        examples: Sequence[Example],
        rng: random.Random,
        strategy: str | None = None,
    ) -> Plan:
        """Return a plan for these examples (their numbers, and themselves), of a strategy that was
        drawn before if one was."""
        strategy = strategy or self.strategy(rng)
        if len(examples) == 1:
            if strategy == PRIMARY:
                return plain_plan(numbers[0])
            strategy = "format"
        if strategy == PRIMARY:
            separator = _first_free(PRIMARY_SEPARATORS, examples, rng)
            return Plan(
                tuple(numbers),
                PRIMARY,
                None,
                tuple(range(1, len(examples) + 1)),
                (),
                Style(separator=separator),
            )
        is_numbered, is_tagged = rng.random() < NUMBERED_SHARE, rng.random() < TAGGED_SHARE
        rule, choice = self._rule(strategy, examples, rng)
        if rule is None:
            strategy, choice = "format", Choice(tuple(range(1, len(examples) + 1)))
        elif rule.needs_numbers:
            is_numbered = True
        style = self._style(strategy, rule, choice, is_numbered, is_tagged, examples, rng)
        return Plan(
            tuple(numbers),
            strategy,
            rule.name if rule else None,
            choice.order,
            choice.dropped,
            style,
        )

    def strategy(self, rng: random.Random) -> str:
        """Draw a strategy by the weights of the recipe."""
        u = rng.random() * sum(self.strategies.values())
        for name, weight in self.strategies.items():
            u -= weight
            if u < 0:
                return name
        return name

    def _rule(
        self, strategy: str, examples: Sequence[Example], rng: random.Random
    ) -> tuple[Rule | None, Choice]:
        """A rule that says one thing about these instructions, and what it says; none for plain
        formatting."""
        left = list(self.rules.get(strategy, ()))
        instructions = [example.instruction for example in examples]
        while left:
            rule = left.pop(int(rng.random() * len(left)))
            choice = rule.choose(instructions, rng, self.phrasings, self.mask_ratio)
            if choice is not None:
                return rule, choice
            self.counts[f"rejected:{strategy}.{rule.name} would be ambiguous"] += 1
        if strategy in self.rules:
            self.counts[f"rejected:no rule of {strategy} fits, format instead"] += 1
        return None, Choice(())

    def _style(
        self,
        strategy: str,
        rule: Rule | None,
        choice: Choice,
        is_numbered: bool,
        is_tagged: bool,
        examples: Sequence[Example],
        rng: random.Random,
    ) -> Style:
        """Marks that no example's text contains, and the wording."""
        separator, gap = one_of(SEPARATORS, rng), one_of((" ", "\n"), rng)
        is_tagged = is_tagged or not is_numbered
        if not is_numbered:
            separator = "\n\n"
            is_numbered = any("\n\n" in f"{example.instruction}\n" for example in examples)
        number = self._number(examples, is_tagged, rng) if is_numbered else ""
        begin, end = self._tags(examples, number, rng) if is_tagged else ("", "")
        label = f"{strategy}.{rule.name}" if rule else ""
        brackets = one_of(self.phrasings.list_brackets, rng)
        items = one_of(self.phrasings.separators(label), rng).join(map(str, choice.listed))
        slots = {
            "begin": begin,
            "end": end,
            "list": brackets.replace("{items}", items),
            "count": str(choice.count),
        }
        format_line = self._format_line(is_tagged, rule, len(examples), slots, rng)
        rule_line = self._line(label, len(choice.dropped) == 1, slots, rng) if label else ""
        places = [(rng.random() < 0.5, one_of(SEPARATORS, rng)) for _ in range(2)]
        return Style(
            number,
            gap if number else "",
            begin,
            end,
            separator,
            format_line,
            places[0],
            rule_line,
            places[1],
        )

    def _format_line(
        self, is_tagged: bool, rule: Rule | None, n: int, slots: dict[str, str], rng: random.Random
    ) -> str:
        """Name the tags; or say that everything is to be answered, half of the time, where no rule
        contradicts it."""
        if is_tagged:
            return self._line("format.tags", n == 1, slots, rng)
        if rule is not None or rng.random() < SILENT_SHARE:
            return ""
        return self._line("format.list", n == 1, slots, rng)

    def _line(self, label: str, is_one: bool, slots: dict[str, str], rng: random.Random) -> str:
        forms = self.phrasings.texts[label]
        text: Text = one_of(forms["one" if is_one and "one" in forms else "many"], rng)
        return text.filled(**slots)

    # -- marks
    # ----------------------------------------------------------------------------------------------

    def _number(self, examples: Sequence[Example], is_tagged: bool, rng: random.Random) -> str:
        """A number template whose mark begins no line of an instruction, nor of an answer where no
        tags mark that off."""
        texts = [example.instruction for example in examples]
        texts += [] if is_tagged else [example.response for example in examples]

        def is_free(template: str) -> bool:
            mark = number_mark(template)
            return not any(mark.search(text) for text in texts)

        return self._drawn(
            "number",
            lambda: one_of(self.phrasings.numbers, rng),
            lambda nonce: f"#{nonce}-{{n}}:",
            is_free,
            rng,
        )

    def _tags(
        self, examples: Sequence[Example], number: str, rng: random.Random
    ) -> tuple[str, str]:
        """A pair of tags that no example's text contains, and that no answer's end can be read
        into."""

        def draw() -> tuple[str, str]:
            (begin, end), bracket = (
                one_of(self.phrasings.tag_words, rng),
                one_of(self.phrasings.tag_brackets, rng),
            )
            if rng.random() < 0.5:
                begin, end = begin.upper(), end.upper()
            return bracket.replace("{tag}", begin), bracket.replace("{tag}", end)

        def is_free(tags: tuple[str, str]) -> bool:
            begin, end = tags
            if begin in end or end in begin or end in number:
                return False
            return all(
                begin not in example.instruction
                and end not in example.instruction
                and begin not in example.response
                and (example.response + end).find(end) == len(example.response)
                for example in examples
            )

        return self._drawn("tags", draw, lambda nonce: (f"<{nonce}>", f"</{nonce}>"), is_free, rng)

    def _drawn(
        self,
        what: str,
        draw: Callable[[], T],
        make: Callable[[str], T],
        is_free: Callable[[T], bool],
        rng: random.Random,
    ) -> T:
        for _ in range(REDRAWS):
            mark = draw()
            if is_free(mark):
                return mark
            self.counts[f"rejected:{what} occur in a text"] += 1
        self.counts[f"rejected:no {what} among the phrasings are free, made up"] += 1
        while True:
            mark = make("".join(one_of(NONCE_LETTERS, rng) for _ in range(6)))
            if is_free(mark):
                return mark


@cache
def number_mark(template: str) -> re.Pattern[str]:
    """Return what finds a line that begins as a numbered one would, with any number."""
    before, after = template.split("{n}")
    return re.compile(rf"(?:\A|\n){re.escape(before)}\d+{re.escape(after)}")


def _first_free(separators: Sequence[str], examples: Sequence[Example], rng: random.Random) -> str:
    """The first separator that occurs in no text, nor at its seams; a made-up one at last."""
    texts = [text for example in examples for text in (example.instruction, example.response)]
    for separator in separators:
        if all((text + separator).find(separator) == len(text) for text in texts):
            return separator
    while True:
        separator = f"\n\n{''.join(one_of(NONCE_LETTERS, rng) for _ in range(6))}\n\n"
        if all((text + separator).find(separator) == len(text) for text in texts):
            return separator


def one_of(choices: Sequence[T], rng: random.Random) -> T:
    return choices[int(rng.random() * len(choices))]
