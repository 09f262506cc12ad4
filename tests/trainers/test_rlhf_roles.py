"""A reward model on the policy's base: training goes as with one of its own, and nothing of it is
kept."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from fakes import save_lora_reward_model
from safetensors.torch import load_file
from sampled import Spy, largest_difference, train, trained, weights

from aligner.events import Notice
from aligner.methods.rlhf import train as rlhf_train
from aligner.methods.rlhf.ppo import PpoTrainer
from aligner.models import loading
from aligner.models.shared_base import SharedBase

SEGMENTS = ("rlhf.unit=segment", "rlhf.reward_models=[]", "rlhf.normalizer_samples=32")
EXACT = ("trainer.optim=sgd", "trainer.learning_rate=0.3", "trainer.max_steps=4")
"""Adam would turn what rounding leaves of gradients that cancel into whole steps."""


def settings(world: Path, folder: Path, algorithm: str, kind: str) -> tuple[str, ...]:
    model = save_lora_reward_model(folder / "reward", world / "model", kind)
    more = (f"rlhf.algorithm={algorithm}", "rlhf.beta=0.1")
    if kind == "segment":
        return (*more, *SEGMENTS, f"rlhf.segment_model={model}")
    return (*more, f"rlhf.reward_models=[{model}]")


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
@pytest.mark.parametrize("kind", ["segment", "bradley_terry"])
def test_training_is_the_one_with_a_reward_model_of_its_own(
    small_world: Path, tmp_path: Path, monkeypatch, algorithm: str, kind: str
) -> None:
    spy = Spy(monkeypatch)
    flags = (*settings(small_world, tmp_path, algorithm, kind), *EXACT)
    lora: dict[str, Any] = {"model__lora": {"r": 2}}
    log, events = train(small_world, tmp_path / "shared", *flags, **lora)
    said = [event.text for event in events if isinstance(event, Notice)]
    assert [text for text in said if "stands on the policy's own base" in text]
    assert min(trained(log, "grad_norm")) > 0.0
    roller, model = spy.trainers[0].roller, spy.trainers[0].model
    scorer = roller.segment_scorer or next(iter(roller.scorers.values()))
    held = {id(weight) for weight in model.parameters()}
    base = [weight for name, weight in scorer.model.named_parameters() if "lora_" not in name]
    assert sum(id(weight) not in held for weight in base) <= 2  # the head, and PEFT's copy of it

    load_apart(monkeypatch)
    apart, events = train(small_world, tmp_path / "apart", *flags, **lora)
    assert not [event for event in events if "the policy's own base, which" in str(event)]
    assert trained(log, "reward") == trained(apart, "reward")
    assert largest_difference(tmp_path / "shared", tmp_path / "apart") == 0.0
    assert max(float(weight.abs().max()) for weight in weights(tmp_path / "shared").values()) > 0.0


def test_nothing_of_it_is_kept_and_a_run_resumes(
    small_world: Path, tmp_path: Path, monkeypatch
) -> None:
    flags = settings(small_world, tmp_path, "ppo", "segment")
    flags += (*EXACT, "rlhf.iterations=2", "trainer.save_steps=1", "trainer.save_total_limit=4")
    lora: dict[str, Any] = {"model__lora": {"r": 2}}
    train(small_world, tmp_path / "whole", *flags, **lora)
    load_apart(monkeypatch)
    train(small_world, tmp_path / "apart", *flags, **lora)
    monkeypatch.undo()
    for files in ("final/*.safetensors", "checkpoints/*/*.safetensors"):
        mine, theirs = (
            {
                file.relative_to(tmp_path / run): set(load_file(file))
                for file in (tmp_path / run).glob(files)
            }
            for run in ("whole", "apart")
        )
        assert mine == theirs
        assert mine
    stop_after(monkeypatch, 3)
    with pytest.raises(Stopped):
        train(small_world, tmp_path / "cut", *flags, **lora)
    monkeypatch.undo()
    train(small_world, tmp_path / "cut", *flags, resume=True, **lora)
    assert largest_difference(tmp_path / "cut", tmp_path / "whole") == 0.0


def test_the_activations_of_the_critic_are_gone_before_those_of_the_policy(
    small_world: Path, tmp_path: Path, monkeypatch
) -> None:
    """One graph is held at a time, so PPO needs as much for activations as one model."""
    order: list[str] = []
    critic, policy = PpoTrainer._critic_loss, PpoTrainer.compute_loss
    backward = Accelerator.backward

    def noted(name: str, function: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            order.append(name)
            return function(*arguments, **more)

        return call

    monkeypatch.setattr(PpoTrainer, "_critic_loss", noted("critic", critic))
    monkeypatch.setattr(PpoTrainer, "compute_loss", noted("policy", policy))
    monkeypatch.setattr(Accelerator, "backward", noted("backward", backward))
    train(small_world, tmp_path / "run", "rlhf.algorithm=ppo", "trainer.max_steps=1")
    assert order == ["critic", "backward", "policy", "backward"]


def load_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load reward models whole; their adapter is not merged, so that rounding is the same."""
    monkeypatch.setattr(rlhf_train, "offers", lambda m, s: nullcontext(SharedBase(m, s)))
    monkeypatch.setattr(loading, "is_on_shared_base", lambda model: True)


class Stopped(Exception):
    """A run that ends in a step."""


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    score = rlhf_train.RlhfTrainer.get_batch_samples

    def stopping(trainer: Any, *arguments: Any) -> Any:
        if trainer.state.global_step == steps:
            raise Stopped
        return score(trainer, *arguments)

    monkeypatch.setattr(rlhf_train.RlhfTrainer, "get_batch_samples", stopping)
