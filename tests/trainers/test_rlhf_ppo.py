"""PPO in training: what the critic learns and advantages are, and what must not change a run."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import save_reward_model
from peft import PeftModel
from safetensors.torch import load_file
from sampled import Spy, largest_difference, refusal, train, trained, weights
from transformers import AutoModelForCausalLM

from aligner.methods.rlhf.credit import Credit
from aligner.methods.rlhf.normalizer import LocationNormalizer
from aligner.methods.rlhf.ppo import PpoTrainer, adapted
from aligner.methods.rlhf.recipe import Rlhf
from aligner.methods.rlhf.rollout import Response, Roller
from aligner.models.ema import trained_weights

PPO = "rlhf.algorithm=ppo"
EXACT = ("trainer.optim=sgd", "trainer.learning_rate=0.3", "trainer.max_steps=4")
EXACT += ("rlhf.critic_learning_rate=0.1",)
"""Adam would turn what rounding leaves of gradients that cancel into whole steps."""


# --- the whole ------------------------------------------------------------------------------------


def test_rewards_rise_and_the_critic_learns_them(small_world: Path, tmp_path: Path) -> None:
    log, _ = train(
        small_world, tmp_path / "run", PPO, "rlhf.reward_models=['verifier:regex=[a-z]']",
        "rlhf.group_size=8", "trainer.max_steps=30", "trainer.learning_rate=0.01",
        "trainer.lr_scheduler_type=constant", "rlhf.critic_learning_rate=0.01",
    )  # fmt: skip
    rewards = trained(log, "reward")
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3
    lost = trained(log, "value_loss")
    assert sum(lost[-5:]) < sum(lost[:5]) / 2


@pytest.mark.parametrize("kind", ["full", "lora", "nf4"])
def test_policy_and_critic_start_as_the_reference_and_are_both_trained(
    small_world: Path, tmp_path: Path, monkeypatch, kind: str
) -> None:
    """A ratio of exactly 1 and a divergence of exactly 0 at the start; gradients on both sides in
    every step, with gradients computed again in the backward pass."""
    spy = Spy(monkeypatch)
    flags: dict[str, Any] = {} if kind == "full" else {"model__lora": {"r": 2}}
    flags |= {"model__quantization": "nf4"} if kind == "nf4" else {}
    log, _ = train(
        small_world, tmp_path / "run", PPO, "rlhf.beta=0.1", "rlhf.iterations=2",
        "trainer.gradient_checkpointing=true", "trainer.learning_rate=0.01", **flags,
    )  # fmt: skip
    first = log[0]
    assert (first["approx_kl"], first["kl"], first["clip_ratio/region_mean"]) == (0.0, 0.0, 0.0)
    assert trained(log, "approx_kl")[1] > 0.0
    assert trained(log, "approx_kl")[2] == 0.0
    assert trained(log, "kl")[2] > 0.0
    assert min(trained(log, "grad_norm")) > 0.0
    assert min(trained(log, "critic_grad_norm")) > 0.0
    critic, policy = spy.trainers[0].critic, spy.trainers[0].model
    mine, theirs = (set(map(id, trained_weights(one).values())) for one in (critic, policy))
    assert not mine & theirs
    frozen = [weight for weight in critic.parameters() if not weight.requires_grad]
    held = set(map(id, policy.parameters()))
    assert all(id(weight) in held for weight in frozen)
    assert bool(frozen) == (kind != "full")


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_every_weight_of_policy_and_critic_gets_a_gradient(
    small_world: Path, tmp_path: Path, monkeypatch, kind: str
) -> None:
    reached: list[dict[str, float]] = []

    def look(trainer: PpoTrainer) -> None:
        for model in (trainer.model, trainer.critic):
            grads = {name: weight.grad for name, weight in trained_weights(model).items()}
            reached.append({name: float(grad.abs().max()) for name, grad in grads.items()})
        before(trainer)

    before = PpoTrainer.before_optimizer
    monkeypatch.setattr(PpoTrainer, "before_optimizer", look)
    flags: dict[str, Any] = {} if kind == "full" else {"model__lora": {"r": 2}}
    train(small_world, tmp_path / "run", PPO, "trainer.max_steps=2", **flags)
    assert len(reached) == 4
    for name, largest in (reached[2] | reached[3]).items():
        assert largest > 0.0, name


def test_what_is_saved_is_the_policy_alone(small_world: Path, tmp_path: Path) -> None:
    train(small_world, tmp_path / "full", PPO, "trainer.max_steps=1")
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "full" / "final", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert set(weights(tmp_path / "full")) <= set(loaded.state_dict())
    train(small_world, tmp_path / "lora", PPO, "trainer.max_steps=1", model__lora={"r": 2})
    base = AutoModelForCausalLM.from_pretrained(small_world / "model")
    adapted_base = PeftModel.from_pretrained(base, tmp_path / "lora" / "final")
    assert len(weights(tmp_path / "lora")) == len(
        [name for name in adapted_base.state_dict() if "lora_" in name]
    )


# --- advantages -----------------------------------------------------------------------------------


def by_hand(rewards: list[float], values: list[float], lam: float) -> list[float]:
    """Generalized advantages of one response, gamma 1."""
    found, following = [0.0] * len(values), 0.0
    for place in reversed(range(len(values))):
        after = values[place + 1] if place + 1 < len(values) else 0.0
        following = rewards[place] + after - values[place] + lam * following
        found[place] = following
    return found


def test_advantages_of_whole_responses_by_hand(
    small_world: Path, tmp_path: Path, monkeypatch
) -> None:
    """The score stands on the last token, less what a missing end costs; the divergence is 0 in the
    first step, and whitening is over all tokens of the step, in several micro-batches."""
    spy = Spy(monkeypatch)
    flags = ("rlhf.missing_eos_penalty=0.3", "rlhf.iterations=2", "rlhf.gae_lambda=0.8")
    parts = ("trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2")
    train(
        small_world, tmp_path / "run", PPO, *flags, *parts, "rlhf.beta=0.1", "trainer.max_steps=1"
    )
    responses = [one for group in spy.groups[0] for one in group]
    assert {one.is_finished for one in responses} <= {True, False}
    raw = []
    for one in responses:
        score = one.scores["verifier:regex=[a-m]"] - 0.3 * (not one.is_finished)
        rewards = [0.0] * (len(one.token_ids) - 1) + [score]
        raw.append(by_hand(rewards, one.old_values, 0.8))
        expected = [a + v for a, v in zip(raw[-1], one.old_values)]
        assert one.returns == pytest.approx(expected, abs=1e-5)
    flat = torch.tensor([number for row in raw for number in row])
    white = ((flat - flat.mean()) / flat.std()).tolist()
    found = [number for one in responses for number in one.advantages]
    assert found == pytest.approx(white, abs=1e-4)
    for batch in spy.batches:
        assert not batch["advantages"][~batch["counted"]].any()


def test_the_divergence_is_taken_off_each_token(
    small_world: Path, tmp_path: Path, monkeypatch
) -> None:
    """With lambda 0 a return is the reward of its own token and the value before the next."""
    spy = Spy(monkeypatch)
    flags = ("rlhf.beta=0.5", "rlhf.gae_lambda=0.0", "trainer.learning_rate=0.05")
    train(small_world, tmp_path / "run", PPO, *flags, "trainer.max_steps=2")
    batch = spy.batches[1]
    values, returns = batch["old_values"], batch["returns"]
    following = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], dim=1)
    rewards = (returns - following) + 0.5 * batch["apart"]
    assert float(batch["apart"].abs().max()) > 1e-3
    for row, one in zip(rewards, batch["responses"]):
        score = one.scores["verifier:regex=[a-m]"]
        length = len(one.token_ids)
        assert row[:length].tolist() == pytest.approx([0.0] * (length - 1) + [score], abs=1e-5)


def response(score: float | None, finished: bool = True, **more: Any) -> Response:
    scores = {} if score is None else {"x": score}
    ids, logps = [10, 11, 12], [0.0] * 3
    return Response(0, 0, [1], ids, finished, "", logps, scores=scores, **more)


def test_a_missing_end_costs_once_in_every_unit() -> None:
    settings: dict[str, Any] = {"algorithm": "ppo", "missing_eos_penalty": 0.5}
    whole = Credit(Rlhf(**settings, reward_models=["x"]))
    assert whole.paid([response(1.0, finished=False)], {}).tolist() == [[0.0, 0.0, 0.5]]
    normalizer = LocationNormalizer(0.0, 0.0, 0.0, 1.0, 0.1, 0.1, 1.0, 1)
    parts = Credit(Rlhf(**settings, unit="segment"), normalizer)
    valued = {"values": [0.0, 2.0, 4.0], "ends": [1, 2]}
    assert parts.paid([response(None, **valued)], {}).tolist() == [[0.5, 0.5, 2.0]]
    cut_off = parts.paid([response(None, finished=False, **valued)], {})
    assert cut_off.tolist() == [[0.5, 0.5, 1.5]]


def test_a_response_without_a_verdict_counts_as_the_mean_of_the_step() -> None:
    credit = Credit(Rlhf(algorithm="ppo", reward_models=["x"]))
    responses = [response(1.0), response(4.0), response(1.0)]
    responses[2].scores["x"] = None
    silent = credit.silent_scores(responses)
    assert silent == {"x": 2.5}
    assert credit.paid(responses, silent)[:, 2].tolist() == [1.0, 4.0, 2.5]


@pytest.mark.parametrize("unit", ["segment", "token"])
def test_segments_and_tokens_are_rewarded(
    small_world: Path, tmp_path: Path, monkeypatch, unit: str
) -> None:
    card = "kind: segment\nmodel: .\nsegments: {rule: fixed, length: 2}\n"
    folder = save_reward_model(tmp_path / "values", card=card)
    spy = Spy(monkeypatch)
    log, _ = train(
        small_world, tmp_path / "run", PPO, f"rlhf.unit={unit}", f"rlhf.segment_model={folder}",
        "rlhf.reward_models=[]", "rlhf.normalizer_samples=64", "trainer.max_steps=2",
        "rlhf.gae_lambda=0.0", "rlhf.group_size=1",
    )  # fmt: skip
    assert {"segments/count", "explained_variance", "returns"} <= set(log[0])
    batch = spy.batches[0]
    values = batch["old_values"]
    following = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], dim=1)
    paid = spy.trainers[0].credit.segment_rewards(batch["responses"])[2]
    there = batch["counted"]
    torch.testing.assert_close((batch["returns"] - following)[there], paid[there])
    assert float(paid.abs().max()) > 0.0


# --- when who is trained --------------------------------------------------------------------------


def test_the_critic_warms_up_alone(small_world: Path, tmp_path: Path) -> None:
    """Not even weight decay moves the policy."""
    flags = ("rlhf.critic_warmup=2", "trainer.weight_decay=0.5", "trainer.learning_rate=0.01")
    log, events = train(small_world, tmp_path / "run", PPO, *flags, "trainer.max_steps=2")
    start = load_file(small_world / "model" / "model.safetensors")
    assert all(weight.equal(start[name]) for name, weight in weights(tmp_path / "run").items())
    assert min(trained(log, "critic_grad_norm")) > 0.0
    assert trained(log, "values")[1] != trained(log, "values")[0]
    assert "no gradient reached" not in " ".join(getattr(one, "text", "") for one in events)


def test_the_policy_rests_once_it_has_moved_too_far(
    small_world: Path, tmp_path: Path, monkeypatch
) -> None:
    """From the step on that finds it, until there are new responses; the critic goes on."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    after = PpoTrainer.after_optimizer

    def look(trainer: PpoTrainer) -> None:
        models = (trainer.model, trainer.critic)
        seen.append(tuple(next(iter(trained_weights(one).values())).clone() for one in models))
        after(trainer)
        # transformers clears those of the policy alone, and they would add up
        assert all(weight.grad is None for weight in trainer.critic.parameters())

    monkeypatch.setattr(PpoTrainer, "after_optimizer", look)
    flags = ("rlhf.iterations=3", "rlhf.target_kl=1e-4", "trainer.learning_rate=0.02")
    log, _ = train(small_world, tmp_path / "run", PPO, *flags, "trainer.max_steps=6")
    assert trained(log, "policy_rests") == [0.0, 1.0, 1.0] * 2
    moved = [not one[0].equal(other[0]) for one, other in pairwise(seen)]
    assert moved == [False, False, True, False, False]
    assert all(not one[1].equal(other[1]) for one, other in pairwise(seen))


def test_an_adaptive_coefficient_follows_its_target(small_world: Path, tmp_path: Path) -> None:
    settings = Rlhf(kl_target=6.0, kl_horizon=100)
    assert adapted(0.1, 6.0, 50, settings) == pytest.approx(0.1)
    assert adapted(0.1, 6.6, 50, settings) == pytest.approx(0.1 * 1.05)
    assert adapted(0.1, 60.0, 50, settings) == pytest.approx(0.1 * 1.1)
    assert adapted(0.1, 0.0, 50, settings) == pytest.approx(0.1 * 0.9)
    flags = ("rlhf.kl=adaptive", "rlhf.beta=0.1", "rlhf.kl_horizon=16", "trainer.max_steps=2")
    log, _ = train(small_world, tmp_path / "run", PPO, *flags)
    assert trained(log, "beta") == pytest.approx([0.1, 0.08])


def test_tokens_that_were_sampled_otherwise_weigh_more_for_the_policy_alone(
    small_world: Path, tmp_path: Path, monkeypatch
) -> None:
    exact, _ = train(small_world, tmp_path / "exact", PPO, "trainer.max_steps=1")
    said = Roller._response

    def halved(roller: Any, *arguments: Any) -> Any:
        one = said(roller, *arguments)
        one.engine_logps = [logp - math.log(2) for logp in one.engine_logps]
        return one

    monkeypatch.setattr(Roller, "_response", halved)
    grown, _ = train(small_world, tmp_path / "grown", PPO, "trainer.max_steps=1")
    assert grown[0]["grad_norm"] == pytest.approx(2.0 * exact[0]["grad_norm"], rel=1e-4)
    assert grown[0]["critic_grad_norm"] == pytest.approx(exact[0]["critic_grad_norm"])


# --- what must not change a run -------------------------------------------------------------------


def test_four_micro_batches_are_one(small_world: Path, tmp_path: Path) -> None:
    logs = {}
    for name, (batch, parts) in {"whole": (4, 1), "parts": (1, 4)}.items():
        logs[name], _ = train(
            small_world,
            tmp_path / name,
            PPO,
            *EXACT,
            "rlhf.beta=0.1",
            "rlhf.iterations=2",
            "trainer.save_steps=4",
            f"trainer.per_device_train_batch_size={batch}",
            f"trainer.gradient_accumulation_steps={parts}",
            "trainer.train_sampling_strategy=random",
        )
    assert largest_difference(tmp_path / "whole", tmp_path / "parts") < 3e-5
    one, other = (critic_of(tmp_path / name, 4) for name in ("whole", "parts"))
    assert max(float((one[key] - other[key]).abs().max()) for key in one) < 3e-5
    for line, same in zip(logs["whole"], logs["parts"]):
        for key in ("loss", "value_loss", "returns", "kl", "explained_variance"):
            assert line.get(key) == pytest.approx(same.get(key), abs=3e-5), key


def critic_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"checkpoint-{step}" / "critic.safetensors")


def test_shared_prompts_change_no_number(small_world: Path, tmp_path: Path, monkeypatch) -> None:
    spy = Spy(monkeypatch)
    logs = {}
    for prefix in ("shared", "separate"):
        override = f"preference.prefix={prefix}"
        logs[prefix], _ = train(
            small_world, tmp_path / prefix, PPO, *EXACT, override, "rlhf.beta=0.1"
        )
    assert {"read_from" in batch for batch in spy.batches[:4]} == {True}
    assert {"read_from" in batch for batch in spy.batches[4:]} == {False}
    assert largest_difference(tmp_path / "shared", tmp_path / "separate") < 3e-5
    for one, other in zip(logs["shared"], logs["separate"]):
        for key in ("loss", "value_loss", "kl", "values"):
            assert one.get(key) == pytest.approx(other.get(key), abs=3e-5), key


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ((PPO, "rlhf.loss=grpo"), "rlhf.loss has no effect with `algorithm: ppo`"),
        ((PPO, "rlhf.redraws=1"), "rlhf.redraws has no effect with `algorithm: ppo`"),
        ((PPO, "rlhf.unit=segment", "rlhf.segment_model=x"), "set rlhf.unit=sequence, or drop it"),
        ((PPO, "rlhf.kl=adaptive"), "`kl: adaptive` multiplies it"),
        ((PPO, "rlhf.kl_target=1.0"), "has no effect with `kl: fixed`"),
        ((PPO, "rlhf.target_kl=0.1"), "has no effect on one step for each rollout"),
        (("rlhf.gamma=0.9",), "has no effect with `algorithm: grpo`"),
        (("rlhf.gae_lambda=0.9",), "has no effect without a critic or `credit: location`"),
        (("rlhf.group_size=1",), "leaves a response nothing to be compared to"),
    ],
)
def test_a_wrong_recipe_is_refused(
    small_world: Path, tmp_path: Path, overrides: tuple[str, ...], says: str
) -> None:
    assert says in refusal(small_world, tmp_path / "run", *overrides)
