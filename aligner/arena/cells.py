"""What a row of votes says: names, verdicts, numbers and styles; and what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from aligner.arena.records import style_of
from aligner.arena.votes import UNKNOWN, StyleCounts
from aligner.data.checks import kind

TEXT_COLUMNS = {
    "a": ("conversation_a", "answer_a", "response_a", "output_a"),
    "b": ("conversation_b", "answer_b", "response_b", "output_b"),
}
A_WINS = ("model_a", "a", "A")
B_WINS = ("model_b", "b", "B")
TIES = ("tie", "tie (bothbad)", "bothbad", "both_bad", "both bad", "draw")
GRADES = {"A>>B": 2.0, "A>B": 1.0, "A=B": 0.0, "B=A": 0.0, "B>A": -1.0, "B>>A": -2.0}
GRADES |= {"A<B": -1.0, "A<<B": -2.0, "B<A": 1.0, "B<<A": 2.0}
GRADES |= {"A++": 2.0, "A+": 1.0, "B+": -1.0, "B++": -2.0}
"""Verdicts with grades, as Arena-Hard and WildBench write them -> how much better the first is."""

Row = Mapping[str, Any]


class Unusable(Exception):
    """What is wrong with a row: the column, what was found there, and what to do."""

    def __init__(self, key: str, message: str, hint: str = "") -> None:
        super().__init__(key, message, hint)
        self.key, self.message, self.hint = key, message, hint


def two_models(row: Row, first: str, second: str) -> tuple[str, str]:
    """The names in two columns, which differ."""
    names = text_of(row, first), text_of(row, second)
    if names[0] == names[1]:
        raise Unusable(second, f"{names[0]!r} meets itself")
    return names


def verdict_of(row: Row, a: str, b: str) -> tuple[float, float]:
    """1 where a won, 0.5 or 0, and the grade where the verdict has one."""
    grade = GRADES.get(text_of(row, "winner"), UNKNOWN)
    if math.isnan(grade):
        return outcome_of(row, a, b), grade
    return 0.5 + 0.5 * math.copysign(grade != 0, grade), grade


def seat_that_won(row: Row) -> float:
    """1 where the winner of one of our battles is model_a, which there is never a model's name."""
    winner = text_of(row, "winner")
    found = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5}.get(winner)
    if found is None:
        raise Unusable("winner", f"{winner!r} is none of model_a, model_b and tie")
    return found


def outcome_of(row: Row, a: str, b: str) -> float:
    """1 where a won. A winner may be named, or be one of the words of public arenas."""
    winner = text_of(row, "winner")
    meant = {}
    for words, outcome in (((*A_WINS, a), 1.0), ((*B_WINS, b), 0.0), (TIES, 0.5)):
        if winner in words:
            meant[outcome] = True
    if len(meant) == 1:
        return next(iter(meant))
    if meant:
        raise Unusable(
            "winner",
            f"{winner!r} is a word for one outcome and a model's name",
            "write model_a, model_b or tie",
        )
    raise Unusable(
        "winner",
        f"{winner!r} is neither {a!r} nor {b!r}",
        "write model_a, model_b, tie, or one of the two names",
    )


def grade_of(score: Any, number: int) -> float | None:
    """How much better the first answer is; None where the judge gave no verdict."""
    if score is None:
        return None
    if score not in GRADES:
        raise Unusable(f"games[{number}].score", f"{score!r} is no verdict such as A>B")
    return GRADES[score]


def text_of(row: Row, name: str) -> str:
    """A text that is not empty."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        found = "is missing" if value is None else f"is {kind(value)}, not a text"
        raise Unusable(name, "is empty" if isinstance(value, str) else found)
    return value


def number_of(row: Row, name: str) -> float:
    """A finite number, which may be written as a text."""
    value = row.get(name)
    try:
        number = float(value) if isinstance(value, int | float | str) else UNKNOWN
    except ValueError:
        number = UNKNOWN
    if isinstance(value, bool) or not math.isfinite(number):
        raise Unusable(name, f"{value!r} is not a finite number")
    return number


def style_record(row: Row, name: str) -> Mapping[str, Any] | None:
    """A style as our records hold it."""
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise Unusable(name, f"is {kind(value)}, not a style")
    return {key: number_of(value, key) for key in value}


def style_of_side(row: Row, side: str) -> StyleCounts:
    """Style of an answer: counted from its text, else as the row has it."""
    for name in TEXT_COLUMNS[side]:
        if name in row and (text := _answer(row[name])) is not None:
            return style_of(text)
    counted = row.get("conv_metadata")
    if isinstance(counted, dict):
        return {
            "length": number_of(counted, f"sum_assistant_{side}_tokens"),
            "headers": _sum(counted.get(f"header_count_{side}")),
            "list_items": _sum(counted.get(f"list_count_{side}")),
            "bold": _sum(counted.get(f"bold_count_{side}")),
        }
    name = f"len_{side}"
    if row.get(name) in (None, ""):
        return None
    if (length := number_of(row, name)) < 0:
        raise Unusable(name, f"{length:g} is below 0")
    return {"length": length}


def _answer(value: Any) -> str | None:
    """What a model wrote: a text, or the assistant's turns of a conversation."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return None
    turns = (turn for turn in value if isinstance(turn, dict) and turn.get("role") == "assistant")
    return "\n".join(_said(turn.get("content")) for turn in turns)


def _said(content: Any) -> str:
    """The text of a turn; arenas with pictures write it as parts of which some are texts."""
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "\n".join(part for part in parts if isinstance(part, str))
    return str(content or "")


def _sum(value: Any) -> float:
    """Counts of several kinds, such as headers of each level, together."""
    if isinstance(value, dict):
        return float(sum(number_of(value, key) for key in value))
    return UNKNOWN if value is None else number_of({"count": value}, "count")
