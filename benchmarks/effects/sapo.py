"""SAPO against its own start and against what else can be done with single good answers, in the toy
world.

    python -m benchmarks.effects.sapo [--part baselines|ablations] [--seeds N] [--write]

One half of the SFT rows (A) trains the start by `tiny/sft`; the other half (B), which it has not
seen, is what all others train on, from that start, for the same number of steps. Cells: gold score
of one sampled answer (temperature 1) to each of 400 held-out prompts, and in brackets the share of
different texts among eight answers to each of 50 prompts. A seed changes the world, the order of
rows and the sampling. With `--write` the tables go into `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from aligner.config.load import load_recipe
from aligner.config.recipe import Data, Model, Source
from aligner.data.loading import load_rows
from aligner.evaluation.answers import measure_prompts
from aligner.generation.sampling import Sampling
from aligner.methods.pipeline import run_recipe
from aligner.models.loading import load_policy
from aligner.models.tokenizers import load_tokenizer
from aligner.reward_models.catalogue import load_scorer
from aligner.toy.world import write_world
from benchmarks.results import write

STEPS = 100
BATCH = 32

# name -> (recipe, data, changes to it)
PAPER = ["sapo.dead_pairs=keep"]
BASELINES: dict[str, tuple[str, str, list[str]]] = {
    "SFT on B": ("sft", "b.jsonl", []),
    "SAPO-DPO": ("sapo", "b.jsonl", PAPER),
    "SAPO-DPO, dead pairs dropped": ("sapo", "b.jsonl", []),
    "SAPO-DPO, dropped, and 0.2 NLL": ("sapo", "b.jsonl", ["sapo.nll_weight=0.2"]),
    "SAPO-ORPO": ("sapo-orpo", "b.jsonl", PAPER),
    "SPIN": ("spin", "b.jsonl", []),
    "DPO, random negatives": (
        "dpo",
        "random_pairs.jsonl",
        ["dpo.nll_weight=0", "trainer.learning_rate=1e-4"],
    ),
}
ABLATIONS: dict[str, tuple[str, str, list[str]]] = {
    "SAPO-DPO (window 4, suffix kept, reference ema)": ("sapo", "b.jsonl", PAPER),
    "reference: policy": ("sapo", "b.jsonl", [*PAPER, "sapo.reference=policy"]),
    "reference: fixed": ("sapo", "b.jsonl", [*PAPER, "sapo.reference=fixed"]),
    "suffix: drop": ("sapo", "b.jsonl", [*PAPER, "sapo.suffix=drop"]),
    "window: 2": ("sapo", "b.jsonl", [*PAPER, "sapo.window=2"]),
    "window: all": ("sapo", "b.jsonl", [*PAPER, "sapo.window=all"]),
    "no replay": ("sapo", "b.jsonl", [*PAPER, "sapo.buffer_size=0"]),
}


def split(world: Path, seed: int) -> None:
    """Write A, B, and pairs of B whose rejected answer is that of another row."""
    rows = [
        json.loads(line) for line in (world / "sft.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    by_question: dict[str, list[Any]] = {}
    for row in rows:
        by_question.setdefault(json.dumps(row["messages"][:-1]), []).append(row)
    questions = sorted(by_question)
    rng = random.Random(seed)
    rng.shuffle(questions)
    halves = questions[: len(questions) // 2], questions[len(questions) // 2 :]
    for name, half in zip("ab", halves):
        _write(world / f"{name}.jsonl", [row for question in half for row in by_question[question]])
    second = [row for question in halves[1] for row in by_question[question]]
    answers = [row["messages"][-1]["content"] for row in second]
    pairs = []
    for row, answer in zip(second, answers):
        other = rng.choice([one for one in answers if one != answer])
        pairs.append({"prompt": row["messages"][:-1], "chosen": answer, "rejected": other})
    _write(world / "random_pairs.jsonl", [_as_pair(pair) for pair in pairs])


def _as_pair(pair: dict[str, Any]) -> dict[str, Any]:
    sides = {
        side: [{"role": "assistant", "content": pair[side]}] for side in ("chosen", "rejected")
    }
    return {"prompt": pair["prompt"], **sides}


def _write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train(
    world: Path,
    start: Path,
    seed: int,
    recipe: str,
    data: str,
    changes: list[str],
    steps: int | None,
) -> Path:
    """Run a tiny recipe from a model, and return its result."""
    output = world / "runs" / f"{len(list((world / 'runs').glob('*')))}"
    ours = [
        f"model.name_or_path={start}",
        f"data.train={world / data}",
        f"seed={seed}",
        f"output_dir={output}",
        "report.num_prompts=0",
        "trainer.save_strategy='no'",
        "data.eval=null",
        *(
            [f"trainer.max_steps={steps}", f"trainer.per_device_train_batch_size={BATCH}"]
            if steps
            else []
        ),
    ]
    method = "sapo" if recipe in ("sapo-orpo", "spin") else recipe
    return run_recipe(load_recipe(method, f"tiny/{recipe}", [*ours, *changes])).run_dir / "final"


def measure(world: Path, result: Path, seed: int) -> tuple[float, float]:
    """Gold score of sampled answers, and the share of different texts among eight answers to a
    prompt."""
    tokenizer = load_tokenizer(Model(name_or_path=str(result)))
    model = load_policy(Model(name_or_path=str(result)), tokenizer, trainable=False)
    rows = load_rows(Data(train=[Source(path=str(world / "heldout.jsonl"))]), "prompts", 0).train
    scorer = load_scorer("toy")
    once = Sampling(max_new_tokens=32, temperature=1.0, seed=seed)
    score = measure_prompts(model, tokenizer, rows, scorer=scorer, sampling=once, batch_size=100)[
        0
    ]["score"]
    often = Sampling(max_new_tokens=32, temperature=1.0, seed=seed, num_samples=8)
    answers = measure_prompts(
        model, tokenizer, rows[:50], scorer=scorer, sampling=often, batch_size=100
    )[1]
    return score, statistics.fmean(
        len({one.text for one in samples}) / len(samples) for samples in answers
    )


def table(part: str, seeds: int, folder: Path) -> Iterator[str]:
    """A row for each way of training, a column for each seed."""
    variants = BASELINES if part == "baselines" else ABLATIONS
    cells: dict[str, list[tuple[float, float]]] = {
        "start (SFT on A)": [],
        **{name: [] for name in variants},
    }
    for seed in range(seeds):
        world = folder / str(seed)
        if not world.exists():
            write_world(world, seed=seed)
            split(world, seed)
            (world / "runs").mkdir()
            train(
                world,
                world / "model",
                seed,
                "sft",
                "a.jsonl",
                [f"output_dir={world / 'start'}"],
                None,
            )
        start = world / "start" / "final"
        cells["start (SFT on A)"].append(measure(world, start, seed))
        for name, (recipe, data, changes) in variants.items():
            result = train(world, start, seed, recipe, data, changes, STEPS)
            cells[name].append(measure(world, result, seed))
            print(part, seed, name, cells[name][-1], flush=True)
    yield "| | " + " | ".join(f"seed {seed}" for seed in range(seeds)) + " | mean |"
    yield "| --- |" + " --- |" * (seeds + 1)
    for name, found in cells.items():
        shown = [f"{score:.3f} ({different:.2f})" for score, different in found]
        yield (
            f"| {name} | "
            + " | ".join([*shown, f"{statistics.fmean(score for score, _ in found):.3f}"])
            + " |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("baselines", "ablations"), help="only this one")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--write", action="store_true", help="write the tables into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        for part in [options.part] if options.part else ["baselines", "ablations"]:
            text = "\n".join(table(part, options.seeds, Path(name)))
            print(text, flush=True)
            if options.write:
                write(f"sapo-{part}", text)


if __name__ == "__main__":
    main()
