"""Distilled rewards against DPO on pairs that a length-biased labeller has labelled, in the toy
world.

    python -m benchmarks.effects.reward_distill [--seeds N] [--epochs N] [--arm NAME] [--write]

From the result of `tiny/sft`, on the pairs of the world. Of these, a share of `BIASED` is labelled
anew: there the labeller takes the longer answer for the better one, right or wrong. Reward
distillation reads no labels, so that bias is nothing to it; what it follows is. Its family has two
members: the gold score, and a reward model that likes length and nothing else. All arms train as
long, with the learning rate of `tiny/reward-distill`.

Cells: gold score of one sampled answer (temperature 1) to each of 400 held-out prompts, and in
brackets the mean length of these answers in characters. A seed changes the world, the labels, the
order of rows and the sampling. With `--write` the table goes into `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
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

BIASED = 0.5
"""Share of the pairs that the labeller judges by length."""

LIKES_LENGTH = """\
def length(prompt, completion, reference):
    return float(len(completion))
"""

DPO = ["dpo.loss=sigmoid", "dpo.reward_models=[]"]
FAMILY = ["dpo.reward_models=[toy, 'verifier:{functions}:length']", "dpo.reward_scale=std"]

# name -> (pairs, changes to tiny/reward-distill)
ARMS: dict[str, tuple[str, list[str]]] = {
    "DPO, right labels": ("preferences", [*DPO, "dpo.forward_kl=0"]),
    "DPO": ("biased", [*DPO, "dpo.forward_kl=0"]),
    "DPO and forward KL (p-DPO)": ("biased", [*DPO, "dpo.forward_kl=0.1"]),
    "distilled, gold": ("biased", []),
    "distilled, gold, no forward KL": ("biased", ["dpo.forward_kl=0"]),
    "distilled, gold, 1.0 forward KL": ("biased", ["dpo.forward_kl=1.0"]),
    "distilled, length alone": ("biased", [FAMILY[0].replace("toy, ", ""), FAMILY[1]]),
    "distilled, mean of gold and length": ("biased", FAMILY),
    "distilled, min of gold and length": ("biased", [*FAMILY, "dpo.reward_combine=min"]),
}


def label(world: Path, seed: int) -> None:
    """Write `biased.jsonl`: the pairs, a share of them with the longer answer as the chosen one;
    and the reward model."""
    draw = random.Random(seed)
    lines = []
    for line in (world / "preferences.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        longer = max(("chosen", "rejected"), key=lambda side: len(row[side][0]["content"]))
        if draw.random() < BIASED and longer == "rejected":
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        lines.append(json.dumps(row) + "\n")
    (world / "biased.jsonl").write_text("".join(lines), encoding="utf-8")
    (world / "functions.py").write_text(LIKES_LENGTH, encoding="utf-8")


def train(
    world: Path, start: Path, seed: int, recipe: str, data: str, changes: Sequence[str]
) -> Path:
    """Run a tiny recipe from a model, and return its result."""
    ours = [
        f"model.name_or_path={start}",
        f"data.train={world / data}.jsonl",
        "data.eval=null",
        f"seed={seed}",
        f"output_dir={world / 'runs' / recipe}",
        "report.num_prompts=0",
        "trainer.save_strategy='no'",
    ]
    method = "sft" if recipe == "sft" else "dpo"
    resolved = load_recipe(
        method,
        f"tiny/{recipe}",
        [*ours, *(change.format(functions=world / "functions.py") for change in changes)],
    )
    return run_recipe(resolved, overwrite=True).run_dir / "final"


def measure(world: Path, result: Path, seed: int) -> tuple[float, float]:
    """Gold score of one sampled answer to each held-out prompt, and the answers' mean length in
    characters."""
    tokenizer = load_tokenizer(Model(name_or_path=str(result)))
    model = load_policy(Model(name_or_path=str(result)), tokenizer, trainable=False)
    rows: Any = load_rows(
        Data(train=[Source(path=str(world / "heldout.jsonl"))]), "prompts", 0
    ).train
    sampling = Sampling(max_new_tokens=32, temperature=1.0, seed=seed)
    numbers, answers = measure_prompts(
        model, tokenizer, rows, scorer=load_scorer("toy"), sampling=sampling, batch_size=100
    )
    return numbers["score"], statistics.fmean(len(answer.text) for (answer,) in answers)


def table(
    arms: dict[str, tuple[str, list[str]]], seeds: int, epochs: float, folder: Path
) -> Iterator[str]:
    """A row for each arm, a column for each seed."""
    cells: dict[str, list[tuple[float, float]]] = {
        "start (tiny/sft)": [],
        **{name: [] for name in arms},
    }
    for seed in range(seeds):
        world = folder / str(seed)
        write_world(world, seed=seed)
        label(world, seed)
        start = train(world, world / "model", seed, "sft", "sft", [])
        cells["start (tiny/sft)"].append(measure(world, start, seed))
        for name, (pairs, changes) in arms.items():
            result = train(
                world,
                start,
                seed,
                "reward-distill",
                pairs,
                [*changes, f"trainer.num_train_epochs={epochs:g}"],
            )
            cells[name].append(measure(world, result, seed))
            print(seed, name, cells[name][-1], flush=True)
    yield "| | " + " | ".join(f"seed {seed}" for seed in range(seeds)) + " | mean |"
    yield "| --- |" + " --- |" * (seeds + 1)
    for name, found in cells.items():
        shown = [f"{score:.3f} ({length:.1f})" for score, length in found]
        yield (
            f"| {name} | "
            + " | ".join(shown)
            + f" | {statistics.fmean(score for score, _ in found):.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--arm", choices=list(ARMS), help="only this one; not to be written")
    parser.add_argument(
        "--write", action="store_true", help="write the table into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    arms = {options.arm: ARMS[options.arm]} if options.arm else ARMS
    with tempfile.TemporaryDirectory() as name:
        text = "\n".join(table(arms, options.seeds, options.epochs, Path(name)))
    print(text, flush=True)
    if options.write and not options.arm:
        write("reward_distill", text)


if __name__ == "__main__":
    main()
