"""The final result of an answer, and which result most answers have (self-consistency, arXiv
2203.11171).

The final result is what stands in the last `\\boxed{...}`, behind `####`, or in a line `Answer:
...`; without such a mark it is the number that `verifier:number` reads. Results that are the same
number, or the same words, are one. An answer without a result has no vote. Only meant for questions
with a short result: of an essay, the last number is no result.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from aligner.data.normal_text import normal_text
from aligner.reward_models.verifier import number_in

_MARKED = re.compile(
    r"\\boxed\s*\{|####[ \t]*"
    r"|^[ \t*_#>]*(?:the[ \t]+)?(?:final[ \t]+)?answer(?:[ \t]+is)?[ \t*_]*:",
    re.IGNORECASE | re.MULTILINE,
)
_ONE_NUMBER = re.compile(
    r"[\s$€£¥*_(\\]*[-+\u2212]?[\s$€£¥]*\d[\d,]*(?:\.\d+)?[\s%*_.)\\]*(?:[^\W\d_]+[\s.*_)]*){0,3}"
)


@dataclass(frozen=True, slots=True)
class Majority:
    """`result` has `votes` of `voters`; `first` is the first answer that has it."""

    result: str
    votes: int
    voters: int
    first: int


def majority(answers: Sequence[str]) -> Majority | None:
    """Return the result that more answers have than any other, and at least two; None for a tie, or
    where all differ."""
    results = [final_result(answer) for answer in answers]
    ranking = Counter(result for result in results if result is not None).most_common(2)
    if not ranking or ranking[0][1] < 2:
        return None
    if len(ranking) == 2 and ranking[0][1] == ranking[1][1]:
        return None
    result, votes = ranking[0]
    voters = sum(found is not None for found in results)
    return Majority(result, votes, voters, results.index(result))


def final_result(answer: str) -> str | None:
    """Return an answer's final result in the form that results are compared in, or None."""
    marks = list(_MARKED.finditer(answer))
    if not marks:
        number = number_in(answer)
        return None if number is None else str(number.normalize())
    mark, rest = marks[-1], answer[marks[-1].end() :]
    value = _in_braces(rest) if mark[0].endswith("{") else _line(rest)
    value = value.rpartition("=")[2]
    if _ONE_NUMBER.fullmatch(value) and (number := number_in(value)) is not None:
        return str(number.normalize())
    return normal_text(value) or None


def _in_braces(text: str) -> str:
    """Return what stands before the brace that closes the one before the text."""
    depth = 1
    for place, letter in enumerate(text):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return text[:place]
    return text


def _line(text: str) -> str:
    """Return the first line of a text that says something."""
    return next((line for line in text.splitlines() if line.strip(" \t*_")), "")
