"""Reward distillation and the forward KL inside the trainer, on models that are really trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import Continues, FakeEndpoint
from fakes import prescribe, small_recipe, write_jsonl
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from aligner.errors import TrainingError
from aligner.events import Notice, Warned
from aligner.methods.pipeline import run_recipe
from aligner.runs.files import read_json, read_metrics

pytestmark = pytest.mark.usefixtures("own_cache")

FUNCTIONS = """\
def sorted_share(prompt, completion, reference):
    right = "".join(sorted(prompt[-1]["content"].removeprefix("sort: ")))
    return sum(a == b for a, b in zip(completion, right)) / max(len(right), len(completion))

def short(prompt, completion, reference):
    return -0.2 * len(completion)

def long(prompt, completion, reference):
    return 0.3 * len(completion)

def far(prompt, completion, reference):
    return 9.0 * len(completion)
"""

SGD = ("trainer.optim=sgd", "trainer.learning_rate=0.5", "trainer.max_grad_norm=1.0")
IN_ORDER = "trainer.train_sampling_strategy=random"


@pytest.fixture
def functions(tmp_path) -> Path:
    file = tmp_path / "rewards.py"
    file.write_text(FUNCTIONS)
    return file


def train(
    world: Path,
    folder: Path,
    functions: Path,
    *overrides: str,
    names: str = "sorted_share",
    **flags: Any,
) -> Any:
    """The run directory, its training log, and the events."""
    events: list[Any] = []
    models = [f"verifier:{functions}:{name}" for name in names.split()]
    flags = {
        "dpo__loss": "reward_distill",
        "dpo__reward_models": models,
        "dpo__forward_kl_tokens": 8,
        **flags,
    }
    flags = {key: value for key, value in flags.items() if value is not None}
    run = run_recipe(
        small_recipe("dpo", world, folder, *overrides, **flags), on_event=events.append
    ).run_dir
    return run, [line for line in read_metrics(run) if line["split"] == "train"], events


def losses(log: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in log]


def weights(run: Path) -> dict[str, Any]:
    return load_file(next((run / "final").glob("*.safetensors")))


def largest_difference(one: Path, other: Path) -> float:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


LORA = {"r": 4, "lora_alpha": 32}


@pytest.mark.parametrize("lora", [None, LORA])
def test_margins_grow_towards_the_rewards_and_everything_is_logged(
    small_world, tmp_path, functions, lora
):
    flags = {
        "model__lora": lora,
        "trainer__max_steps": 12,
        "trainer__learning_rate": 2e-3,
        "data__eval": 0.2,
    }
    run, log, events = train(small_world, tmp_path / "run", functions, **flags)
    assert log[0]["distill/error"] == pytest.approx(log[0]["loss"], rel=1e-3)
    assert log[0]["distill/implicit_gap"] == pytest.approx(0.0, abs=1e-5)
    assert log[0]["forward_kl"] == pytest.approx(
        0.0, abs=1e-4
    )  # policy and reference are the same, to rounding
    assert log[-1]["distill/error"] < 0.7 * log[0]["distill/error"]
    assert log[-1]["distill/implicit_gap"] > 0.1
    assert abs(log[-1]["forward_kl"]) > 1e-3
    assert log[-1]["loss"] == pytest.approx(
        log[-1]["distill/error"] + 0.1 * log[-1]["forward_kl"], rel=1e-3
    )
    (held_out,) = [line for line in read_metrics(run) if line["split"] == "eval"][-1:]
    assert {"forward_kl", "distill/error", "distill/target_gap", "distill/accuracies"} <= set(
        held_out
    )
    (member,) = read_json(run, "rewards.json")["members"]
    assert member["name"].endswith(":sorted_share")
    assert member["agrees"] > 0.9
    assert any(
        "finds the chosen answer better" in event.text
        for event in events
        if isinstance(event, Notice)
    )


def test_swapped_sides_train_the_same_policy(small_world, tmp_path, functions):
    """No label is read: with chosen and rejected exchanged in every other row, the weights are the
    same."""
    rows = [json.loads(line) for line in (small_world / "pairs.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        if i % 2:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    swapped = str(write_jsonl(tmp_path / "swapped.jsonl", rows))
    one, log, _ = train(small_world, tmp_path / "one", functions, *SGD, IN_ORDER)
    other, turned, _ = train(
        small_world, tmp_path / "other", functions, *SGD, IN_ORDER, data__train=swapped
    )
    assert losses(turned) == pytest.approx(losses(log), abs=1e-5)
    assert largest_difference(one, other) < 1e-5
    for name in ("distill/target_gap", "distill/implicit_gap", "distill/accuracies"):
        assert [line[name] for line in turned] == pytest.approx(
            [line[name] for line in log], abs=1e-4
        )


@pytest.mark.parametrize("lora", [None, LORA])
def test_accumulation_equals_the_large_batch(small_world, tmp_path, functions, lora):
    """Eight pairs at once and one pair eight times; every third step is short, and pairs have
    weights."""
    rows = map(json.loads, (small_world / "weighted.jsonl").read_text().splitlines()[:21])
    flags = {
        "data__train": str(write_jsonl(tmp_path / "rows.jsonl", rows)),
        "trainer__max_steps": 5,
        "model__lora": lora,
    }
    shapes = [("whole", 8, 1), ("parts", 1, 8)]
    runs = [
        train(
            small_world,
            tmp_path / name,
            functions,
            *SGD,
            IN_ORDER,
            f"trainer.per_device_train_batch_size={size}",
            f"trainer.gradient_accumulation_steps={parts}",
            names="sorted_share short",
            **flags,
        )
        for name, size, parts in shapes
    ]
    assert losses(runs[0][1]) == pytest.approx(losses(runs[1][1]), abs=1e-5)
    assert runs[0][1][-1]["forward_kl"] == pytest.approx(runs[1][1][-1]["forward_kl"], abs=1e-3)
    assert largest_difference(runs[0][0], runs[1][0]) < 2e-5


def test_the_minimum_follows_one_member_and_says_which(small_world, tmp_path, functions):
    """A member whose rewards are far from what the policy can do is never the one; `mean` follows
    neither."""
    flags = {"names": "far sorted_share", "dpo__reward_combine": "min"}
    run, log, events = train(small_world, tmp_path / "min", functions, **flags)
    assert {(line["distill/active/1"], line["distill/active/2"]) for line in log} == {(0.0, 1.0)}
    assert read_json(run, "rewards.json")["combine"] == "min"
    assert any(
        "is chosen by 4 pairs" in event.text for event in events if isinstance(event, Notice)
    )
    alone, followed, _ = train(small_world, tmp_path / "alone", functions)
    assert losses(log) == pytest.approx(losses(followed), abs=1e-6)
    assert largest_difference(run, alone) < 1e-6
    _, mean, _ = train(small_world, tmp_path / "mean", functions, names="far sorted_share")
    assert losses(mean) != pytest.approx(losses(log), abs=1e-3)
    assert not any("active" in name for name in mean[0])


def test_the_member_is_chosen_anew_for_each_micro_batch(small_world, tmp_path, functions):
    """So accumulation changes a pessimistic training, as it does every objective with a statistic
    over the batch."""
    flags = {"names": "short sorted_share", "dpo__reward_combine": "min"}
    shapes = ((8, 1), (1, 8))
    shares = []
    for size, parts in shapes:
        batch = (
            f"trainer.per_device_train_batch_size={size}",
            f"trainer.gradient_accumulation_steps={parts}",
        )
        _, log, _ = train(small_world, tmp_path / str(size), functions, *batch, IN_ORDER, **flags)
        assert all(
            line["distill/active/1"] + line["distill/active/2"] == pytest.approx(1.0)
            for line in log
        )
        shares.append(log[0]["distill/active/1"])
    assert shares[0] in (0.0, 1.0)
    assert 0.0 < shares[1] < 1.0


def test_dpo_with_a_forward_kl_stays_nearer_to_the_reference(small_world, tmp_path, functions):
    """Pessimistic DPO: the same objective, and the divergence of the policy in its log."""
    plain = {"dpo__loss": "sigmoid", "dpo__reward_models": None, "trainer__max_steps": 12}
    distances = []
    for weight in (1e-6, 1.0):
        flags = {**plain, "dpo__forward_kl": weight, "data__eval": 0.2}
        run, log, _ = train(small_world, tmp_path / str(weight), functions, **flags)
        assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
        assert not any(name.startswith("distill") for name in log[0])
        distances.append(
            [line["forward_kl"] for line in read_metrics(run) if line["split"] == "eval"][-1]
        )
    assert distances[1] < 0.5 * distances[0]
    assert not (run / "rewards.json").exists()


def test_dpo_without_that_term_writes_no_answers_and_logs_none(
    small_world, tmp_path, functions, own_cache
):
    flags = {"dpo__loss": "sigmoid", "dpo__reward_models": None, "dpo__forward_kl_tokens": None}
    _, log, _ = train(small_world, tmp_path / "run", functions, **flags)
    assert "forward_kl" not in log[0]
    assert [folder.name for folder in own_cache.iterdir()] == ["reference"]


def test_a_second_run_scores_and_writes_nothing_again(
    small_world, tmp_path, functions, monkeypatch
):
    first, log, _ = train(small_world, tmp_path / "first", functions)
    monkeypatch.setattr("aligner.methods.dpo.reward_distillation.ask", None)
    monkeypatch.setattr("aligner.methods.dpo.reference_samples._write", None)
    again, same, events = train(small_world, tmp_path / "again", functions)
    assert losses(same) == losses(log)
    assert largest_difference(first, again) == 0
    assert sum("from the cache" in event.text for event in events if isinstance(event, Notice)) == 3


def test_a_changed_function_is_another_reward_model(small_world, tmp_path, functions):
    """Its file is part of the fingerprint: rewards of the old one are not taken for those of the
    new."""
    _, log, _ = train(small_world, tmp_path / "first", functions)
    functions.write_text(FUNCTIONS.replace("return sum", "return 3 * sum"))
    _, other, _ = train(small_world, tmp_path / "second", functions)
    assert other[0]["distill/target_gap"] == pytest.approx(
        3 * log[0]["distill/target_gap"], rel=1e-4
    )


def test_the_alarm_looks_at_the_reward_model_and_not_at_the_labels(
    small_world, tmp_path, functions, monkeypatch
):
    """Where it likes what is labelled worse, a policy that learns ranks pairs wrongly by the
    labels, and no alarm is raised."""
    steps = {"trainer__max_steps": 8, "dpo__alarm_steps": 6, "trainer__learning_rate": 2e-3}
    _, log, events = train(small_world, tmp_path / "long", functions, names="long", **steps)
    assert max(line["rewards/accuracies"] for line in log[2:]) < 0.5
    assert not [event for event in events if isinstance(event, Warned)]
    prescribe(monkeypatch, "distill/accuracies", [0.4])
    with pytest.raises(TrainingError, match="distill/accuracies"):
        train(small_world, tmp_path / "wrong", functions, **steps, dpo__on_alarm="stop")


def test_a_loss_table_for_a_recipe_that_distils_is_drawn(tmp_path):
    from runner import aligner

    done = aligner(
        "dpo", "tiny/reward-distill", "--loss-table", "--loss-plot", tmp_path / "losses.html"
    )
    assert done.exit_code == 0, done.output
    assert "drawn for a pair whose rewards differ by 1" in done.output
    assert "reward_distill" in (tmp_path / "losses.html").read_text()


@pytest.mark.parametrize("other", [False, True])
def test_a_server_answers_as_the_reference_and_the_mismatch_is_told(
    small_world, tmp_path, functions, other
):
    """`other`: it serves another model than the reference."""
    tokenizer = AutoTokenizer.from_pretrained(small_world / "model")
    model = AutoModelForCausalLM.from_pretrained(small_world / "model").eval()
    if other:
        model.lm_head.weight.data.mul_(100.0)
    with FakeEndpoint(Continues(model, tokenizer)) as server:
        overrides = (
            "generation.engine=endpoint",
            f"generation.endpoint.base_url={server.base_url}",
        )
        flags = {"dpo__loss": "sigmoid", "dpo__reward_models": None, "dpo__forward_kl": 0.1}
        _, log, events = train(
            small_world, tmp_path / "run", functions, *overrides, **flags, trainer__max_steps=2
        )
    assert server.bodies
    assert abs(log[0]["forward_kl"]) < (10.0 if other else 1e-3)
    kind = Warned if other else Notice
    (text,) = [e.text for e in events if isinstance(e, kind) and "the engine `endpoint`" in e.text]
    assert ("other weights" in text) == other
    assert "nats a token" in text
