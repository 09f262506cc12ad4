"""Reinforcement learning in training: what is sampled, what it is worth, and what must not change
a run."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import save_reward_model, write_jsonl
from sampled import Spy, largest_difference, refusal, train, trained, weights

from aligner.errors import DataError, RecipeError
from aligner.events import Notice, Warned
from aligner.methods.rlhf import train as rlhf_train
from aligner.methods.rlhf.credit import Credit
from aligner.methods.rlhf.normalizer import LocationNormalizer
from aligner.methods.rlhf.recipe import Rlhf
from aligner.methods.rlhf.rollout import Response, Roller
from aligner.runs.files import read_json

SEGMENTS = ("rlhf.unit=segment", "rlhf.reward_models=[]", "rlhf.normalizer_samples=64")


@pytest.fixture
def segment_model(small_world: Path, tmp_path: Path) -> str:
    """A card of a reward model with values at every token, of the policy's tokenizer."""
    folder = save_reward_model(
        tmp_path / "values",
        card="kind: segment\nmodel: .\nsegments: {rule: fixed, length: 2}\n",
    )
    return f"rlhf.segment_model={folder}"


# --- the whole ------------------------------------------------------------------------------------


def test_rewards_rise(small_world: Path, tmp_path: Path) -> None:
    """A reward for the letter a, from a model that has learned nothing: more often from step to
    step."""
    log, _ = train(
        small_world,
        tmp_path / "run",
        "rlhf.reward_models=['verifier:regex=[a-z]']",
        "rlhf.group_size=8",
        "trainer.max_steps=25",
        "trainer.learning_rate=0.01",
        "data.eval=0.2",
        "trainer.eval_steps=25",
    )
    rewards = trained(log, "reward")
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3
    held_out = [line for line in log if line["split"] == "eval"]
    assert held_out[-1]["reward"] == -held_out[-1]["loss"] > 0.5
    assert {"completions/mean_length", "completions/clipped_ratio"} <= set(held_out[-1])


def test_what_a_step_shows(small_world: Path, tmp_path: Path, monkeypatch) -> None:
    spy = Spy(monkeypatch)
    log, _ = train(small_world, tmp_path / "run", "rlhf.beta=0.1", "trainer.max_steps=2")
    groups = spy.groups[0]
    assert [len(group) for group in groups] == [4] * 4
    flat = [one for group in groups for one in group]
    first = log[0]
    name = "verifier:regex=[a-m]"
    rewards = [one.scores[name] for one in flat]
    assert first["reward"] == pytest.approx(sum(rewards) / 16)
    assert first[f"rewards/{name}/mean"] == first["reward"]
    assert rewards == [float(bool(re.search("[a-m]", one.text))) for one in flat]
    lengths = [len(one.token_ids) for one in flat]
    assert first["completions/mean_length"] == pytest.approx(sum(lengths) / 16)
    cut_off = sum(not one.is_finished for one in flat) / 16
    assert first["completions/clipped_ratio"] == pytest.approx(cut_off)
    dull = sum(len({one.scores[name] for one in group}) == 1 for group in groups) / 4
    assert first["frac_reward_zero_std"] == pytest.approx(dull)
    assert first["kl"] == 0.0  # before the first step the policy is the reference, exactly
    assert log[1]["kl"] > 0.0
    assert first["entropy"] > 0.0
    assert {"time/sampling", "time/scoring", "time/reference"} <= set(first)
    results = json.loads((tmp_path / "run" / "manifest.json").read_text())["results"]
    assert not [name for name in results if "time" in name]  # two equal runs have the same
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()
    assert "rlhf" in (tmp_path / "run" / "final" / "README.md").read_text()


def test_log_probabilities_are_those_that_were_sampled_from(
    small_world: Path, tmp_path: Path, monkeypatch
) -> None:
    """The trainer's, at the sampling temperature, against the engine's own."""
    spy = Spy(monkeypatch)
    flags = ("rlhf.iterations=2", "rlhf.temperature=0.7", "trainer.max_steps=2")
    train(small_world, tmp_path / "run", *flags)
    for one in [one for group in spy.groups[0] for one in group]:
        assert len(one.old_logps) == len(one.token_ids)
        assert one.old_logps == pytest.approx(one.engine_logps, abs=1e-4)


def test_tokens_that_were_sampled_otherwise_are_weighted_and_told(
    small_world: Path, tmp_path: Path, monkeypatch
) -> None:
    """An engine that says half of each token's probability: weights of 2 at the most, and the KL of
    that, at the first step; by itself it says what the trainer does."""
    exact, _ = train(small_world, tmp_path / "exact", *EXACT, "trainer.max_steps=1")
    assert exact[0]["sampling/kl"] == pytest.approx(0.0, abs=1e-6)
    said = Roller._response

    def halved(roller: Any, *arguments: Any) -> Any:
        one = said(roller, *arguments)
        one.engine_logps = [logp - math.log(2) for logp in one.engine_logps]
        return one

    monkeypatch.setattr(Roller, "_response", halved)
    grown, _ = train(small_world, tmp_path / "grown", *EXACT, "trainer.max_steps=1")
    assert grown[0]["sampling/kl"] == pytest.approx(1 - math.log(2), abs=1e-4)
    capped = ("rlhf.mismatch_cap=1.5", "trainer.max_steps=1")
    less, _ = train(small_world, tmp_path / "less", *EXACT, *capped)
    off = ("rlhf.mismatch_cap=null", "trainer.max_steps=1")
    none, _ = train(small_world, tmp_path / "none", *EXACT, *off)
    norms = [log[0]["grad_norm"] for log in (exact, none, less, grown)]
    assert norms[1] == pytest.approx(norms[0])
    assert norms[2] == pytest.approx(1.5 * norms[0], rel=1e-4)
    assert norms[3] == pytest.approx(2.0 * norms[0], rel=1e-4)


# --- what must not change a run -------------------------------------------------------------------

EXACT = ("trainer.optim=sgd", "trainer.learning_rate=0.3", "trainer.max_steps=4")
"""Adam would turn what rounding leaves of gradients that cancel into whole steps."""


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo", "cispo"])
def test_four_micro_batches_are_one(small_world: Path, tmp_path: Path, loss: str) -> None:
    for name, (batch, parts) in {"whole": (4, 1), "parts": (1, 4)}.items():
        train(
            small_world,
            tmp_path / name,
            *EXACT,
            f"rlhf.loss={loss}",
            "rlhf.beta=0.1",
            f"trainer.per_device_train_batch_size={batch}",
            f"trainer.gradient_accumulation_steps={parts}",
            "trainer.train_sampling_strategy=random",
        )
    assert largest_difference(tmp_path / "whole", tmp_path / "parts") < 3e-5


def test_shared_prompts_change_no_number(small_world: Path, tmp_path: Path, monkeypatch) -> None:
    spy = Spy(monkeypatch)
    logs = {}
    for prefix in ("shared", "separate"):
        override = f"preference.prefix={prefix}"
        logs[prefix], _ = train(small_world, tmp_path / prefix, *EXACT, override, "rlhf.beta=0.1")
    assert {"read_from" in batch for batch in spy.batches[:4]} == {True}
    assert {"read_from" in batch for batch in spy.batches[4:]} == {False}
    assert largest_difference(tmp_path / "shared", tmp_path / "separate") < 3e-5
    for one, other in zip(logs["shared"], logs["separate"]):
        for key in ("loss", "reward", "kl", "entropy"):
            assert one.get(key) == pytest.approx(other.get(key), abs=2e-5)


def test_the_same_rows_come_for_as_many_steps_as_there_are_iterations(
    small_world: Path, tmp_path: Path, monkeypatch
) -> None:
    spy = Spy(monkeypatch)
    log, _ = train(
        small_world, tmp_path / "run", "rlhf.iterations=3", "trainer.max_steps=-1",
        "trainer.num_train_epochs=1", "trainer.per_device_train_batch_size=10",
        "trainer.gradient_accumulation_steps=2", "trainer.learning_rate=0.003",
    )  # fmt: skip
    assert len(spy.groups) == 9 == log[-1]["step"]
    rows = [[group[0].row for group in groups] for groups in spy.groups]
    assert rows[0] == rows[1] == rows[2] != rows[3] == rows[4] == rows[5]
    # The last step has 8 of its 20 rows, and 12 blank ones.
    assert sorted(rows[0] + rows[3] + rows[6]) == [-1] * 12 + list(range(48))
    assert spy.batches[-1]["counted"].sum() == 0
    assert spy.groups[0][0] is spy.groups[2][0]
    moved = trained(log, "clip_ratio/region_mean")
    assert moved[0] == moved[3] == moved[6] == 0.0
    old = ["old" in batch for batch in spy.batches]
    assert old == [False, False, True, True, True, True] * 3


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_adapters_start_as_the_reference_and_are_all_that_is_trained(
    small_world: Path, tmp_path: Path, monkeypatch, quantization: str
) -> None:
    spy = Spy(monkeypatch)
    flags = {"model__lora": {"r": 2}, "model__quantization": quantization}
    log, _ = train(
        small_world, tmp_path / "run", "rlhf.beta=0.1", "trainer.learning_rate=0.02",
        "trainer.max_steps=6", **flags,
    )  # fmt: skip
    assert trained(log, "kl")[0] == 0.0
    assert trained(log, "kl")[-1] > 0.0
    assert min(trained(log, "grad_norm")) > 0.0 or any(trained(log, "frac_reward_zero_std"))
    assert all("lora_" in name for name in spy.trainers[0].reference.weights)
    assert all("lora_" in name for name in weights(tmp_path / "run"))


# --- what responses are worth ---------------------------------------------------------------------


def response(score: float | None, tokens: int = 4, finished: bool = True, **more: Any) -> Response:
    ids = list(range(10, 10 + tokens))
    return Response(0, 0, [1], ids, finished, "", [0.0] * tokens, scores={"x": score}, **more)


def test_advantages_of_a_step_by_hand() -> None:
    groups = [[response(1.0), response(0.0, tokens=2)], [response(5.0), response(5.0)]]
    found = Credit(Rlhf(scale="none")).advantages(groups)
    assert found.tolist() == [[0.5] * 4, [-0.5, -0.5, 0.0, 0.0], [0.0] * 4, [0.0] * 4]


def test_truncation_costs_once_or_is_left_out() -> None:
    groups = [[response(1.0), response(1.0, finished=False)]]
    once = Credit(Rlhf(scale="none", missing_eos_penalty=0.5)).advantages(groups)
    assert once.tolist() == [[0.25] * 4, [-0.25] * 4]
    masked = Credit(Rlhf(scale="none", truncated="mask")).advantages(
        [[response(1.0), response(0.0, finished=False)]]
    )
    assert masked.tolist() == [[0.5] * 4, [0.0] * 4]


@pytest.mark.parametrize(("tokens", "cost"), [(10, 0.0), (16, 0.0), (17, 0.25), (20, 1.0)])
def test_the_price_of_length_rises_over_the_buffer(tokens: int, cost: float) -> None:
    """DAPO's equation 13, for a limit of 20 tokens and a buffer of 4."""
    credit = Credit(Rlhf(max_new_tokens=20, overlong_buffer=4))
    assert credit.penalty(response(0.0, tokens=tokens)) == pytest.approx(cost)


def test_a_response_without_a_verdict_counts_as_its_groups_mean() -> None:
    groups = [[response(1.0), response(None), response(0.0)]]
    found = Credit(Rlhf(scale="none")).advantages(groups)[:, 0]
    assert found.tolist() == [0.5, 0.0, -0.5]


def test_several_rewards_are_normalized_before_they_are_added() -> None:
    """GDPO: a reward in hundreds does not drown one in ones, and weights mean what they say."""
    rows = [(100.0, 0.0), (300.0, 1.0), (200.0, 1.0), (400.0, 0.0)]
    group = [response(None) for _ in rows]
    for one, (large, small) in zip(group, rows):
        one.scores = {"large": large, "small": small}
    found = Credit(Rlhf()).advantages([group])[:, 0]
    large = torch.tensor([-150.0, 50.0, -50.0, 150.0]) / torch.tensor([100.0, 300, 200, 400]).std()
    small = torch.tensor([-0.5, 0.5, 0.5, -0.5]) / torch.tensor([0.0, 1, 1, 0]).std()
    total = large + small
    torch.testing.assert_close(found, total / total.std(), rtol=1e-3, atol=1e-3)
    weighted = Credit(Rlhf(reward_weights=[1.0, 3.0])).advantages([group])[:, 0]
    total = large + 3 * small
    torch.testing.assert_close(weighted, total / total.std(), rtol=1e-3, atol=1e-3)


def test_groups_that_only_fill_a_batch_stay_out_of_the_statistics() -> None:
    groups = [[response(1.0), response(0.0)], [response(900.0), response(-900.0)]]
    credit = Credit(Rlhf(scale="batch"))
    alone = credit.advantages(groups[:1])
    beside = credit.advantages(groups, [True, False])
    torch.testing.assert_close(beside[:2], alone)


def test_segments_add_up_to_their_response_in_every_credit() -> None:
    """`mixed` moves credit only; `location` of equal responses is nothing."""
    normalizer = LocationNormalizer(0.0, 0.0, 0.0, 1.0, 0.1, 0.1, 1.0, 1)
    values = {"values": [0.0, 2.0, 0.0, -1.0], "ends": [1, 3]}
    groups = [[response(1.0, **values), response(0.0, **values)]]
    mixed = Credit(Rlhf(unit="segment", credit="mixed", scale="none"), normalizer)
    found = mixed.advantages(groups)
    torch.testing.assert_close(found.sum(1), torch.tensor([2.0, -2.0]))
    assert found[0].tolist() == [2.0, 2.0, -1.0, -1.0]
    for credit in ("location", "process"):
        alike = Credit(Rlhf(unit="segment", credit=credit, scale="none"), normalizer)
        same = alike.advantages([[response(None, **values), response(None, **values)]])
        if credit == "location":
            torch.testing.assert_close(same, torch.zeros(2, 4))
        assert (same[0] == same[1]).all()


@pytest.mark.parametrize(
    ("flags", "first"), [({}, 0.0), ({"gae_lambda": 1.0}, 0.0), ({"gae_lambda": 0.5}, 0.5)]
)
def test_what_lies_ahead_counts_less_where_that_is_asked_for(
    flags: dict[str, float], first: float
) -> None:
    """`test_with_lambda_the_group_is_the_critic` works the numbers out."""
    normalizer = LocationNormalizer(0.0, 0.0, 0.0, 1.0, 0.1, 0.1, 1.0, 1)
    group = [
        response(None, tokens=2, values=values, ends=[0, 1]) for values in ([1.0, 0.0], [0.0, 1.0])
    ]
    settings = Rlhf(unit="segment", scale="none", aggregate="sum", **flags)
    found = Credit(settings, normalizer).advantages([group])
    torch.testing.assert_close(found, torch.tensor([[first, -1.0], [-first, 1.0]]))


def test_dull_groups_are_sampled_again_and_no_more_often_than_asked(
    small_world: Path, tmp_path: Path, monkeypatch
) -> None:
    spy = Spy(monkeypatch)
    hopeless = "rlhf.reward_models=['verifier:regex=^$^a']"
    log, _ = train(small_world, tmp_path / "run", "rlhf.redraws=2", hopeless, "trainer.max_steps=1")
    assert log[0]["frac_reward_zero_std"] == 1.0
    assert log[0]["redraws"] == 2.0
    assert {one.attempt for group in spy.groups[0] for one in group} == {2}
    assert log[0]["grad_norm"] == 0.0
    often, _ = train(small_world, tmp_path / "often", "rlhf.redraws=4", "trainer.max_steps=1")
    never, _ = train(small_world, tmp_path / "never", "trainer.max_steps=1")
    assert often[0]["frac_reward_zero_std"] <= never[0]["frac_reward_zero_std"]


# --- segments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("credit", ["location", "process", "mixed"])
def test_segments_are_rewarded(
    small_world: Path, tmp_path: Path, segment_model: str, monkeypatch, credit: str
) -> None:
    spy = Spy(monkeypatch)
    models = "rlhf.reward_models=['verifier:regex=[a-m]']" if credit == "mixed" else SEGMENTS[1]
    flags = (SEGMENTS[0], SEGMENTS[2], models, segment_model, f"rlhf.credit={credit}")
    log, events = train(small_world, tmp_path / "run", *flags, "trainer.max_steps=2")
    said = " ".join(event.text for event in events if isinstance(event, Notice))
    assert "segments: " in said
    assert "a response in the mean" in said
    for one in [one for group in spy.groups[0] for one in group]:
        assert len(one.values) == len(one.token_ids)
        assert one.ends[-1] == len(one.token_ids) - 1 - one.is_finished or one.ends == [0]
    assert {"segments/count", "segments/length", "segments/value", "segments/early"} <= set(log[0])
    assert log[0]["segments/count"] > 1
    batch = spy.batches[0]
    assert batch["advantages"].shape == batch["counted"].shape
    differ = (batch["advantages"].max(1).values - batch["advantages"].min(1).values).max()
    assert float(differ) > 0.0
    assert not batch["advantages"][~batch["counted"]].any()
    shown = json.loads((tmp_path / "run" / "rollouts.json").read_text())
    assert all("".join(s["text"] for s in one["segments"]) for one in shown)
    parents = json.loads((tmp_path / "run" / "manifest.json").read_text())["parents"]
    named = [each["path"] for each in parents if each["kind"] == "reward_model"]
    outcome = ["verifier:regex=[a-m]"] if credit == "mixed" else []
    assert named == [*outcome, segment_model.removeprefix("rlhf.segment_model=")]
    assert all(each["fingerprint"] for each in parents)


def test_every_token_can_be_a_segment(
    small_world: Path, tmp_path: Path, segment_model: str, monkeypatch
) -> None:
    spy = Spy(monkeypatch)
    flags = ("rlhf.unit=token", *SEGMENTS[1:], segment_model, "trainer.max_steps=1")
    train(small_world, tmp_path / "run", *flags)
    for one in [one for group in spy.groups[0] for one in group]:
        body = len(one.token_ids) - one.is_finished
        assert one.ends == list(range(max(1, body)))


def test_the_normalizer_is_fitted_once_and_kept(
    small_world: Path, tmp_path: Path, segment_model: str, monkeypatch
) -> None:
    flags = (*SEGMENTS, segment_model, "trainer.max_steps=2", "trainer.save_steps=1")
    train(small_world, tmp_path / "run", *flags)
    kept = read_json(tmp_path / "run", rlhf_train.NORMALIZER)
    assert kept["segments"] > 64
    assert kept["fingerprint"]["unit"] == "segment"
    (tmp_path / "run" / "manifest.json").unlink()
    monkeypatch.setattr(rlhf_train, "fit_normalizer", None)
    train(small_world, tmp_path / "run", *flags, resume=True)
    assert read_json(tmp_path / "run", rlhf_train.NORMALIZER) == kept


def test_few_segments_are_warned_of(small_world: Path, tmp_path: Path) -> None:
    folder = save_reward_model(
        tmp_path / "values", card="kind: segment\nmodel: .\nsegments: {rule: whole}\n"
    )
    flags = (*SEGMENTS, f"rlhf.segment_model={folder}", "trainer.max_steps=1")
    _, events = train(small_world, tmp_path / "run", *flags)
    assert "mean and spread are constant" in " ".join(
        event.text for event in events if isinstance(event, Warned)
    )


# --- refusals -------------------------------------------------------------------------------------


def test_scorers_that_cannot_serve_are_refused_before_a_row_is_read(
    small_world: Path, tmp_path: Path
) -> None:
    missing = "data.train=nowhere.jsonl"
    plain = save_reward_model(tmp_path / "plain")
    with pytest.raises(RecipeError, match="is of the kind `bradley_terry`"):
        train(small_world, tmp_path / "a", missing, *SEGMENTS, f"rlhf.segment_model={plain}")
    with pytest.raises(RecipeError, match="there is no scorer 'nothing'"):
        train(small_world, tmp_path / "b", missing, "rlhf.reward_models=[nothing]")


def test_a_segment_model_of_another_tokenizer_is_refused(
    small_world: Path, tmp_path: Path, segment_model: str
) -> None:
    folder = Path(segment_model.partition("=")[2])
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(RecipeError, match="its chat template writes conversations in another form"):
        train(small_world, tmp_path / "run", *SEGMENTS, segment_model)


def test_a_prompt_without_room_for_a_response_is_counted_or_refused(
    small_world: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"48 of 48 rows are longer than data.max_length=20"):
        train(small_world, tmp_path / "run", "data.max_length=20")
    shorter = ("data.max_length=46", "data.on_too_long=drop", "trainer.max_steps=1")
    train(small_world, tmp_path / "run", *shorter)
    counts = read_json(tmp_path / "run", "data.json")["splits"]["train"]
    assert 0 < counts["too_long_dropped"] < 48


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("rlhf.reward_models=[]",), "rlhf.reward_models"),
        (("rlhf.unit=segment", "rlhf.reward_models=[]"), "and `unit: segment` needs it"),
        (("rlhf.unit=segment", "rlhf.segment_model=x"), "where segments alone count"),
        (("rlhf.segment_model=x",), "has no effect with `unit: sequence`"),
        (("rlhf.reward_weights=[1.0, 2.0]",), "has 2 numbers, and there are 1 reward models"),
        (("rlhf.clip_high=0.28",), "has no effect on one step for each rollout"),
        (("rlhf.loss=cispo", "rlhf.iterations=2", "rlhf.clip_low=0.1"), "use rlhf.cap"),
        (("rlhf.cap=3.0",), "has no effect without `loss: cispo`"),
        (("rlhf.truncated=mask", "rlhf.missing_eos_penalty=1.0"), "would punish what"),
        (("rlhf.overlong_buffer=9",), "is above `max_new_tokens` (8)"),
        (("trainer.num_generations=4",), "set `rlhf.group_size`"),
        (("rlhf.loss=gspo",), "rlhf.loss"),
        (("rlhf.iterations=2", "model.lora={lora_dropout: 0.1}"), "ratios to the first one"),
        (
            ("rlhf.steps_per_generation=2", "model.lora={lora_dropout: 0.1}"),
            "ratios to the first one",
        ),
        (("rlhf.steps_per_generation=9",), "is above trainer.max_steps (4)"),
        (("trainer.steps_per_generation=4",), "set `rlhf.steps_per_generation`"),
        (("generation.engine=endpoint",), "here the policy itself writes"),
        (("trainer.neftune_noise_alpha=5.0",), "rewards would measure the noise"),
    ],
)
def test_a_wrong_recipe_is_refused(
    small_world: Path, tmp_path: Path, overrides: tuple[str, ...], says: str
) -> None:
    assert says in refusal(small_world, tmp_path / "run", *overrides)


def test_rows_that_hold_prompts_alone_are_what_it_wants(small_world: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"say {i}", "answer": str(i)} for i in range(8)]
    data = f"data.train={write_jsonl(tmp_path / 'prompts.jsonl', rows)}"
    verifier = "rlhf.reward_models=['verifier:exact']"
    log, _ = train(small_world, tmp_path / "run", data, verifier, "trainer.max_steps=1")
    assert log[0]["rewards/verifier:exact/mean"] == 0.0
