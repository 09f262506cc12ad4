"""Verifiers: scores that follow from a rule and a right answer, with no model. Imports no torch.

    verifier:exact             1 when the answer is the reference, blanks aside
    verifier:number            1 when the answer's number is the reference's number
    verifier:regex=PATTERN     1 when the pattern is found; with a group, when the group is the
                               reference
    verifier:json              1 when the answer is JSON; with a reference, when it is the same
                               value
    verifier:json=FILE.json    1 when the answer is JSON that is valid against the schema in the
                               file
    verifier:tests             1 when the answer's Python program passes the reference's unit tests
                               (`TestsVerifier`)
    verifier:tests=share       the share of the tests that it passes
    verifier:FILE.py:FUNCTION  a function of yours: (prompt, completion, reference) -> number

The last four kinds and `regex` run in processes that are stopped when they take too long or too
much (`sandboxed_verifiers.py`); such a row is scored as failed and has a remark. Limits stand
behind the name, as in `verifier:tests,timeout_s=5,memory_mb=512,processes=0`; a function takes
`network=yes` too. `regex` takes none, for all that follows is its pattern.

Blanks: runs of white space count as one space, and those at the ends do not count.

JSON. Read is the answer's last ```json block, else the whole answer; `json_extract.py` says what
counts as JSON. A reference that is not JSON is an error of the data; with a schema, references are
not looked at.

Numbers. The number of a text is the one after its last answer mark (`#### 42`, `A: 42`, `Answer:
42`, `answer is 42`, `\\boxed{42}`), else the last number in it. Read are signs (a minus sign
between two numbers, as in `7-2`, is not a sign; one that is followed by blanks, as in `- 3`, is a
sign only behind an answer mark in its line or at the start of the text), decimals, exponents and
thousands separators (`1,234.50`); currency signs, units and percent signs around the number are
passed over, so `50%` equals `50`. Not read: number words, fractions (`1/2` ends in the number 2),
decimal commas. Two numbers are equal when they differ by at most `TOLERANCE` times the reference,
or `TOLERANCE` near zero.
"""

from __future__ import annotations

import decimal
import re
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

from aligner.config.hints import closest
from aligner.errors import DataError, RecipeError

from .base import SHARE, Prompt, Scorer
from .card import Card, range_of
from .json_extract import INVALID, read_answer, read_json, same_value
from .sandboxed_verifiers import FunctionVerifier, RegexVerifier, SchemaVerifier, TestsVerifier
from .verifier_base import Judged, Verifier
from .verifier_options import Options, read_options, split_options

TOLERANCE = Decimal("1e-6")

_WIDE = decimal.Context(prec=40, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
"""For numbers of any length: beyond the usual context's exponents, subtracting them would raise."""

_DIGITS = r"(?:(?:\d{1,3}(?:,\d{3}){1,30}(?![\d,])|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
_UNSIGNED = rf"{_DIGITS}(?:[eE][-+]?\d{{1,3}}\b)?"
_NUMBER = rf"(?:(?<![\w.)])[-+][$€£¥]?)?{_UNSIGNED}"
_SPACED = rf"[-+][ \t]{{1,8}}[$€£¥]?{_UNSIGNED}"
_ANY_NUMBER = re.compile(rf"\A\s*({_SPACED})|{_NUMBER}", re.ASCII)
_MARK = r"(?:####|\bA:|\banswer:|\banswer is:?|\\boxed\{)"
_MARKED = re.compile(
    _MARK
    # At the start of a line, `- 3` is an item of a list.
    + rf"(?:[ \t*$€£¥(]*({_SPACED})|[\s*$€£¥(]*({_NUMBER}))",
    re.ASCII | re.IGNORECASE,
)


def same_text(text: str) -> str:
    """A text with its blanks normalized, for comparing."""
    return " ".join(text.split())


def number_in(text: str) -> Decimal | None:
    """The number that a text answers with, or None."""
    text = text.replace("\u2212", "-")
    found = _last(_MARKED, text) or _last(_ANY_NUMBER, text)
    return Decimal(re.sub(r"[,$€£¥ \t]", "", found)) if found else None


def _last(pattern: re.Pattern[str], text: str) -> str:
    """The last match, or the group that it has; nothing is kept of the others, of which a long
    answer may have millions."""
    matches = deque(pattern.finditer(text), maxlen=1)
    return str(matches[0][matches[0].lastindex or 0]) if matches else ""


class ExactVerifier(Verifier):
    """1 when the answer is the reference, blanks aside; else 0."""

    needs_references = True
    rule = "verifier:exact"

    def judge(self, row: int, prompt: Prompt, completion: str, reference: str | None) -> Judged:
        """Compare the texts."""
        assert reference is not None
        return float(same_text(completion) == same_text(reference)), ""


class NumberVerifier(Verifier):
    """1 when the answer's number equals the reference's; else 0. A reference without a number is an
    error."""

    needs_references = True
    rule = "verifier:number, rule 3"

    def judge(self, row: int, prompt: Prompt, completion: str, reference: str | None) -> Judged:
        """Compare the numbers."""
        assert reference is not None
        target = number_in(reference)
        if target is None:
            raise DataError(
                f"row {row}: {self.name} cannot find a number in the right answer "
                f"{reference[:60]!r}",
                "use `verifier:exact` for answers that are words",
            )
        found = number_in(completion)
        if found is None:
            return 0.0, ""
        with decimal.localcontext(_WIDE):
            return float(abs(found - target) <= TOLERANCE * max(Decimal(1), abs(target))), ""


class JsonVerifier(Verifier):
    """1 when the answer is JSON and, in a row with a reference, has the reference's value; else
    0."""

    rule = "verifier:json"

    def judge(self, row: int, prompt: Prompt, completion: str, reference: str | None) -> Judged:
        """Compare the values."""
        value = read_answer(completion)
        if reference is None:
            return float(value is not INVALID), ""
        target = read_json(reference)
        if target is INVALID:
            raise DataError(
                f"row {row}: {self.name} finds no JSON in the right answer {reference[:60]!r}",
                "give JSON, or no `answer` at all where any JSON will do",
            )
        return float(value is not INVALID and same_value(value, target)), ""


def make(card: Card) -> Scorer:
    """The scorer of a card of the kind `verifier`."""
    argument = card.verifier or ""
    name = card.name or f"verifier:{argument}"
    if argument.startswith("regex="):
        scorer: Scorer = _make_regex(name, argument.removeprefix("regex="))
    else:
        kind, written = split_options(argument)
        path, colon, function = kind.rpartition(":")
        if colon and path.endswith(".py"):
            options = read_options(
                name, written, ("timeout_s", "memory_mb", "processes", "network")
            )
            return FunctionVerifier(
                name, Path(path).expanduser(), function, options, range_of(card)
            )
        scorer = _make_ready(name, kind, written)
    if card.range is not None and tuple(card.range) != SHARE:
        raise RecipeError(
            f"the card {name} says a range from {card.range[0]:g} to {card.range[1]:g}, and "
            f"verifier:{argument} has 0 to 1",
            "drop `range`; it is for functions of your own",
        )
    return scorer


def _make_ready(name: str, kind: str, written: dict[str, str]) -> Scorer:
    if kind in ("exact", "number", "json"):
        read_options(name, written, ())
        ready: dict[str, Callable[[str], Scorer]] = {
            "exact": ExactVerifier,
            "number": NumberVerifier,
            "json": JsonVerifier,
        }
        return ready[kind](name)
    if kind.startswith("json="):
        options = read_options(name, written, ("timeout_s", "memory_mb"))
        return SchemaVerifier(name, Path(kind.removeprefix("json=")).expanduser(), options)
    if kind in ("tests", "tests=share"):
        options = read_options(name, written, ("timeout_s", "memory_mb", "processes"))
        return TestsVerifier(name, options, share=kind == "tests=share")
    close = closest(kind, READY)
    raise RecipeError(
        f"there is no verifier {kind!r}" + (f"; did you mean {close!r}?" if close else ""),
        f"write verifier: and one of {', '.join(READY)}, or verifier:path/to/file.py:function",
    )


READY = ("exact", "number", "regex=PATTERN", "json", "json=FILE.json", "tests", "tests=share")


def _make_regex(name: str, text: str) -> RegexVerifier:
    try:
        pattern = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise RecipeError(
            f"verifier:regex={text} is not a regular expression: {error}", "Python's `re` syntax"
        ) from error
    if not text or pattern.groups > 1:
        raise RecipeError(
            f"verifier:regex={text} needs a pattern with at most one group, found "
            f"{pattern.groups} groups",
            "use (?:...) for groups that are not the answer",
        )
    return RegexVerifier(name, pattern, Options())
