"""What SAPO costs beside DPO: memory of LoRA SAPO and LoRA DPO, and the share of a step that is
spent on writing.

    python -m benchmarks.speed.sapo [--write]

A Llama with random weights (6 layers, width 384) and the chats of the speed workload; each run in a
process of its own, on one thread. Memory is the peak of the process less what it holds before the
training begins (the libraries). Writing is timed with all rows of a step in one batch, and one row
at a time. With `--write` the table goes into `benchmarks/RESULTS.md`. It wants a calm machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.results import write
from benchmarks.speed.memory import peak_mib

ROOT = Path(__file__).parents[2]
ROWS, BATCH, STEPS, WINDOW = 64, 4, 4, 64

COMMON = [
    "report.num_prompts=0",
    "trainer.save_strategy='no'",
    "trainer.logging_steps=1",
    f"trainer.max_steps={STEPS}",
    "trainer.train_sampling_strategy=random",
    "trainer.gradient_checkpointing=false",
]
SAPO = [f"sapo.window={WINDOW}"]
LORA = ["model.lora.r=16"]
RUNS: dict[str, tuple[str, list[str]]] = {
    "dpo": ("dpo", [*LORA, f"trainer.per_device_train_batch_size={BATCH}"]),
    "sapo": ("sapo", [*LORA, *SAPO, f"trainer.per_device_train_batch_size={BATCH}"]),
    "one batch": ("sapo", [*LORA, *SAPO, f"trainer.per_device_train_batch_size={2 * BATCH}"]),
    "one row at a time": (
        "sapo",
        [
            *LORA,
            *SAPO,
            f"trainer.per_device_train_batch_size={2 * BATCH}",
            "sapo.generation_batch_size=1",
        ],
    ),
}


def write_model(folder: Path) -> None:
    """A larger model than the workload's own, so that its weights show beside the libraries."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from benchmarks.speed.workload import write_workload

    write_workload(folder, ROWS)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")


def work(name: str, folder: Path) -> dict[str, Any]:
    """Train in this process; return its peak memory in MiB, and seconds of each step and of the
    writing in it."""
    from aligner.config.load import load_recipe
    from aligner.methods.pipeline import run_recipe
    from aligner.methods.preparation import load_method
    from aligner.runs.files import read_metrics

    method, changes = RUNS[name]
    data = "pairs" if method == "dpo" else "chats"
    ours = [
        f"model.name_or_path={folder / 'model'}",
        f"data.train={folder / data / 'train.jsonl'}",
        f"output_dir={folder / 'runs' / name.replace(' ', '-')}",
    ]
    resolved = load_recipe(method, None, [*COMMON, *ours, *changes])
    load_method(resolved.recipe)
    before = peak_mib()
    run = run_recipe(resolved, overwrite=True).run_dir
    lines = [line for line in read_metrics(run) if line["split"] == "train"]
    steps = [after["time_s"] - line["time_s"] for line, after in itertools.pairwise(lines)]
    shares = [line.get("sapo/generation_share", 0.0) for line in lines[1:]]
    peak = peak_mib() - before
    return {
        "peak_mib": peak,
        "step_s": steps,
        "writing_s": [s * share for s, share in zip(steps, shares)],
    }


def write_alone(folder: Path, rows: int) -> tuple[float, float]:
    """Return the seconds that the same rewrites of so many rows take in one batch, and one row at a
    time."""
    from aligner.config.recipe import Model
    from aligner.generation.decode import continue_ids
    from aligner.generation.sampling import Sampling
    from aligner.models.loading import load_policy
    from aligner.models.tokenizers import load_tokenizer

    section = Model(name_or_path=str(folder / "model"))
    tokenizer = load_tokenizer(section)
    model = load_policy(section, tokenizer, trainable=False)
    contexts = [list(range(5, 25 + row)) for row in range(rows)]
    sampling = Sampling(max_new_tokens=WINDOW, temperature=0.7, top_k=50, top_p=0.95)
    seconds = []
    for batch_size in (rows, 1):
        began = time.monotonic()
        continue_ids(model, tokenizer, contexts, sampling, batch_size=batch_size)
        seconds.append(time.monotonic() - began)
    return seconds[0], seconds[1]


def run(name: str, folder: Path) -> dict[str, Any]:
    """The same in a process of its own."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "ALIGNER_CACHE": str(folder / "cache"),
    }
    command = [
        sys.executable,
        "-m",
        "benchmarks.speed.sapo",
        "--work",
        name,
        "--folder",
        str(folder),
    ]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(folder: Path) -> Iterator[str]:
    """Four runs as a table."""
    found = {name: run(name, folder) for name in RUNS}
    dpo, sapo = found["dpo"]["peak_mib"], found["sapo"]["peak_mib"]
    yield "| | peak memory | step | writing in it | share |"
    yield "| --- | --- | --- | --- | --- |"
    titles = {
        "dpo": f"LoRA DPO, {BATCH} pairs a step",
        "sapo": f"LoRA SAPO, {BATCH} pairs a step",
        "one batch": f"LoRA SAPO, {2 * BATCH} pairs, written in one batch",
        "one row at a time": f"LoRA SAPO, {2 * BATCH} pairs, written one row at a time",
    }
    for name, title in titles.items():
        step, writing = (statistics.median(found[name][key]) for key in ("step_s", "writing_s"))
        yield (
            f"| {title} | {found[name]['peak_mib']:,.0f} MiB | {step:.2f} s | {writing:.2f} s | "
            f"{writing / step:.0%} |"
        )
    slow, fast = found["one row at a time"], found["one batch"]
    steps = statistics.median(slow["step_s"]) / statistics.median(fast["step_s"])
    writings = statistics.median(slow["writing_s"]) / statistics.median(fast["writing_s"])
    yield ""
    yield (
        f"Memory of LoRA SAPO over LoRA DPO: {sapo / dpo:.2f} (goal: at most 1.15). In one batch "
        "the writing is "
        f"{writings:.1f} times as fast, and the step {steps:.1f} times (goal: 3)."
    )
    together, alone = write_alone(folder, 32)
    yield (
        f"32 rewrites without training: {together:.1f} s in one batch, {alone:.1f} s one row at a "
        "time, "
        f"{alone / together:.1f} times."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write", action="store_true", help="write the table into benchmarks/RESULTS.md"
    )
    parser.add_argument("--work", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(options.work, options.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name))
        text = "\n".join(table(Path(name)))
    print(text)
    if options.write:
        write("sapo-cost", text)


if __name__ == "__main__":
    main()
