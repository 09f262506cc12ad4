"""Self-tests that train: what a whole run must not depend on, from short runs of a random model.

They go the way of every run, through recipe, rows, trainer and checkpoints, in a folder that is
removed afterwards. What they compare is in the numbers that a run writes down, and in the adapter
that comes out of it.
"""

from __future__ import annotations

import json
import math
import os
import random
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from aligner.config.load import load_recipe
from aligner.doctor.numerics import (
    ROUGH_TOLERANCE,
    TOLERANCE,
    Measured,
    Test,
    measured,
    random_llama,
)
from aligner.events import Event, Metrics, OnEvent
from aligner.methods.pipeline import run_recipe
from aligner.runs.files import read_metrics

STEPS = 4
ROWS = 16
SETTINGS = {
    "data.max_length": 128,
    "model.dtype": "float32",
    "report.num_prompts": 0,
    "trainer.bf16": False,
    "trainer.learning_rate": 1e-2,
    "trainer.logging_steps": 1,
    "trainer.max_steps": STEPS,
    "trainer.per_device_train_batch_size": 4,
    "trainer.save_steps": 2,
}
ONE_STEP = {"trainer.max_steps": 1}
TWO_STEPS = {"trainer.max_steps": 2, "trainer.optim": "sgd"}
"""Adam's first step is as long in a weight whose gradient is rounding as in any other."""
ADAPTER = {"model.lora": {"r": 4, "lora_dropout": 0.2, "target_modules": "all-linear"}}


def resume(device: str) -> float:
    """A run that is stopped after its first checkpoint and resumed, against one that is not: its
    adapter, which was trained with dropout, as a share of its size."""
    with _world(device) as world:
        whole = world.train("sft", "whole", ADAPTER)
        stopped = world.train("sft", "resumed", ADAPTER, stop_after=3)
        assert not (stopped / "manifest.json").exists(), "the run was stopped"
        resumed = world.train("sft", "resumed", ADAPTER, resume=True)
        one, other = (_adapter_of(run) for run in (whole, resumed))
    return float((one - other).norm() / one.norm())


def large_batch(device: str) -> float:
    """Steps of 8 rows against steps of 4 times 2: their losses and norms of the gradient, as shares
    of them."""
    with _world(device) as world:
        large = world.train("sft", "large", _batches(8, 1))
        small = world.train("sft", "small", _batches(2, 4))
        return _largest_share(large, small, ("loss", "grad_norm"))


def first_loss(device: str) -> float:
    """The first loss of `dpo` against log 2, which it is where policy and reference agree: with an
    adapter that is switched off, and with a reference that was computed before."""
    with _world(device) as world:
        runs = (
            world.train("dpo", "off", {**ADAPTER, **ONE_STEP, "dpo.reference": "adapter_off"}),
            world.train("dpo", "before", {**ONE_STEP, "dpo.reference": "precomputed"}),
        )
        return max(abs(read_metrics(run)[0]["loss"] - math.log(2)) for run in runs)


def shared_pairs(device: str) -> float:
    """Pairs whose prompt is computed once for both answers against answers with a prompt each:
    losses and norms of the gradient of `dpo`, as shares of them."""
    with _world(device) as world:
        apart = world.train("dpo", "separate", {**TWO_STEPS, "preference.prefix": "separate"})
        together = world.train("dpo", "shared", {**TWO_STEPS, "preference.prefix": "shared"})
        return _largest_share(apart, together, ("loss", "grad_norm"))


TESTS: dict[str, tuple[str, Test]] = {
    "resume": ("a run that is stopped and resumed is the run that is not", resume),
    "large batch": ("the trainer's 4 batches of 2 are its 1 batch of 8", large_batch),
    "first loss": ("the first loss of dpo is log 2", first_loss),
    "shared pairs": ("pairs that share a prompt train as separate answers do", shared_pairs),
}
"""Name -> what it claims, and the test."""


def measure_training(name: str, device: str) -> Measured:
    """Run one of these self-tests on a device."""
    claim, test = TESTS[name]
    return measured(name, claim, test, device, TOLERANCE if device == "cpu" else ROUGH_TOLERANCE)


class _Stopped(Exception):
    """A run is interrupted."""


class _World:
    """A folder with a random model and its rows, and short runs on them."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        _write_model(folder / "model")
        _write_rows(folder)

    def train(
        self,
        method: str,
        name: str,
        settings: dict[str, Any],
        *,
        stop_after: int | None = None,
        resume: bool = False,
    ) -> Path:
        """Carry out a run, or the first `stop_after` steps of it, and return its folder."""
        run = self.folder / name
        given = {
            "model.name_or_path": str(self.folder / "model"),
            "data.train": str(self.folder / f"{method}.jsonl"),
            "output_dir": str(run),
            "trainer.use_cpu": self.device == "cpu",
            **SETTINGS,
            **settings,
        }
        recipe = load_recipe(method, None, [], given)
        with suppress(_Stopped):
            run_recipe(recipe, resume=resume, on_event=_stop(stop_after))
        return run


@contextmanager
def _world(device: str) -> Iterator[_World]:
    """A world in a folder of its own, with a cache of its own: what a run before has kept would
    hide what this one does."""
    kept = os.environ.get("ALIGNER_CACHE")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        os.environ["ALIGNER_CACHE"] = str(Path(folder) / "cache")
        try:
            yield _World(Path(folder), device)
        finally:
            del os.environ["ALIGNER_CACHE"]
            if kept is not None:
                os.environ["ALIGNER_CACHE"] = kept


def _stop(after: int | None) -> OnEvent | None:
    if after is None:
        return None

    def listen(event: Event) -> None:
        if isinstance(event, Metrics) and event.step >= after:
            raise _Stopped

    return listen


def _batches(size: int, accumulated: int) -> dict[str, Any]:
    return {
        "trainer.per_device_train_batch_size": size,
        "trainer.gradient_accumulation_steps": accumulated,
        "trainer.train_sampling_strategy": "random",  # else the size of a batch decides
        **TWO_STEPS,
    }


def _write_model(folder: Path) -> None:
    from aligner.toy.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = random_llama(
        "cpu", vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, **ends
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_rows(folder: Path) -> None:
    """Words to be sorted, of many lengths: conversations, and pairs with a wrong answer."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 24))) for _ in range(ROWS)]
    asked = [{"role": "user", "content": f"sort these letters: {word}"} for word in words]
    right = [{"role": "assistant", "content": "".join(sorted(word))} for word in words]
    wrong = [{"role": "assistant", "content": f"no, {word[::-1]}"} for word in words]
    talks = [{"messages": list(turns)} for turns in zip(asked, right)]
    pairs = [
        {"prompt": [question], "chosen": [good], "rejected": [bad]}
        for question, good, bad in zip(asked, right, wrong)
    ]
    for name, rows in {"sft": talks, "dpo": pairs}.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def _adapter_of(run: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    weights = load_file(run / "final" / "adapter_model.safetensors")
    return torch.cat([weights[name].flatten() for name in sorted(weights) if "lora_B" in name])


def _largest_share(one: Path, other: Path, names: tuple[str, ...]) -> float:
    """The largest difference of these metrics between the steps of two runs, as a share of the
    first's."""
    steps = list(zip(read_metrics(one), read_metrics(other), strict=True))
    pairs = [(mine[name], yours[name]) for mine, yours in steps for name in names if name in mine]
    assert pairs, "runs write down their steps"
    return max(abs(mine - yours) / abs(mine) for mine, yours in pairs)
