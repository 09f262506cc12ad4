"""Do lost battles choose better training data than chance? `aligner flywheel` against the same
rounds with other rows (Arena Learning, arXiv 2407.10627, its table on data selection).

    python -m benchmarks.effects.flywheel [--seeds N] [--folder DIR] [--arm NAME ...] [--write]

The task is that of the toy world, in which every answer has an exact score: gold, which nobody in
the flywheel sees. A weak base model fights three scripted experts of differing skill in three
rounds of 300 prompts; each round trains it by SFT on what all rounds chose so far. The judge gives
1 to 10 by gold, with noise (standard deviation 1) and 0.7 points for the first seat; both orders
are played. K is 2, 1, 1.

    losses           the flywheel: prompts that were lost, with the best winner's answer
    random           as many prompts, drawn at random, with the best opponent's answer
    random opponent  the same prompts, with any opponent's answer
    all              every prompt, with the best opponent's answer
    coin             the flywheel before a judge that looks at nothing, with the rule against noise:
                     nothing is to be learned, and the rounds are to end
    coin, no rule    the same without that rule
    length           the flywheel before a judge that also gives 8 points for each doubling of the
                     length, and with a fourth expert that is right and chatters: what the judge
                     likes is what is learned, and the report is to say so

The last four are the first four from a start that has had SFT on right answers, so that it loses a
minority of its battles.

Gold is of 400 held-out prompts, greedy. `--folder` keeps worlds, runs and `results.json`, and
continues there.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from aligner.arena.testset.frozen import ITEMS, freeze
from aligner.config.load import load_recipe
from aligner.config.recipe import Model
from aligner.data.rows import PromptRow
from aligner.evaluation.answers import measure_prompts
from aligner.methods.flywheel.report import growing
from aligner.methods.flywheel.run import run_flywheel
from aligner.models.loading import load_policy
from aligner.models.tokenizers import load_tokenizer
from aligner.reward_models.toy import ToyScorer
from aligner.runs.files import dumps, parse_json, write_atomically, write_parts_atomically
from aligner.toy.experts import EXPERTS, answers
from aligner.toy.tasks import CLOSINGS, OPENINGS, Exercise, draw
from aligner.toy.world import draw_splits, write_world
from benchmarks.results import write

STEPS = 250
"""Of pretraining: the base knows a part of the tasks."""
ROUNDS, PROMPTS, TESTS = 3, 300, 200
JUDGE: dict[str, Any] = {"noise": 1.0, "seat": 0.7}
BLIND: dict[str, Any] = {"noise": 2.0, "is_blind": True}
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "losses": (JUDGE, {}),
    "random": (JUDGE, {"flywheel.sft.rule": "random"}),
    "random opponent": (JUDGE, {"flywheel.sft.rule": "random_opponent"}),
    "all": (JUDGE, {"flywheel.sft.rule": "all"}),
    "coin": (BLIND, {"flywheel.stop.noise": True}),
    "coin, no rule": (BLIND, {}),
    "length": ({**JUDGE, "length": 8.0}, {}),
    "losses, taught start": (JUDGE, {}),
    "random, taught start": (JUDGE, {"flywheel.sft.rule": "random"}),
    "random opponent, taught start": (JUDGE, {"flywheel.sft.rule": "random_opponent"}),
    "all, taught start": (JUDGE, {"flywheel.sft.rule": "all"}),
}
"""Name -> the judge's faults, and what else is changed."""


def prepare(world: Path, seed: int) -> None:
    """Write the base, the prompts, what the experts say, and the test set."""
    if (world / "done").exists():
        return
    shutil.rmtree(world, ignore_errors=True)
    write_world(world / "toy", seed=seed, steps=STEPS)
    used = {one.prompt for part in draw_splits(seed).values() for one in part}
    rng = random.Random(f"flywheel {seed}")
    pool: list[Exercise] = []
    while len(pool) < ROUNDS * PROMPTS + TESTS:
        exercise = draw(rng)
        if exercise.prompt not in used:
            used.add(exercise.prompt)
            pool.append(exercise)
    rows = [{"prompt": _user(one), "answer": one.answer} for one in pool]
    _write(world / "prompts.jsonl", rows[TESTS:])
    (world / "testset").mkdir()
    tests = []
    for number, row in enumerate(rows[:TESTS]):
        part = {"prompt_id": f"t{number}", "split": "dev" if number % 2 else "test"}
        tests.append({**row, **part, "subset": "diverse"})
    lines = freeze(world / "testset", tests, {}, {})
    write_parts_atomically(world / "testset" / ITEMS, lines)
    for name in EXPERTS:
        said = answers(name, pool, seed)
        found = [{"prompt": _user(one), "response": text} for one, text in zip(pool, said)]
        _write(world / f"{name}.jsonl", found)
    chat = random.Random(f"chatter {seed}")
    chatter = [chat.choice(OPENINGS) + one.answer + chat.choice(CLOSINGS) for one in pool]
    found = [{"prompt": _user(one), "response": text} for one, text in zip(pool, chatter)]
    _write(world / "chatterer.jsonl", found)
    (world / "done").touch()


def _user(exercise: Exercise) -> list[dict[str, str]]:
    return [{"role": "user", "content": exercise.prompt}]


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run_arm(world: Path, seed: int, name: str) -> dict[str, Any]:
    """Do the rounds of an arm, and measure every model."""
    faults, changes = ARMS[name]
    folder = world / "runs" / name.replace(",", "").replace(" ", "-")
    settings: dict[str, Any] = {
        "model.name_or_path": str(world / "toy/model"),
        "data.train": str(world / "prompts.jsonl"),
        "data.max_length": 128,
        "output_dir": str(folder),
        "seed": seed,
        "flywheel.rounds": ROUNDS,
        "flywheel.strategies": ["sft"],
        "flywheel.prompts_per_battle": min(PROMPTS, _prompts_left(world) // ROUNDS),
        "flywheel.opponents": [
            {"name": one, "answers": str(world / f"{one}.jsonl")}
            for one in (*EXPERTS, *(["chatterer"] if name == "length" else []))
        ],
        "flywheel.judges": [{"name": "judge", "scorer": "toy", "faults": faults}],
        "flywheel.test_set": str(world / "testset"),
        "flywheel.max_new_tokens": 32,
        "flywheel.batch_size": 256,
        "flywheel.sft.k": [2.0, 1.0],
        "flywheel.rating.resamples": 200,
        "flywheel.stop.noise": False,
        "flywheel.stop.gain": False,
        "trainings.sft": {
            "trainer": {
                "learning_rate": 5e-4,
                "num_train_epochs": 3,
                "per_device_train_batch_size": 16,
                "save_strategy": "no",
            },
            "report": {"num_prompts": 0},
        },
        **changes,
    }
    if name.endswith("taught start"):
        settings["flywheel.initial"] = str(world / "toy/sft.jsonl")
    recipe = load_recipe("flywheel", None, [], settings)
    began = time.process_time()
    run_flywheel(recipe, resume=folder.exists())
    seconds = time.process_time() - began
    summary = parse_json(folder / "flywheel.json", "run it again")
    taught = folder / "rounds/00/train/run/final"
    places = [taught if taught.exists() else world / "toy/model"]
    for number in range(1, len(summary["stages"]) + 1):
        final = folder / f"rounds/{number:02d}/sft/train/run/final"
        places += [final] if final.exists() else []
    return {
        "gold": [gold(place, world / "toy/heldout.jsonl") for place in places],
        "rows": [stage["selection"]["rows"] for stage in summary["stages"]],
        "winners": [stage["selection"]["winners"] for stage in summary["stages"]],
        "lost": [(stage["noise"] or {}).get("loss_rate") for stage in summary["stages"]],
        "chance": [(stage["noise"] or {}).get("false_loss_rate") for stage in summary["stages"]],
        "lengths": [one["mean_length"] for one in summary["models"].values() if one["is_ours"]],
        "stopped": summary["stopped"],
        "grows": growing(summary),
        "seconds": seconds,
    }


def _prompts_left(world: Path) -> int:
    """Prompts that neither repeat one another nearly nor overlap with the test set, about."""
    return int(0.97 * (world / "prompts.jsonl").read_bytes().count(b"\n"))


def gold(model: Path, heldout: Path) -> float:
    """The mean gold score of greedy answers to the held-out prompts."""
    section = Model(name_or_path=str(model))
    tokenizer = load_tokenizer(section)
    policy = load_policy(section, tokenizer, trainable=False)
    lines = heldout.read_text(encoding="utf-8").splitlines()
    rows = [PromptRow(json.loads(line)["prompt"]) for line in lines]
    numbers, _ = measure_prompts(policy, tokenizer, rows, scorer=ToyScorer(), batch_size=256)
    return numbers["score"]


# --- what came out --------------------------------------------------------------------------------


def table(found: dict[str, dict[str, Any]]) -> str:
    """Gold after each round, rows of each round, and whether the rounds ended early, by arm."""
    head = "| rows | gold of the start | round 1 | round 2 | round 3 | rows chosen | seconds |"
    lines = [head, "| --- |" + " --- |" * 6]
    for name in ARMS:
        runs = [one[name] for one in found.values() if name in one]
        if not runs:
            continue
        cells = [_cell(_at(runs, "gold", number)) for number in range(ROUNDS + 1)]
        rows = [_rows(_at(runs, "rows", number)) for number in range(ROUNDS)]
        seconds = fmean(run["seconds"] for run in runs)
        line = [name, *cells, " + ".join(filter(None, rows)), f"{seconds:,.0f}"]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def _at(runs: Sequence[dict[str, Any]], key: str, number: int) -> list[Any]:
    """What the runs have at a place of a list, of those that reached it."""
    return [run[key][number] for run in runs if len(run[key]) > number]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def _rows(values: Sequence[int]) -> str:
    return f"{fmean(values):,.0f}" if values else ""


def remarks(found: dict[str, dict[str, Any]]) -> str:
    """By seed: the flywheel against the others after the last round, and what the reports said."""
    lines = []
    for seed, arms in found.items():
        last = {name: arm["gold"][-1] for name, arm in arms.items() if name in ARMS}
        said = ", ".join(f"{name} {value:.3f}" for name, value in last.items())
        lines.append(f"* Seed {seed}, at the end: {said}.")
        if "coin" in arms:
            lines.append(f"  The coin: {arms['coin']['stopped'] or 'the rule did not stop it'}.")
        if "length" in arms:
            lengths = ", ".join(f"{value:.1f}" for value in arms["length"]["lengths"])
            grows = "the report warns" if arms["length"]["grows"] else "the report does not warn"
            lines.append(f"  Length-loving judge: {lengths} characters an answer; {grows}.")
    return "\n".join(lines)


def main() -> None:
    """Run all arms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--arm", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    temporary = tempfile.TemporaryDirectory() if arguments.folder is None else nullcontext("")
    with temporary as place:
        folder = arguments.folder or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "results.json"
        found: dict[str, dict[str, Any]] = parse_json(path, "delete it") if path.exists() else {}
        for seed in range(arguments.seeds):
            world = folder / f"seed-{seed}"
            prepare(world, seed)
            for name in arguments.arm:
                arms = found.setdefault(str(seed), {})
                if name not in arms:
                    arms[name] = run_arm(world, seed, name)
                    write_atomically(path, dumps(found, indent=2))
                    print(f"seed {seed}: {name}: {arms[name]['gold']}", flush=True)
    text = f"{table(found)}\n\n{remarks(found)}"
    print(text)
    if arguments.write:
        write("flywheel", text)


if __name__ == "__main__":
    main()
