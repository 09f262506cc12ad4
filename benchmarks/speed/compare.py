"""Us against TRL on the same work in the same run, as ratios: `python -m benchmarks.speed.compare
[--rows N] [--rounds N] [--model DIR]`.

Every figure is the median over rounds in which the two tools take turns, each in a process of its
own on one thread.

* `first step`: wall seconds from the command to the first logged loss, `aligner sft RECIPE` against
  `trl sft --config`: on the toy, and with `--model` on the model in that folder too, one row of at
  most 128 tokens a step, so that loading counts and not the step. Beside them what both must do:
  `import torch, transformers, trl` as it stands, which loads little of TRL, and with TRL's trainer
  and its configuration. Its ratio is the floor of ours.
* `identical`: tokens per CPU-second of training with the same batches, no checkpointing, float32,
  reference precomputed for both (its cost is in neither figure).
* `default`: the same with what each tool does when it is told nothing about batches: TRL pads
  random batches and checkpoints activations, and for DPO runs a copy of the model as the reference
  at each step; we group or pack by the histogram of lengths, and score the reference once, which is
  counted. bf16 is off for both: on CPU TRL's default of bf16 would slow it down further.

With `--write` the table replaces the part of `benchmarks/RESULTS.md` between its two marks; with
`--only first`, `sft` or `dpo`, only the rows measured are replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.results import read, write
from benchmarks.speed.workload import write_workload

HERE = Path(__file__).parent
TOOLS = ("trl", "aligner")
PARTS = ("first", "sft", "dpo")
HEAD = ("| what | TRL | aligner | ratio |", "| --- | --- | --- | --- |")
SILENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
    "ACCELERATE_USE_CPU": "true",
}


def throughput(task: str, mode: str, folder: Path, rounds: int) -> dict[str, float]:
    """Median tokens per CPU-second of each tool."""
    rates: dict[str, list[float]] = {tool: [] for tool in TOOLS}
    for _ in range(rounds):
        for tool in TOOLS:
            cache = folder / "cache"
            shutil.rmtree(cache, ignore_errors=True)
            environment = {**os.environ, **SILENT, "ALIGNER_CACHE": str(cache)}
            command = [sys.executable, str(HERE / "worker.py"), tool, task, mode, str(folder)]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            found = json.loads(done.stdout.strip().splitlines()[-1])
            seconds = found["train_cpu_s"] + (
                found.get("reference_cpu_s", 0.0) if mode == "default" else 0.0
            )
            rates[tool].append(found["tokens"] / seconds)
    return {tool: statistics.median(values) for tool, values in rates.items()}


def first_step(folder: Path, model: Path, length: int, batch: int, rounds: int) -> dict[str, float]:
    """Median wall seconds from the command to the first logged loss, and of the imports alone
    (`bare`, `trainer`)."""
    binaries = Path(sys.executable).parent
    recipe = folder / "first.yaml"
    recipe.write_text(
        f"method: sft\noutput_dir: {folder / 'first-aligner'}\nmodel: {{name_or_path: {model}}}\n"
        f"data: {{train: {folder / 'chats/train.jsonl'}, max_length: {length}, "
        "on_too_long: truncate}\n"
        f"trainer: {{max_steps: 1, per_device_train_batch_size: {batch}, logging_steps: 1}}\n"
        "report: {num_prompts: 0}\n"
    )
    config = folder / "first-trl.yaml"
    config.write_text(
        f"model_name_or_path: {model}\ndataset_name: {folder / 'chats'}\n"
        f"output_dir: {folder / 'first-trl'}\nmax_steps: 1\nlogging_steps: 1\nreport_to: "
        f"none\nbf16: false\nmax_length: {length}\n"
        f"per_device_train_batch_size: {batch}\n"
    )
    alone = "import torch, transformers, trl; {}print({{'loss': 0}}, flush=True)"
    commands = {
        "trl": [str(binaries / "trl"), "sft", "--config", str(config)],
        "aligner": [str(binaries / "aligner"), "sft", str(recipe), "--overwrite"],
        "bare": [sys.executable, "-c", alone.format("")],
        "trainer": [sys.executable, "-c", alone.format("trl.SFTTrainer, trl.SFTConfig; ")],
    }
    seconds: dict[str, list[float]] = {tool: [] for tool in commands}
    for _ in range(rounds):
        for tool, command in commands.items():
            seconds[tool].append(_until_loss(command))
    return {tool: statistics.median(values) for tool, values in seconds.items()}


def _until_loss(command: list[str]) -> float:
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        env={**os.environ, **SILENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    found = None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if (
            found is None
            and "loss" in line
            and any(c.isdigit() for c in line)
            and "loss on" not in line
        ):
            found = time.monotonic() - start
    if process.wait() != 0 or found is None:
        raise SystemExit(f"{' '.join(command)} failed:\n{''.join(seen[-20:])}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=400, help="chats and pairs to train on")
    parser.add_argument("--rounds", type=int, default=3, help="times that each tool runs")
    parser.add_argument(
        "--write", action="store_true", help="write the table into benchmarks/RESULTS.md"
    )
    parser.add_argument("--only", choices=PARTS, help="measure one part")
    parser.add_argument(
        "--model", type=Path, help="a model's folder, to which the first step is measured too"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_workload(folder, options.rows)
        parts = [options.only] if options.only else PARTS
        rows = dict(_rows(folder, options.rounds, parts, options.model))
    if options.only:
        rows = dict(_rows_of(read("speed"))) | rows
    text = "\n".join(
        [
            _setting(options),
            "",
            *HEAD,
            *(f"| {what} | {figures} |" for what, figures in rows.items()),
        ]
    )
    print(text)
    if options.write:
        write("speed", text)


def _rows(
    folder: Path, rounds: int, parts: Sequence[str], model: Path | None
) -> Iterator[tuple[str, str]]:
    """Measure, and return what stands in the table: what it is, and its three figures."""
    if "first" in parts:
        yield from _first_rows("the toy", first_step(folder, folder / "model", 512, 8, rounds))
        if model is not None:
            yield from _first_rows(model.name, first_step(folder, model, 128, 1, rounds))
    for task in [part for part in parts if part != "first"]:
        for mode in ("identical", "default"):
            found = throughput(task, mode, folder, rounds)
            ratio = found["aligner"] / found["trl"]
            what = f"{task.upper()}, {mode} settings (tokens per CPU-second, more is better)"
            yield what, _figures(found, ",.0f", ratio)


def _first_rows(name: str, found: dict[str, float]) -> Iterator[tuple[str, str]]:
    ratio = found["aligner"] / found["trl"]
    what = f"SFT of {name}, command to first step (wall s, less is better)"
    yield what, _figures(found, ".1f", ratio)
    for kind, code in (
        ("bare", "`import torch, transformers, trl`"),
        ("trainer", "the same with TRL's trainer"),
    ):
        both = dict.fromkeys(TOOLS, found[kind])
        yield f"{name}: {code} alone", _figures(both, ".1f", found[kind] / found["trl"])


def _figures(found: dict[str, float], form: str, ratio: float) -> str:
    return f"{found['trl']:{form}} | {found['aligner']:{form}} | {ratio:.2f}"


def _rows_of(text: str) -> Iterator[tuple[str, str]]:
    """Read back the rows of a table that was written earlier."""
    for line in text.splitlines():
        if line.startswith("| ") and line not in HEAD:
            what, figures = line.strip("| ").split(" | ", 1)
            yield what, figures


def _setting(options: argparse.Namespace) -> str:
    from importlib.metadata import version

    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft", "accelerate")
    )
    return (
        f"{platform.machine()} CPU, one thread, Python {platform.python_version()}, {packages}; "
        f"{options.rows} rows, median of {options.rounds} rounds."
    )


if __name__ == "__main__":
    main()
