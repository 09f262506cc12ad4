"""Rewards of tokens from values of segments, against a slow reference and by hand."""

from __future__ import annotations

import random

import pytest
import torch

from aligner.methods.rlhf.segment_rewards import SegmentMap, normalized, token_rewards


def shifted(locations: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """A normalizer that hangs on the location, so that a wrong one shows."""
    return 2 * values - locations


def slow_rewards(
    values: list[float], ends: list[int], width: int, interpolation: str, aggregate: str
) -> list[float]:
    """The definition, token by token."""
    found, start = [0.0] * width, 0
    for number, end in enumerate(ends, start=1):
        reward = 2 * values[end] - number / len(ends)
        if aggregate == "mean":
            reward *= 1.5 / len(ends)
        tokens = range(start, end + 1)
        for token in tokens:
            if interpolation == "even":
                found[token] = reward / len(tokens)
            elif interpolation == "repeat" or token == end:
                found[token] = reward
        start = end + 1
    return [min(10.0, max(-10.0, value)) for value in found]


def random_ends(chance: random.Random, width: int) -> list[int]:
    """Ends of segments of a response of 1 to `width` tokens, of which some have an end token
    behind."""
    body = chance.randint(1, width)
    inside = sorted(place for place in range(body - 1) if chance.random() < 0.3)
    return [*inside, body - 1]


@pytest.mark.parametrize("interpolation", ["even", "last", "repeat"])
@pytest.mark.parametrize("aggregate", ["mean", "sum"])
def test_rewards_are_those_of_a_slow_reference(interpolation: str, aggregate: str) -> None:
    chance = random.Random(7)
    width = 24
    ends = [random_ends(chance, width) for _ in range(1000)]
    values = [[chance.gauss(0, 4) for _ in range(width)] for _ in ends]
    found = token_rewards(
        torch.tensor(values),
        SegmentMap.from_ends(ends, width),
        shifted,
        interpolation=interpolation,
        aggregate=aggregate,
        unit=1.5,
    )
    expected = [
        slow_rewards(row, places, width, interpolation, aggregate)
        for row, places in zip(values, ends)
    ]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["even", "last"])
def test_tokens_add_up_to_segments(interpolation: str) -> None:
    chance = random.Random(3)
    ends = [random_ends(chance, 30) for _ in range(50)]
    segments = SegmentMap.from_ends(ends, 30)
    values = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    rewards = token_rewards(values, segments, shifted, interpolation=interpolation, aggregate="sum")
    torch.testing.assert_close(rewards.sum(1), normalized(values, segments, shifted).sum(1))


def test_by_hand() -> None:
    """Two segments of two and one token, and an end token; one segment that is an end token; and
    padding."""
    segments = SegmentMap.from_ends([[1, 2], [0], []], 4)
    assert segments.numbers.tolist() == [[0, 0, 1, -1], [0, -1, -1, -1], [-1] * 4]
    assert segments.counts.tolist() == [2, 1, 0]
    assert segments.lengths.tolist() == [[2, 2, 1, 1], [1, 1, 1, 1], [1] * 4]
    assert segments.locations[0].tolist() == [0.5, 0.5, 1.0, 1.0]
    values = torch.tensor([[9.0, 4.0, 6.0, 9.0], [3.0, 9.0, 9.0, 9.0], [9.0] * 4])
    rewards = token_rewards(values, segments, lambda _, found: found)
    assert rewards.tolist() == [[1.0, 1.0, 3.0, 0.0], [3.0, 0.0, 0.0, 0.0], [0.0] * 4]


def test_one_segment_up_to_the_end_token_is_a_reward_of_the_response() -> None:
    segments = SegmentMap.from_ends([[3], [1]], 4)
    values = torch.tensor([[0.0, 0.0, 0.0, 5.0], [0.0, 2.0, 0.0, 0.0]])
    rewards = token_rewards(values, segments, lambda _, found: found, interpolation="last")
    assert rewards.tolist() == [[0.0, 0.0, 0.0, 5.0], [0.0, 2.0, 0.0, 0.0]]


def test_a_reward_is_never_larger_than_its_bound() -> None:
    segments = SegmentMap.from_ends([[0, 1]], 2)
    values = torch.tensor([[500.0, -500.0]])
    rewards = token_rewards(values, segments, lambda _, found: found, aggregate="sum")
    assert rewards.tolist() == [[10.0, -10.0]]
