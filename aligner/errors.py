"""The errors that a user can cause, as one short tree.

    AlignerError                 exit code 1: the base; never raised itself
    ├── RecipeError              exit code 2: the recipe, a flag or an override is wrong (also a
                                 ValueError)
    ├── UsageError               exit code 2: the command line is wrong, or a run directory is in
                                 the way
    ├── DataError                exit code 3: a file, a split, a column or a row is wrong (also a
                                 ValueError)
    ├── EndpointError            exit code 4: a model server failed for good
    ├── TrainingError            exit code 5: training started and could not continue
    └── GateError                exit code 6: what was measured does not pass what was asked for

Rules. What a user did wrong raises one of these; what we did wrong asserts. `message` is one
sentence that names the file, line, row or key and what was found there; `hint` is one sentence that
says what to do. `RecipeError` and `DataError` may carry many `Problem`s, because all of them are
reported at once. Every class can be pickled, since errors cross process boundaries. Ctrl-C and
SIGTERM are no errors of ours: the command line turns them into exit codes 130 and 143.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `where` ("recipe.yaml:7"), `key` ("data.max_length"), what is wrong,
    what to do."""

    message: str
    where: str = ""
    key: str = ""
    hint: str = ""

    def __str__(self) -> str:
        head = ": ".join(part for part in (self.where, self.key) if part)
        text = f"{head}: {self.message}" if head else self.message
        return f"{text} ({self.hint})" if self.hint else text


class AlignerError(Exception):
    """Base of everything that a user can cause."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "", problems: Sequence[Problem] = ()) -> None:
        super().__init__(message, hint, tuple(problems))
        self.message = message
        self.hint = hint
        self.problems = tuple(problems)

    def __str__(self) -> str:
        lines = [self.message, *(f"  {problem}" for problem in self.problems)]
        return "\n".join([*lines, self.hint] if self.hint else lines)


class RecipeError(AlignerError, ValueError):
    """A recipe, an override or a flag does not say something that can be run."""

    exit_code = 2


class UsageError(AlignerError):
    """The command line asks for something that cannot be done as things stand (a run directory
    exists, say)."""

    exit_code = 2


class DataError(AlignerError, ValueError):
    """A data source, or a row of it, cannot be used."""

    exit_code = 3


class EndpointError(AlignerError):
    """A model server refused for good, or stayed away for longer than the retries last."""

    exit_code = 4


class TrainingError(AlignerError):
    """Training started and cannot continue: the loss is NaN or inf, memory ran out, a rank died."""

    exit_code = 5


class GateError(AlignerError):
    """Everything was measured, and it does not pass the limit that the command line sets."""

    exit_code = 6
