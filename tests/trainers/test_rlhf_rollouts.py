"""Rollouts that several optimizer steps share: what is sampled when, by whom, and what may not
change a run."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from sampled import Spy, largest_difference, train, trained

from aligner.methods.rlhf.rollout import Roller
from aligner.methods.rlhf.schedule import RolloutOrder, steps_to_sample
from aligner.methods.rlhf.trainer import RlhfTrainer
from aligner.training.sampler import SeededSampler

THREE = "rlhf.steps_per_generation=3"
GRPO, PPO = "rlhf.algorithm=grpo", "rlhf.algorithm=ppo"


def thirteen(world: Path, **more: Any) -> dict[str, Any]:
    """Thirteen rows twice: four steps an epoch, the last of which has one row."""
    return {
        "data__train": [{"path": str(world / "sft.jsonl"), "max_rows": 13}],
        "trainer__per_device_train_batch_size": 2,
        "trainer__gradient_accumulation_steps": 2,
        "trainer__max_steps": -1,
        "trainer__num_train_epochs": 2,
        "trainer__optim": "sgd",
        "trainer__learning_rate": 0.3,
        "rlhf__group_size": 3,
        **more,
    }


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int | str, list[int]]]:
    """What was asked for: (optimizer step, rows)."""
    asked = []
    sample = Roller.sample

    def spy(roller: Roller, model: Any, rows: Any, step: Any, **more: Any) -> Any:
        asked.append((step, [row["row"] for row in rows]))
        return sample(roller, model, rows, step, **more)

    monkeypatch.setattr(Roller, "sample", spy)
    return asked


# --- the order ------------------------------------------------------------------------------------


def test_rows_of_a_rollout_come_as_often_as_asked_in_new_orders() -> None:
    order = SeededSampler(11, seed=3, rows_per_step=2, num_padding_rows=1)
    first = list(order)
    assert list(RolloutOrder(order, 2, 1)) == first
    repeated = RolloutOrder(order, 2, 3)
    rows = list(repeated)
    assert len(rows) == len(repeated) == 36
    for start in (0, 4, 8):
        rollout = first[start : start + 4]
        times = [rows[start * 3 + 4 * time :][:4] for time in range(3)]
        assert times[0] == rollout
        assert [sorted(one) for one in times] == [sorted(rollout)] * 3
        assert len({tuple(one) for one in times}) > 1
    assert [time[-1] for time in (rows[24:28], rows[28:32], rows[32:])] == [11] * 3  # only fills
    assert list(repeated) == rows
    repeated.set_epoch(1)
    assert list(repeated) != rows
    assert list(RolloutOrder(order, 1, 2))[:4] == list(order)[:2] * 2  # one step keeps its order


def test_when_is_sampled_for_how_many_steps() -> None:
    assert [steps_to_sample(step, 4, 1, 1) for step in range(5)] == [1] * 5
    assert [steps_to_sample(step, 4, 3, 1) for step in range(8)] == [3, 0, 0, 1, 3, 0, 0, 1]
    found = [steps_to_sample(step, 10, 3, 2) for step in range(12)]
    assert found == [3, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0]


# --- in training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [GRPO, PPO])
def test_one_policy_answers_the_prompts_of_several_steps(
    small_world: Path, tmp_path: Path, monkeypatch, sampled, algorithm: str
) -> None:
    """Each row once an epoch, in the last rollout what is left; the policy that sampled is the one
    that ratios are taken to, and the first step's are exactly 1."""
    spy = Spy(monkeypatch)
    log, _ = train(
        small_world, tmp_path / "run", algorithm, THREE, "rlhf.beta=0.1", **thirteen(small_world)
    )
    assert [(step, len(rows)) for step, rows in sampled] == [(0, 12), (3, 1), (4, 12), (7, 1)]
    assert sorted(sampled[0][1] + sampled[1][1]) == list(range(13))
    assert sampled[0][1] != sampled[2][1]
    trained_on = [one.row for batch in spy.batches for one in batch["responses"]]
    assert sorted(trained_on) == sorted(list(range(13)) * 2 * 3)
    assert [[one.row for one in batch["responses"]][:2] for batch in spy.batches[:6]] == [
        sampled[0][1][place : place + 2] for place in range(0, 12, 2)
    ]
    for batch in spy.batches:
        there = batch["counted"]
        torch.testing.assert_close(batch["old"][there], batch["engine"][there], atol=1e-4, rtol=0)
    assert max(trained(log, "sampling/kl")) < 1e-6
    if algorithm == PPO:
        moved = trained(log, "approx_kl")
        assert [number == 0.0 for number in moved] == [True, False, False, True] * 2
    assert "time/old_logps" in log[0]
    assert "time/sampling" not in log[1]
    assert len(trained(log, "reward")) == 4


@pytest.mark.parametrize("algorithm", [GRPO, PPO])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_first_update_on_a_rollout_has_ratios_of_exactly_one(
    small_world: Path, tmp_path: Path, monkeypatch, algorithm: str, steps: int
) -> None:
    off: dict[int, float] = {}
    losses = RlhfTrainer.token_losses

    def look(trainer: RlhfTrainer, inputs: Any, found: Any, old: torch.Tensor) -> Any:
        step = trainer.state.global_step
        apart = (found.logps.detach() - old).abs() * inputs["counted"]
        off[step] = max(off.get(step, 0.0), float(apart.max()))
        return losses(trainer, inputs, found, old)

    monkeypatch.setattr(RlhfTrainer, "token_losses", look)
    flags = thirteen(small_world, rlhf__steps_per_generation=steps, rlhf__iterations=2)
    train(small_world, tmp_path / "run", algorithm, "rlhf.beta=0.1", **flags)
    firsts = [step for step in range(16) if steps_to_sample(step, 8, steps, 2)]
    assert firsts == ([0, 2, 4, 6, 8, 10, 12, 14] if steps == 1 else [0, 6, 8, 14])
    assert [step for step, apart in sorted(off.items()) if apart == 0.0] == firsts


@pytest.mark.parametrize("algorithm", [GRPO, PPO])
def test_a_rollout_is_gone_through_again_in_another_order(
    small_world: Path, tmp_path: Path, monkeypatch, sampled, algorithm: str
) -> None:
    spy = Spy(monkeypatch)
    flags = thirteen(small_world, trainer__num_train_epochs=1, rlhf__iterations=2)
    train(small_world, tmp_path / "run", algorithm, THREE, "rlhf.beta=0.1", **flags)
    assert [(step, len(rows)) for step, rows in sampled] == [(0, 12), (6, 4)]  # three fill a step
    rows = [[one.row for one in batch["responses"]] for batch in spy.batches]
    first, again = chain(*rows[:6]), chain(*rows[6:12])
    assert sorted(first) == sorted(again)
    assert rows[:6] != rows[6:12]
    by_response: dict[int, list[dict[str, torch.Tensor]]] = {}
    for batch in spy.batches:
        names = ("old", "reference", "advantages", "returns", "old_values", "engine")
        for place, one in enumerate(batch["responses"]):
            length = len(one.token_ids)
            found = {name: batch[name][place, :length] for name in names if name in batch}
            by_response.setdefault(id(one), []).append(found)
    once, twice = zip(*(found for found in by_response.values() if len(found) == 2))
    torch.testing.assert_close(list(once), list(twice), atol=0, rtol=0)


def test_advantages_are_scaled_over_all_that_was_sampled_at_once(
    small_world: Path, tmp_path: Path, monkeypatch
) -> None:
    spy = Spy(monkeypatch)
    flags = thirteen(small_world, trainer__num_train_epochs=1)
    train(small_world, tmp_path / "ppo", PPO, THREE, **flags)
    all_of = torch.cat([batch["advantages"][batch["counted"]] for batch in spy.batches[:6]])
    assert float(all_of.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(all_of.std()) == pytest.approx(1.0, abs=1e-5)
    parts = [batch["advantages"][batch["counted"]] for batch in spy.batches[:2]]
    assert abs(float(torch.cat(parts).mean())) > 1e-3
    spy.batches.clear()
    spy.groups.clear()
    train(small_world, tmp_path / "grpo", THREE, "rlhf.scale=batch", **flags)
    groups = spy.groups[0]
    scores = torch.tensor([[next(iter(one.scores.values())) for one in group] for group in groups])
    expected = (scores - scores.mean(1, keepdim=True)) / (scores.std() + 1e-4)
    first = {one.row: [] for group in groups for one in group}
    for batch in spy.batches[:6]:
        for one, row in zip(batch["responses"], batch["advantages"]):
            first[one.row].append(float(row[0]))
    found = torch.tensor([first[group[0].row] for group in groups])
    torch.testing.assert_close(found.sort(1).values, expected.sort(1).values, atol=1e-5, rtol=0)


def test_the_first_step_is_that_of_a_rollout_of_its_own(small_world: Path, tmp_path: Path) -> None:
    alone, _ = train(small_world, tmp_path / "alone", **thirteen(small_world))
    first, _ = train(small_world, tmp_path / "first", THREE, **thirteen(small_world))
    for key in ("loss", "grad_norm", "entropy"):
        assert first[0][key] == pytest.approx(alone[0][key], abs=1e-6), key


def test_nothing_is_sampled_that_is_not_trained_on(
    small_world: Path, tmp_path: Path, sampled
) -> None:
    flags = thirteen(small_world, trainer__max_steps=5, trainer__num_train_epochs=1)
    train(small_world, tmp_path / "run", THREE, **flags)
    assert [(step, len(rows)) for step, rows in sampled] == [(0, 12), (3, 1), (4, 4)]


@pytest.mark.parametrize("algorithm", [GRPO, PPO])
def test_four_micro_batches_are_one(small_world: Path, tmp_path: Path, algorithm: str) -> None:
    for name, (batch, parts) in {"whole": (4, 1), "parts": (1, 4)}.items():
        flags = thirteen(
            small_world,
            trainer__per_device_train_batch_size=batch,
            trainer__gradient_accumulation_steps=parts,
            trainer__learning_rate=0.1,
            rlhf__iterations=2,
            trainer__train_sampling_strategy="random",
        )
        train(small_world, tmp_path / name, algorithm, THREE, "rlhf.beta=0.1", **flags)
    assert largest_difference(tmp_path / "whole", tmp_path / "parts") < 3e-5


def test_a_policy_that_has_moved_rests_until_the_next_rollout(
    small_world: Path, tmp_path: Path
) -> None:
    flags = thirteen(small_world, rlhf__target_kl=1e-4)
    log, _ = train(small_world, tmp_path / "run", PPO, THREE, **flags)
    assert trained(log, "policy_rests") == [0.0, 1.0, 1.0, 0.0] * 2
