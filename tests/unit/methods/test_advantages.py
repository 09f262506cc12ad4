"""Advantages against slow references and numbers worked out by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from aligner.methods.rlhf.advantages import (
    EPSILON,
    explained_variance,
    gae,
    location_advantages,
    mixed_advantages,
    outcome_advantages,
    process_advantages,
    returns_to_go,
    whiten,
)
from aligner.methods.rlhf.segment_rewards import SegmentMap


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_segments(rows: int, width: int, seed: int = 0) -> tuple[SegmentMap, list[list[int]]]:
    """Responses of 1 to `width` - 1 tokens in segments, each with an end token behind."""
    chance, ends = random.Random(seed), []
    for _ in range(rows):
        body = chance.randint(1, width - 1)
        ends.append([*(place for place in range(body - 1) if chance.random() < 0.4), body - 1])
    return SegmentMap.from_ends(ends, width), ends


def test_generalized_advantages_are_those_of_a_loop() -> None:
    rewards, values = numbers(40, 12), numbers(40, 12, seed=1)
    lengths = torch.randint(1, 13, (40,), generator=torch.Generator().manual_seed(2))
    mask, last = torch.arange(12) < lengths[:, None], numbers(40, seed=3)
    found, returns = gae(rewards, values, mask, gamma=0.9, lam=0.7, bootstrap=last)
    for row, length in enumerate(lengths.tolist()):
        for place in range(12):
            slow = 0.0
            for later in range(place, length):
                after = values[row, later + 1] if later + 1 < length else last[row]
                delta = rewards[row, later] + 0.9 * after - values[row, later]
                slow += (0.9 * 0.7) ** (later - place) * float(delta)
            assert found[row, place].item() == pytest.approx(slow)
            expected = slow + float(values[row, place]) if place < length else 0.0
            assert returns[row, place].item() == pytest.approx(expected)


def test_a_reward_of_the_response_by_hand() -> None:
    """gamma = 1, lambda = .5: deltas are .1, .2 and 1 - .4 = .6 before the end."""
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.1, 0.2, 0.4]])
    found, returns = gae(rewards, values, torch.ones(1, 3), lam=0.5)
    torch.testing.assert_close(found, torch.tensor([[0.35, 0.5, 0.6]]))
    torch.testing.assert_close(returns, torch.tensor([[0.45, 0.7, 1.0]]))


def test_even_and_last_pay_the_deciding_token_differently_without_a_critic() -> None:
    """A segment of four tokens worth 2, lambda = 0: its first token gets r/4, or nothing."""
    values, mask = torch.zeros(1, 4), torch.ones(1, 4)
    even, last = torch.full((1, 4), 0.5), torch.tensor([[0.0, 0.0, 0.0, 2.0]])
    assert gae(even, values, mask, lam=0.0)[0][0, 0] == 0.5
    assert gae(last, values, mask, lam=0.0)[0][0, 0] == 0.0


def test_whitening_is_over_all_tokens_of_all_ranks() -> None:
    values, mask = 5 + 3 * numbers(8, 10), numbers(8, 10, seed=4) > -0.5
    whole = whiten(values, mask)
    kept = values[mask]
    torch.testing.assert_close(whole[mask], (kept - kept.mean()) / kept.std())
    assert (whole[~mask] == 0).all()
    halves = [slice(0, 3), slice(3, 8)]
    sums = [
        torch.stack([mask[rows].sum().double(), (values * mask)[rows].sum()]) for rows in halves
    ]
    mean = sum(sums)[1] / sum(sums)[0]
    squares = [((values - mean) * mask)[rows].square().sum() for rows in halves]
    for rank, rows in enumerate(halves):
        given = iter([sums[1 - rank], squares[1 - rank]])
        part = whiten(values[rows], mask[rows], add=lambda own, given=given: own + next(given))
        torch.testing.assert_close(part, whole[rows])


def test_advantages_of_outcomes_by_hand() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0, 2.0])
    std = 2**0.5
    expected = torch.tensor([-1 / (std + EPSILON), 1 / (std + EPSILON), 0.0, 0.0])
    torch.testing.assert_close(outcome_advantages(scores, 2), expected)
    alone = outcome_advantages(scores, 2, baseline="leave_one_out", scale="none")
    torch.testing.assert_close(alone, torch.tensor([-2.0, 2.0, 0.0, 0.0]))
    of_all = outcome_advantages(scores, 2, scale="batch")
    spread = scores.std() + EPSILON
    torch.testing.assert_close(of_all, torch.tensor([-1.0, 1.0, 0.0, 0.0]) / spread)


def test_the_baseline_of_a_location_is_that_of_numpy() -> None:
    group, width = 4, 14
    segments, ends = random_segments(12, width)
    rewards = numbers(12, width)
    rewards[torch.arange(width) > torch.tensor([row[-1] + 1 for row in ends])[:, None]] = 0
    found = location_advantages(rewards, segments, group)
    to_go = returns_to_go(rewards)

    def places(row: int) -> list[float]:
        """Where the tokens of a response stand, its end token at 1."""
        starts, found = [0, *(end + 1 for end in ends[row])], []
        for number, (start, end) in enumerate(zip(starts, ends[row])):
            length = end + 1 - start
            found += [(number + i / length) / len(ends[row]) for i in range(length)]
        return [*found, 1.0]

    for row in range(12):
        first = row // group * group
        others = [other for other in range(first, first + group) if other != row]
        for token, place in enumerate(places(row)):
            read = [
                np.interp(place, places(other), to_go[other, : len(places(other))].numpy())
                for other in others
            ]
            expected = float(to_go[row, token]) - float(np.mean(read))
            assert found[row, token].item() == pytest.approx(expected, abs=1e-6)


def test_equal_responses_have_no_advantage_and_a_shift_of_all_changes_nothing() -> None:
    segments = SegmentMap.from_ends([[1, 3, 4]] * 3, 6)
    rewards = numbers(1, 6).expand(3, 6) * segments.body
    torch.testing.assert_close(
        location_advantages(rewards, segments, 3), torch.zeros(3, 6).double()
    )
    different = numbers(3, 6, seed=1) * segments.body
    shifted = different + 0.7 * segments.body
    torch.testing.assert_close(
        location_advantages(shifted, segments, 3), location_advantages(different, segments, 3)
    )
    torch.testing.assert_close(
        location_advantages(different, segments, 3).sum(0), torch.zeros(6).double()
    )


def test_with_lambda_the_group_is_the_critic() -> None:
    """Two responses of two segments of a token each: returns [1, 0] and [1, 1], each the other's
    expectation, so the errors of a token are [1, -1] and [-1, 1]."""
    segments = SegmentMap.from_ends([[0, 1], [0, 1]], 2)
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    for lam, first in ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)):
        expected = torch.tensor([[first, -1.0], [-first, 1.0]])
        torch.testing.assert_close(location_advantages(rewards, segments, 2, lam=lam), expected)


def test_lambda_weighs_errors_as_a_loop_does() -> None:
    segments, _ = random_segments(6, 10, seed=8)
    rewards = numbers(6, 10) * segments.body
    whole = location_advantages(rewards, segments, 3).tolist()
    found = location_advantages(rewards, segments, 3, lam=0.7)
    for row, expected in zip(found.tolist(), whole):
        errors = [now - then for now, then in zip(expected, [*expected[1:], 0.0])]
        for token, value in enumerate(row):
            ahead = [0.7**k * error for k, error in enumerate(errors[token:])]
            assert value == pytest.approx(sum(ahead), abs=1e-9)


def test_process_rewards_of_a_group_are_those_of_a_loop() -> None:
    segments, ends = random_segments(6, 10, seed=5)
    width = int(segments.counts.max())
    there = torch.arange(width) < segments.counts[:, None]
    values = numbers(6, width) * there
    found = process_advantages(values, segments, 3)
    for row in range(6):
        rows = slice(row // 3 * 3, row // 3 * 3 + 3)
        all_of_group = values[rows][there[rows]]
        scores = (values[row] - all_of_group.mean()) / (all_of_group.std() + EPSILON)
        start = 0
        for number, end in enumerate(ends[row]):
            later = float(scores[number : len(ends[row])].sum()) / len(ends[row])
            for token in range(start, end + 1):
                assert found[row, token].item() == pytest.approx(later)
            start = end + 1
        assert (found[row, start:] == 0).all()


def test_segments_move_credit_within_a_response_and_add_none() -> None:
    segments, ends = random_segments(8, 11, seed=6)
    mask = torch.arange(11) <= torch.tensor([row[-1] + 1 for row in ends])[:, None]
    width = int(segments.counts.max())
    values = numbers(8, width) * (torch.arange(width) < segments.counts[:, None])
    outcomes = numbers(8, seed=7)
    found = mixed_advantages(outcomes, values, segments, mask, alpha=0.5)
    lengths = mask.sum(1)
    torch.testing.assert_close(found.sum(1), outcomes * lengths)
    for row, places in enumerate(ends):
        spread = segments.spread(values)[row, : places[-1] + 1]
        expected = outcomes[row] + 0.5 * (spread - spread.mean())
        torch.testing.assert_close(found[row, : places[-1] + 1], expected)
        assert found[row, places[-1] + 1] == outcomes[row]
        assert (found[row, places[-1] + 2 :] == 0).all()


def test_explained_variance_is_a_share_of_that_of_the_returns() -> None:
    returns, values = numbers(60), numbers(60, seed=1)
    found = explained_variance(returns, values)
    assert found == pytest.approx(float(1 - (returns - values).var() / returns.var()))
    assert explained_variance(returns, returns + 3.0) == pytest.approx(1.0)
    assert explained_variance(returns, torch.zeros(60)) == pytest.approx(0.0)
    assert explained_variance(torch.ones(5), values[:5]) is None
