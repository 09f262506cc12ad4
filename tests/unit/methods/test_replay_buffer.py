"""The replay buffer of SAPO: what goes, what is drawn, and what a checkpoint holds."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from aligner.methods.sapo.replay_buffer import ReplayBuffer, Rewrite

STOP = 9


def rewrite(row: int, **changes: object) -> Rewrite:
    return Rewrite(
        **{
            "row": row,
            "sample": 0,
            "prompt_ids": [1, row],
            "chosen_ids": [2, STOP],
            "rejected_ids": [3],
            "created_step": 0,
        }
        | changes
    )


def test_the_oldest_pairs_go_first():
    buffer = ReplayBuffer(3)
    buffer.add(map(rewrite, range(5)))
    assert [entry.row for entry in buffer.entries] == [2, 3, 4]


def test_a_pair_is_drawn_with_a_weight_of_one_over_one_plus_its_draws():
    buffer = ReplayBuffer(10)
    buffer.add([rewrite(0), rewrite(1, draws=1), rewrite(2, draws=3)])
    rng = random.Random(0)
    found: Counter[int] = Counter()
    for _ in range(4000):
        (entry,) = buffer.draw(1, rng)
        found[entry.row] += 1
        entry.draws -= 1
    total = 1 + 1 / 2 + 1 / 4
    for row, weight in ((0, 1), (1, 1 / 2), (2, 1 / 4)):
        assert found[row] / 4000 == pytest.approx(weight / total, abs=0.03)


def test_draws_are_counted_after_a_batch_is_drawn_with_replacement():
    buffer = ReplayBuffer(10)
    buffer.add([rewrite(0)])
    assert [entry.row for entry in buffer.draw(5, random.Random(0))] == [0] * 5
    assert buffer.entries[0].draws == 5


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_buffer_is_read_back_as_it_was_written(tmp_path, count):
    buffer, other = ReplayBuffer(3), ReplayBuffer(3)
    buffer.add(
        rewrite(i, created_step=i, draws=2 * i, rejected_ids=list(range(i))) for i in range(count)
    )
    buffer.save(tmp_path / "buffer.safetensors")
    other.load(tmp_path / "buffer.safetensors")
    assert list(other.entries) == list(buffer.entries)
    assert other.entries.maxlen == 3
