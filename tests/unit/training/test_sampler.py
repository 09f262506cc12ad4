"""The order of rows: every row once an epoch, from the seed and the epoch alone, grouped by length
or not."""

from __future__ import annotations

import random

import pytest
import torch

from aligner.training.sampler import SeededSampler

DRAW = random.Random(3)
LENGTHS = [DRAW.randint(1, 200) for _ in range(123)]


def order(seed: int = 0, epoch: int = 0, **options) -> list[int]:
    sampler = SeededSampler(123, seed, **options)
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize(
    "options", [{}, {"lengths": LENGTHS, "rows_per_step": 8}, {"lengths": LENGTHS}]
)
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_every_row_comes_once_an_epoch(options, epoch):
    assert sorted(order(epoch=epoch, **options)) == list(range(123))


@pytest.mark.parametrize("options", [{}, {"lengths": LENGTHS, "rows_per_step": 8}])
def test_the_order_is_a_function_of_seed_and_epoch_alone(options):
    first = order(seed=5, epoch=2, **options)
    torch.manual_seed(99)
    torch.rand(3)
    random.seed(1)
    assert order(seed=5, epoch=2, **options) == first
    assert order(seed=5, epoch=3, **options) != first
    assert order(seed=6, epoch=2, **options) != first


def test_drawing_the_order_leaves_the_global_random_state_alone():
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    order(lengths=LENGTHS, rows_per_step=8)
    assert torch.equal(torch.rand(2), expected)


def padding(rows: list[int], batch: int) -> int:
    batches = [[LENGTHS[row] for row in rows[i : i + batch]] for i in range(0, len(rows), batch)]
    return sum(max(lengths) * len(lengths) - sum(lengths) for lengths in batches)


def test_grouping_leaves_a_small_part_of_the_padding():
    grouped = order(lengths=LENGTHS, rows_per_step=8)
    assert padding(grouped, 8) < 0.2 * padding(order(), 8)


def test_the_step_with_the_longest_row_comes_first_and_the_short_one_last():
    grouped = order(lengths=LENGTHS, rows_per_step=8)
    assert max(LENGTHS) == max(LENGTHS[row] for row in grouped[:8])
    last = [LENGTHS[row] for row in grouped[-(123 % 8) :]]
    assert last == sorted(last, reverse=True)  # the rest of the last pool, in order


def test_steps_are_not_in_the_order_of_their_length():
    grouped = order(lengths=LENGTHS, rows_per_step=8)
    longest = [max(LENGTHS[row] for row in grouped[i : i + 8]) for i in range(8, 120, 8)]
    assert longest != sorted(longest, reverse=True)
    assert longest != sorted(longest)


def test_rows_of_other_epochs_meet_other_rows():
    """Grouping must not freeze the batches: pools are drawn again each epoch."""
    lengths = LENGTHS * 20
    steps = []
    for epoch in (0, 1):
        sampler = SeededSampler(len(lengths), 0, lengths=lengths, rows_per_step=4)
        sampler.set_epoch(epoch)
        rows = list(sampler)
        steps.append({frozenset(rows[i : i + 4]) for i in range(0, len(rows), 4)})
    assert len(steps[0] & steps[1]) < 0.1 * len(steps[0])


def test_a_set_smaller_than_a_step_still_comes_whole():
    assert sorted(SeededSampler(3, 0, lengths=[5, 9, 1], rows_per_step=8)) == [0, 1, 2]
