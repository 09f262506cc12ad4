"""`eval.arena`: battles of what is trained with what training started from, at evaluations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import prescribe, small_recipe
from runner import aligner

from aligner.arena.battle.sheets import Answer
from aligner.config.recipe import EvalArena
from aligner.errors import DataError
from aligner.methods.pipeline import run_recipe
from aligner.methods.win_rate import WinRate, undisturbed
from aligner.reward_models.base import NoVerdict, Scores
from aligner.runs.files import read_metrics

pytestmark = pytest.mark.usefixtures("own_cache")

ARENA = {"judge": "verifier:regex=^[a-m]", "prompts": 6, "max_new_tokens": 8, "batch_size": 4}


def train(method: str, world: Path, folder: Path, **flags: Any) -> Any:
    known = {"data__eval": 0.25, "trainer__eval_steps": 2, "eval__arena": ARENA}
    return run_recipe(small_recipe(method, world, folder, **{**known, **flags}))


def evals(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if line["split"] == "eval"]


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# --- what is computed -----------------------------------------------------------------------------


class FakeJob:
    """What `WinRate` reads of a job."""

    def __init__(self, folder: Path, prompts: int) -> None:
        self.arena_prompts = [(f"question {number}", None) for number in range(prompts)]
        self.warnings: list[str] = []
        self.run = type("Run", (), {"dir": folder})
        self.recipe = type("Recipe", (), {"seed": 1})

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Longest:
    """A longer answer is better; what says `silent` gets no verdict."""

    name, range = "longest", (0.0, 100.0)

    def __init__(self) -> None:
        self.asked: list[str] = []

    def score(
        self, prompts: Sequence[Any], completions: Sequence[str], references: Any = None
    ) -> Scores:
        silent = {
            row: "it said nothing" for row, text in enumerate(completions) if text == "silent"
        }
        if silent:
            error = NoVerdict("no verdict")
            error.rows = silent
            raise error
        self.asked += completions
        return Scores(map(float, map(len, completions)))

    def fingerprint(self) -> str:
        return "longest"


def measured(folder: Path, ours: list[str], theirs: list[str]) -> tuple[dict[str, float], Any]:
    job, judge = FakeJob(folder, len(ours)), Longest()
    start = [Answer("start", text) for text in theirs]
    rate = WinRate(job, EvalArena(judge="x"), judge, start)
    return rate._measured([Answer("step-4", text) for text in ours]), (job, judge)


def test_the_win_rate_is_the_share_of_prompts_that_are_won_and_ties_are_half(
    tmp_path: Path,
) -> None:
    ours = ["longer", "b", "same ", "ab", "silent", "", "a", ""]
    theirs = ["short", "longer", "same", "cd", "x", "a", "", " "]
    found, (job, judge) = measured(tmp_path, ours, theirs)
    # won, lost, identical, equal scores, no verdict, empty against not, not against empty, both
    assert found["arena_win_rate"] == pytest.approx((1 + 0 + 0.5 + 0.5 + 0 + 1 + 0.5) / 7)
    assert found["arena_unjudged"] == 1
    assert found["arena_answer_length"] == sum(map(len, ours)) / 8
    assert 0 <= found["arena_win_rate_low"] < found["arena_win_rate"]
    assert found["arena_win_rate"] < found["arena_win_rate_high"] <= 1
    assert set(judge.asked) == {"longer", "b", "ab", "short", "cd"}, "what is clear asks nobody"
    assert "gave no verdict on some prompts" in job.warnings[0]
    winners = [row["winner"] for row in rows(tmp_path / "arena" / "battles.jsonl")]
    assert winners == ["model_b", "model_a", "tie", "tie", "model_a", "model_b", "tie"]


def test_the_interval_is_over_prompts(tmp_path: Path) -> None:
    """Its half width is near 1.96 times the standard error of a share."""
    ours = ["longer"] * 60 + ["b"] * 40
    found, _ = measured(tmp_path, ours, ["abc"] * 100)
    width = found["arena_win_rate_high"] - found["arena_win_rate_low"]
    assert found["arena_win_rate"] == 0.6
    assert width == pytest.approx(2 * 1.96 * (0.6 * 0.4 / 100) ** 0.5, rel=0.15)


def test_a_judge_without_verdicts_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="longest gave no verdict on 2 of 2 pairs"):
        measured(tmp_path, ["silent", "silent"], ["a", "b"])


def test_random_numbers_are_what_they_would_be_without_it() -> None:
    import random

    import numpy as np
    import torch

    def drawn() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    with undisturbed():
        inside = drawn()
    assert drawn() == inside


# --- in training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "dpo", "sapo", "rlhf"])
def test_every_method_that_writes_has_battles(small_world, tmp_path, method: str) -> None:
    run = train(method, small_world, tmp_path / "run").run_dir
    found = evals(run)
    assert [line["step"] for line in found] == [2, 4]
    start = rows(run / "arena" / "start.jsonl")
    assert len(start) == 6
    assert {row["model"] for row in start} == {"start"}
    for line in found:
        answers = rows(run / "arena" / f"step-{line['step']}.jsonl")
        assert [row["prompt_id"] for row in answers] == [row["prompt_id"] for row in start]
        wins = [_win(one["answer"], other["answer"]) for one, other in zip(answers, start)]
        assert line["arena_win_rate"] == pytest.approx(sum(wins) / 6)
        assert line["arena_win_rate_low"] <= line["arena_win_rate"] <= line["arena_win_rate_high"]
    assert "Win rate against the start" in (run / "report.html").read_text()


def _win(ours: str, theirs: str) -> float:
    """By the verifier of ARENA, and what needs no verdict."""
    if ours.strip() == theirs.strip():
        return 0.5
    if not (ours.strip() and theirs.strip()):
        return float(bool(ours.strip()))
    scores = [bool(text) and "a" <= text[0] <= "m" for text in (ours, theirs)]
    return 0.5 + 0.5 * (scores[0] - scores[1])


def test_the_answers_of_the_start_are_those_of_the_model_it_was(small_world, tmp_path) -> None:
    """With LoRA, too, whose base it is: what `aligner generate` writes with it."""
    run = train("sft", small_world, tmp_path / "run", model__lora={"r": 4}).run_dir
    start = rows(run / "arena" / "start.jsonl")
    question = start[0]["prompt"]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": question}) + "\n")
    options = ("--max-new-tokens", 8, "--temperature", 0, "--json")
    done = aligner("generate", small_world / "model", "--data", prompts, *options)
    assert json.loads(done.stdout)[0]["completions"][0]["text"] == start[0]["answer"]


def test_battles_change_nothing_of_the_training(small_world, tmp_path) -> None:
    finals = []
    for name, arena in (("with", ARENA), ("without", None)):
        flags = {"eval__arena": arena, "model__lora": {"r": 4, "lora_dropout": 0.3}}
        run = train("sft", small_world, tmp_path / name, **flags).run_dir
        finals.append((run / "final" / "adapter_model.safetensors").read_bytes())
    assert finals[0] == finals[1]


def test_the_win_rate_chooses_the_best_checkpoint_and_stops_early(
    small_world, tmp_path, monkeypatch
) -> None:
    prescribe(monkeypatch, "eval_arena_win_rate", [0.4, 0.7, 0.6, 0.7])
    outcome = train(
        "sft",
        small_world,
        tmp_path / "run",
        early_stopping={"patience": 2},
        trainer__metric_for_best_model="arena_win_rate",
        trainer__save_steps=2,
        trainer__max_steps=20,
    )
    assert [line["arena_win_rate"] for line in evals(outcome.run_dir)] == [0.4, 0.7, 0.6, 0.7]
    assert outcome.results["best_eval_arena_win_rate"] == 0.7
    best = outcome.run_dir / "checkpoints" / "checkpoint-4" / "model.safetensors"
    assert (outcome.run_dir / "final" / "model.safetensors").read_bytes() == best.read_bytes()


def test_people_can_vote_on_its_answers_and_rate_its_battles(small_world, tmp_path) -> None:
    run = train("sft", small_world, tmp_path / "run").run_dir
    answers = [run / "arena" / f"{name}.jsonl" for name in ("start", "step-4")]
    exported = aligner("arena", "vote", *answers, "--export", tmp_path / "pairs.csv", "--json")
    assert exported.exit_code in (0, 3), exported.output  # 3: all answers may be the same
    rated = aligner("arena", "rate", run / "arena" / "battles.jsonl", "--resamples", 0, "--json")
    assert rated.exit_code == 0, rated.output
    names = {row["model"] for row in json.loads(rated.stdout)["models"]}
    assert names == {"start", "step-2", "step-4"}


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("sft", ["eval.arena.judge=toy"], "needs held-out rows"),
        ("sft", ["eval.arena={}", "data.eval=0.1"], "judge"),
        (
            "sft",
            ["eval.arena.judge=toy", "data.eval=0.1", "trainer.eval_strategy=no"],
            "`eval.arena` is measured at evaluations",
        ),
        (
            "dpo",
            [
                "eval.arena.judge=toy",
                "data.eval=0.1",
                "launch.strategy=fsdp",
                "launch.num_processes=2",
            ],
            "needs a process that holds the whole model",
        ),
        ("reward", ["eval.arena.judge=toy", "data.eval=0.1"], "has no effect on `reward`"),
        (
            "online",
            ["eval.arena.judge=toy", "data.eval=0.1", "online.reward_models=[toy]"],
            "has no effect on `online`",
        ),
        (
            "sft",
            ["data.eval=0.1", "trainer.metric_for_best_model=arena_win_rate"],
            "`arena_win_rate` is to choose by it",
        ),
        (
            "reward",
            ["data.eval=0.1", "trainer.metric_for_best_model=arena_win_rate"],
            "nothing called 'arena_win_rate' is measured",
        ),
        ("sft", ["eval.arena.judge=nobody", "data.eval=0.5"], "nobody"),
        ("sft", ["eval.arena={judge: toy, prompts: 1}", "data.eval=0.5"], "prompts"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything(
    small_world, tmp_path, method: str, settings: list[str], message: str
) -> None:
    rows_of = "pairs.jsonl" if method in ("dpo", "reward") else "sft.jsonl"
    given = [f"model.name_or_path={small_world / 'model'}", f"data.train={small_world / rows_of}"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("")
    given.append(f"output_dir={tmp_path / 'run'}")
    found = aligner(method, recipe, *given, *settings, "--dry-run")
    assert found.exit_code == 2, found.output
    assert message.replace("'", "`") in " ".join(found.output.split()).replace("'", "`")


def test_too_few_held_out_prompts_are_said(small_world, tmp_path) -> None:
    rows_of = [{"prompt": "p", "completion": "a"}]
    file = tmp_path / "held.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of * 3))
    with pytest.raises(DataError, match="held-out rows have 1 prompts that can be answered"):
        train("sft", small_world, tmp_path / "run", data__eval=[{"path": str(file)}])


def test_a_right_answer_that_is_missing_is_said_before_training(small_world, tmp_path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps({"prompt": f"{n}?"}) + "\n" for n in range(3)))
    flags = {
        "data__eval": [{"path": str(held)}],
        "eval__arena": {**ARENA, "judge": "verifier:number"},
    }
    with pytest.raises(DataError, match="compares with a right answer, and 3 of 3 rows have none"):
        train("rlhf", small_world, tmp_path / "run", **flags)
    assert evals(tmp_path / "run") == []
