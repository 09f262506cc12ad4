"""Memory of `aligner rlhf` with all its roles against one LoRA model in training, in one run:
`python -m benchmarks.speed.rlhf_memory MODEL [--write]`.

MODEL is a folder with a small chat model, such as SmolLM2-135M-Instruct. What is compared with is
`aligner sft` of LoRA adapters on micro-batches of 4 rows, each a prompt of 256 tokens and an answer
of 64, and no other model. `aligner rlhf` trains the same adapters on micro-batches of as many
responses, of at most 64 tokens, to prompts of 256, one micro-batch a step, with a KL to the
reference. Its rewards come from a segment reward model that cuts by entropy: adapters on the same
base, or, to see what that saves, a whole model. `separate` gives each response a row with a prompt
of its own, as in SFT; `shared`, the default, computes the prompt of a group once.

Each arm trains for 2 steps in a process of its own, on one thread, in float32, with activations
kept, or with `--again` computed again in the backward pass. Figures are the peak of the process
above the loaded libraries, where glibc gives freed memory back at once (MALLOC_MMAP_THRESHOLD_): by
default it keeps some, more from step to step, in every arm.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.results import write
from benchmarks.speed.memory import peak_mib
from benchmarks.speed.real_model import ROOT, SEED, rows_of

PROMPT, LONGEST = 256, 64
GROUP, MICRO_BATCHES, STEPS = 4, 1, 2
GOAL = 1.2
ROLES = {
    "sft": "one LoRA model (`aligner sft`)",
    "grpo": "GRPO: policy, reference, reward model",
    "ppo": "PPO: policy, reference, critic, reward model",
    "ppo-whole": "PPO, with a whole reward model",
}
RUNS = (("sft", ""), ("ppo", "separate"), ("ppo", "shared"), ("ppo-whole", "separate"))
RUNS += (("grpo", "separate"), ("grpo", "shared"))


def measure(role: str, prefix: str, model: Path, folder: Path, checkpoints: bool) -> float:
    """One training in this process: MiB above the libraries."""
    import torch
    import trl  # noqa: F401 - a library of both

    from aligner.config.load import load_recipe
    from aligner.methods.pipeline import run_recipe
    from aligner.methods.steps import steps_of

    torch.set_num_threads(1)
    method = "sft" if role == "sft" else "rlhf"
    steps_of(method).load()
    import peft  # noqa: F401 - a library of every arm

    base = held()
    settings = [
        f"model.name_or_path={model}",
        "model.lora={}",
        f"data.train={folder / method}.jsonl",
        f"output_dir={folder / 'run'}",
        f"seed={SEED}",
        f"trainer.max_steps={STEPS}",
        f"trainer.per_device_train_batch_size={GROUP if role == 'sft' else 1}",
        f"trainer.gradient_accumulation_steps={MICRO_BATCHES}",
        f"trainer.gradient_checkpointing={'true' if checkpoints else 'false'}",
        "trainer.logging_steps=1",
        "trainer.save_strategy='no'",
        "trainer.report_to=none",
        "trainer.bf16=false",
        "trainer.use_cpu=true",
        "report.num_prompts=0",
    ]
    if method == "rlhf":
        settings += _of_rlhf(role, prefix, folder)
    run_recipe(load_recipe(method, None, settings))
    return peak_mib() - base


def held() -> float:
    """MiB of this process at the moment."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _of_rlhf(role: str, prefix: str, folder: Path) -> list[str]:
    rewards = "whole" if role == "ppo-whole" else "lora"
    return [
        f"rlhf.algorithm={role.partition('-')[0]}",
        "rlhf.unit=segment",
        f"rlhf.segment_model={folder / rewards}",
        "rlhf.normalizer_samples=8",
        "rlhf.beta=0.02",
        f"rlhf.group_size={GROUP}",
        f"rlhf.max_new_tokens={LONGEST}",
        f"preference.prefix={prefix}",
    ]


def prepare(model: Path, folder: Path) -> None:
    """Write the rows, and two reward models: adapters and a head on the model, and the same as a
    whole model."""
    from aligner.config.recipe import Lora, Model
    from aligner.models.loading import load_reward_model
    from aligner.models.tokenizers import load_tokenizer

    rows = rows_of(model, (PROMPT, LONGEST), "sft")
    rows = rows[: GROUP * MICRO_BATCHES * STEPS]
    texts = {"sft": rows, "rlhf": [{"prompt": row["prompt"]} for row in rows]}
    for name, lines in texts.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, lora in (("lora", Lora()), ("whole", None)):
        section = Model(name_or_path=str(model), lora=lora)
        tokenizer = load_tokenizer(section)
        made = load_reward_model(section, tokenizer, outputs=1, trainable=True)
        made.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        segments = f"segments: {{rule: entropy, cutoff: 2.0, reference: {model}}}"
        card = f"kind: segment\nmodel: .\ndtype: float32\n{segments}\n"
        (folder / name / "reward_model.yaml").write_text(card)


def compared(model: Path, folder: Path, mode: str) -> Iterator[str]:
    """The lines of the table, each of a process of its own, one after the other."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    environment |= {"TOKENIZERS_PARALLELISM": "false", "ALIGNER_CACHE": str(folder / "cache")}
    single = 0.0
    parts = [part for part in folder.iterdir() if part.name != "cache"]
    for number, (role, prefix) in enumerate(RUNS):
        place = folder / str(number)
        place.mkdir()
        for part in parts:
            (place / part.name).symlink_to(part)
        command = [sys.executable, "-m", "benchmarks.speed.rlhf_memory", str(model)]
        command += ["--measure", role, prefix, str(place), mode]
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
        mib = float(done.stdout.strip().splitlines()[-1])
        single = single or mib
        ratio = "" if role == "sft" else f"{mib / single:.2f}"
        yield f"| {ROLES[role]} | {prefix} | {mib:,.0f} | {ratio} |"


HEAD = "| roles | prompts | peak, MiB | ratio |\n| --- | --- | --- | --- |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of a small chat model")
    parser.add_argument("--write", action="store_true", help="write into benchmarks/RESULTS.md")
    parser.add_argument("--again", action="store_true", help="activations are computed again")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    model: Any = options.model.resolve()
    if options.measure:
        role, prefix, folder, kept = options.measure
        print(measure(role, prefix, model, Path(folder), kept == "again"))
        return
    lines = []
    with tempfile.TemporaryDirectory() as name:
        prepare(model, Path(name))
        for line in compared(model, Path(name), "again" if options.again else "kept"):
            print(line, flush=True)
            lines.append(line)
    setting = (
        f"LoRA on all linear layers, float32, micro-batches of {GROUP} responses, {STEPS} steps, "
        f"prompts of {PROMPT} tokens and responses of up to {LONGEST}, activations "
        f"{'computed again' if options.again else 'kept'}. Goal for the ratio of PPO: {GOAL}."
    )
    if options.write:
        write("rlhf-memory", "\n".join([setting, "", HEAD, *lines]))


if __name__ == "__main__":
    main()
