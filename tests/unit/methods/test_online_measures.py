"""What a round is worth, which is the best, and when rounds end: against slow twins and numbers
worked out by hand."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from aligner.config.recipe import Generation, Model
from aligner.data.rows import PromptRow
from aligner.generation.shards import Asking, shards
from aligner.methods.online.evaluation import HeldOut
from aligner.methods.online.measures import (
    RESAMPLES,
    best_round,
    by_prompt,
    change,
    distinct,
    judged,
    kl_of_responses,
    mean_and_error,
    proxy_accuracy,
    why_stop,
    win_rate,
)
from aligner.methods.online.recipe import Evaluation, Online, Stop

# --- means and rates ------------------------------------------------------------------------------


def test_prompts_are_counted_and_not_responses() -> None:
    means = by_prompt([[1.0, 3.0], [5.0, None], [None, None], []])
    assert means[:2].tolist() == [2.0, 5.0]
    assert np.isnan(means[2:]).all()
    mean, error = mean_and_error(means)
    assert mean == 3.5
    assert error == pytest.approx(math.sqrt((1.5**2 + 1.5**2) / 1) / math.sqrt(2))
    assert mean_and_error(by_prompt([[None]])) == (None, 0.0)


def test_the_win_rate_agrees_with_a_slow_twin() -> None:
    draw = random.Random(3)
    levels = [None, 0.0, 1.0, 2.0]
    for _ in range(40):
        size = draw.randint(1, 7)
        ours = [[draw.choice(levels) for _ in range(3)] for _ in range(size)]
        theirs = [[draw.choice(levels) for _ in range(2)] for _ in range(size)]
        rates = []
        for left, right in zip(ours, theirs):
            games: list[float] = []
            for a in left:
                for b in right:
                    if a is not None and b is not None:
                        games.append(1.0 if a > b else 0.5 if a == b else 0.0)
            if games:
                rates.append(sum(games) / len(games))
        found = win_rate(ours, theirs, seed=5)
        if not rates:
            assert found is None
            continue
        assert found is not None
        assert found.value == pytest.approx(sum(rates) / len(rates))
        assert found.prompts == len(rates)
        twin = np.random.default_rng(5)
        resampled = []
        for _ in range(RESAMPLES):
            picks = twin.integers(len(rates), size=len(rates))
            resampled.append(sum(rates[pick] for pick in picks) / len(rates))
        low, high = np.percentile(resampled, (2.5, 97.5))
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
        assert found.low <= found.value <= found.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """200 comparisons of 60 prompts where the truth is 0.6: 95% of the intervals hold it, with a
    standard deviation of 1.5%."""
    draw, held = random.Random(11), 0
    for seed in range(200):
        ours = [[float(draw.random() < 0.6)] for _ in range(60)]
        found = win_rate(ours, [[0.5]] * 60, seed)
        assert found is not None
        held += found.low <= 0.6 <= found.high
    assert 0.89 <= held / 200 <= 0.99


def test_the_proxy_is_accurate_where_it_orders_as_gold_does() -> None:
    """Prompt 1: gold a > b > c = d. Of its pairs that do not tie by gold the reward has ab wrong,
    ac right, ad wrong, bc right, and bd tied: 2.5 of 5."""
    rewards: list[list[float | None]] = [[3.5, 4.0, 1.0, 4.0], [1.0, None], [0.0, 1.0]]
    gold: list[list[float | None]] = [[2.0, 1.0, 0.0, 0.0], [1.0, 0.0], [5.0, 5.0]]
    accuracy, pairs = proxy_accuracy(rewards, gold)
    assert (accuracy, pairs) == (2.5 / 5, 5)
    assert proxy_accuracy([[1.0, 2.0]], [[0.0, 0.0]]) == (None, 0)


def test_diversity_counts_different_pairs_of_words() -> None:
    assert distinct(["a b a b", "a b c"]) == pytest.approx(3 / 5)
    assert distinct(["a b c"], size=3) == 1.0
    assert distinct(["a", ""]) == 0.0


# --- KL -------------------------------------------------------------------------------------------


def test_kl_of_responses_by_hand() -> None:
    found = kl_of_responses([[[-1.0, -3.0], []], []], [[[-2.5, -2.0], []], []])
    assert found == [[pytest.approx(0.5), 0.0], []]


def test_a_token_that_the_start_finds_likely_and_the_policy_does_not_is_no_outlier() -> None:
    """200 tokens of a policy that is sharper than the start: the exact KL is 0.98 nats, and the
    estimate that is never negative misses it by nats where one rare token was drawn."""
    policy, start = np.array([0.9, 0.0998, 0.0002]), np.array([0.3, 0.1, 0.6])
    exact = float((policy * np.log(policy / start)).sum())
    drawn = [0] * 180 + [1] * 19 + [2]
    ours, theirs = np.log(policy)[drawn], np.log(start)[drawn]
    found = kl_of_responses([[[x] for x in ours]], [[[x] for x in theirs]])
    assert np.mean(found) == pytest.approx(exact, abs=0.05)
    assert np.mean(np.expm1(theirs - ours) - (theirs - ours)) > exact + 10


# --- which prompts choose -------------------------------------------------------------------------


def held_out(count: int, share: float = 0.5, seed: int = 0) -> HeldOut:
    rows = [PromptRow(str(number)) for number in range(count)]
    return HeldOut(rows, Online(evaluation=Evaluation(validation=share)), seed)


def test_the_prompts_that_choose_do_not_report() -> None:
    found = held_out(10, 0.3)
    chosen = [place for place, chooses in enumerate(found.is_validation) if chooses]
    assert len(chosen) == 3
    assert sorted([*chosen, *found.reporting]) == list(range(10))
    assert held_out(10, 0.3).is_validation == found.is_validation
    assert held_out(10, 0.3, seed=1).is_validation != found.is_validation


def test_at_least_one_prompt_chooses_and_all_report_where_none_is_left() -> None:
    assert sum(held_out(3, 0.01).is_validation) == 1
    whole = held_out(4, 1.0)
    assert whole.is_validation == [True] * 4
    assert whole.reporting == [0, 1, 2, 3]


# --- the best round -------------------------------------------------------------------------------


def measured(reward: float | None, gold: float | None = None, **more: Any) -> dict[str, Any]:
    part = {"reward": reward, "gold": gold, "kl": 0.0, "finished": 1.0, **more}
    return {"validation": part, "changes": {}}


def test_the_best_round_is_by_gold_or_by_the_reward() -> None:
    by_reward = [measured(9.0), measured(1.0), measured(3.0), measured(2.0)]
    assert best_round(by_reward) == 2, "the start is never chosen"
    by_gold = [measured(0.0, 0.0), measured(1.0, 5.0), measured(9.0, 4.0)]
    assert best_round(by_gold) == 1


def test_of_equal_rounds_the_first_is_best_and_one_without_a_score_last() -> None:
    assert best_round([measured(0.0), measured(1.0), measured(1.0)]) == 1
    assert best_round([measured(0.0), measured(None), measured(-5.0)]) == 2
    assert judged(measured(None)) == -math.inf


def test_gold_of_zero_is_gold() -> None:
    assert judged(measured(3.0, 0.0)) == 0.0


# --- the end --------------------------------------------------------------------------------------


def test_it_stops_beyond_the_kl() -> None:
    rounds = [measured(0.0), measured(1.0, kl=4.1)]
    assert "4.1 nats a response from the start" in why_stop(rounds, Stop(kl=4.0))
    assert why_stop(rounds, Stop(kl=4.1)) == ""
    assert why_stop(rounds, Stop()) == ""


def test_it_stops_where_fewer_responses_end() -> None:
    rounds = [measured(0.0, finished=0.9), measured(1.0, finished=0.65)]
    said = why_stop(rounds, Stop(eos_drop=0.2))
    assert "65% of the responses end by themselves, and at the start 90% did" in said
    assert why_stop(rounds, Stop(eos_drop=0.3)) == ""


def changed(reward: float, gold: float, stderr: float = 0.1) -> list[dict[str, Any]]:
    last = measured(1.0)
    last["changes"] = {
        "reward": {"mean": reward, "stderr": stderr},
        "gold": {"mean": gold, "stderr": stderr},
    }
    return [measured(0.0), last]


def test_it_stops_where_the_reward_rose_and_gold_fell_beyond_chance() -> None:
    assert "over-optimized" in why_stop(changed(0.3, -0.3), Stop())
    assert why_stop(changed(0.3, -0.3), Stop(over_optimized=False)) == ""
    assert why_stop(changed(0.3, 0.3), Stop()) == ""
    assert why_stop(changed(-0.3, -0.3), Stop()) == ""
    assert why_stop(changed(0.3, -0.2), Stop()) == "", "two standard errors are not beyond them"
    assert why_stop(changed(0.15, -0.3), Stop()) == ""
    without = changed(0.3, -0.3)
    del without[1]["changes"]["gold"]
    assert why_stop(without, Stop()) == ""


def test_a_change_is_between_the_same_prompts() -> None:
    """1 - 0, 3 - 1 and nothing of the third: mean 1.5, standard error sqrt(0.5)/sqrt(2)."""
    found = change(np.array([1.0, 3.0, np.nan]), np.array([0.0, 1.0, 2.0]))
    assert found == {"mean": 1.5, "stderr": pytest.approx(0.5)}


def test_one_prompt_says_nothing_of_chance() -> None:
    """Its standard error is not known, and not 0."""
    one = np.array([1.0])
    assert change(one, one - 5.0) is None
    assert change(np.array([1.0, np.nan]), np.array([0.0, 0.0])) is None


# --- shards ---------------------------------------------------------------------------------------


def test_shards_cover_the_rows_once() -> None:
    assert shards(list("abcde"), 2) == [range(2), range(2, 4), range(4, 5)]
    assert shards([], 2) == []


def test_each_temperature_gets_an_even_share() -> None:
    asking = Asking(
        section=Model(name_or_path="model"),
        generation=Generation(),
        temperatures=[1.0, 0.7],
        num_samples=8,
        max_new_tokens=4,
        max_length=8,
        seed=0,
        shard_size=2,
        batch_size=2,
        stream="rounds/01",
    )
    assert asking.sampled_at() == [(1.0, 4), (0.7, 4)]
