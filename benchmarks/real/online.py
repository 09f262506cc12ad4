"""A real curve of `aligner online`: two rounds on SmolLM2, scored by a program.

    python -m benchmarks.real.online MODEL TASKS... [--folder DIR] [--write]

MODEL is a folder with a small chat model (the figures in RESULTS.md are of SmolLM2-135M-Instruct),
TASKS files with an `instruction`, or a `prompt`, in each row (there: the seed tasks of
Self-Instruct and the questions of Arena-Hard, short ones). The task is that of
`examples/three_lines.py`: a list of three short lines in words of one's own, and its verifier is
the reward. 256 prompts in two rounds of 128, four answers each, LoRA, max-min pairs; 40 prompts are
held out, with two answers each after each round. Some ten minutes on a core. `--folder` keeps the
run, and resumes it there.
"""

from __future__ import annotations

import argparse
import json
import runpy
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from aligner.config.load import load_recipe
from aligner.methods.online.rounds import run_online
from aligner.runs.files import parse_json, read_metrics
from benchmarks.results import write

Run = Callable[[Path, Sequence[Path], Path], list[str]]
"""Model, files of tasks, folder -> the lines of the table."""

ROOT = Path(__file__).parents[2]
TASK = ROOT / "examples" / "three_lines.py"
TRAIN, HELD_OUT = 256, 40
SETTINGS = [
    "seed=0",
    "model.lora={}",
    "data.max_length=512",
    "online.rounds=2",
    f"online.prompts_per_round={TRAIN // 2}",
    "online.num_samples=4",
    "online.max_new_tokens=32",
    "online.generation_batch_size=64",
    "online.evaluation.num_samples=2",
    "dpo.beta=0.1",
    "dpo.nll_weight=0.2",
    "trainer.learning_rate=1e-4",
    "trainer.num_train_epochs=2",
    "trainer.per_device_train_batch_size=8",
    "trainer.logging_steps=4",
]


def write_prompts(files: Sequence[Path], folder: Path) -> None:
    """Write `train.jsonl` and `heldout.jsonl`."""
    as_prompt = runpy.run_path(str(TASK))["prompts"]
    found: dict[str, dict[str, str]] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            row.setdefault("instruction", row.get("prompt", ""))
            if (made := as_prompt(row)) is not None:
                turns = [{"role": "user", "content": made["prompt"]}]
                found[made["prompt"]] = {"prompt": turns}  # type: ignore[dict-item]
    rows = list(found.values())[: TRAIN + HELD_OUT]
    if len(rows) < TRAIN + HELD_OUT:
        raise SystemExit(f"{len(rows)} short instructions are there, {TRAIN + HELD_OUT} are wanted")
    step = len(rows) // HELD_OUT
    held_out = rows[::step][:HELD_OUT]
    train = [row for row in rows if row not in held_out]
    for name, part in (("train", train), ("heldout", held_out)):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def run(model: Path, files: Sequence[Path], folder: Path) -> list[str]:
    """Carry out the rounds, and return the lines of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    write_prompts(files, folder)
    recipe = load_recipe(
        "online",
        None,
        [
            f"model.name_or_path={model}",
            f"data.train={folder / 'train.jsonl'}",
            f"data.eval={folder / 'heldout.jsonl'}",
            f"output_dir={folder / 'run'}",
            f"online.reward_models=['verifier:{TASK}:share']",
            *SETTINGS,
        ],
    )
    began = time.process_time()
    run_online(recipe, resume=(folder / "run").exists(), on_event=lambda event: print(event))
    spent = time.process_time() - began
    summary = parse_json(folder / "run" / "rounds.json", "run it again")
    lines = [
        f"{spent:,.0f} CPU-seconds; the best round by the validation prompts is {summary['best']}.",
        "",
        "| round | pairs | loss, last | accuracy, last | reward | of test prompts | KL | tokens | "
        "end by themselves | wins against the start |",
        "| --- |" + " --- |" * 9,
    ]
    for number, measured in enumerate(summary["rounds"]):
        lines.append(_line(folder / "run" / "rounds" / f"{number:02d}", number, measured))
    return lines


def _line(folder: Path, number: int, measured: dict[str, Any]) -> str:
    chosen, test = measured["validation"], measured["test"]
    trained: dict[str, Any] = {}
    pairs = ""
    if number:
        pairs = str(parse_json(folder / "pair" / "done.json", "run it again")["facts"]["pairs"])
        trained = [one for one in read_metrics(folder / "train" / "run") if "loss" in one][-1]
    wins = (measured["wins"] or {}).get("start")
    cells = [
        "start" if number == 0 else str(number),
        pairs,
        _text(trained.get("loss"), 3),
        _text(trained.get("rewards/accuracies"), 2),
        f"{chosen['reward']:.3f} ± {chosen['reward_stderr']:.3f}",
        f"{test['reward']:.3f} ± {test['reward_stderr']:.3f}",
        _text(chosen["kl"], 2),
        _text(chosen["tokens"], 1),
        f"{chosen['finished']:.0%}",
        "" if wins is None else f"{wins['value']:.0%} ({wins['low']:.0%} to {wins['high']:.0%})",
    ]
    return f"| {' | '.join(cells)} |"


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def measure(about: str, carry_out: Run, mark: str) -> None:
    """Read the command line of a run on a real model, carry it out, and print its lines; with
    `--write` they go between the marks of this name."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("tasks", type=Path, nargs="+")
    parser.add_argument("--folder", type=Path, help="keep what is done here, and resume it")
    parser.add_argument("--write", action="store_true", help="write into benchmarks/RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = (options.folder or Path(name)).resolve()
        lines = carry_out(options.model.resolve(), options.tasks, folder)
    print("\n".join(lines), flush=True)
    if options.write:
        write(mark, "\n".join(lines))


if __name__ == "__main__":
    measure(str(__doc__), run, "online-real")
