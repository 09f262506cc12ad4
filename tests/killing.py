"""Runs in processes of their own that are killed at a chosen moment: SIGKILL, from within, so that
it is exact.

The processes come from a fork server that has imported everything once, so a run costs little more
than its training. `MOMENTS` names the places; `count` says at which passage through the place the
process dies.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes import small_recipe

Place = tuple[str, str, bool]
"""Owner ("module" or "module:Class"), attribute, and whether the process dies before the call (else
after it)."""

FilePlace = tuple[str, str, bool, str]
"""The same, where only calls with an argument count that ends so."""

MOMENTS: dict[str, Place] = {
    "while rows are tokenized": ("aligner.tokenization.dataset", "_write", True),
    "before the tokenized rows have their books": ("aligner.tokenization.dataset", "_write", False),
    "while the model is loaded": ("aligner.methods.{method}.train", "load_policy", True),
    "while the reference is computed": ("aligner.training.reference", "_save", True),
    "while rewards are kept": ("aligner.methods.dpo.reward_distillation", "write_atomically", True),
    "while answers of the reference are kept": (
        "aligner.methods.dpo.reference_samples",
        "_save",
        True,
    ),
    "in the middle of an epoch": ("transformers:Trainer", "training_step", True),
    "while a checkpoint is written": (
        "transformers:Trainer",
        "_save_optimizer_and_scheduler",
        True,
    ),
    "before a checkpoint is declared whole": ("aligner.training.callbacks", "mark_complete", True),
    "after a checkpoint is declared whole": ("aligner.training.callbacks", "mark_complete", False),
    "after a line of metrics": ("aligner.runs.run:Run", "log_metrics", False),
    "while the final weights are saved": ("aligner.training.fit", "save_final", True),
    "before the final weights are in their place": ("aligner.training.fit", "_results", True),
    "after the final weights": ("aligner.training.fit", "save_final", False),
    "before the manifest": ("aligner.runs.run:Run", "finish", True),
}

ROLLER, TRAINER = "aligner.methods.rlhf.rollout:Roller", "aligner.methods.rlhf.trainer:RlhfTrainer"
ROLLOUTS: dict[str, tuple[Place | FilePlace, int]] = {
    "while responses are sampled": ((ROLLER, "_response", True), 242),
    "while responses are scored": ((ROLLER, "_score_with", True), 3),
    "after responses are scored": ((ROLLER, "score", False), 3),
    "while the reference and old log-probabilities are computed": ((TRAINER, "measure", True), 14),
    "before an update": (("torch.optim:AdamW", "step", True), 6),
    "after an update": (("torch.optim:AdamW", "step", False), 6),
    "before the rollout of a checkpoint is renamed": (("os", "replace", True, "rollout.json"), 2),
    "behind the rollout of a checkpoint": ((TRAINER, "save_rest", False), 2),
    "before the mark of a whole checkpoint is renamed": (("os", "replace", True, "complete"), 2),
}
"""Moments of trainings on sampled responses, and at which passage the process dies: after the
first checkpoint, but where scoring is in the background, whose calls are as many as they come."""

PRELOADED = [
    "aligner.methods.sft.train",
    "aligner.methods.dpo.train",
    "aligner.methods.rlhf.train",
    "aligner.reports.training",
    "aligner.data.loading",
    "peft",
]
PATIENCE_S = 300


def run_in_process(
    method: str,
    world: Path,
    folder: Path,
    overrides: tuple[str, ...] = (),
    flags: dict[str, Any] | None = None,
    *,
    resume: bool = False,
    moment: str | None = None,
    count: int = 1,
) -> int:
    """Run a small recipe in a process of its own; returns its exit code, -9 when it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    settings = (
        method,
        world,
        folder,
        overrides,
        flags or {},
        resume,
        moment,
        count,
        os.environ.get("ALIGNER_CACHE"),
    )
    process = context.Process(target=_work, args=settings)
    process.start()
    process.join(PATIENCE_S)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"the run did not end within {PATIENCE_S} s")
    return process.exitcode


def _work(
    method: str,
    world: Path,
    folder: Path,
    overrides: tuple[str, ...],
    flags: dict[str, Any],
    resume: bool,
    moment: str | None,
    count: int,
    cache: str | None,
) -> None:
    import torch

    from aligner.methods.pipeline import run_recipe

    torch.set_num_threads(1)
    if cache is not None:
        os.environ["ALIGNER_CACHE"] = cache
    if moment is not None:
        _die_at(moment, method, count)
    run_recipe(small_recipe(method, world, folder, *overrides, **flags), resume=resume)


def _die_at(moment: str, method: str, count: int) -> None:
    place = MOMENTS[moment] if moment in MOMENTS else ROLLOUTS[moment][0]
    where, name, before, *ending = place
    module, _, class_name = where.format(method=method).partition(":")
    owner: Any = __import__(module, fromlist=["x"])
    owner = getattr(owner, class_name) if class_name else owner
    setattr(owner, name, _deadly(getattr(owner, name), count, before, *ending))


def _deadly(
    function: Callable[..., Any], count: int, before: bool, ending: str = ""
) -> Callable[..., Any]:
    passed = 0

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal passed
        if ending and not any(str(arg).endswith(ending) for arg in args):
            return function(*args, **kwargs)
        passed += 1
        if before and passed == count:
            _die()
        result = function(*args, **kwargs)
        if not before and passed == count:
            _die()
        return result

    return wrapper


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
