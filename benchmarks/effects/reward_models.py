"""Reward models in the toy world: noise, strengths and length, and what each loss makes of them.

    python -m benchmarks.effects.reward_models [--seeds N] [--workers N] [--write]

Every arm starts from the base model and trains on pairs of answers to the same prompts, none of
which is held out; one of each pair has the higher gold score. Three datasets, each with a way in
which labels go wrong:

* *noise*: a quarter of the labels is flipped. Who memorises labels is right on 75% of the training
  pairs' truth, and knows nothing of others.
* *strengths*: exercises with several parts, and blanks before the answers as below. Pairs carry a
  strength by the difference of their gold scores. Where it is small, in about half of them, the
  labeller takes the longer answer; all other labels are right. Small differences have strength 0.1,
  others 1 and 3; that is all that a loss can know of this. One arm is told 1, 2 and 3 instead, as
  annotators' scales have it.
* *length*: blanks are put before the answers, which change no gold score; in 40% of the pairs the
  longer answer is labelled the better one whatever it says.

Accuracy is on 1,000 held-out pairs with true labels, a tie counting a half; they are drawn as those
of the training are, with several parts for *strengths*, and with their blanks. The correlation with
length is Pearson's, over the held-out answers, of score and tokens after the mean of each pair is
taken off both. A seed changes the world, the base, the pairs, the flips, the head and the order.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from aligner.config.load import load_recipe
from aligner.methods.pipeline import run_recipe
from aligner.reward_models.catalogue import load_scorer
from aligner.runs.files import read_metrics
from aligner.toy.tasks import Exercise, corrupt, draw, gold_score
from aligner.toy.world import write_world
from benchmarks.results import write

PAIRS = 3000
HELD_OUT = 1000
NOISE = 0.25
STRENGTHS = {1: 0.1, 2: 1.0, 3: 3.0}
LONGER_WINS = 0.4
MOST_BLANKS = 10
SETTINGS = (
    "data.max_length=256",
    "report.num_prompts=0",
    "trainer.learning_rate=1e-3",
    "trainer.num_train_epochs=3",
    "trainer.per_device_train_batch_size=32",
    "trainer.logging_steps=10",
    "trainer.save_strategy=no",
)
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "noise: Bradley-Terry": ("noise", ()),
    "strengths: plain": ("strengths", ()),
    "strengths: margin": ("strengths", ("reward.loss=margin",)),
    "strengths: scaled": ("strengths", ("reward.loss=scaled",)),
    "strengths of 1, 2, 3: margin": ("ranks", ("reward.loss=margin",)),
    "length: Bradley-Terry": ("length", ()),
    "length: ODIN": ("length", ("reward.kind=odin",)),
    "length: ODIN, length_weight 0.3": ("length", ("reward.kind=odin", "reward.length_weight=0.3")),
}


@dataclass(frozen=True)
class Pair:
    """Two answers to an exercise; the first one has the higher gold score."""

    prompt: str
    better: str
    worse: str
    rank: int
    """1 to 3, by the difference of the gold scores."""


@dataclass(frozen=True)
class RunResult:
    """What a reward model came to."""

    accuracy: float
    train_labels: float
    """Accuracy on its training pairs by the labels that it was given."""
    train_flipped: float
    """Share of its training pairs with a wrong label that it ranks as labelled: what it has
    memorised."""
    length: float


def pairs(rng: random.Random, count: int, unseen: set[str], *, chains: bool = False) -> list[Pair]:
    """Draw pairs of answers to exercises that are not among `unseen`; with `chains`, to those of
    several parts."""
    found: list[Pair] = []
    while len(found) < count:
        exercise = draw(rng)
        if exercise.prompt in unseen or (chains and len(exercise.parts) == 1):
            continue
        answers = sorted(
            _answers(exercise, rng), key=lambda text: -gold_score(exercise.prompt, text)
        )
        gap = gold_score(exercise.prompt, answers[0]) - gold_score(exercise.prompt, answers[1])
        if gap > 0:
            found.append(
                Pair(
                    exercise.prompt,
                    answers[0],
                    answers[1],
                    1 if gap < 0.4 else 2 if gap < 0.8 else 3,
                )
            )
    return found


def _answers(exercise: Exercise, rng: random.Random) -> list[str]:
    """Two answers: a right one and a wrong one, or two wrong ones."""
    first = exercise.answer if rng.random() < 0.5 else corrupt(exercise, rng)
    return [first, corrupt(exercise, rng)]


def with_padding_rows(pair: Pair, rng: random.Random) -> Pair:
    """Put blanks before both answers."""
    better, worse = (" " * rng.randint(0, MOST_BLANKS) + text for text in (pair.better, pair.worse))
    return Pair(pair.prompt, better, worse, pair.rank)


def is_flipped(kind: str, pair: Pair, rng: random.Random) -> bool:
    """Draw whether the label of a pair is wrong."""
    if kind == "noise":
        return rng.random() < NOISE
    by_length = rng.random() < LONGER_WINS if kind == "length" else pair.rank == 1
    return by_length and len(pair.worse) > len(pair.better)


def prepare(world: Path, seed: int) -> None:
    """Write a world and its datasets, each with the pairs that are held out for it."""
    torch.set_num_threads(1)
    write_world(world, seed=seed)
    lines = map(json.loads, (world / "heldout.jsonl").read_text(encoding="utf-8").splitlines())
    rng = random.Random(f"reward models {seed}")
    apart = {"noise": pairs(rng, HELD_OUT, set())}
    held_out = {line["prompt"][0]["content"] for line in lines} | {
        pair.prompt for pair in apart["noise"]
    }
    apart["length"] = apart["noise"]
    apart["strengths"] = apart["ranks"] = pairs(
        random.Random(f"several parts {seed}"), HELD_OUT, set(), chains=True
    )
    for kind, kept in apart.items():
        (world / f"{kind}-held-out.json").write_text(
            json.dumps([vars(pair) for pair in kept]), encoding="utf-8"
        )
        apart_too = {pair.prompt for pair in kept}
        rng = random.Random(f"{kind.replace('ranks', 'strengths')} {seed}")
        rows = []
        for pair in pairs(rng, PAIRS, held_out | apart_too, chains=kind in ("strengths", "ranks")):
            shown = pair if kind == "noise" else with_padding_rows(pair, rng)
            flipped = is_flipped(kind, shown, rng)
            sides = (shown.worse, shown.better) if flipped else (shown.better, shown.worse)
            turns = [[{"role": "assistant", "content": text}] for text in sides]
            row = {
                "prompt": [{"role": "user", "content": pair.prompt}],
                "chosen": turns[0],
                "rejected": turns[1],
            }
            strength = pair.rank if kind == "ranks" else STRENGTHS[pair.rank]
            rows.append({**row, "strength": strength, "flipped": flipped})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (world / f"{kind}.jsonl").write_text(text, encoding="utf-8")


def run_arm(world: Path, seed: int, arm: str) -> RunResult:
    """Train a reward model and measure it."""
    torch.set_num_threads(1)
    kind, settings = ARMS[arm]
    run = world / "runs" / arm.replace(": ", "-").replace(", ", "-").replace(" ", "-")
    overrides = [
        f"model.name_or_path={world / 'model'}",
        f"data.train={world / f'{kind}.jsonl'}",
        f"output_dir={run}",
        f"seed={seed}",
        "data.eval=null",
        *SETTINGS,
        *settings,
    ]
    run_recipe(load_recipe("reward", "tiny/reward", overrides))
    found = measure(world, run, kind, seed)
    assert read_metrics(run), "it was trained"
    print(seed, arm, found, flush=True)
    return found


def measure(world: Path, run: Path, kind: str, seed: int) -> RunResult:
    """Score held-out and training pairs."""
    rng = random.Random(f"measure {seed}")
    apart = [
        Pair(**row)
        for row in json.loads((world / f"{kind}-held-out.json").read_text(encoding="utf-8"))
    ]
    if kind != "noise":
        apart = [with_padding_rows(pair, rng) for pair in apart]
    better, worse = scores(
        run,
        [pair.prompt for pair in apart],
        [pair.better for pair in apart],
        [p.worse for p in apart],
    )
    rows = [
        json.loads(line)
        for line in (world / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    texts = [[row[side][0]["content"] for row in rows] for side in ("chosen", "rejected")]
    chosen, rejected = scores(run, [row["prompt"][0]["content"] for row in rows], *texts)
    flipped = [a > b for a, b, row in zip(chosen, rejected, rows) if row["flipped"]]
    return RunResult(
        accuracy(better, worse),
        accuracy(chosen, rejected),
        statistics.fmean(flipped),
        within_pairs(
            [a - b for a, b in zip(better, worse)], [len(p.better) - len(p.worse) for p in apart]
        ),
    )


def scores(
    run: Path, prompts: list[str], first: list[str], second: list[str]
) -> tuple[list[float], list[float]]:
    """Scores of both answers to each prompt."""
    scorer = load_scorer(str(run))
    found = scorer.score([*prompts, *prompts], [*first, *second])
    return found[: len(prompts)], found[len(prompts) :]


def accuracy(better: list[float], worse: list[float]) -> float:
    """Share of pairs ranked rightly, a tie counting a half."""
    return statistics.fmean(float(a > b) + 0.5 * float(a == b) for a, b in zip(better, worse))


def within_pairs(scores: list[float], lengths: list[int]) -> float:
    """Pearson's correlation of two answers' scores and lengths around the mean of each pair, from
    the differences."""
    across = sum(a * b for a, b in zip(scores, lengths))
    return across / (sum(a * a for a in scores) * sum(b * b for b in lengths)) ** 0.5


def table(found: dict[str, list[RunResult]]) -> list[str]:
    """The table of RESULTS.md."""
    columns = {
        "held-out accuracy": "accuracy",
        "ranks training pairs as labelled": "train_labels",
        "of these with a wrong label": "train_flipped",
        "correlation with length": "length",
    }
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for arm, outcomes in found.items():
        cells = []
        for key in columns.values():
            values = [getattr(one, key) for one in outcomes]
            cells.append(
                ", ".join(f"{value:.3f}" for value in values) + f" ({statistics.fmean(values):.3f})"
            )
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="arms that are trained side by side")
    parser.add_argument(
        "--write", action="store_true", help="write the table into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(options.workers, get_context("spawn")) as pool,
    ):
        worlds = [Path(name) / str(seed) for seed in range(options.seeds)]
        list(pool.map(prepare, worlds, range(options.seeds)))
        jobs = {
            arm: [pool.submit(run_arm, world, seed, arm) for seed, world in enumerate(worlds)]
            for arm in ARMS
        }
        found = {arm: [job.result() for job in waiting] for arm, waiting in jobs.items()}
    lines = table(found)
    print("\n".join(lines), flush=True)
    if options.write:
        write("reward_models", "\n".join(lines))


if __name__ == "__main__":
    main()
