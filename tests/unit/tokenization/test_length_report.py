"""Lengths of rows: what is cut, padded and packed at one longest length or another, by hand."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from aligner.tokenization.length_report import (
    at_length,
    histogram,
    other_lengths,
    packed_fill,
    report_lengths,
)


def test_what_a_longest_length_costs() -> None:
    found = at_length([10, 20, 30, 40], 25, batch=4, seed=0, packs=True)
    assert found.longer == 2
    assert found.lost == pytest.approx((5 + 15) / 100)
    assert found.dropped == pytest.approx((30 + 40) / 100)
    # cut to 10, 20, 25, 25 in one batch of four places of 25
    assert found.padding == found.grouped == pytest.approx(1 - 80 / 100)
    # 25 | 25 | 20 | 10 do not fit together
    assert found.packed == pytest.approx(80 / 100)
    assert at_length([10, 20], 25, batch=1, seed=0, packs=False).packed is None


def test_rows_of_like_length_are_padded_less() -> None:
    lengths = [10, 100] * 50
    found = at_length(lengths, 100, batch=2, seed=0, packs=False)
    assert found.grouped == 0.0
    assert found.padding > 0.2


def test_rows_are_packed_where_they_leave_the_least_room() -> None:
    # 6+4, 5+5, 7+3
    assert packed_fill([3, 4, 5, 5, 6, 7], 10, seed=0) == 1.0
    assert packed_fill([6, 6], 10, seed=0) == pytest.approx(12 / 20)
    assert packed_fill([], 10, seed=0) == 1.0


def test_packing_is_close_to_what_trl_does() -> None:
    datasets = pytest.importorskip("datasets")
    from trl import pack_dataset

    draw = random.Random(0)
    lengths = [min(256, max(3, int(draw.lognormvariate(4, 0.8)))) for _ in range(400)]
    rows = datasets.Dataset.from_dict({"input_ids": [[1] * length for length in lengths]})
    theirs = sum(lengths) / (len(pack_dataset(rows, 256, "bfd")) * 256)
    assert packed_fill(lengths, 256, seed=0) == pytest.approx(theirs, abs=0.01)


def test_other_lengths_keep_most_rows_whole() -> None:
    ordered = list(range(1, 101))
    assert other_lengths(ordered, 100) == [128]
    assert other_lengths(ordered, 128) == []
    assert other_lengths([10] * 90 + [900] * 10, 2048) == [960]
    assert other_lengths([10] * 95 + [900] * 5, 2048) == [64, 960]


@pytest.mark.parametrize("seed", range(5))
def test_a_histogram_counts_every_row_once(seed: int) -> None:
    draw = random.Random(seed)
    lengths = sorted(max(1, int(draw.lognormvariate(5, 1))) for _ in range(300))
    bins = histogram(lengths)
    assert sum(one.rows for one in bins) == 300
    for one in bins:
        assert one.rows == sum(one.low <= length <= one.high for length in lengths)
    assert all(before.high + 1 == after.low for before, after in pairwise(bins))
    assert len({one.high - one.low for one in bins[:-1]}) == 1


def test_the_last_bar_holds_what_is_far_away() -> None:
    bins = histogram([5] * 200 + [10_000])
    assert [(one.low, one.high, one.rows) for one in bins] == [(5, 5, 200), (6, 10_000, 1)]


def test_a_report_begins_with_the_length_of_the_recipe() -> None:
    report = report_lengths([100] * 99 + [500], 256, batch=4, seed=1, packs=True)
    assert (report.rows, report.tokens) == (100, 100 * 99 + 500)
    assert [one.max_length for one in report.settings] == [256, 128, 512]
    assert [one.longer for one in report.settings] == [1, 1, 0]
    assert report.quantiles[0] == 100
    assert report.quantiles[-1] == 500
