"""Ask a scorer about many rows: a row without a verdict does not cost the others theirs, and errors
use the caller's names of rows.

A judge that has no usable verdict on a row answers nothing of that call, though it keeps the
replies to all other rows. They are asked about again without it, and take nothing but a look into
the judge's cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from aligner.errors import DataError
from aligner.reward_models.base import placed
from aligner.reward_models.judge import NoVerdict

Ask = Callable[[list[int]], Sequence[float]]
"""From rows to a number for each."""

_ROW = re.compile(r"row (\d+)(?=: )")


def ask_about(
    names: Sequence[str], ask: Ask, sides: int = 1
) -> tuple[dict[int, float], dict[int, str]]:
    """Return what was said of each row, and of the rows that there is no verdict on the reason why.

    `names`: of all rows. `sides`: how often a scorer goes through the rows; two times where it
    scores both answers of pairs.

    Raises: what `ask` raises; in a DataError names stand where it counts rows.
    """
    left = list(range(len(names)))
    reasons: dict[int, str] = {}
    while True:
        try:
            return dict(zip(left, ask(left), strict=True)), reasons
        except NoVerdict as error:
            if not error.rows:
                raise
            lost = {left[row]: reason for row, reason in error.rows.items()}
            reasons |= lost
            left = [row for row in left if row not in lost]
        except DataError as error:
            raise _named(error, [names[row] for row in left] * sides) from error


def _named(error: DataError, names: Sequence[str]) -> DataError:
    """The same error with names for rows, in its problems and at the start of its message."""
    if not names:
        return error
    named = placed(error, names, "answers")
    first = _ROW.match(error.message)
    if first is None or not 0 < int(first[1]) <= len(names):
        return named
    return DataError(
        names[int(first[1]) - 1] + error.message[first.end() :], error.hint, named.problems
    )
