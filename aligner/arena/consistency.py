"""How well the ratings of one arena follow those of a reference (arXiv 2407.10627, section 4.1).

With A ours and B the reference, each with an interval for every model, and "separates" for two
intervals that do not overlap:

    spearman         rank correlation of the two ratings
    agreement        mean of s over the pairs that B separates: 1 where A separates them in the same
                     order, -1 in the opposite one, 0 where A does not separate them
    differentiation  share of all pairs that A separates
    average          mean of the three
    brier            mean squared error of A's share of resamples with the one above the other,
                     against B's order (Arena-Hard, arXiv 2406.11939); a tie in B counts as 1/2

Agreement is in [-1, 1], so it is no share of agreeing pairs. What is not defined is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aligner.arena.votes import Floats
from aligner.data.files import BLANK, Unreadable, kind_of_file, read_file
from aligner.errors import DataError
from aligner.evaluation.bootstrap import or_none
from aligner.evaluation.correlation import spearman
from aligner.runs.files import parse_json

NAMES = {
    "model": ("model", "name"),
    "rating": ("rating", "score", "elo"),
    "low": ("low", "lower", "rating_q025", "ci_low"),
    "high": ("high", "upper", "rating_q975", "ci_high"),
}
"""What is read from a table -> columns it may stand in."""


@dataclass(frozen=True)
class Table:
    """Ratings and intervals by model; `above`: for two models the share of resamples in which the
    first is above the second, where it is known."""

    ratings: dict[str, tuple[float, float, float]]
    above: dict[tuple[str, str], float]


def read_table(path: Path) -> Table:
    """A leaderboard that `aligner arena rate` wrote, or a table with model, rating, low and high.

    Raises: DataError.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file", "name a leaderboard or a table of ratings")
    if path.suffix == ".json":
        with path.open("rb") as file:
            is_leaderboard = file.read(64).lstrip().startswith(b"{")
        if is_leaderboard:
            return _of_record(parse_json(path, "write it again", dict, ("models",)), path)
    if kind_of_file(path) in (None, ".txt"):
        raise DataError(f"{path} is of no known kind", "give .csv, .json, .jsonl or .parquet")
    ratings: dict[str, tuple[float, float, float]] = {}
    for number, row in read_file(path):
        if row is not BLANK:
            _add(row, f"{path}:{number}", ratings)
    return _checked(Table(ratings, {}), path)


def _checked(table: Table, path: Path) -> Table:
    """Refuse a table without any interval."""
    if all(np.isinf(low) and np.isinf(high) for _, low, high in table.ratings.values()):
        raise DataError(
            f"{path} has no intervals", "rate with --resamples, or fill in low and high"
        )
    return table


def _of_record(record: Mapping[str, Any], path: Path) -> Table:
    ratings: dict[str, tuple[float, float, float]] = {}
    for number, row in enumerate(record["models"], start=1):
        _add(row, f"{path}: models[{number}]", ratings)
    pairs = record.get("pairs") or {}
    above = {}
    for name, row in zip(pairs.get("models", ()), pairs.get("above", ())):
        for other, share in zip(pairs["models"], row):
            if share is not None:
                above[name, other] = float(share)
    return _checked(Table(ratings, above), path)


def _add(row: Any, where: str, ratings: dict[str, tuple[float, float, float]]) -> None:
    if isinstance(row, Unreadable) or not isinstance(row, Mapping):
        raise DataError(f"{where}: {getattr(row, 'reason', 'is no object')}", "correct the row")
    name = str(_value(row, "model", where))
    if name in ratings:
        raise DataError(f"{where}: {name!r} stands there twice", "keep one of its rows")
    rating = _number(row, "rating", where, None)
    low = _number(row, "low", where, -np.inf)
    high = _number(row, "high", where, np.inf)
    if not low <= rating <= high:
        raise DataError(
            f"{where}: the rating {rating:g} is not between {low:g} and {high:g}",
            "give the ends of the interval themselves, not their distances",
        )
    ratings[name] = rating, low, high


def _value(row: Mapping[str, Any], what: str, where: str) -> Any:
    for name in NAMES[what]:
        if name in row:
            return row[name]
    raise DataError(f"{where}: no column {what}", f"name it one of {', '.join(NAMES[what])}")


def _number(row: Mapping[str, Any], what: str, where: str, open_end: float | None) -> float:
    """A number; an end of an interval that is empty is open."""
    value = _value(row, what, where)
    if value in (None, "") and open_end is not None:
        return open_end
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if np.isnan(number):
        raise DataError(f"{where}: {what} is {value!r}, not a number", "correct it")
    return number


def consistency(ours: Table, reference: Table) -> dict[str, Any]:
    """All metrics, over the models that both tables have.

    Raises: DataError where these are fewer than two.
    """
    common = sorted(ours.ratings.keys() & reference.ratings.keys())
    if len(common) < 2:
        raise DataError(
            f"the two tables have {len(common)} models in common", "name models alike in both"
        )
    first, second = np.triu_indices(len(common), 1)
    mine = np.array([ours.ratings[name] for name in common])
    theirs = np.array([reference.ratings[name] for name in common])
    order, wanted = _order(mine, first, second), _order(theirs, first, second)
    separated = wanted != 0
    rank = spearman(mine[:, 0], theirs[:, 0])
    agreement = float(np.mean((order * wanted)[separated])) if separated.any() else float("nan")
    differentiation = float(np.mean(order != 0))
    return {
        "models": len(common),
        "only_here": sorted(ours.ratings.keys() - set(common)),
        "only_in_reference": sorted(reference.ratings.keys() - set(common)),
        "pairs": len(first),
        "separated_here": int((order != 0).sum()),
        "separated_in_reference": int(separated.sum()),
        "spearman": or_none(rank),
        "agreement": or_none(agreement),
        "differentiation": differentiation,
        "average": or_none((rank + agreement + differentiation) / 3.0),
        "brier": _brier(ours, common, theirs[:, 0]),
    }


def _order(table: Floats, first: Any, second: Any) -> Floats:
    """For each pair 1 where the first is separated above the second, -1 below, 0 not separated."""
    low, high = table[:, 1], table[:, 2]
    above = (low[first] > high[second]).astype(np.float64)
    return above - (low[second] > high[first])


def _brier(ours: Table, common: list[str], reference: Floats) -> float | None:
    errors = []
    for place, name in enumerate(common):
        for other in range(place + 1, len(common)):
            share = ours.above.get((name, common[other]))
            if share is None:
                return None
            truth = 0.5 + 0.5 * float(np.sign(reference[place] - reference[other]))
            errors.append((share - truth) ** 2)
    return float(np.mean(errors))
