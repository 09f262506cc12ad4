"""GRPO against TRL's GRPOTrainer on a real model, in one run: `python -m benchmarks.speed.rlhf
MODEL [--write]`.

MODEL is a folder with a small chat model, such as SmolLM2-135M-Instruct. Prompts are random words
of a given length. Each tool runs in a process of its own on one thread: a few steps with the same
prompts, group size, longest response, temperature and learning rate, float32, full fine-tuning, no
reference, and a reward that costs nothing. Responses are random, so their lengths differ a little:
what counts is tokens, those that were sampled and those, prompts included, that were trained on,
for a CPU second of `Trainer.train()`. Memory is the peak of the process above the loaded libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import write
from benchmarks.speed.memory import peak_mib
from benchmarks.speed.real_model import ROOT, SEED, rows_of

STEPS, GROUP = 3, 8
SHAPES = ((256, 64, 2), (64, 64, 2), (512, 64, 1))
"""Tokens of a prompt, of the longest response, and prompts of a step: TRL does not fit into 24 GiB
with two of the longest."""
GOAL = 1.5
TOOLS = ("trl", "aligner")


def reward(prompts: Any, completions: Any, references: Any = None) -> list[float]:
    """The share of the letter e in each text."""
    return [text.count("e") / max(1, len(text)) for text in completions]


def measure(tool: str, model: Path, file: Path, longest: int) -> dict[str, Any]:
    """One training in this process: CPU seconds, MiB above the libraries, tokens."""
    import torch
    import transformers
    import trl  # noqa: F401 - a library of both

    from aligner.methods.steps import steps_of
    from benchmarks.speed.worker import _timed

    torch.set_num_threads(1)
    steps_of("rlhf").load()
    spent: dict[str, float] = {}
    transformers.Trainer.train = _timed(transformers.Trainer.train, spent, "train")
    base = peak_mib()
    with tempfile.TemporaryDirectory() as name:
        run = {"trl": _trl, "aligner": _aligner}[tool]
        found = run(model, file, longest, Path(name))
    peak = peak_mib() - base
    return {**found, "cpu_s": spent["train"], "peak_mib": peak}


def _trl(model: Path, file: Path, longest: int, folder: Path) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    rows = [json.loads(line) for line in file.read_text().splitlines()]
    arguments = GRPOConfig(
        output_dir=str(folder),
        max_steps=STEPS,
        logging_steps=1,
        learning_rate=1e-6,
        per_device_train_batch_size=len(rows) // STEPS * GROUP,
        num_generations=GROUP,
        max_completion_length=longest,
        report_to="none",
        save_strategy="no",
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        gradient_checkpointing=False,
        seed=SEED,
    )

    def scored(completions: Any, **_: Any) -> list[float]:
        return reward(None, [turns[0]["content"] for turns in completions])

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
        reward_funcs=scored,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    logs = [line for line in trainer.state.log_history if "completions/mean_length" in line]
    return {"lengths": [line["completions/mean_length"] for line in logs]}


def _aligner(model: Path, file: Path, longest: int, folder: Path) -> dict[str, Any]:
    from aligner.config.load import load_recipe
    from aligner.methods.pipeline import run_recipe
    from aligner.methods.rlhf import train
    from aligner.reward_models.functions import as_scorer
    from aligner.runs.files import read_metrics

    train.load_scorer = lambda spec: as_scorer(reward)  # in this process, as TRL's is
    prompts = len(file.read_text().splitlines()) // STEPS
    settings = [
        f"model.name_or_path={model}",
        f"data.train={file}",
        f"output_dir={folder / 'run'}",
        f"seed={SEED}",
        "rlhf.reward_models=[toy]",
        f"rlhf.group_size={GROUP}",
        f"rlhf.max_new_tokens={longest}",
        f"trainer.max_steps={STEPS}",
        "trainer.logging_steps=1",
        "trainer.learning_rate=1e-6",
        f"trainer.per_device_train_batch_size={prompts}",
        "trainer.save_strategy='no'",
        "trainer.report_to=none",
        "trainer.bf16=false",
        "trainer.use_cpu=true",
        "report.num_prompts=0",
    ]
    outcome = run_recipe(load_recipe("rlhf", None, settings))
    ledger = json.loads((outcome.run_dir / "data.json").read_text())["splits"]["train"]
    log = [line for line in read_metrics(outcome.run_dir) if line["split"] == "train"]
    lengths = [line["completions/mean_length"] for line in log]
    return {"lengths": lengths, "prompt_tokens": ledger["tokens"] / ledger["rows"]}


def compared(model: Path, folder: Path, shapes: Sequence[tuple[int, int, int]]) -> Iterator[str]:
    """The lines of the table, each of two processes one after the other."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "ALIGNER_CACHE": str(folder / "cache")}
    for prompt, longest, prompts in shapes:
        file = folder / f"{prompt}.jsonl"
        rows = [{"prompt": row["prompt"]} for row in rows_of(model, (prompt, 2), "sft")]
        lines = [json.dumps(row) + "\n" for row in rows[: STEPS * prompts]]
        file.write_text("".join(lines))
        found = {}
        for tool in TOOLS:
            command = [sys.executable, "-m", "benchmarks.speed.rlhf", str(model)]
            command += ["--measure", tool, str(file), str(longest)]
            done = subprocess.run(
                command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
            found[tool] = json.loads(done.stdout.strip().splitlines()[-1])
        yield _line(prompt, longest, prompts * GROUP, found)


def _line(prompt: int, longest: int, responses: int, found: dict[str, dict[str, Any]]) -> str:
    before = found["aligner"]["prompt_tokens"]
    rates = []
    for tool in TOOLS:
        tokens = sum(responses * (before + 2 * length) for length in found[tool]["lengths"])
        rates.append(tokens / found[tool]["cpu_s"])
    memory = [found[tool]["peak_mib"] for tool in TOOLS]
    means = [sum(found[tool]["lengths"]) / STEPS for tool in TOOLS]
    cells = [
        f"{prompt}/{longest}",
        str(responses),
        *(f"{rate:,.0f}" for rate in rates),
        f"{rates[1] / rates[0]:.2f} (goal {GOAL:.2f})",
        *(f"{mib:,.0f}" for mib in memory),
        f"{memory[1] / memory[0]:.2f}",
        " and ".join(f"{mean:.0f}" for mean in means),
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| prompt/longest response, tokens | responses a step | TRL, tokens per CPU-second | aligner | "
    "ratio | TRL, MiB | aligner | ratio | mean length of responses |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of a small chat model")
    parser.add_argument("--write", action="store_true", help="write into benchmarks/RESULTS.md")
    parser.add_argument("--first", action="store_true", help="measure the first shape alone")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        tool, file, longest = options.measure
        print(json.dumps(measure(tool, options.model, Path(file), int(longest))))
        return
    with tempfile.TemporaryDirectory() as name:
        lines = []
        shapes = SHAPES[:1] if options.first else SHAPES
        for line in compared(options.model.resolve(), Path(name), shapes):
            print(line, flush=True)
            lines.append(line)
    setting = (
        f"One thread, groups of {GROUP}, {STEPS} steps, full fine-tuning in float32, no reference."
    )
    if options.write:
        write("rlhf-speed", "\n".join([setting, "", HEAD, *lines]))


if __name__ == "__main__":
    main()
