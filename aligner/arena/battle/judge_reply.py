"""The scores in a judge's reply, read strictly: what is not exactly of the form has none.

A reply is one JSON object with the keys `analysis`, `score_first` and `score_second`, in this
order, since scores that stand before their reasons do not follow from them. Scores are numbers from
1 to 10, whole or halves. What a reasoning model thought before may stand in front (`<think>`), and
so may words or a fence of code around the object. A key that is missing, twice, elsewhere or not
asked for, a text in place of a number (`"8/10"`), a number off the scale, a second object: each
makes the reply unusable. Nothing is guessed, and an unusable reply is never a tie.
"""

from __future__ import annotations

from typing import Any

from aligner.data.reasoning import without_reasoning
from aligner.reward_models.json_extract import INVALID, read_only_object
from aligner.reward_models.judge_prompts import Unusable, shown_line

KEYS = ["analysis", "score_first", "score_second"]
WORST, BEST = 1.0, 10.0

Scores = tuple[float, float]


def scores_in(reply: str) -> Scores:
    """The scores of the first and the second answer. Raises: Unusable that says what is wrong."""
    found = read_only_object(without_reasoning(reply))
    if found is INVALID:
        raise Unusable("the reply does not hold exactly one JSON object")
    if list(found) != KEYS:
        keys = shown_line(", ".join(found))
        raise Unusable(f"the keys of the reply are {keys}, not {', '.join(KEYS)}")
    analysis, first, second = found.values()
    if not isinstance(analysis, str) or not analysis.strip():
        raise Unusable("the analysis is not a text, or an empty one")
    return _score(first, "first"), _score(second, "second")


def _score(value: Any, which: str) -> float:
    if type(value) not in (int, float):
        raise Unusable(f"the {which} score is {shown_line(repr(value))}, not a number")
    if not WORST <= value <= BEST or (2 * value) % 1:
        raise Unusable(
            f"the {which} score {value:g} is not a whole or half number from {WORST:g} to {BEST:g}"
        )
    return float(value)
