"""What it means to hand out scores: the protocol that every resident of this folder follows.

A scorer is any object with a `name` and a `score` method. It sees text only, never token ids, so the same scorer judges
a policy of ours, a served model and a file of answers. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from aligner.errors import DataError

Prompt = str | list[dict[str, Any]]
"""A plain prompt, or the turns of a conversation up to the answer."""


@runtime_checkable
class Scorer(Protocol):
    """Hands out one number for each answer; higher is better."""

    @property
    def name(self) -> str:
        """What reports and manifests call it: the text that `load_scorer` was given."""
        ...

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> list[float]:
        """Score `completions[i]` as an answer to `prompts[i]`, knowing `references[i]`.

        Shapes: the sequences have the same length n (n = 0 is fine) and so has the result. `references` holds right
        answers, one for each row, where the scorer compares with them; others ignore it.
        Range: finite floats. The gold score and the verifiers stay within [0, 1]; a user's function may return anything
        finite, and so may a reward model, whose numbers are comparable within one prompt only.
        Errors: a row that cannot be judged (no reference, no number in it, no exercise in the prompt) raises
        `DataError` that names the row, counted from 1. Whatever a completion says is never an error: it gets a score.
        Scores do not depend on the order of the rows or on which other rows are there.
        """
        ...


def check_lengths(
    prompts: Sequence[Prompt], completions: Sequence[str], references: Sequence[str | None] | None
) -> None:
    """The sequences belong together row by row."""
    assert len(prompts) == len(completions), f"{len(prompts)} prompts, {len(completions)} completions"
    assert references is None or len(references) == len(prompts), (
        f"{len(prompts)} prompts, {len(references)} references"
    )


def required_references(name: str, references: Sequence[str | None] | None, count: int) -> list[str]:
    """The references, all there; DataError names the rows that have none."""
    found = [None] * count if references is None else list(references)
    missing = [row for row, reference in enumerate(found, start=1) if reference is None]
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise DataError(
            f"{name} compares with a right answer, and {len(missing)} of {count} rows have none: row {shown}",
            "Give every row an `answer`, or map the column that holds it: `columns: {answer: your_column}`.",
        )
    return [reference for reference in found if reference is not None]
