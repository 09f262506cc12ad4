"""How often a training is evaluated and saved, against numbers worked out by hand.

400 million weights on a CPU: 100 tokens a second forward, 0.3077 s for a written token; 100 million
trained weights: 4 s a checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aligner.training.cadence import FEWEST_ROWS, SHARE, Free, Work, choose_cadence, chosen_rows

WORK = Work(
    steps=300,
    tokens_a_step=100,  # 300 s forward, 900 s in all
    held_out_rows=100,
    held_out_tokens=2000,  # 20 s
    prompts=5,
    max_new_tokens=128,
    prompt_tokens=20,
    weights=4e8,
    trained=1e8,
)


def chosen(free: Free | None = None, **changes: Any) -> Any:
    return choose_cadence(replace(WORK, **changes), free or Free())


def test_everything_beside_the_training_fits_into_a_fifth() -> None:
    found = chosen()
    assert found.save_steps == 30  # ten times 4 s of the 45 s that are allowed
    assert found.checkpoint_share == pytest.approx(40 / 900)
    assert (found.prompts, found.max_new_tokens) == (5, 64)  # 128 tokens would take 78.8 s + 2 s
    assert found.answer_share == pytest.approx((2 * 64 * 4e8 / 1.3e9 + 2) / 900)
    assert found.eval_steps == 75  # what is left, 98.6 s, is enough for four times 20 s
    assert found.evaluation_share == pytest.approx(80 / 900)
    assert found.held_out_rows == 100


def test_where_one_evaluation_is_too_much_a_part_of_the_rows_is_evaluated() -> None:
    found = chosen(held_out_tokens=20_000)
    assert found.eval_steps == 300
    assert found.held_out_rows == 49  # 98.6 s of 200 s
    assert found.evaluation_share == pytest.approx(98 / 900)


def test_battles_with_the_start_make_evaluations_rarer() -> None:
    """Two batches of 50 tokens take 30.8 s: with them an evaluation takes 50.8 s of 98.6 s."""
    found = chosen(arena_batches=2, arena_tokens=50)
    assert found.eval_steps == 300
    assert found.held_out_rows == 100
    once = 20 + 100 * 4e8 / 1.3e9
    assert found.evaluation_share == pytest.approx(once / 900)
    dear = chosen(arena_batches=20, arena_tokens=50)
    assert (dear.eval_steps, dear.held_out_rows) == (300, FEWEST_ROWS)


def test_an_evaluation_is_never_of_a_row_or_two() -> None:
    """Else the loss says nothing, and SAPO may find no pair in it."""
    found = chosen(steps=2, held_out_tokens=200_000)
    assert found.held_out_rows == FEWEST_ROWS
    assert found.evaluation_share == pytest.approx(8 * 20 / 6)
    assert chosen(steps=2, held_out_tokens=200_000, held_out_rows=3).held_out_rows == 3


def test_what_costs_little_happens_every_tenth_of_the_run() -> None:
    found = chosen(steps=100_000)
    assert (found.save_steps, found.eval_steps) == (10_000, 10_000)
    assert (found.prompts, found.max_new_tokens) == (5, 128)
    assert chosen(steps=25, weights=1e6, trained=1e6).eval_steps == 3  # less than a second


def test_a_short_training_has_fewer_checkpoints_then_one_then_none() -> None:
    assert chosen(steps=100).save_steps == 34  # 15 s for three of 4 s
    assert chosen(steps=30).save_steps == 30  # 90 s, one of 4 s
    found = chosen(steps=6)  # 18 s: 4 s are more than a fifth, and it is quickly started again
    assert (found.save_steps, found.checkpoint_share) == (0, 0.0)
    dear = chosen(steps=30, trained=1e9)  # 40 s of 90 s: too much, but it can be resumed
    assert dear.save_steps == 30
    assert dear.checkpoint_share == pytest.approx(40 / 90)


def test_answers_that_fit_in_no_length_are_left_out() -> None:
    found = chosen(steps=30)
    assert (found.prompts, found.answer_share) == (0, 0.0)


def test_adapters_make_the_training_cheaper_and_evaluations_rarer() -> None:
    assert chosen(passes=2.0).eval_steps > chosen().eval_steps


def test_responses_that_are_sampled_while_training_count() -> None:
    """13 tokens take 4 s to write, or, for 100 responses, 13 s of 1,300 tokens read: 300 steps of
    that beside 900 s. An evaluation writes 100 responses, too."""
    few = chosen(responses_a_step=8, response_tokens=13)
    assert few.training_s == pytest.approx(900 + 300 * 13 * 4e8 / 1.3e9)
    twice = chosen(responses_a_step=8, response_tokens=13, repeats=2)  # sampled once for two steps
    assert twice.training_s == pytest.approx(900 + 150 * 13 * 4e8 / 1.3e9)
    many = chosen(responses_a_step=100, response_tokens=13)
    assert many.training_s == pytest.approx(900 + 300 * 1300 / 100)
    evaluations = 300 / many.eval_steps
    assert many.evaluation_share == pytest.approx(evaluations * (20 + 13) / many.training_s)


def test_while_one_process_saves_the_others_wait() -> None:
    assert chosen(processes=4).save_steps > chosen().save_steps


def test_what_the_recipe_gives_stays() -> None:
    given = Free(evaluations=False, checkpoints=False, prompts=False, max_new_tokens=False)
    found = chosen(given, steps=6, held_out_tokens=10**6)
    assert (found.eval_steps, found.save_steps, found.held_out_rows) == (None, None, 100)
    assert (found.prompts, found.max_new_tokens) == (5, 128)
    only_tokens = chosen(Free(max_new_tokens=False))
    assert (only_tokens.prompts, only_tokens.max_new_tokens) == (0, 128)
    assert chosen(Free(prompts=False), steps=30).prompts == 5


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("steps", [61, 100, 1000, 12_345])
@pytest.mark.parametrize("held_out", [0, 1000, 100_000])
def test_shares_of_longer_trainings_never_exceed_a_fifth(
    device: str, steps: int, held_out: int
) -> None:
    found = chosen(
        device=device,
        steps=steps * (1 if device == "cpu" else 100),
        tokens_a_step=100 if device == "cpu" else 10_000,
        held_out_rows=min(held_out, 1000),
        held_out_tokens=held_out,
    )
    shares = found.evaluation_share, found.checkpoint_share, found.answer_share
    assert sum(share or 0 for share in shares) <= SHARE + 1e-9


def test_the_rows_are_drawn_with_the_seed_and_stay_in_order() -> None:
    rows = chosen_rows(100, 7, 3)
    assert rows == sorted(set(rows))
    assert len(rows) == 7
    assert rows == chosen_rows(100, 7, 3) != chosen_rows(100, 7, 4)
    assert list(chosen_rows(5, 5, 3)) == [0, 1, 2, 3, 4]
