"""Cutting and stitching: the windows of SAPO."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from aligner.methods.sapo.windows import sample_window, splice

STOP = 9


def test_a_window_is_as_long_as_asked_and_starts_anywhere_that_it_fits():
    rng = random.Random(0)
    found = Counter(sample_window(6, 4, rng) for _ in range(3000))
    assert set(found) == {(0, 4), (1, 4), (2, 4)}
    assert min(found.values()) > 900


@pytest.mark.parametrize(("length", "window"), [(3, 4), (4, 4), (1, 256), (7, None)])
def test_a_short_answer_is_rewritten_whole(length, window):
    assert sample_window(length, window, random.Random(0)) == (0, length)


ANSWER = [10, 11, 12, 13, 14, STOP]


@pytest.mark.parametrize(
    ("start", "size", "written", "kept", "dropped"),
    [
        (1, 2, [20, 21], [10, 20, 21, 13, 14, STOP], [10, 20, 21]),
        (
            1,
            2,
            [20, 21, 22, 23],
            [10, 20, 21, 13, 14, STOP],
            [10, 20, 21],
        ),  # only the window's size is taken
        (1, 3, [20, STOP], [10, 20, STOP], [10, 20, STOP]),  # stops early: what followed is gone
        (
            1,
            2,
            [20, 21, STOP],
            [10, 20, 21, 13, 14, STOP],
            [10, 20, 21],
        ),  # a stop beyond the window is none
        (0, 6, [20, 21, 22, 23, 24, 25], [20, 21, 22, 23, 24, 25], [20, 21, 22, 23, 24, 25]),
        (3, 3, [13, 14, STOP], ANSWER, ANSWER),  # the same again: a dead pair
    ],
)
def test_a_rewrite_is_stitched_into_its_answer(start, size, written, kept, dropped):
    assert splice(ANSWER, start, size, written, {STOP, 8}, keep_suffix=True) == kept
    assert splice(ANSWER, start, size, written, {STOP, 8}, keep_suffix=False) == dropped


def test_what_stands_before_the_window_is_never_touched():
    rng = random.Random(1)
    for _ in range(300):
        answer = [rng.randrange(20) + 10 for _ in range(rng.randint(1, 12))]
        start, size = sample_window(len(answer), rng.choice([1, 3, 5, None]), rng)
        found = splice(
            answer, start, size, [rng.randrange(40) for _ in range(size)], {STOP}, keep_suffix=True
        )
        assert found[:start] == answer[:start]
        assert len(found) <= len(answer)
        if STOP not in found:
            assert len(found) == len(answer)
            assert found[start + size :] == answer[start + size :]
