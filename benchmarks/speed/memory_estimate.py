"""The memory that a training was estimated to take against what it took, as the allocator saw it:
`python -m benchmarks.speed.memory_estimate MODEL [--only N] [--folder FOLDER] [--write]`.

MODEL is a folder with a small chat model, such as SmolLM2-135M-Instruct. Each line is a whole
training of two steps in a process of its own, on one thread, through `aligner`'s own pipeline: from
loading the model to saving it. `measured` is the most that torch's CPU allocator had handed out at
once, from each allocation and release that its profiler saw; weights are read without threads and
without mapping files, so that they are among them. With `--process` each training is repeated
without a profiler for the peak of the process above its libraries, where glibc gives freed memory
back at once; that also holds tokenized rows, and what kernels allocate past the allocator. The
estimate is that of `aligner.memory.estimate` with the lengths of the tokenized rows, which the
training itself has written. Takes half an hour on two cores that nobody else uses; with
`--folder` a run that was stopped continues with the trainings that are left.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.results import write
from benchmarks.speed.memory import peak_mib
from benchmarks.speed.real_model import ROOT, rows_of
from benchmarks.speed.rlhf_memory import held

GOAL = 0.15
STEPS = 2
LORA, NF4 = "model.lora={}", "model.quantization=nf4"
KEPT, AGAIN = "trainer.gradient_checkpointing=false", "trainer.gradient_checkpointing=true"
SMALL, LARGE = "trainer.per_device_train_batch_size=2", "trainer.per_device_train_batch_size=4"
BIG, MANY = "trainer.per_device_train_batch_size=32", "trainer.max_steps=60"
BF16 = "trainer.bf16=true"
TOY_SCORE = "rlhf.reward_models=[toy]"
SHORT = ("rlhf.max_new_tokens=6", "trainer.max_steps=20")
RLHF = ("rlhf.reward_models=[verifier:number]", "rlhf.group_size=4", "rlhf.beta=0.02")
RLHF += ("trainer.per_device_train_batch_size=1",)
REWRITE = ("sapo.window=16", "sapo.buffer_size=0")

Case = tuple[str, str, str, tuple[str, ...]]
"""Model (`toy` or `real`), method, what is trained how, settings."""

CASES: list[Case] = [
    ("toy", "sft", "full, 60 steps", (KEPT, BIG, MANY)),
    ("toy", "dpo", "LoRA, 60 steps", (KEPT, LORA, BIG, MANY)),
    ("toy", "rlhf", "GRPO, up to 48 tokens", (KEPT, TOY_SCORE, "rlhf.max_new_tokens=48")),
    ("real", "sft", "full", (KEPT, LARGE)),
    ("real", "sft", "full, checkpointing", (AGAIN, LARGE)),
    ("real", "sft", "full, bf16", (KEPT, LARGE, BF16)),
    (
        "real",
        "sft",
        "full, 2 passes a step",
        (KEPT, SMALL, "trainer.gradient_accumulation_steps=2"),
    ),
    ("real", "sft", "full, rows of any length", (KEPT, LARGE, "trainer.max_steps=8")),
    ("real", "sft", "LoRA", (KEPT, LARGE, LORA)),
    ("real", "sft", "LoRA, bf16", (KEPT, LARGE, LORA, BF16)),
    ("real", "sft", "QLoRA (nf4)", (KEPT, LARGE, LORA, NF4)),
    ("real", "sft", "QLoRA (nf4), checkpointing", (AGAIN, LARGE, LORA, NF4)),
    ("real", "sft", "LoRA on int8", (KEPT, LARGE, LORA, "model.quantization=int8")),
    ("real", "dpo", "full", (KEPT, SMALL)),
    ("real", "dpo", "LoRA", (KEPT, SMALL, LORA)),
    (
        "real",
        "dpo",
        "LoRA, checkpointing, apart",
        (AGAIN, SMALL, LORA, "preference.prefix=separate"),
    ),
    ("real", "reward", "full, checkpointing", (AGAIN, SMALL)),
    ("real", "reward", "LoRA", (KEPT, SMALL, LORA)),
    ("real", "sapo", "full", (KEPT, SMALL, *REWRITE)),
    ("real", "sapo", "LoRA", (KEPT, SMALL, LORA, *REWRITE)),
    ("real", "rlhf", "GRPO, LoRA", (KEPT, LORA, "rlhf.max_new_tokens=16", *RLHF)),
    (
        "real",
        "rlhf",
        "PPO, LoRA",
        (KEPT, LORA, "rlhf.algorithm=ppo", "rlhf.max_new_tokens=16", *RLHF),
    ),
    ("toy", "rlhf", "GRPO, up to 6 tokens, 20 steps", (KEPT, TOY_SCORE, *SHORT)),
]


def settings_of(case: Case, model: Path, folder: Path) -> list[str]:
    """All settings of a training."""
    kind, method, what, settings = case
    rows = {"dpo": "pairs", "reward": "pairs", "rlhf": "prompts"}.get(method, "chats")
    rows = "uneven" if "any length" in what else rows
    return [
        f"model.name_or_path={folder / 'world/model' if kind == 'toy' else model}",
        f"data.train={folder / ('world' if kind == 'toy' else '.') / rows}.jsonl",
        f"output_dir={folder / 'run'}",
        f"trainer.max_steps={STEPS}",
        "trainer.save_strategy='no'",
        "trainer.use_cpu=true",
        "report.num_prompts=0",
        *([] if BF16 in settings else ["trainer.bf16=false"]),
        *settings,
    ]


def measure(case: Case, model: Path, folder: Path, *, is_profiled: bool) -> dict[str, float]:
    """One training in this process: MiB estimated and of the allocator, or of the process."""
    import peft  # noqa: F401 - a library of every training
    import torch
    from torch.profiler import ProfilerActivity, profile

    from aligner.config.load import load_recipe
    from aligner.config.recipe import TrainRecipe
    from aligner.memory.estimate import estimate
    from aligner.memory.footprint import row_lengths, rows_together
    from aligner.methods.pipeline import run_recipe
    from aligner.methods.steps import steps_of
    from aligner.tokenization.dataset import load_tokenized

    torch.set_num_threads(1)
    steps_of(case[1]).load()
    base, mib = held(), 2**20
    resolved = load_recipe(case[1], None, settings_of(case, model, folder))
    if not is_profiled:
        run_recipe(resolved)
        return {"process": peak_mib() - base}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run_recipe(resolved)
    assert isinstance(resolved.recipe, TrainRecipe)
    prepared = load_tokenized(folder / "run/prepared")
    batching = prepared.batching
    lengths = row_lengths(
        prepared.train,
        is_packed=batching.packing,
        grouped=batching.grouped * rows_together(resolved.recipe),
    )
    found = estimate(resolved.recipe, lengths, cuda=False)
    return {"estimated": found.peak_bytes / mib, "measured": peak_bytes(seen) / mib}


def peak_bytes(seen: Any) -> int:
    """The most bytes that were handed out at once."""
    events = [
        event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    held_now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held_now += event.nbytes()
        peak = max(peak, held_now)
    return peak


def prepare(model: Path, folder: Path) -> None:
    """Write rows for both models: prompts of 192 words and answers of 64, some of any length."""
    if (folder / "world/chats.jsonl").exists():
        return
    chats = rows_of(model, (192, 64), "sft")[:32]
    prompts = [{"prompt": row["prompt"], "answer": "1"} for row in chats]
    uneven = []
    for number, row in enumerate(chats):
        length = 40 + 37 * number % 150
        text = " ".join(row["prompt"][0]["content"].split()[:length])
        uneven.append({**row, "prompt": [{"role": "user", "content": text}]})
    pairs = rows_of(model, (192, 64), "dpo")[:32]
    tables = {"chats": chats, "uneven": uneven, "prompts": prompts, "pairs": pairs}
    for name, rows in tables.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    world = folder / "world"
    subprocess.run([sys.executable, "-m", "aligner", "toy", str(world)], check=True)
    for name, file in {"pairs": "preferences", "chats": "sft"}.items():
        (world / f"{name}.jsonl").symlink_to(f"{file}.jsonl")


def lines(model: Path, folder: Path, only: int | None, *, with_process: bool) -> Iterator[str]:
    """The lines of the table, each of a process of its own, one after the other."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_DEACTIVATE_ASYNC_LOAD": "1", "ALIGNER_CACHE": str(folder / "cache")}
    for number, case in enumerate(CASES):
        if only not in (None, number):
            continue
        record = folder / f"measured-{sha256(json.dumps(case).encode()).hexdigest()[:12]}.json"
        mib: dict[str, float] = json.loads(record.read_text()) if record.is_file() else {}
        for how, key in (("profiled", "measured"), *([("plain", "process")] * with_process)):
            if key in mib:
                continue
            command = [sys.executable, "-m", "benchmarks.speed.memory_estimate", str(model)]
            command += ["--measure", str(number), str(folder), how]
            done = subprocess.run(
                command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
            )
            shutil.rmtree(folder / "run", ignore_errors=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
            mib |= json.loads(done.stdout.strip().splitlines()[-1])
            record.write_text(json.dumps(mib))
        yield row_of(case, mib)


def row_of(case: Case, mib: dict[str, float]) -> str:
    """A line of the table."""
    kind, method, what, _ = case
    off = mib["estimated"] / mib["measured"] - 1
    name = "the toy" if kind == "toy" else "SmolLM2-135M"
    shown = [f"{mib[key]:,.0f}" if key in mib else "" for key in COLUMNS]
    apart = f"{off:+.1%}".replace("-0.0%", "+0.0%")
    missed = "" if abs(off) <= GOAL else ", missed"
    return f"| {name} | {method} | {what} | {' | '.join(shown)} | {apart}{missed} |"


COLUMNS = ("estimated", "measured", "process")
HEAD = (
    "| model | method | trained | estimated, MiB | measured, MiB | process, MiB | off |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of a small chat model")
    parser.add_argument("--write", action="store_true", help="write into benchmarks/RESULTS.md")
    parser.add_argument("--only", type=int, help="number of the one case to measure")
    parser.add_argument("--folder", type=Path, help="keep data and figures here, and continue")
    parser.add_argument("--process", action="store_true", help="measure processes, too")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    model = options.model.resolve()
    if options.measure:
        number, folder, how = options.measure
        case = CASES[int(number)]
        found = measure(case, model, Path(folder), is_profiled=how == "profiled")
        print(json.dumps(found))
        return
    table = []
    with tempfile.TemporaryDirectory() as name:
        folder = (options.folder or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        prepare(model, folder)
        for line in lines(model, folder, options.only, with_process=options.process):
            print(line, flush=True)
            table.append(line)
    text = (
        f"CPU, one thread, {STEPS} steps but where more are named, float32 but where bf16 is; rows "
        "of 287 tokens (prompts of 192 words and answers of 64), those of the toy as they come. "
        f"Goal: within {GOAL:.0%} of what was measured."
    )
    if options.write:
        write("memory-estimate", "\n".join([text, "", HEAD, *table]))


if __name__ == "__main__":
    main()
