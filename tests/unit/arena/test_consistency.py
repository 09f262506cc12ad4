"""The metrics against a reference, on tables whose published fractions are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from aligner.arena.consistency import Table, consistency, read_table
from aligner.errors import DataError


def table(*rows: tuple[float, float]) -> Table:
    """Ratings with half the width of their intervals."""
    ratings = {f"m{n:02}": (r, r - half, r + half) for n, (r, half) in enumerate(rows)}
    return Table(ratings, {})


def test_the_published_fractions_of_23_models() -> None:
    """253 pairs. The reference leaves 28 unseparated (8 models close together); ours leaves 5, of
    which 2 are pairs that the reference separates."""
    reference = [(1000.0 + number, 10.0) for number in range(8)]
    reference += [(1000.0 + 100.0 * number, 10.0) for number in range(1, 16)]
    ours = [(1000.0 + 10.0 * number, 1.0) for number in range(8)]
    ours += [(1000.0 + 100.0 * number, 1.0) for number in range(1, 16)]
    ours[1] = (ours[0][0] + 0.5, 1.0)
    ours[3] = (ours[2][0] + 0.5, 1.0)
    ours[5] = (ours[4][0] + 0.5, 1.0)
    ours[9] = (ours[8][0] + 0.5, 1.0)
    ours[11] = (ours[10][0] + 0.5, 1.0)
    found = consistency(table(*ours), table(*reference))
    assert (found["pairs"], found["separated_in_reference"]) == (253, 225)
    assert found["separated_here"] == 248
    assert found["agreement"] == pytest.approx(223 / 225)
    assert found["differentiation"] == pytest.approx(248 / 253)
    assert round(100 * found["agreement"], 2) == 99.11
    assert round(100 * found["differentiation"], 2) == 98.02


def test_a_reversed_pair_counts_minus_one_and_an_unseparated_one_nothing() -> None:
    reference = table((1.0, 0.1), (2.0, 0.1), (3.0, 0.1))
    reversed_ = consistency(table((2.0, 0.1), (1.0, 0.1), (3.0, 0.1)), reference)
    assert reversed_["agreement"] == pytest.approx((-1 + 1 + 1) / 3)
    assert reversed_["differentiation"] == 1.0
    assert reversed_["spearman"] == pytest.approx(0.5)
    blurred = consistency(table((1.0, 0.6), (2.0, 0.6), (3.0, 0.1)), reference)
    assert blurred["agreement"] == pytest.approx((0 + 1 + 1) / 3)
    assert blurred["differentiation"] == pytest.approx(2 / 3)
    assert blurred["average"] == pytest.approx((1.0 + 2 / 3 + 2 / 3) / 3)


def test_all_reversed_is_minus_one() -> None:
    found = consistency(table((3, 0.1), (2, 0.1), (1, 0.1)), table((1, 0.1), (2, 0.1), (3, 0.1)))
    assert (found["agreement"], found["spearman"]) == (-1.0, pytest.approx(-1.0))


def test_intervals_that_touch_overlap() -> None:
    assert consistency(table((1, 1), (3, 1)), table((1, 0), (3, 0)))["agreement"] == 0.0


def test_what_is_not_defined_is_none() -> None:
    same = consistency(table((1, 0.1), (2, 0.1)), table((1, 5), (1, 5)))
    assert same["agreement"] is None
    assert same["spearman"] is None
    assert same["average"] is None
    assert same["brier"] is None


def test_brier_is_the_mean_squared_error_of_the_shares() -> None:
    ours = table((1, 1), (2, 1), (3, 1))
    shares = {("m00", "m01"): 0.2, ("m00", "m02"): 0.0, ("m01", "m02"): 0.6}
    found = consistency(Table(ours.ratings, shares), table((1, 0), (2, 0), (2, 0)))
    assert found["brier"] == pytest.approx(np.mean([0.04, 0.0, 0.01]))


def test_models_that_one_side_lacks_are_named() -> None:
    found = consistency(table((1, 0), (2, 0), (3, 0)), table((1, 0), (2, 0)))
    assert found["only_here"] == ["m02"]
    assert found["models"] == 2
    with pytest.raises(DataError, match="have 1 models in common"):
        consistency(table((1, 0)), table((1, 0), (2, 0)))


def test_tables_are_read_with_open_ends_and_other_names_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("model,rating,rating_q025,rating_q975\nx,1000,990,1010\ny,1200,1150,\n")
    assert read_table(path).ratings == {"x": (1000, 990, 1010), "y": (1200, 1150, np.inf)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model,rating,low\nx,1,0\n", "r.csv:1: no column high"),
        ("model,rating,low,high\nx,a,0,1\n", "rating is 'a', not a number"),
        ("model,rating,low,high\nx,1000,-5,5\n", "is not between -5 and 5"),
        ("model,rating,low,high\nx,1,0,2\nx,1,0,2\n", "'x' stands there twice"),
        ("model,rating,low,high\nx,1,,\ny,2,,\n", "has no intervals"),
        ("model,rating,low,high\n", "has no intervals"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        read_table(tmp_path / "r.csv")


def test_a_json_list_of_rows_is_a_table_too(tmp_path: Path) -> None:
    rows = [{"name": "x", "score": 1, "lower": 0, "upper": 2}]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    assert read_table(tmp_path / "r.json").ratings == {"x": (1, 0, 2)}
