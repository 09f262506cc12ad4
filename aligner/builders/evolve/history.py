"""What an optimization writes down: what each method was measured at, and each step with all its
candidates. Plain records, in JSON and back; the report draws them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from aligner.builders.evolve.contract import EvolvingMethod
from aligner.builders.evolve.failures import Failure

COVERAGE = 0.95
"""Share of the development instructions that must have been evolved and answered, or failed by
themselves: a server's error is no failure of the method, but a method that was measured on few of
them is not compared."""

Outcome = Literal[
    "measured",
    "incomplete",
    "same",
    "repeated",
    "contract",
    "malformed",
    "truncated",
    "empty",
    "too_long",
    "no_reply",
]
"""What became of a candidate. `incomplete`: measured on too few instructions; `same`: word for word
the method in force; `repeated`: an earlier candidate of the step; `contract`: its replies have no
final section; `malformed`, `truncated`, `empty`, `too_long`: of the reply that should hold it;
`no_reply`: the server gave none."""

Ended = Literal["solved", "patience", "no_fall", "steps"]
"""Why an optimization ended. `solved`: no failure is left; `patience`: no better method for so many
steps; `no_fall`: the failure rate fell no more; `steps`: all were done."""


class Record(BaseModel):
    """Base of records."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Measured(Record):
    """What a method did on the development instructions: counts, of which `asked` is all, `covered`
    those without an error of a server, `evolved` those with a text that was no failure by itself
    and got an answer.

    `flagged` of `judged` evolutions were found at fault by the judge. `questions`: answers that end
    with a question mark, whatever they begin with.
    """

    asked: int
    covered: int
    classes: dict[Failure, int] = {}
    evolved: int = 0
    questions: int = 0
    added_words: int = 0
    instruction_characters: int = 0
    answer_characters: int = 0
    judged: int = 0
    flagged: int = 0

    @property
    def failure_rate(self) -> float:
        """The share of evolutions that failed (equation 2 of the paper, over those covered)."""
        return sum(self.classes.values()) / self.covered if self.covered else 1.0

    @property
    def issue_rate(self) -> float:
        """The share of evolutions that the judge found at fault; 1 where none was judged."""
        return self.flagged / self.judged if self.judged else 1.0

    @property
    def is_complete(self) -> bool:
        """Whether it may be compared."""
        return self.asked > 0 and self.covered >= COVERAGE * self.asked

    @property
    def score(self) -> float:
        """The score of the authors' code: the share that did not fail, times the mean length of
        answers by that of evolved instructions. It rewards short instructions, too."""
        if not self.instruction_characters:
            return 0.0
        ratio = self.answer_characters / self.instruction_characters
        return (1.0 - self.failure_rate) * ratio


class Candidate(Record):
    """A rewritten method, or what came in its place."""

    outcome: Outcome
    method: EvolvingMethod | None = None
    measured: Measured | None = None
    why: str = ""


class Step(Record):
    """One optimization step. `chosen`: the place of the candidate that came into force, None where
    the method stayed. `batch_classes`: failures of the evolutions that were looked at."""

    number: int
    candidates: tuple[Candidate, ...]
    chosen: int | None = None
    batch_classes: dict[Failure, int] = {}


@dataclass(frozen=True)
class History:
    """All that was tried. `first` is what the first method was measured at; None where nothing was
    optimized. `ended` is None while it lasts."""

    start: EvolvingMethod
    first: Measured | None = None
    steps: tuple[Step, ...] = ()
    ended: Ended | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, which `from_json` reads."""
        return {
            "start": self.start.to_json(),
            "first": None if self.first is None else self.first.model_dump(mode="json"),
            "steps": [step.model_dump(mode="json") for step in self.steps],
            "ended": self.ended,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> History:
        """The history that `to_json` wrote."""
        first = values["first"]
        return cls(
            EvolvingMethod.from_json(values["start"]),
            None if first is None else Measured(**first),
            tuple(step_from_json(step) for step in values["steps"]),
            values["ended"],
        )

    def in_force(self) -> list[tuple[EvolvingMethod, Measured]]:
        """Return the method in force, and what it was measured at: at the start, and after each
        step."""
        if self.first is None:
            return []
        found = [(self.start, self.first)]
        for step in self.steps:
            found.append(found[-1] if step.chosen is None else chosen_of(step))
        return found

    def outcomes(self) -> Counter[Outcome]:
        """Count what became of all candidates."""
        return Counter(one.outcome for step in self.steps for one in step.candidates)


def step_from_json(values: Mapping[str, Any]) -> Step:
    """The step that `model_dump` wrote as JSON."""
    return Step.model_validate_json(json.dumps(values))


def chosen_of(step: Step) -> tuple[EvolvingMethod, Measured]:
    """Return the candidate that came into force in a step."""
    assert step.chosen is not None, "no candidate did"
    candidate = step.candidates[step.chosen]
    assert candidate.method is not None, "what was chosen is a method"
    assert candidate.measured is not None, "and was measured"
    return candidate.method, candidate.measured


def class_counts(classes: Sequence[Failure | None]) -> dict[Failure, int]:
    """Count failures by class, the most frequent first, those of one count by name."""
    counts = Counter(one for one in classes if one is not None)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
