"""The same loss, step by step, as TRL's trainers give on the same model, rows, order and learning
rate."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from fakes import byte_tokenizer, small_recipe

from aligner.config.loss_names import LABEL_SMOOTHING_LOSSES
from aligner.methods.pipeline import run_recipe
from aligner.runs.files import read_metrics
from aligner.training.sampler import SeededSampler

STEPS, SEED = 6, 42
COMMON: dict[str, Any] = {
    "learning_rate": 2e-3,
    "per_device_train_batch_size": 4,
    "max_steps": STEPS,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "gradient_checkpointing": False,
}

pytestmark = pytest.mark.usefixtures("own_cache")


def ours(
    method: str, world: Path, folder: Path, *overrides: str, **flags: Any
) -> list[dict[str, Any]]:
    trainer = {f"trainer__{key}": value for key, value in COMMON.items()}
    trainer["trainer__train_sampling_strategy"] = "random"
    outcome = run_recipe(
        small_recipe(method, world, folder / "ours", *overrides, **trainer, **flags)
    )
    return read_metrics(outcome.run_dir)


def in_our_order(file: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [rows[i] for i in SeededSampler(len(rows), SEED)]


def theirs(
    trainer_class: Any,
    config_class: Any,
    world: Path,
    rows: list[dict],
    folder: Path,
    **settings: Any,
) -> list[dict[str, Any]]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = config_class(
            output_dir=str(folder / "theirs"),
            bf16=False,
            max_length=None,
            train_sampling_strategy="sequential",
            save_strategy="no",
            disable_tqdm=True,
            **{**COMMON, **settings},
        )
        trainer = trainer_class(
            model=AutoModelForCausalLM.from_pretrained(
                world / "model"
            ),  # TRL loads its reference from there
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=byte_tokenizer(),
        )
        trainer.train()
    return [logs for logs in trainer.state.log_history if "loss" in logs]


def compare(our_logs: list[dict], their_logs: list[dict], keys: tuple[str, ...]) -> None:
    assert len(our_logs) == len(their_logs) == STEPS
    for key in keys:
        start = int(
            key == "rewards/accuracies"
        )  # before the first step both rewards are 0 up to rounding: a tie
        expected = [logs[key] for logs in their_logs][start:]
        assert [logs[key] for logs in our_logs][start:] == pytest.approx(
            expected, rel=1e-4, abs=1e-4
        ), key


IN_BOTH = (
    "sigmoid",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
)
IN_BOTH += ("discopop", "sigmoid_norm")
"""Objectives that TRL has too. It has an `sft` as well, but as a mean over the batch's tokens, not
over its pairs."""

OURS_TO_TRL = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
)


@pytest.mark.parametrize(
    "loss",
    [
        name
        if name in ("sigmoid", "ipo", "discopop")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in IN_BOTH
    ],
)
def test_preference_losses_are_those_of_trl(small_world, tmp_path, loss):
    from trl import DPOConfig, DPOTrainer

    smoothing = 0.1 if loss in LABEL_SMOOTHING_LOSSES and loss != "sigmoid" else 0.0
    our_logs = ours(
        "dpo",
        small_world,
        tmp_path,
        f"dpo.loss={loss}",
        "dpo.beta=0.2",
        f"dpo.label_smoothing={smoothing}",
    )
    their_logs = theirs(
        DPOTrainer,
        DPOConfig,
        small_world,
        in_our_order(small_world / "pairs.jsonl"),
        tmp_path,
        loss_type=[loss],
        beta=0.2,
        label_smoothing=smoothing,
    )
    compare(our_logs, their_logs, ("loss", "grad_norm", "learning_rate", *OURS_TO_TRL))
    assert our_logs[0]["loss"] != pytest.approx(our_logs[-1]["loss"], abs=1e-4)  # it did train


def test_supervised_losses_are_those_of_trl(small_world, tmp_path):
    from trl import SFTConfig, SFTTrainer

    our_logs = ours("sft", small_world, tmp_path)
    rows = in_our_order(small_world / "sft.jsonl")
    their_logs = theirs(
        SFTTrainer, SFTConfig, small_world, rows, tmp_path, assistant_only_loss=True
    )
    compare(
        our_logs,
        their_logs,
        ("loss", "grad_norm", "learning_rate", "mean_token_accuracy", "entropy"),
    )


@pytest.mark.slow
def test_supervised_losses_are_those_of_trl_with_accumulation(small_world, tmp_path):
    from trl import SFTConfig, SFTTrainer

    our_logs = ours("sft", small_world, tmp_path, "trainer.gradient_accumulation_steps=3")
    their_logs = theirs(
        SFTTrainer,
        SFTConfig,
        small_world,
        in_our_order(small_world / "sft.jsonl") * 3,
        tmp_path,
        assistant_only_loss=True,
        gradient_accumulation_steps=3,
    )
    # The second epoch of ours is in another order, so only the first four steps see the same rows.
    for mine, other in list(zip(our_logs, their_logs))[:4]:
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-4)
