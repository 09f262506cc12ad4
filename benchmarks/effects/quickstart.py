"""Does SFT improve the toy world's base model, and DPO the result of SFT? `python -m
benchmarks.effects.quickstart`.

One row for each seed: a new world (tasks, base model, data), the shipped recipes with that seed,
and the gold score of one sampled answer (temperature 1) to each held-out prompt. With `--write` the
table goes into `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from aligner.config.load import load_recipe
from aligner.config.recipe import Data, Model
from aligner.data.loading import load_rows
from aligner.evaluation.evaluate import evaluate
from aligner.generation.sampling import Sampling
from aligner.methods.pipeline import run_recipe
from aligner.models.loading import load_policy
from aligner.models.tokenizers import load_tokenizer
from aligner.reward_models.catalogue import load_scorer
from aligner.toy.world import write_world
from benchmarks.results import write

MODELS = {"base": "model", "SFT": "runs/sft/final", "DPO": "runs/dpo/final"}


def gold_score(folder: str, seed: int) -> tuple[float, float]:
    """Return mean and standard error over the held-out prompts."""
    section = Model(name_or_path=folder)
    tokenizer = load_tokenizer(section)
    model = load_policy(section, tokenizer, trainable=False)
    rows = load_rows(Data(train="heldout.jsonl"), "prompts", 0).train
    sampling = Sampling(max_new_tokens=32, temperature=1.0, seed=seed)
    found = evaluate(
        model,
        tokenizer,
        rows,
        task="prompts",
        scorer=load_scorer("toy"),
        sampling=sampling,
        batch_size=100,
    )
    return found["score"], found["score_stderr"]


def one_seed(seed: int) -> dict[str, tuple[float, float]]:
    """Make a world, train in it, and measure base, SFT and DPO."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            write_world(Path("."), seed=seed)
            for method in ("sft", "dpo"):
                run_recipe(load_recipe(method, f"recipes/{method}.yaml", [f"seed={seed}"]))
            return {model: gold_score(folder, seed) for model, folder in MODELS.items()}
        finally:
            os.chdir(before)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--write", action="store_true", help="write the table into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    lines = ["| seed | " + " | ".join(MODELS) + " |", "| --- |" + " --- |" * len(MODELS)]
    means: dict[str, list[float]] = {name: [] for name in MODELS}
    for seed in range(options.seeds):
        found = one_seed(seed)
        lines.append(
            f"| {seed} | "
            + " | ".join(f"{mean:.3f} ± {error:.3f}" for mean, error in found.values())
            + " |"
        )
        print(lines[-1], flush=True)
        for name, (mean, _) in found.items():
            means[name].append(mean)
    lines.append(
        "| mean | "
        + " | ".join(f"{statistics.mean(values):.3f}" for values in means.values())
        + " |"
    )
    text = "\n".join(lines)
    print(text)
    if options.write:
        write("quickstart", text)


if __name__ == "__main__":
    main()
