"""Verifiers: scores that follow from a rule and a right answer, with no model. Imports no torch.

    verifier:exact             1 when the answer is the reference, blanks aside
    verifier:number            1 when the answer's number is the reference's number
    verifier:regex=PATTERN     1 when the pattern is found; with a group, when the group is the reference
    verifier:FILE.py:FUNCTION  a function of yours: (prompt, completion, reference) -> number

Blanks: runs of white space count as one space, and those at the ends do not count.

Numbers. The number of a text is the one after its last answer mark (`#### 42`, `A: 42`, `Answer: 42`, `answer is 42`,
`\\boxed{42}`), else the last number in it. Read are signs (a minus sign between two numbers, as in `7-2`, is no sign),
decimals, exponents and thousands separators (`1,234.50`); currency signs, units and percent signs around the number are
passed over, so `50%` equals `50`. Not read: number words, fractions (`1/2` ends in the number 2), decimal commas.
Two numbers are equal when they differ by at most `TOLERANCE` times the reference, or `TOLERANCE` near zero.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import ModuleType

from aligner.errors import DataError, RecipeError

from .base import SHARE, UNBOUNDED, Prompt, Range, Scorer, Scores, check_lengths, required_references
from .card import Card

TOLERANCE = Decimal("1e-6")

UserFunction = Callable[[Prompt, str, "str | None"], float]

_DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
_NUMBER = rf"(?:(?<![\w.)])[-+][$€£¥]?)?{_DIGITS}(?:[eE][-+]?\d{{1,3}}\b)?"
_ANY_NUMBER = re.compile(_NUMBER, re.ASCII)
_MARK = r"(?:####|\bA:|\banswer:|\banswer is:?|\\boxed\{)"
_MARKED = re.compile(_MARK + rf"\s*[*$€£¥(]*\s*({_NUMBER})", re.ASCII | re.IGNORECASE)


def same_text(text: str) -> str:
    """A text with its blanks normalised, for comparing."""
    return " ".join(text.split())


def number_in(text: str) -> Decimal | None:
    """The number that a text answers with, or None."""
    text = text.replace("\u2212", "-")
    found = _MARKED.findall(text) or _ANY_NUMBER.findall(text)
    return Decimal(re.sub(r"[,$€£¥]", "", found[-1])) if found else None


@dataclass(frozen=True, slots=True)
class ExactVerifier:
    """1 when the answer is the reference, blanks aside; else 0."""

    name: str = "verifier:exact"
    range: Range = SHARE

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        check_lengths(prompts, completions, references)
        right = required_references(self.name, references, len(prompts))
        return Scores(float(same_text(answer) == same_text(reference)) for answer, reference in zip(completions, right))

    def fingerprint(self) -> str:
        """Its name: the rule is fixed."""
        return self.name


@dataclass(frozen=True, slots=True)
class NumberVerifier:
    """1 when the answer's number equals the reference's; else 0. A reference without a number is an error."""

    name: str = "verifier:number"
    range: Range = SHARE

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        check_lengths(prompts, completions, references)
        right = required_references(self.name, references, len(prompts))
        targets = [number_in(reference) for reference in right]
        for row, (target, reference) in enumerate(zip(targets, right), start=1):
            if target is None:
                raise DataError(
                    f"row {row}: {self.name} finds no number in the right answer {reference[:60]!r}",
                    "Use `verifier:exact` for answers that are words.",
                )
        return Scores(float(_equal(number_in(answer), target)) for answer, target in zip(completions, targets))

    def fingerprint(self) -> str:
        """Its name: the rule is fixed."""
        return self.name


def _equal(found: Decimal | None, target: Decimal | None) -> bool:
    if found is None or target is None:
        return False
    return abs(found - target) <= TOLERANCE * max(Decimal(1), abs(target))


@dataclass(frozen=True, slots=True)
class RegexVerifier:
    """The pattern's last match decides: found or not, or its one group compared with the reference, blanks aside."""

    pattern: re.Pattern[str]
    range: Range = SHARE

    @property
    def name(self) -> str:
        return f"verifier:regex={self.pattern.pattern}"

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        check_lengths(prompts, completions, references)
        if not self.pattern.groups:
            return Scores(float(self.pattern.search(answer) is not None) for answer in completions)
        right = required_references(self.name, references, len(prompts))
        return Scores(
            float(self._last_group(answer) == same_text(reference)) for answer, reference in zip(completions, right)
        )

    def fingerprint(self) -> str:
        """Its name, which holds the pattern."""
        return self.name

    def _last_group(self, answer: str) -> str | None:
        groups = [match.group(1) for match in self.pattern.finditer(answer)]
        return same_text(groups[-1]) if groups and groups[-1] is not None else None


@dataclass(frozen=True, slots=True)
class FunctionVerifier:
    """A user's function, called once for each row."""

    name: str
    function: UserFunction
    range: Range = UNBOUNDED

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        check_lengths(prompts, completions, references)
        known: Sequence[str | None] = [None] * len(prompts) if references is None else references
        rows = enumerate(zip(prompts, completions, known), start=1)
        return Scores(self._one(row, *values) for row, values in rows)

    def fingerprint(self) -> str:
        """Its name; what the function does is not looked at."""
        return self.name

    def _one(self, row: int, prompt: Prompt, completion: str, reference: str | None) -> float:
        try:
            value = self.function(prompt, completion, reference)
        except Exception as error:  # the user's code may raise anything
            raise DataError(
                f"row {row}: {self.name} raised {type(error).__name__}: {error}",
                f"Make the function give a score to every answer; this one was {completion[:60]!r}.",
            ) from error
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(
                f"row {row}: {self.name} returned {value!r}, which is no finite number",
                "Return a float; higher is better.",
            )
        return float(value)


def make(card: Card) -> Scorer:
    """The scorer of a card of the kind `verifier`."""
    argument = card.verifier or ""
    if argument == "exact":
        return ExactVerifier()
    if argument == "number":
        return NumberVerifier()
    if argument.startswith("regex="):
        return _make_regex(argument.removeprefix("regex="))
    path, colon, function = argument.rpartition(":")
    if colon and path.endswith(".py"):
        return FunctionVerifier(f"verifier:{argument}", _load_function(Path(path), function))
    close = difflib.get_close_matches(argument, ["exact", "number", "regex=PATTERN"], n=1)
    raise RecipeError(
        f"there is no verifier {argument!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
        "Write verifier:exact, verifier:number, verifier:regex=PATTERN or verifier:path/to/file.py:function.",
    )


def _make_regex(text: str) -> RegexVerifier:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise RecipeError(
            f"verifier:regex={text} is no regular expression: {error}", "Python's `re` syntax."
        ) from error
    if not text or pattern.groups > 1:
        raise RecipeError(
            f"verifier:regex={text} needs a pattern with at most one group, found {pattern.groups} groups",
            "Use (?:...) for groups that are not the answer.",
        )
    return RegexVerifier(pattern)


def _load_function(path: Path, name: str) -> UserFunction:
    where = f"verifier:{path}:{name}"
    functions = {key: value for key, value in vars(_import_file(path, where)).items() if inspect.isroutine(value)}
    if name not in functions:
        close = difflib.get_close_matches(name, functions, n=1)
        raise RecipeError(
            f"{path} has no function {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
            f"It has: {', '.join(sorted(functions)) or 'no function at all'}.",
        )
    try:
        inspect.signature(functions[name]).bind("prompt", "completion", "reference")
    except TypeError as error:
        raise RecipeError(
            f"{where} cannot be called with three values: {error}",
            f"Define it as def {name}(prompt, completion, reference).",
        ) from error
    return functions[name]


def _import_file(path: Path, where: str) -> ModuleType:
    if not path.is_file():
        raise RecipeError(f"{where}: there is no file {path}", "The path is taken from the working directory.")
    spec = importlib.util.spec_from_file_location(f"aligner_user_{path.stem}", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        raise RecipeError(
            f"{where}: importing {path} raised {type(error).__name__}: {error}",
            "Import the file with python to see more.",
        ) from error
    return module
