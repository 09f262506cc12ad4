"""What works with a family: one function for each column of the table, through the library as a
user calls it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from aligner.config.load import load_recipe
from aligner.config.recipe import Data, Model
from aligner.data.loading import load_rows
from aligner.errors import AlignerError
from aligner.evaluation.likelihood import Tokens, likelihoods
from aligner.events import Metrics, OnEvent
from aligner.generation.decode import generate
from aligner.generation.sampling import Sampling
from aligner.methods.pipeline import run_recipe
from aligner.models.loading import load_policy
from aligner.models.lora_targets import stacks
from aligner.models.row_sharing import rows_apart
from aligner.models.tokenizers import load_tokenizer
from aligner.tokenization.encode import IGNORED, encode_sft

SETTINGS = {
    "trainer.max_steps": 4,
    "trainer.per_device_train_batch_size": 4,
    "trainer.learning_rate": 1e-3,
    "trainer.logging_steps": 1,
    "trainer.save_steps": 2,
    "trainer.use_cpu": True,
    "report.num_prompts": 1,
    "report.max_new_tokens": 2,
    "data.max_length": 128,
}
LORA = {"model.lora.r": 4, "model.lora.target_modules": "all-linear"}
TOLERANCE = 1e-3
PROMPTS = ("sort: bca", "a", "sort: zyxwvutsrqponm")
MOST_CHARACTERS = 90


class Stopped(Exception):
    """The training was stopped on purpose."""


def train(
    folder: Path, run: str, *, resume: bool = False, on_event: OnEvent | None = None, **more: Any
) -> Path:
    """Run `aligner sft` in the folder of a family, and return the run directory."""
    settings = {
        "model.name_or_path": str(folder / "model"),
        "data.train": str(folder / "rows.jsonl"),
        "output_dir": str(folder / run),
        **SETTINGS,
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    return run_recipe(
        load_recipe("sft", None, [], settings), resume=resume, on_event=on_event
    ).run_dir


def packing(folder: Path) -> str:
    """Do rows that share a sequence stay apart?"""
    found = rows_apart(_loaded(folder)[0])
    if found.apart:
        return "yes"
    needed = re.search(r"without `(\w+)`", found.why)
    if needed:
        return f"needs {needed[1]}"
    return "no: rows meet" if "see each other" in found.why else f"no: {found.why}"


def lora(folder: Path) -> str:
    """Which layers get an adapter under `all-linear`?"""
    run = train(folder, "lora", **{key.replace(".", "__"): value for key, value in LORA.items()})
    names = load_file(run / "final" / "adapter_model.safetensors")
    layers = {
        re.sub(r"\.(base_layer|lora_\w+|\d+|weight|bias)\b", "", name).rpartition(".")[2]
        for name in names
    }
    return f"{', '.join(sorted(layers))}{by_name(_loaded(folder)[0])}"


def by_name(model: Any) -> str:
    """Return, for the table, the stacked experts of a model, which get an adapter through their
    names alone."""
    names = sorted({name.rpartition(".")[2] for name in stacks(model)})
    return f"; by name: {', '.join(names)}" if names else ""


def nf4(folder: Path) -> str:
    """Does LoRA over a 4-bit base train?"""
    train(
        folder,
        "nf4",
        model__quantization="nf4",
        **{key.replace(".", "__"): value for key, value in LORA.items()},
    )
    return "yes"


def masks(folder: Path) -> str:
    """Are the log-probabilities of padded rows those of the rows alone?"""
    model, tokenizer = _loaded(folder)
    rows = load_rows(Data(train=str(folder / "held_out.jsonl")), "sft", 0).train
    encoded = [encode_sft(tokenizer, row, "auto") for row in rows]
    sequences = [
        Tokens(
            item.input_ids, [i for i, label in enumerate(item.labels) if label != IGNORED], "row"
        )
        for item in encoded
    ]
    one, all_rows = (likelihoods(model, sequences, batch_size=size) for size in (1, len(rows)))
    gap = max(float((a.logps - b.logps).abs().max()) for a, b in zip(one, all_rows))
    return "yes" if gap < TOLERANCE else "no: padding changes them"


def generation(folder: Path) -> str:
    """Are greedy answers to a batch of prompts, padded on the left, those to each prompt alone?"""
    model, tokenizer = _loaded(folder)
    sampling = Sampling(max_new_tokens=8, temperature=0.0)
    one, all_rows = (
        generate(model, tokenizer, PROMPTS, sampling, batch_size=size) for size in (1, len(PROMPTS))
    )
    same = [a[0].token_ids == b[0].token_ids for a, b in zip(one, all_rows)]
    return "yes" if all(same) else "no: padding changes answers"


def resuming(folder: Path) -> str:
    """Does a training that was stopped and resumed end with the weights of one that was not?"""
    whole = train(folder, "whole")

    def stop(event: Any) -> None:
        if isinstance(event, Metrics) and event.step == 3:
            raise Stopped

    try:
        train(folder, "stopped", on_event=stop)
    except Stopped:
        assert (folder / "stopped" / "checkpoints" / "checkpoint-2").is_dir(), (
            "it was stopped after a checkpoint"
        )
    resumed = train(folder, "stopped", resume=True)
    files = [load_file(run / "final" / "model.safetensors") for run in (whole, resumed)]
    same = files[0].keys() == files[1].keys() and all(
        torch.equal(files[0][name], files[1][name]) for name in files[0]
    )
    return "yes" if same else "no: other weights"


CHECKS: dict[str, Callable[[Path], str]] = {
    "packing": packing,
    "masks": masks,
    "generation": generation,
    "resume": resuming,
    "NF4": nf4,
    "LoRA `all-linear`": lora,
}


def check(folder: Path, column: str) -> str:
    """Return what stands in a column for a family: `yes`, what was found, or why not."""
    try:
        return CHECKS[column](folder)
    except AlignerError as error:
        return _short(f"no: {error.message.split(' (')[0]}", folder)
    except Exception as error:  # the table says what a user would see
        return _short(f"fails: {type(error).__name__}: {error}", folder)


def _short(text: str, folder: Path) -> str:
    """A reason of one line, without the folder's name."""
    line = text.replace(str(folder), "").splitlines()[0].replace("|", "/")
    return line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]}..."


def _loaded(folder: Path) -> tuple[Any, Any]:
    section = Model(name_or_path=str(folder / "model"))
    tokenizer = load_tokenizer(section)
    return load_policy(section, tokenizer, trainable=False), tokenizer
