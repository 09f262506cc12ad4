"""Label efficiency in the toy world: how good a reward model is after so many labels, by the way in
which pairs were chosen.

    python -m benchmarks.effects.active_labels [--seeds N] [--workers N] [--pool N]
        [--budgets N ...] [--write]

The base model answers a pool of prompts, four times each. The pool is lopsided, as what users ask
is: 85% of its prompts are `copy`, the others are drawn as the held-out ones, and those are what
counts. Labels are the gold score's, bought in rounds: the first round is the same for every arm but
one (random pairs), each further one is chosen by `aligner data select` with the reward model of the
round before. After each round a reward model (`tiny/reward`, always the same number of steps) is
trained from the base on all labels so far, and measured on pairs of answers of the base to held-out
prompts that have different gold scores. A label that says "tie" is paid for and teaches nothing, as
with people. In one arm it is answers of another model, the result of `tiny/sft`, that are labelled.
A seed changes the world, the base, the answers, the choice and the training. With `--write` the
tables go into `benchmarks/RESULTS.md`.

The base and not the result of `tiny/sft` is the policy, as the latter's mistakes are too fine for
so small a reward model: with 400 labels it ranked 53% of the pairs rightly, however they were
chosen.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from aligner.acquisition.win_probabilities import judge, pairs_of
from aligner.builders.select.build import run_select
from aligner.builders.select.label_store import counts_of
from aligner.builders.select.labels import LABELLED, ask_oracle
from aligner.config.load import load_recipe
from aligner.methods.pipeline import run_recipe
from aligner.reward_models.catalogue import load_scorer
from aligner.toy.tasks import draw, gold_score
from aligner.toy.world import write_world
from benchmarks.results import write

BUDGETS = (200, 400, 800)
POOL = 3000
COMMON = 0.85
"""Share of the pool that is one task."""
SAMPLES = 4
STEPS = 160
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "random pairs of another model": ("others", ("select.strategy=random", "select.pair=random")),
    "random pairs": ("pool", ("select.strategy=random", "select.pair=random")),
    "random, best and worst": ("pool", ("select.strategy=random", "select.pair=max_min")),
    "uncertainty": ("pool", ("select.strategy=uncertainty", "select.pair=max_min")),
    "diversity": ("pool", ("select.strategy=diversity", "select.pair=max_min")),
    "both": ("pool", ("select.strategy=both", "select.pair=max_min")),
}
"""Name of an arm -> whose answers, and how it chooses."""

FIRST_ROUND = ("select.strategy=random", "select.pair=random")


@dataclass(frozen=True)
class Point:
    """An arm after a round: labels paid for, those of them that say which answer is better, and
    held-out accuracy."""

    labels: int
    usable: int
    accuracy: float


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_pool(world: Path, seed: int, size: int) -> None:
    """Write prompts to choose from, none of which is held out, most of them of one task."""
    held_out = {row["prompt"][0]["content"] for row in lines(world / "heldout.jsonl")}
    rng, prompts = random.Random(f"pool {seed}"), {}
    while len(prompts) < size:
        wanted = "copy: " if rng.random() < COMMON else ""
        while not (exercise := draw(rng)).prompt.startswith(wanted):
            pass
        if exercise.prompt not in held_out:
            prompts[exercise.prompt] = None
    rows = ({"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts)
    (world / "pool.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )


def answers(world: Path, seed: int, prompts: str, policy: Path, name: str) -> Path:
    """Let a model answer the prompts of a file; the candidates that come of it."""
    overrides = [
        f"data.train={world / prompts}.jsonl",
        f"select.policy={policy}",
        f"select.num_samples={SAMPLES}",
        "select.max_new_tokens=32",
        "select.batch_size=200",
        "select.strategy=random",
        "select.budget=1",
        f"seed={seed}",
        f"output_dir={world / 'answers' / name}",
    ]
    return run_select(load_recipe("select", None, overrides)).run_dir / "candidates.jsonl"


def prepare(world: Path, seed: int, pool: int) -> None:
    """Write a world and let its base answer the pool and the held-out prompts, and another model
    the pool."""
    torch.set_num_threads(1)
    write_world(world, seed=seed)
    write_pool(world, seed, pool)
    for name in ("pool", "heldout"):
        answers(world, seed, name, world / "model", name)
    overrides = [
        f"model.name_or_path={world / 'model'}",
        f"data.train={world / 'sft.jsonl'}",
        "data.eval=null",
        "report.num_prompts=0",
        f"seed={seed}",
        f"output_dir={world / 'runs' / 'sft'}",
    ]
    other = run_recipe(load_recipe("sft", "tiny/sft", overrides)).run_dir / "final"
    answers(world, seed, "pool", other, "others")


def proxy(world: Path, seed: int, folder: Path, labelled: Sequence[Path]) -> Path:
    """Train a reward model on labelled pairs."""
    overrides = [
        f"model.name_or_path={world / 'model'}",
        f"data.train=[{', '.join(map(str, labelled))}]",
        "data.eval=null",
        "report.num_prompts=0",
        f"seed={seed}",
        f"trainer.max_steps={STEPS}",
        f"output_dir={folder}",
    ]
    return run_recipe(load_recipe("reward", "tiny/reward", overrides)).run_dir


def accuracy(world: Path, run: Path) -> float:
    """Share of held-out pairs with different gold scores that the reward model ranks rightly."""
    rows = lines(world / "answers" / "heldout" / "candidates.jsonl")
    prompts, responses = [row["prompt"] for row in rows], [row["responses"] for row in rows]
    right = []
    for prompt, texts, probabilities in zip(
        prompts, responses, judge([load_scorer(str(run))], prompts, responses)
    ):
        gold = [gold_score(prompt, text) for text in texts]
        for j, k in pairs_of(len(texts)):
            if gold[j] != gold[k]:
                p = probabilities[0, j, k]
                right.append(0.5 if p == 0.5 else float((p > 0.5) == (gold[j] > gold[k])))
    return statistics.fmean(right)


def buy(
    candidates: Path,
    seed: int,
    folder: Path,
    budget: int,
    before: Sequence[Path],
    how: Sequence[str],
) -> Path:
    """Choose so many pairs, and let the gold score label them."""
    overrides = [
        f"select.candidates={candidates}",
        f"select.budget={budget}",
        f"select.labelled=[{', '.join(map(str, before))}]",
        f"seed={seed}",
        f"output_dir={folder}",
        *how,
    ]
    run = run_select(load_recipe("select", None, overrides)).run_dir
    ask_oracle(run, "toy")
    return run


def run_arm(world: Path, seed: int, arm: str, budgets: Sequence[int]) -> list[Point]:
    """Buy labels round by round, and measure after each."""
    torch.set_num_threads(1)
    folder = world / "arms" / arm.replace(" ", "-").replace(",", "")
    name, choice = ARMS[arm]
    candidates = world / "answers" / name / "candidates.jsonl"
    bought: list[Path] = []
    points: list[Point] = []
    model: Path | None = None
    for number, budget in enumerate(budgets):
        how = FIRST_ROUND if model is None else (*choice, f"select.reward_models={model}")
        price = budget - (points[-1].labels if points else 0)
        bought.append(buy(candidates, seed, folder / f"select-{number}", price, bought, how))
        labelled = [run / LABELLED for run in bought if (run / LABELLED).stat().st_size]
        model = proxy(world, seed, folder / f"reward-{number}", labelled)
        usable = sum(int(counts_of(run)["labelled"]) for run in bought)
        points.append(Point(budget, usable, accuracy(world, model)))
    print(
        seed,
        arm,
        [(point.labels, point.usable, round(point.accuracy, 4)) for point in points],
        flush=True,
    )
    return points


def tables(found: dict[str, list[list[Point]]], budgets: Sequence[int]) -> list[str]:
    """Accuracy by arm and number of labels, with the share of labels that were of use."""
    head = [
        f"| {' | '.join(['chosen by', *(f'{budget} labels' for budget in budgets), 'no ties'])} |"
    ]
    rows = [*head, "| --- |" + " --- |" * (len(budgets) + 1)]
    for arm, seeds in found.items():
        cells = []
        for number in range(len(budgets)):
            values = [points[number].accuracy for points in seeds]
            each = ", ".join(f"{value:.3f}" for value in values)
            cells.append(f"{statistics.fmean(values):.3f} ({each})")
        shares = statistics.fmean(points[-1].usable / points[-1].labels for points in seeds)
        rows.append(f"| {arm} | {' | '.join(cells)} | {shares:.0%} |")
    target = statistics.fmean(points[-1].accuracy for points in found["random pairs"])
    rows += [
        "",
        f"Labels up to the accuracy that random pairs have with {budgets[-1]} ({target:.3f}), "
        "means over seeds:",
        "",
    ]
    rows += ["| chosen by | labels |", "| --- | --- |"]
    for arm, seeds in found.items():
        means = [
            statistics.fmean(points[number].accuracy for points in seeds)
            for number in range(len(budgets))
        ]
        rows.append(f"| {arm} | {needed(budgets, means, target)} |")
    return rows


def needed(budgets: Sequence[int], accuracies: Sequence[float], target: float) -> str:
    """How many labels it takes to come to an accuracy, on straight lines between the measured
    points."""
    if accuracies[0] >= target:
        return f"{budgets[0]} or fewer"
    for (low, high), (before, after) in zip(pairwise(budgets), pairwise(accuracies)):
        if after >= target:
            return f"{low + (high - low) * (target - before) / (after - before):.0f}"
    return f"more than {budgets[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="arms that run side by side")
    parser.add_argument("--pool", type=int, default=POOL, help="prompts to choose from")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=list(BUDGETS), help="labels after each round"
    )
    parser.add_argument(
        "--write", action="store_true", help="write the tables into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(options.workers, get_context("spawn")) as pool,
    ):
        worlds = [Path(name) / str(seed) for seed in range(options.seeds)]
        sizes = [options.pool] * options.seeds
        list(pool.map(prepare, worlds, range(options.seeds), sizes))
        jobs = {
            arm: [
                pool.submit(run_arm, world, seed, arm, options.budgets)
                for seed, world in enumerate(worlds)
            ]
            for arm in ARMS
        }
        found = {arm: [job.result() for job in waiting] for arm, waiting in jobs.items()}
    text = "\n".join(tables(found, options.budgets))
    print(text, flush=True)
    if options.write:
        write("active-labels", text)


if __name__ == "__main__":
    main()
