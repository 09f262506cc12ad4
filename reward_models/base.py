"""The protocols of this folder: a `Scorer` gives scores, a `Comparer` also compares two responses.

A scorer is any object with a `name`, a `range` and a `score` method. It sees text only, never token
ids, so the same scorer judges a policy of ours, a served model and a file of answers. One that
compares answers rather than scoring them has `prefer` too; `preferences` asks either kind which of
two answers is better. Imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from aligner.errors import DataError

Prompt = str | list[dict[str, Any]]
"""A plain prompt, or the turns of a conversation up to the answer."""

Range = tuple[float, float]
"""Smallest and largest score, infinite where there is no bound."""

UNBOUNDED: Range = (-math.inf, math.inf)
SHARE: Range = (0.0, 1.0)

_ROWS = re.compile(r"\brow (\d+(?:, \d+)*)")


class Scores(list[float]):
    """Scores of n answers, in the order of the answers: a list of n finite floats, and what else is
    known of them.

    `attributes`: further numbers, name -> n floats (the heads of a regression, the members of an
    ensemble). `remarks`: row, counted from 0 -> what happened to it ("ran longer than 5 s", "the
    prompt was cut by 12 tokens").
    """

    def __init__(
        self,
        values: Iterable[float] = (),
        attributes: Mapping[str, Sequence[float]] | None = None,
        remarks: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(values)
        self.attributes: dict[str, list[float]] = {
            name: list(found) for name, found in (attributes or {}).items()
        }
        self.remarks: dict[int, str] = dict(remarks or {})
        assert all(len(found) == len(self) for found in self.attributes.values()), (
            "one number a row"
        )


class Preferences(list[float]):
    """How likely each first answer is better than the second, as n numbers in [0, 1]; 0.5 is a tie.

    `flips`: rows, counted from 0, where a scorer that is asked in both orders named another answer
    when the order changed. `remarks`: as in `Scores`.
    """

    def __init__(
        self,
        values: Iterable[float] = (),
        flips: Sequence[int] = (),
        remarks: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(values)
        self.flips: list[int] = list(flips)
        self.remarks: dict[int, str] = dict(remarks or {})


@runtime_checkable
class Scorer(Protocol):
    """Hands out one number for each answer; higher is better."""

    @property
    def name(self) -> str:
        """What reports and manifests call it: the text that `load_scorer` was given, or the name of
        its card."""
        ...

    @property
    def range(self) -> Range:
        """Smallest and largest score that it can give."""
        ...

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        """Score `completions[i]` as an answer to `prompts[i]`, knowing `references[i]`.

        Shapes: the sequences have the same length n (n = 0 is fine) and so has the result.
        `references` holds right answers, one for each row, where the scorer compares with them;
        others ignore it. Range: finite floats within `range`. Gold score and verifiers stay within
        [0, 1] (a user's function may return anything finite). The numbers of a reward model are
        comparable within one prompt only. Errors: a row that cannot be judged (no reference, no
        number in it, no exercise in the prompt) raises `DataError` that names the row, counted from
        1. Whatever a completion says is never an error: it gets a score. Scores do not depend on
        the order of the rows, and (but for `pairwise` and `tournament`, which compare the answers
        to one prompt with one another) not on which other rows are there.
        """
        ...

    def fingerprint(self) -> str:
        """What decides its scores, as one short text: the same text, the same scores. For
        caches."""
        ...


@runtime_checkable
class BackgroundScorer(Scorer, Protocol):
    """A scorer that may work in a thread of its own while a model samples, as it hardly needs what
    the model needs. It is then asked about the responses to some prompts at a time."""

    in_background: bool


@runtime_checkable
class Composed(Scorer, Protocol):
    """A scorer that asks others."""

    members: list[Scorer]


@runtime_checkable
class Comparer(Scorer, Protocol):
    """A scorer that reads two answers side by side."""

    def prefer(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> Preferences:
        """Say for each row how likely `first[i]` is a better answer to `prompts[i]` than
        `second[i]`."""
        ...


@runtime_checkable
class InformedComparer(Comparer, Protocol):
    """A comparer that has a use for right answers, as an ensemble with rules among its members
    does."""

    takes_references: bool

    def prefer(
        self,
        prompts: Sequence[Prompt],
        first: Sequence[str],
        second: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Preferences:
        """As `Comparer.prefer`, knowing `references[i]`."""
        ...


def preferences(
    scorer: Scorer,
    prompts: Sequence[Prompt],
    first: Sequence[str],
    second: Sequence[str],
    references: Sequence[str | None] | None = None,
) -> Preferences:
    """Say how likely each first answer is better: what the scorer says, or the sigmoid of the
    difference of two scores.

    The sigmoid is Bradley and Terry's model, so for a reward model trained with that loss it is a
    probability; for others it only says which answer is better, and 0.5 is a tie. A comparer
    without a use for `references` is not given them.
    """
    if isinstance(scorer, InformedComparer) and scorer.takes_references:
        return scorer.prefer(prompts, first, second, references)
    if isinstance(scorer, Comparer):
        return scorer.prefer(prompts, first, second)
    twice = None if references is None else [*references, *references]
    scores = scorer.score([*prompts, *prompts], [*first, *second], twice)
    count = len(prompts)
    remarks: dict[int, str] = {}
    for row, said in scores.remarks.items():
        remarks.setdefault(row % count, said)
    return Preferences(
        [sigmoid(a - b) for a, b in zip(scores[:count], scores[count:])], remarks=remarks
    )


class NoVerdict(DataError):
    """Rows that a scorer has no usable verdict on. `rows`: row, counted from 0 -> why."""

    rows: dict[int, str]


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)), without overflow."""
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    small = math.exp(value)
    return small / (1.0 + small)


def check_lengths(
    prompts: Sequence[Prompt], completions: Sequence[str], references: Sequence[str | None] | None
) -> None:
    """The sequences belong together row by row."""
    assert len(prompts) == len(completions), (
        f"{len(prompts)} prompts, {len(completions)} completions"
    )
    assert references is None or len(references) == len(prompts), (
        f"{len(prompts)} prompts, {len(references)} references"
    )


def placed(error: DataError, origins: Sequence[str]) -> DataError:
    """The same error with the origins of a call's rows (`data.jsonl:7`) in place of their numbers;
    numbers go on after the last row where a scorer goes through the rows twice."""

    def origin(number: str) -> str:
        index = int(number) - 1
        return origins[index % len(origins)] if 0 <= index < 2 * len(origins) else f"row {number}"

    def named(text: str) -> str:
        return _ROWS.sub(lambda found: ", ".join(map(origin, found[1].split(", "))), text, count=1)

    problems = [replace(problem, where=named(problem.where)) for problem in error.problems]
    return DataError(named(error.message), error.hint, problems)


def required_references(
    name: str,
    references: Sequence[str | None] | None,
    count: int,
    why: str = "compares with a right answer",
) -> list[str]:
    """The references, all there; DataError names the rows that have none."""
    found = [None] * count if references is None else list(references)
    missing = [row for row, reference in enumerate(found, start=1) if reference is None]
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise DataError(
            f"{name} {why}, and {len(missing)} of {count} rows have none: row {shown}",
            "give every row an `answer`, or map the column that holds it: `columns: {answer: "
            "your_column}`",
        )
    return [reference for reference in found if reference is not None]
