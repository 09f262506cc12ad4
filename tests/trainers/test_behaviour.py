"""What training does beside the steps: evaluation, early stopping, schedules, checkpoints,
failures, the books."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import byte_tokenizer, prescribe, small_recipe, tiny_llama, write_jsonl
from safetensors.torch import load_file

from aligner.errors import DataError, TrainingError
from aligner.events import Plan, StageStarted
from aligner.methods.pipeline import run_recipe
from aligner.runs.files import read_metrics
from aligner.runs.result import RunResult

pytestmark = pytest.mark.usefixtures("own_cache")


def train(method: str, world: Path, folder: Path, *overrides: str, **flags: Any) -> RunResult:
    return run_recipe(small_recipe(method, world, folder, *overrides, **flags))


def lines(run: Path, split: str = "train") -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if line["split"] == split]


# --- it learns ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("quantization", ["nf4", pytest.param("fp4", marks=pytest.mark.slow)])
def test_qlora_trains_on_a_cpu(small_world, tmp_path, method, quantization):
    """The loss falls, the adapters move, and nothing of the base is saved or changed."""
    flags = {
        "model__quantization": quantization,
        "model__lora": {"r": 4},
        "trainer__learning_rate": 2e-2,
    }
    before = {file: file.read_bytes() for file in (small_world / "model").iterdir()}
    run = train(method, small_world, tmp_path / "run", "trainer.max_steps=6", **flags).run_dir
    losses = [line["loss"] for line in lines(run)]
    assert losses[-1] < losses[0] - 0.1
    assert not (run / "final" / "model.safetensors").exists()
    adapters = load_file(run / "final" / "adapter_model.safetensors")
    assert all(value.abs().max() > 0 for name, value in adapters.items() if "lora_B" in name)
    assert {value.dtype for value in adapters.values()} == {torch.float32}
    assert before == {file: file.read_bytes() for file in (small_world / "model").iterdir()}
    if method == "dpo":
        assert lines(run)[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)


def test_preferences_are_learned(small_world, tmp_path):
    outcome = train("dpo", small_world, tmp_path / "run", "trainer.max_steps=12", data__eval=0.25)
    assert outcome.results["eval/rewards/accuracies"] > 0.9
    assert outcome.results["eval/rewards/margins"] > 0
    assert outcome.results["steps"] == 12


# --- evaluation, early stopping -------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_held_out_metrics_are_logged_without_prefix(small_world, tmp_path, method):
    run = train(
        method, small_world, tmp_path / "run", data__eval=0.25, trainer__eval_steps=2
    ).run_dir
    found = lines(run, "eval")
    assert [line["step"] for line in found] == [2, 4]
    wanted = {
        "sft": {"loss", "mean_token_accuracy"},
        "dpo": {"loss", "rewards/margins", "rewards/accuracies"},
    }
    assert wanted[method] <= set(found[0])
    assert not any(key.startswith("eval_") for key in found[0])
    assert found[1]["loss"] < found[0]["loss"]


def test_held_out_loss_is_the_weighted_mean_whatever_the_batch(small_world, tmp_path):
    data = {"data__eval": [{"path": str(small_world / "weighted.jsonl")}], "trainer__max_steps": 1}
    found = []
    for size in (5, 48):
        trainer = {"trainer__per_device_eval_batch_size": size, "trainer__eval_steps": 1}
        run = train("dpo", small_world, tmp_path / str(size), **data, **trainer).run_dir
        found.append(lines(run, "eval")[0]["loss"])
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_held_out_loss_of_rows_is_the_mean_over_tokens_whatever_the_batch_or_the_packing(
    small_world, tmp_path
):
    data = {
        "data__eval": [{"path": str(small_world / "sft.jsonl")}],
        "trainer__learning_rate": 1e-9,
    }
    found = []
    for name, settings in {
        "small": {"trainer__per_device_eval_batch_size": 5},
        "large": {"trainer__per_device_eval_batch_size": 48},
        "packed": {"sft__packing": True},
    }.items():
        trainer = {"trainer__eval_steps": 1, "trainer__max_steps": 1}
        run = train("sft", small_world, tmp_path / name, **data, **trainer, **settings).run_dir
        found.append(lines(run, "eval")[0]["loss"])
    assert found == pytest.approx([found[0]] * 3, abs=1e-5)


EARLY = {
    "data__eval": 0.25,
    "early_stopping": {"patience": 2},
    "trainer__max_steps": 40,
}


@pytest.mark.parametrize("interval", [{"trainer__eval_steps": 2}, {"trainer__save_steps": 2}])
def test_early_stopping_stops_and_the_best_checkpoint_is_the_result(
    small_world, tmp_path, monkeypatch, interval
):
    prescribe(monkeypatch, "eval_loss", [5.0, 4.0, 4.5, 4.1])
    recipe = small_recipe("sft", small_world, tmp_path / "run", **{**EARLY, **interval})
    if "trainer__eval_steps" in interval:  # the checkpoints follow the evaluations
        trainer = {
            key: value for key, value in recipe.recipe.trainer.items() if key != "save_steps"
        }
        recipe = _with_trainer(recipe, trainer)
    outcome = run_recipe(recipe)
    evals = lines(outcome.run_dir, "eval")
    losses = [line["loss"] for line in evals]
    best = losses.index(min(losses))
    assert losses == [5.0, 4.0, 4.5, 4.1]  # two evaluations without improvement, and no more
    assert evals[-1]["step"] == 8
    assert outcome.results["best_eval_loss"] == pytest.approx(min(losses))
    checkpoint = outcome.run_dir / "checkpoints" / f"checkpoint-{evals[best]['step']}"
    final = outcome.run_dir / "final" / "model.safetensors"
    assert final.read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def _with_trainer(resolved: Any, trainer: dict[str, Any]) -> Any:
    from dataclasses import replace

    return replace(resolved, recipe=resolved.recipe.model_copy(update={"trainer": trainer}))


# --- schedules, steps, checkpoints ----------------------------------------------------------------


def test_warm_up_and_schedule_pass_through(small_world, tmp_path):
    schedule = {
        "trainer__warmup_steps": 2,
        "trainer__lr_scheduler_type": "cosine",
        "trainer__max_steps": 6,
    }
    run = train(
        "sft", small_world, tmp_path / "run", **schedule, trainer__learning_rate=1e-3
    ).run_dir
    expected = [0, 0.5, *(0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4))]
    assert [line["learning_rate"] for line in lines(run)] == pytest.approx(
        [1e-3 * share for share in expected]
    )


def test_the_default_learning_rate_of_dpo_is_gentle(small_world, tmp_path):
    recipe = small_recipe("dpo", small_world, tmp_path / "run", "trainer.max_steps=1")
    trainer = {key: value for key, value in recipe.recipe.trainer.items() if key != "learning_rate"}
    run = run_recipe(_with_trainer(recipe, trainer)).run_dir
    assert lines(run)[0]["learning_rate"] == pytest.approx(1e-6)


@pytest.mark.parametrize(("batch", "accumulation", "epochs"), [(5, 2, 1), (4, 3, 0.5), (7, 1, 1.5)])
def test_the_plan_foretells_the_steps(small_world, tmp_path, batch, accumulation, epochs):
    flags = {
        "trainer__per_device_train_batch_size": batch,
        "trainer__gradient_accumulation_steps": accumulation,
        "trainer__num_train_epochs": epochs,
        "trainer__max_steps": -1,
    }
    recipe = small_recipe("sft", small_world, tmp_path / "run", **flags)
    events: list[Any] = []
    run_recipe(recipe, dry_run=True, on_event=events.append)
    plan = {
        what: value for event in events if isinstance(event, Plan) for what, value, _ in event.rows
    }
    assert run_recipe(recipe).results["steps"] == int(plan["steps"])


def test_the_last_step_is_always_on_record(small_world, tmp_path):
    run = train(
        "sft", small_world, tmp_path / "run", "trainer.max_steps=5", trainer__logging_steps=3
    ).run_dir
    assert [line["step"] for line in lines(run)] == [1, 3, 5]
    # others may read the result where they may read anything: safetensors 0.8 writes for its owner
    # alone
    assert {path.stat().st_mode for path in (run / "final").iterdir()} == {
        (run / "recipe.yaml").stat().st_mode
    }


@pytest.mark.parametrize(("limit", "kept"), [(None, [6, 8]), (1, [8]), (3, [4, 6, 8])])
def test_the_number_of_checkpoints_is_kept(small_world, tmp_path, limit, kept):
    flags = {"trainer__max_steps": 8, "trainer__save_steps": 2}
    if limit is not None:
        flags["trainer__save_total_limit"] = limit
    run = train("sft", small_world, tmp_path / "run", **flags).run_dir
    found = sorted(int(path.name.split("-")[1]) for path in (run / "checkpoints").iterdir())
    assert found == kept
    assert all((run / "checkpoints" / f"checkpoint-{step}" / "complete").exists() for step in kept)


# --- the terms of the loss ------------------------------------------------------------------------


def answer_logps(model: Any, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(answer))


def test_the_nll_term_adds_the_mean_loss_of_the_chosen_answers(small_world, tmp_path):
    """At the start DPO's loss is ln 2, so the rest is the weight times the length-averaged NLL,
    worked out by hand."""
    from datasets import load_from_disk

    flags = {
        "dpo__nll_weight": 0.7,
        "trainer__per_device_train_batch_size": 48,
        "trainer__max_steps": 1,
    }
    run = train("dpo", small_world, tmp_path / "run", **flags).run_dir
    model = tiny_llama(byte_tokenizer())
    rows = load_from_disk(str(run / "prepared" / "train"))
    nll = [
        -answer_logps(model, row["prompt_ids"], row["chosen_ids"]) / len(row["chosen_ids"])
        for row in rows
    ]
    expected = sum(nll) / len(nll)
    first = lines(run)[0]
    assert first["nll"] == pytest.approx(expected, abs=1e-4)
    assert first["loss"] == pytest.approx(math.log(2) + 0.7 * expected, abs=1e-4)


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(small_world, tmp_path, method):
    flags = {
        "trainer__learning_rate": 1e30,
        "trainer__max_grad_norm": 0.0,
        "trainer__save_steps": 2,
    }
    with pytest.raises(TrainingError, match=r"step [1-4]") as caught:
        train(method, small_world, tmp_path / "run", **flags)
    assert caught.value.exit_code == 5
    assert "learning_rate" in caught.value.hint
    assert not (tmp_path / "run" / "final").exists()
    assert not (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.parametrize("save_steps", [1, 1000])
def test_weights_that_are_no_numbers_are_never_kept(small_world, tmp_path, save_steps):
    """Where the loss is logged too seldom to tell, the weights are looked at before they are
    saved."""
    flags = {
        "trainer__learning_rate": float("1e38"),
        "trainer__optim": "sgd",
        "trainer__max_grad_norm": 0.0,
        "trainer__logging_steps": 1000,
        "trainer__save_steps": save_steps,
        "trainer__save_strategy": "steps" if save_steps == 1 else "no",
    }
    with pytest.raises(TrainingError):
        train("sft", small_world, tmp_path / "run", **flags)
    for file in (tmp_path / "run").rglob("complete"):
        weights = load_file(file.parent / "model.safetensors")
        assert all(torch.isfinite(value).all() for value in weights.values())
    assert not (tmp_path / "run" / "final").exists()


# --- batches, the books, dry runs -----------------------------------------------------------------


def data_json(run: Path) -> dict[str, Any]:
    return json.loads((run / "data.json").read_text())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sft.packing=true", "packed"),
        ("sft.packing=auto", "grouped by length"),
        ("trainer.train_sampling_strategy=random", "as asked"),
    ],
)
def test_how_batches_are_made_is_recorded_with_the_reason(small_world, tmp_path, override, said):
    run = train("sft", small_world, tmp_path / "run", "trainer.max_steps=1", override).run_dir
    assert said in data_json(run)["batching"]
    books = data_json(run)["splits"]["train"]
    assert (books["sequences"] is not None) == (said == "packed")
    assert (books["padding_share"] is not None) == (said != "packed")


@pytest.mark.parametrize("on_too_long", ["drop", "truncate"])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_books_of_long_rows_balance(small_world, tmp_path, method, on_too_long):
    flags = {"data__max_length": 52, "data__on_too_long": on_too_long, "trainer__max_steps": 1}
    books = data_json(train(method, small_world, tmp_path / "run", **flags).run_dir)["splits"][
        "train"
    ]
    assert books["rows"] + books["too_long_dropped"] + books["unusable"] == books["rows_in"] == 48
    assert books["trained_tokens"] + books["masked_tokens"] == books["tokens"]
    assert (books["too_long_dropped"] > 0) == (on_too_long == "drop")
    assert (books["truncated_tokens"] > 0) == (on_too_long == "truncate")
    assert max(books["lengths"]) <= 52


def test_a_long_row_is_refused_before_a_model_is_loaded(small_world, tmp_path):
    events: list[Any] = []
    recipe = small_recipe("sft", small_world, tmp_path / "run", data__max_length=40)
    with pytest.raises(DataError, match="longer than data"):
        run_recipe(recipe, on_event=events.append)
    assert "loading the model" not in [
        event.name for event in events if isinstance(event, StageStarted)
    ]


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_dry_run_writes_nothing(small_world, tmp_path, method, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    run_recipe(small_recipe(method, small_world, tmp_path / "run"), dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_rows_without_a_weight_count_the_same(small_world, tmp_path):
    rows = [json.loads(line) for line in (small_world / "pairs.jsonl").read_text().splitlines()]
    ones = write_jsonl(tmp_path / "ones.jsonl", [row | {"weight": 1} for row in rows])
    plain = train("dpo", small_world, tmp_path / "plain").run_dir
    weighted = train("dpo", small_world, tmp_path / "weighted", data__train=str(ones)).run_dir
    files = [run / "final" / "model.safetensors" for run in (plain, weighted)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_entropy_and_token_accuracy_are_those_of_the_step_before_the_log(small_world, tmp_path):
    found = {}
    for every in (1, 3):
        run = train(
            "sft",
            small_world,
            tmp_path / str(every),
            trainer__max_steps=7,
            trainer__logging_steps=every,
        ).run_dir
        found[every] = {line["step"]: line for line in lines(run, "train")}
    assert list(found[3]) == [1, 3, 6, 7]
    for step in found[3]:
        for name in ("entropy", "mean_token_accuracy"):
            assert found[3][step][name] == found[1][step][name]
        assert found[3][step]["entropy"] > 0


@pytest.mark.parametrize(
    "saves", [{"trainer__save_steps": 2}, {"trainer__save_strategy": "epoch"}], ids=str
)
def test_the_log_of_a_checkpoint_has_entropy_and_token_accuracy_too(small_world, tmp_path, saves):
    run = train(
        "sft",
        small_world,
        tmp_path / "run",
        trainer__max_steps=-1,
        trainer__num_train_epochs=2,
        trainer__logging_steps=50,
        trainer__gradient_accumulation_steps=2,
        **saves,
    ).run_dir
    found = lines(run, "train")
    assert len(found) > 2
    assert all("entropy" in line and "mean_token_accuracy" in line for line in found)
