"""Do the tiny recipes end where they do in float32 when they compute in bfloat16? `python -m
benchmarks.effects.bf16 [--seeds N] [--write]`.

For each seed a new world (tasks, base model, data), and in it the shipped recipes `tiny/sft`,
`tiny/dpo`, `tiny/sapo` and `tiny/reward` with that seed, twice: with `trainer.bf16=false` and with
`true`. The last three start from the result of the first in the same precision. Cells: gold score
of one sampled answer (temperature 1) to each held-out prompt; for `tiny/reward` its accuracy on
held-out pairs. The last line is the difference of the means beside the spread of float32, the
standard deviation over its seeds. Run on a CPU that computes bfloat16 itself or not: the numbers
are those of bfloat16 in both cases. With `--write` the table goes into `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from aligner.config.load import load_recipe
from aligner.methods.pipeline import run_recipe
from aligner.toy.world import write_world
from benchmarks.effects.quickstart import gold_score
from benchmarks.results import write

METHODS = ("sft", "dpo", "sapo", "reward")
PRECISIONS = {"float32": "false", "bfloat16": "true"}

Cells = dict[str, dict[str, float]]
"""Precision -> method -> what it came to."""


def one_seed(seed: int) -> Cells:
    """Make a world, and train in it with every method in both precisions."""
    before = Path.cwd()
    found: Cells = {}
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            write_world(Path("."), seed=seed)
            for precision in PRECISIONS:
                found[precision] = {
                    method: _train_and_measure(method, precision, seed) for method in METHODS
                }
        finally:
            os.chdir(before)
    return found


def _train_and_measure(method: str, precision: str, seed: int) -> float:
    folder = f"runs/{precision}/{method}"
    changes = [f"seed={seed}", f"trainer.bf16={PRECISIONS[precision]}", f"output_dir={folder}"]
    changes += ["trainer.use_cpu=true", "report.num_prompts=0"]
    if method != "sft":
        changes.append(f"model.name_or_path=runs/{precision}/sft/final")
    result = run_recipe(load_recipe(method, f"recipes/{method}.yaml", changes))
    if method == "reward":
        return result.results["eval/accuracy"]
    return gold_score(f"{folder}/final", seed)[0]


def table(seeds: list[Cells]) -> str:
    """The cells of each seed, their means, and how far bfloat16 is from float32."""
    lines = [
        f"| seed | precision | {' | '.join(METHODS)} |",
        f"| --- | --- |{' --- |' * len(METHODS)}",
    ]
    for seed, cells in enumerate(seeds):
        lines += [_line(str(seed), name, list(cells[name].values())) for name in PRECISIONS]
    means = {name: [_mean(seeds, name, method) for method in METHODS] for name in PRECISIONS}
    lines += [_line("mean", name, means[name]) for name in PRECISIONS]
    spreads = [
        statistics.stdev(cells["float32"][method] for cells in seeds) if len(seeds) > 1 else 0.0
        for method in METHODS
    ]
    gaps = [after - before for before, after in zip(*means.values())]
    beside = [f"{gap:+.3f} (spread {spread:.3f})" for gap, spread in zip(gaps, spreads)]
    return "\n".join([*lines, f"| difference | | {' | '.join(beside)} |"])


def _line(seed: str, precision: str, values: list[float]) -> str:
    return f"| {seed} | {precision} | {' | '.join(f'{value:.3f}' for value in values)} |"


def _mean(seeds: list[Cells], precision: str, method: str) -> float:
    return statistics.mean(cells[precision][method] for cells in seeds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--write", action="store_true", help="write the table into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    seeds: list[Cells] = []
    for seed in range(options.seeds):
        seeds.append(one_seed(seed))
        print(table(seeds), flush=True)
    if options.write:
        write("bf16", table(seeds))


if __name__ == "__main__":
    main()
