"""Training against TRL on a real model, in one run: `python -m benchmarks.speed.real_model MODEL
[--write]`.

MODEL is a folder with a small chat model, such as SmolLM2-135M-Instruct. Rows are random words,
prompts and answers of given lengths in tokens. Each tool runs in a process of its own on one
thread: a few steps over the same rows in the same order, full fine-tuning.

* `identical`: float32, no checkpointing of activations, the reference computed before (its cost is
  in neither figure); SFT trains answers alone, and logs at its last step. The losses of all steps
  are compared, in the mean for SFT.
* `default`: what each tool does when nothing is set, TRL's bfloat16 turned off; the reference is
  counted, which TRL computes at every step with a copy of the model.

Tokens are those of prompt and answer, for each answer, without padding. CPU seconds are
those of `Trainer.train()`; memory is the peak of the process above the loaded libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import write
from benchmarks.speed.memory import peak_mib

ROOT = Path(__file__).parents[2]
BATCH, SEED = 2, 42
STEPS = {"dpo": 3, "reward": 3, "sft": 6}
SHAPES = ((512, 128), (256, 128), (100, 120))
TOOLS = ("trl", "aligner")
RUNS = (
    *(("dpo", shape, "identical") for shape in SHAPES),
    ("reward", (512, 128), "identical"),
    ("sft", (100, 120), "identical"),
    ("dpo", (512, 128), "default"),
)
GOALS = {
    ("dpo", (512, 128), "identical"): 1.55,
    ("dpo", (256, 128), "identical"): 1.40,
    ("dpo", (100, 120), "identical"): 1.20,
    ("reward", (512, 128), "identical"): 1.35,
    ("sft", (100, 120), "identical"): 1.10,
    ("dpo", (512, 128), "default"): 2.2,
}
MOST_MEMORY = 0.70
"""Goal: peak memory of DPO at 512/128, over that of TRL."""


def rows_of(model: Path, shape: tuple[int, int], task: str) -> list[dict[str, Any]]:
    """Rows of random words, a token each, as many as the steps take."""
    from transformers import AutoTokenizer

    vocabulary = AutoTokenizer.from_pretrained(model).get_vocab()
    words = sorted(
        word[1:] for word in vocabulary if word[0] == "Ġ" and word[1:].isascii() and word.isalpha()
    )
    draw = random.Random(SEED)

    def text(length: int) -> str:
        return "a " + " ".join(draw.choices(words, k=length - 1))

    rows = []
    for _ in range(BATCH * STEPS[task]):
        prompt = [{"role": "user", "content": text(shape[0])}]
        answers = [[{"role": "assistant", "content": text(shape[1])}] for _ in range(2)]
        if task == "sft":
            rows.append({"prompt": prompt, "completion": answers[0]})
        else:
            rows.append({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]})
    return rows


def measure(tool: str, task: str, mode: str, model: Path, rows: Path) -> dict[str, Any]:
    """One training in this process: CPU seconds, MiB above the libraries, losses, tokens."""
    import torch
    import transformers
    import trl  # noqa: F401 - a library of both

    import aligner.training.reference as reference
    from aligner.methods.steps import steps_of
    from benchmarks.speed.worker import _timed

    torch.set_num_threads(1)
    steps_of(task).load()
    spent: dict[str, float] = {}
    transformers.Trainer.train = _timed(transformers.Trainer.train, spent, "train")
    reference.with_reference = _timed(reference.with_reference, spent, "reference")
    base = peak_mib()
    with tempfile.TemporaryDirectory() as name:
        run = {"trl": _trl, "aligner": _aligner}[tool]
        found = run(task, mode, model, rows, Path(name))
    peak = peak_mib() - base
    seconds = spent["train"] + (spent.get("reference", 0.0) if mode == "default" else 0.0)
    return {**found, "cpu_s": seconds, "peak_mib": peak}


def _trl(task: str, mode: str, model: Path, file: Path, folder: Path) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import (
        DPOConfig,
        DPOTrainer,
        RewardConfig,
        RewardTrainer,
        SFTConfig,
        SFTTrainer,
    )

    from aligner.training.sampler import SeededSampler

    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [rows[place] for place in SeededSampler(len(rows), SEED)]
    config, trainer_class, loader = {
        "dpo": (DPOConfig, DPOTrainer, AutoModelForCausalLM),
        "reward": (RewardConfig, RewardTrainer, AutoModelForSequenceClassification),
        "sft": (SFTConfig, SFTTrainer, AutoModelForCausalLM),
    }[task]
    settings: dict[str, Any] = {"gradient_checkpointing": False} if mode == "identical" else {}
    if mode == "identical" and task == "dpo":
        settings["precompute_ref_log_probs"] = True
    arguments = config(
        output_dir=str(folder),
        max_steps=STEPS[task],
        logging_steps=_logging_steps(task),
        learning_rate=1e-5,
        per_device_train_batch_size=BATCH,
        train_sampling_strategy="sequential",
        report_to="none",
        save_strategy="no",
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        max_length=None,
        **settings,
    )
    trainer = trainer_class(
        model=loader.from_pretrained(model, dtype="float32"),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    mean = trainer.train().training_loss
    losses = [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
    return {"losses": [mean] if task == "sft" else losses}


def _logging_steps(task: str) -> int:
    return STEPS[task] if task == "sft" else 1


def _aligner(task: str, mode: str, model: Path, file: Path, folder: Path) -> dict[str, Any]:
    from aligner.config.load import load_recipe
    from aligner.methods.pipeline import run_recipe
    from aligner.runs.files import read_metrics

    settings = [
        f"model.name_or_path={model}",
        f"data.train={file}",
        f"output_dir={folder / 'run'}",
        f"seed={SEED}",
        f"trainer.max_steps={STEPS[task]}",
        f"trainer.logging_steps={_logging_steps(task)}",
        "trainer.learning_rate=1e-5",
        f"trainer.per_device_train_batch_size={BATCH}",
        "trainer.save_strategy='no'",
        "trainer.report_to=none",
        "trainer.use_cpu=true",
        "report.num_prompts=0",
    ]
    if mode == "identical":
        settings += ["trainer.bf16=false", "trainer.train_sampling_strategy=random"]
        settings += ["sft.packing=false"] if task == "sft" else []
    outcome = run_recipe(load_recipe(task, None, settings))
    ledger = json.loads((outcome.run_dir / "data.json").read_text())
    losses = [line["loss"] for line in read_metrics(outcome.run_dir) if line["split"] == "train"]
    losses = [outcome.results["train_loss"]] if task == "sft" else losses
    return {"losses": losses, "tokens": ledger["splits"]["train"]["tokens"]}


def starts(model: Path, folder: Path) -> dict[str, Path]:
    """The model and, for rewards, the same with a head, for both tools to begin with.

    Their template ends a turn with the token that ends an answer, which is not the one that pads:
    TRL would train the line break behind it too, and read the head before it or behind it.
    """
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    assert tokenizer.pad_token != tokenizer.eos_token
    end = f"'{tokenizer.eos_token}' + '\n'"
    assert end in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(end, f"'{tokenizer.eos_token}'")
    torch.manual_seed(SEED)
    options = {"pad_token_id": tokenizer.pad_token_id, "dtype": "float32"}
    writes = AutoModelForCausalLM.from_pretrained(model, **options)
    scores = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, **options)
    found = {}
    for task, start in (("sft", writes), ("dpo", writes), ("reward", scores)):
        found[task] = folder / task
        start.save_pretrained(found[task])
        tokenizer.save_pretrained(found[task])
    return found


def compared(model: Path, folder: Path, runs: Sequence[Any]) -> Iterator[str]:
    """The lines of the table, each of two processes one after the other."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "ALIGNER_CACHE": str(folder / "cache")}
    begin = starts(model, folder)
    for task, shape, mode in runs:
        file = folder / f"{task}-{shape[0]}-{shape[1]}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows_of(model, shape, task)))
        found = {}
        for tool in TOOLS:
            command = [sys.executable, "-m", "benchmarks.speed.real_model", str(begin[task])]
            command += ["--measure", tool, task, mode, str(file)]
            done = subprocess.run(
                command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
            found[tool] = json.loads(done.stdout.strip().splitlines()[-1])
        yield _line(task, shape, mode, found)


def _line(task: str, shape: tuple[int, int], mode: str, found: dict[str, dict]) -> str:
    tokens = found["aligner"]["tokens"]
    rates = [tokens / found[tool]["cpu_s"] for tool in TOOLS]
    memory = [found[tool]["peak_mib"] for tool in TOOLS]
    gap = max(abs(a - b) for a, b in zip(*(found[tool]["losses"] for tool in TOOLS), strict=True))
    cells = [
        f"{task}, {shape[0]}/{shape[1]}, {mode}",
        *(f"{rate:,.0f}" for rate in rates),
        f"{rates[1] / rates[0]:.2f} (goal {GOALS[task, shape, mode]:.2f})",
        *(f"{mib:,.0f}" for mib in memory),
        f"{memory[1] / memory[0]:.2f}",
        f"{gap:.0e}" if mode == "identical" else "other batches",
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| training, prompt/answer tokens, settings | TRL, tokens per CPU-second | aligner | ratio | "
    "TRL, MiB | aligner | ratio | largest difference of losses |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of a small chat model")
    parser.add_argument("--only", choices=list(STEPS), help="measure one method")
    parser.add_argument("--write", action="store_true", help="write into benchmarks/RESULTS.md")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        tool, task, mode, file = options.measure
        print(json.dumps(measure(tool, task, mode, options.model, Path(file))))
        return
    runs = [run for run in RUNS if options.only in (None, run[0])]
    with tempfile.TemporaryDirectory() as name:
        lines = []
        for line in compared(options.model.resolve(), Path(name), runs):
            print(line, flush=True)
            lines.append(line)
    setting = (
        f"One thread, batches of {BATCH} rows, full fine-tuning, a few steps. Goal for memory "
        f"of dpo at 512/128: {MOST_MEMORY:.2f}."
    )
    if options.write:
        write("real-model", "\n".join([setting, "", HEAD, *lines]))


if __name__ == "__main__":
    main()
