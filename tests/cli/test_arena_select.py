"""`aligner arena select`: rows from a run of battles, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from runner import aligner

EXPERTS = ("strong", "middling", "weak")


def battle(world: Path, folder: Path, judge: dict[str, Any]) -> Path:
    contestants = [
        {"name": name, "answers": str(world / f"experts-{name}.jsonl")} for name in EXPERTS
    ]
    contestants[2]["license"] = "cc-by-4.0"
    done = aligner(
        *("arena", "battle", "--data", world / "prompts.jsonl", "--output", folder),
        f"arena.contestants={json.dumps(contestants)}",
        f"arena.judges={json.dumps([judge])}",
        "arena.rating.resamples=20",
    )
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def run(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Battles before a judge with points from 1 to 10; read only."""
    folder = tmp_path_factory.mktemp("battles") / "run"
    return battle(toy_world, folder, {"scorer": "toy", "faults": {"noise": 0.1}})


def rows(folder: Path, name: str = "train.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def select(run: Path, output: Path, *more: object) -> dict[str, Any]:
    done = aligner("arena", "select", run, "--output", output, "--json", *more)
    assert done.exit_code == 0, done.output
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def test_what_the_target_lost_becomes_rows_that_sft_takes(
    run: Path, toy_world: Path, tmp_path: Path
) -> None:
    summary = select(run, tmp_path / "sft", "--for", "sft", "--target", "weak")
    found = rows(tmp_path / "sft")
    assert len(found) == summary["rows"] > 0
    assert {row["winner"] for row in found} <= {"strong", "middling"}
    assert all(row["loser"] == "weak" and row["margin"] >= 3.0 for row in found)
    assert summary["rows"] + len(rows(tmp_path / "sft", "dropped.jsonl")) == summary["prompts"]
    model, data = toy_world / "model", tmp_path / "sft/train.jsonl"
    plan = aligner("sft", "--model", model, "--data", data, "--output", tmp_path, "--dry-run")
    assert plan.exit_code == 0, plan.output


def test_a_training_takes_what_was_held_against_a_test_set(
    run: Path, toy_world: Path, tmp_path: Path
) -> None:
    tests = tmp_path / "tests"
    building = ("--clusters", 4, "--hard", 0, "--per-cluster", 4)
    built = aligner(
        *("arena", "testset", "build", toy_world / "heldout.jsonl"), "-o", tests, *building
    )
    assert built.exit_code == 0, built.output
    given = ("--for", "sft", "--target", "weak", "--testset", tests)
    done = aligner("arena", "select", run, "--output", tmp_path / "sft", *given)
    assert done.exit_code == 0, done.output
    assert f"data.test_set={tests}" in " ".join(done.stdout.split())
    model, data = toy_world / "model", tmp_path / "sft/train.jsonl"
    training = (
        "sft",
        "--model",
        model,
        "--output",
        tmp_path,
        f"data.test_set={tests}",
        "--dry-run",
    )
    plan = aligner(*training, "--data", data)
    assert plan.exit_code == 0, plan.output
    with open(data, "a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "upper: new", "completion": "NEW"}) + "\n")
    assert aligner(*training, "--data", data).exit_code == 3


def test_pairs_say_who_was_better(run: Path, tmp_path: Path) -> None:
    select(run, tmp_path / "dpo", "--for", "dpo", "--target", "middling", "--k", 1)
    found = rows(tmp_path / "dpo")
    assert found
    assert all(row["score_winner"] > row["score_loser"] for row in found)
    assert all(row["chosen"] != row["rejected"] for row in found)


def test_nobody_learns_from_a_model_that_is_barred(run: Path, tmp_path: Path) -> None:
    select(run, tmp_path / "out", "--for", "sft", "--target", "weak", "--bar", "strong")
    assert {row["winner"] for row in rows(tmp_path / "out")} == {"middling"}


def test_a_loss_to_one_of_two_gives_nothing_by_majority(run: Path, tmp_path: Path) -> None:
    options = ("--for", "sft", "--target", "weak", "--k", 0)
    summary = select(run, tmp_path / "out", *options, "--majority-only")
    dropped = [row["reason"] for row in rows(tmp_path / "out", "dropped.jsonl")]
    lost_to_one = dropped.count("the loser lost to no more than half of the others")
    assert lost_to_one == summary["dropped"]["the loser lost to no more than half of the others"]
    assert select(run, tmp_path / "all", *options)["rows"] == summary["rows"] + lost_to_one


def test_a_screen_says_what_came_out(run: Path, tmp_path: Path) -> None:
    options = ("--for", "sft", "--target", "weak", "--self-play", "middling")
    done = aligner("arena", "select", run, "--output", tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    assert "by chance:" in done.output
    assert "next: aligner sft RECIPE data.train=" in done.output.replace("\n", " ")
    summary = json.loads((tmp_path / "out" / "selection.json").read_text())
    assert 0 < summary["false_loss_rate"]["value"] < 1
    assert f"{summary['false_loss_rate']['value']:.1%} of" in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--for", "sft"), "nobody is the target"),
        (("--for", "sft", "--target", "nobody"), "did not fight"),
        (("--for", "sft", "--target", "weak", "--bar", "weak"), "is none of those"),
        (("--for", "sft", "--target", "weak", "--scope", "any"), ""),
        (("--for", "sft", "--target", "weak", "--scope", "target_loses"), "has no effect"),
        (("--for", "dpo", "--target", "weak", "--rule", "random"), "has no effect"),
    ],
)
def test_what_cannot_be_is_said(
    run: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    done = aligner("arena", "select", run, "--output", tmp_path / "out", *options)
    assert done.exit_code == (2 if said else 0), done.output
    assert said in done.output


def test_rows_are_not_overwritten_by_surprise(run: Path, tmp_path: Path) -> None:
    options = ("--for", "sft", "--target", "weak")
    select(run, tmp_path / "out", *options)
    done = aligner("arena", "select", run, "--output", tmp_path / "out", *options)
    assert done.exit_code == 2
    assert "--overwrite" in done.output
    select(run, tmp_path / "out", *options, "--overwrite")


def test_scores_without_points_need_a_margin(toy_world: Path, tmp_path: Path) -> None:
    run = battle(toy_world, tmp_path / "run", {"scorer": "toy"})
    done = aligner("arena", "select", run, "--for", "sft", "--target", "weak")
    assert done.exit_code == 2
    assert "no points from 1 to 10" in done.output
    summary = select(run, tmp_path / "out", "--for", "sft", "--target", "weak", "--k", 0.5)
    assert summary["rows"] > 0


def test_prompts_that_changed_since_are_refused(toy_world: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = (toy_world / "prompts.jsonl").read_text().splitlines(keepends=True)
    prompts.write_text("".join(lines[:10]))
    world = tmp_path / "world"
    world.mkdir()
    prompts.rename(world / "prompts.jsonl")
    for name in EXPERTS:
        text = (toy_world / f"experts-{name}.jsonl").read_text()
        (world / f"experts-{name}.jsonl").write_text(text)
    run = battle(world, tmp_path / "run", {"scorer": "toy"})
    (world / "prompts.jsonl").write_text("".join(lines[:9]))
    done = aligner("arena", "select", run, "--for", "sft", "--target", "weak", "--k", 0.5)
    assert done.exit_code == 3
    assert "are not what they were" in done.output


def test_a_run_that_was_stopped_is_selected_from_where_that_is_said(
    run: Path, tmp_path: Path
) -> None:
    stopped = tmp_path / "stopped"
    shutil.copytree(run, stopped)
    (stopped / "manifest.json").unlink()
    options = ("--for", "sft", "--target", "weak")
    done = aligner("arena", "select", stopped, *options)
    assert done.exit_code == 2
    assert "was stopped before its end" in done.output
    assert not (stopped / "select-sft").exists()
    assert select(stopped, tmp_path / "out", *options, "--allow-partial")["rows"] > 0


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    done = aligner("arena", "select", tmp_path, "--for", "sft", "--target", "weak")
    assert done.exit_code == 2
    assert "is no finished run" in done.output
