"""Cutting, stitching, replaying and averaging: the pure parts of SAPO."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from torch import nn

from aligner.methods.sapo.windows import ReplayBuffer, Rewrite, cut, stitch
from aligner.models.ema import Shadow, trained_weights

STOP = 9


def rewrite(row: int, **changes: object) -> Rewrite:
    return Rewrite(
        **{
            "row": row,
            "sample": 0,
            "prompt_ids": [1, row],
            "chosen_ids": [2, STOP],
            "rejected_ids": [3],
            "born": 0,
        }
        | changes
    )


# --- windows --------------------------------------------------------------------------------------


def test_a_window_is_as_long_as_asked_and_starts_anywhere_that_it_fits():
    rng = random.Random(0)
    found = Counter(cut(6, 4, rng) for _ in range(3000))
    assert set(found) == {(0, 4), (1, 4), (2, 4)}
    assert min(found.values()) > 900


@pytest.mark.parametrize(("length", "window"), [(3, 4), (4, 4), (1, 256), (7, None)])
def test_a_short_answer_is_rewritten_whole(length, window):
    assert cut(length, window, random.Random(0)) == (0, length)


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
    assert stitch(ANSWER, start, size, written, {STOP, 8}, keep_suffix=True) == kept
    assert stitch(ANSWER, start, size, written, {STOP, 8}, keep_suffix=False) == dropped


def test_what_stands_before_the_window_is_never_touched():
    rng = random.Random(1)
    for _ in range(300):
        answer = [rng.randrange(20) + 10 for _ in range(rng.randint(1, 12))]
        start, size = cut(len(answer), rng.choice([1, 3, 5, None]), rng)
        found = stitch(
            answer, start, size, [rng.randrange(40) for _ in range(size)], {STOP}, keep_suffix=True
        )
        assert found[:start] == answer[:start]
        assert len(found) <= len(answer)
        if STOP not in found:
            assert len(found) == len(answer)
            assert found[start + size :] == answer[start + size :]


# --- the buffer -----------------------------------------------------------------------------------


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
    buffer.add(rewrite(i, born=i, draws=2 * i, rejected_ids=list(range(i))) for i in range(count))
    buffer.save(tmp_path / "buffer.safetensors")
    other.load(tmp_path / "buffer.safetensors")
    assert list(other.entries) == list(buffer.entries)
    assert other.entries.maxlen == 3


# --- shadows --------------------------------------------------------------------------------------


def model(value: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    layer = nn.Linear(2, 1, bias=True).to(dtype)
    layer.bias.requires_grad_(False)
    nn.init.constant_(layer.weight, value)
    return layer


def test_the_decay_weighs_the_old():
    policy = model(1.0)
    shadow = Shadow(policy)
    nn.init.constant_(policy.weight, 2.0)
    shadow.follow(policy, 0.9)
    assert shadow.weights["weight"].tolist() == [[pytest.approx(1.1)] * 2]
    shadow.follow(policy, 0.9)
    assert shadow.weights["weight"].tolist() == [[pytest.approx(0.9 * 1.1 + 0.1 * 2)] * 2]
    assert shadow.distance(policy) == pytest.approx((2 - 1.19) / 2)


def test_only_what_is_trained_is_held():
    assert list(Shadow(model(1.0)).weights) == ["weight"]


def test_small_steps_are_not_lost_where_the_policy_is_bfloat16():
    policy = model(1.0, torch.bfloat16)
    shadow = Shadow(policy)
    nn.init.constant_(policy.weight, 1.0078125)  # the next number in bfloat16
    for _ in range(50):
        shadow.follow(policy, 0.99)
    assert shadow.weights["weight"].dtype is torch.float32
    assert shadow.weights["weight"][0, 0].item() == pytest.approx(
        1 + 0.0078125 * (1 - 0.99**50), rel=1e-5
    )


def test_a_model_works_with_a_shadow_and_has_its_own_weights_back_after():
    policy = model(1.0)
    shadow = Shadow(policy)
    nn.init.constant_(policy.weight, 3.0)
    before = policy.weight.data_ptr()
    x = torch.ones(1, 2)
    loss = policy(x).sum()
    with shadow.in_place(policy), torch.no_grad():
        assert policy(x).item() == pytest.approx(2 + policy.bias.item())
    assert policy.weight.data_ptr() == before
    loss.backward()
    assert policy.weight.grad.tolist() == [[1.0, 1.0]]
    with pytest.raises(ZeroDivisionError), shadow.in_place(policy):
        _ = 1 / 0
    assert policy.weight.data_ptr() == before


def test_a_shadow_becomes_another_and_is_read_back(tmp_path):
    shadow, other = Shadow(model(1.0)), Shadow(model(5.0))
    shadow.become(other)
    assert shadow.weights["weight"].tolist() == [[5.0, 5.0]]
    shadow.become(model(2.0))
    assert other.weights["weight"].tolist() == [[5.0, 5.0]], "taken over, not shared"
    shadow.save(tmp_path / "s.safetensors")
    other.load(tmp_path / "s.safetensors")
    assert other.weights["weight"].tolist() == [[2.0, 2.0]]
    assert set(trained_weights(model(0.0))) == {"weight"}
