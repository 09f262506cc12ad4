"""What generation costs: our decode loop against transformers' `generate`, and samples of one
prompt against prompts of their own.

    python -m benchmarks.speed.generation [--model FOLDER] [--write]

Rows with a long tail: 64 prompts of 20 to 100 tokens; half of the answers end within 20 tokens,
some run to 256. Each row is given its length as its budget, which takes chance out of the
comparison; nothing orders rows by it. transformers decodes them in the order of arrival, each batch
until its longest row ends, which is what plain `generate` does; both have 16 rows at a time, and
sample at temperature 1. Counted are the tokens that were asked for.

Eight samples: of one prompt (n=8), and of eight prompts as long, all eight at a time.

Each measurement is a process of its own on one thread, the tools in turn; medians over rounds. CPU
time is that of the decoding alone, after a few tokens to warm up; memory is the peak of the process
less what the libraries hold before the model is loaded. FOLDER: a model to measure beside the toy
model with random weights (the figures in RESULTS.md are of SmolLM2-135M-Instruct). It wants a calm
machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.results import write
from benchmarks.speed.memory import peak_mib

ROOT = Path(__file__).parents[2]
BATCH, ROWS, ROUNDS = 16, 64, 3

Row = tuple[list[int], int]
"""Token ids of a prompt, and how many tokens are to follow."""

TITLES = {
    ("tail", "transformers"): "64 prompts with a long tail, transformers' `generate`",
    ("tail", "aligner"): "the same, aligner",
    ("tail", "hf_cb"): "the same, aligner's engine `hf_cb` (transformers' continuous batching)",
    ("tail", "bf16"): "the same, aligner, weights in bfloat16",
    ("samples", "transformers"): "eight prompts, transformers' `generate`",
    ("samples", "aligner"): "eight prompts, aligner",
    ("samples", "shared"): "eight samples of one prompt, aligner",
}
RATIOS = (
    ("long tail, aligner over transformers", ("tail", "aligner"), ("tail", "transformers"), 2.5),
    ("n=8 over eight prompts", ("samples", "shared"), ("samples", "aligner"), 1.5),
)


def rows_of(task: str, vocabulary: int, positions: int) -> list[Row]:
    """Return the prompts and budgets of a task, the same for every tool."""
    rng = random.Random(0)
    share = min(1.0, positions / 1024)
    if task == "samples":
        sizes = [(round(512 * share), round(64 * share))] * 8
    else:
        sizes = [(rng.randrange(20, 100), _length(rng)) for _ in range(ROWS)]
    return [([rng.randrange(5, vocabulary) for _ in range(size)], budget) for size, budget in sizes]


def _length(rng: random.Random) -> int:
    if rng.random() < 0.5:
        return rng.randrange(4, 21)
    return min(256, int(21 * (256 / 21) ** (1.05 * rng.random())))


def work(task: str, tool: str, folder: Path) -> dict[str, float]:
    """Decode in this process; return tokens, CPU seconds and the peak memory in MiB."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from aligner.generation.engines import engine_for

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    before = peak_mib()
    dtype = torch.bfloat16 if tool == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    rows = rows_of(task, model.config.vocab_size, model.config.max_position_embeddings)
    engine = engine_for(model, name="hf_cb" if tool == "hf_cb" else "hf", batch_size=BATCH)
    decode = partial(_plain, model) if tool == "transformers" else partial(_ours, engine)
    decode([([5, 6], 3)], samples=1)
    start = time.process_time()
    decode(rows, samples=8 if tool == "shared" else 1)
    spent = time.process_time() - start
    peak = peak_mib() - before
    return {"tokens": sum(budget for _, budget in rows), "cpu_s": spent, "peak_mib": peak}


def _plain(model: Any, rows: list[Row], samples: int) -> None:
    from transformers import GenerationConfig

    from aligner.models.forward import pad

    assert samples == 1
    for first in range(0, len(rows), BATCH):
        batch = rows[first : first + BATCH]
        padded = pad([ids for ids, _ in batch], 0, left=True)
        longest = max(budget for _, budget in batch)
        config = GenerationConfig(
            max_new_tokens=longest, do_sample=True, top_k=0, pad_token_id=0, eos_token_id=None
        )
        model.generate(
            input_ids=padded["input_ids"],
            attention_mask=padded["attention_mask"],
            generation_config=config,
        )


def _ours(engine: Any, rows: list[Row], samples: int) -> None:
    from aligner.generation.requests import Request
    from aligner.generation.sampling import Sampling

    requests = []
    for stream, (ids, budget) in enumerate(rows[:: 1 if samples == 1 else len(rows)]):
        sampling = Sampling(max_new_tokens=budget, num_samples=samples)
        requests.append(Request(ids, sampling, (), stream))
    found = engine.generate(requests)
    assert sum(map(len, found)) == len(rows)


def run(task: str, tool: str, folder: Path) -> dict[str, float]:
    """The same in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks.speed.generation", "--work", task, tool]
    done = subprocess.run(
        [*command, "--model", str(folder)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(models: dict[str, Path], rounds: int) -> Iterator[str]:
    """All measurements as a table, and the ratios."""
    yield "| model | what | sampled tokens per CPU-second | peak memory |"
    yield "| --- | --- | --- | --- |"
    speeds: dict[tuple[str, tuple[str, str]], float] = {}
    for model, folder in models.items():
        found: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in TITLES}
        for _ in range(rounds):
            for task, tool in TITLES:
                found[task, tool].append(run(task, tool, folder))
        for key, title in TITLES.items():
            speed = statistics.median(one["tokens"] / one["cpu_s"] for one in found[key])
            memory = statistics.median(one["peak_mib"] for one in found[key])
            speeds[model, key] = speed
            yield f"| {model} | {title} | {speed:,.1f} | {memory:,.0f} MiB |"
    yield ""
    for title, ours, theirs, goal in RATIOS:
        ratios = ", ".join(
            f"{speeds[model, ours] / speeds[model, theirs]:.2f} ({model})" for model in models
        )
        yield f"* {title}: {ratios}; goal: {goal}."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write", action="store_true", help="write the table into benchmarks/RESULTS.md"
    )
    parser.add_argument("--model", type=Path, help="a folder with a model to measure as well")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--work", nargs=2, metavar=("TASK", "TOOL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(*options.work, options.model)))
        return
    with tempfile.TemporaryDirectory() as name:
        from benchmarks.speed.workload import write_workload

        write_workload(Path(name), 1)
        models = {"toy": Path(name) / "model"}
        if options.model:
            models[options.model.name] = options.model
        text = "\n".join(table(models, options.rounds))
    print(text)
    if options.write:
        write("generation", text)


if __name__ == "__main__":
    main()
