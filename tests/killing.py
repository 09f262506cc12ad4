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
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fakes import small_recipe
from flywheel_world import flywheel_recipe

Place = tuple[str, str, bool]
"""Owner ("module" or "module:Class"), attribute, and whether the process dies before the call (else
after it)."""

FilePlace = tuple[str, str, bool, str]
"""The same, where only calls with an argument count that ends so."""

MOMENTS: dict[str, Place] = {
    "while rows are tokenized": ("aligner.tokenization.dataset", "_write", True),
    "before the tokenized rows have their books": ("aligner.tokenization.dataset", "_write", False),
    "while the model is loaded": ("aligner.methods.{method}.train", "load_policy", True),
    "while the reference is computed": ("aligner.training.reference", "keep", True),
    "while rewards are kept": ("aligner.methods.dpo.reward_distillation", "keep", True),
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

JOURNAL, STAGE = "aligner.runs.journal:Journal", "aligner.runs.stages:Stage"
ONLINE = "aligner.methods.online"
ROUNDS: dict[str, tuple[Place | FilePlace, int]] = {
    "while the start is measured": ((f"{ONLINE}.evaluation", "_measures", True), 1),
    "before the record of a stage": (("os", "replace", True, "stage.json"), 2),
    "behind the record of a stage": (("os", "replace", False, "stage.json"), 2),
    "while a shard is sampled": (("aligner.generation.shards", "_as_json", True), 16 + 20),
    "before a shard of responses is kept": ((JOURNAL, "add", True), 6),
    "after a shard of responses is kept": ((JOURNAL, "add", False), 6),
    "while a shard is scored": ((f"{ONLINE}.scoring:Scoring", "_asked", True), 5),
    "while pairs are written": ((f"{ONLINE}.pair_stage", "_pair_row", True), 5),
    "before the pairs have their name": (("os", "replace", True, "pairs.jsonl"), 1),
    "behind the name of the pairs": (("os", "replace", False, "pairs.jsonl"), 1),
    "while the first round is trained": (("transformers:Trainer", "training_step", True), 4),
    "before a checkpoint is whole": (("aligner.training.callbacks", "mark_complete", True), 1),
    "while the weights are saved": (("aligner.training.fit", "save_final", True), 1),
    "before the manifest of a training": (("aligner.runs.run:Run", "finish", True), 1),
    "behind the manifest of a training": (("aligner.runs.run:Run", "finish", False), 1),
    "while the reference is computed": (("aligner.training.reference", "keep", True), 1),
    "while the second round is sampled": (("aligner.generation.shards", "_as_json", True), 110),
    "while the second round is trained": (("transformers:Trainer", "training_step", True), 9),
    "while the KL is computed": ((f"{ONLINE}.evaluation", "_token_logps", True), 2),
    "before the end": ((f"{ONLINE}.rounds", "_finish", True), 1),
    "before the last manifest": (("aligner.runs.run:Run", "finish", True), 3),
}
"""Moments of online rounds, and at which passage the process dies."""

ORACLE: dict[str, tuple[Place | FilePlace, int]] = {
    "before the oracle's questions have their name": (("os", "replace", True, "picked.json"), 1),
    "behind the name of the oracle's questions": (("os", "replace", False, "picked.json"), 1),
    "while the oracle is asked": ((f"{ONLINE}.query_stage", "ask_parts", True), 3),
    "before an answer is in the ledger": ((f"{ONLINE}.ledger:Ledger", "add", True), 3),
    "behind an answer in the ledger": ((f"{ONLINE}.ledger:Ledger", "add", False), 3),
    "before the labels have their name": (("os", "replace", True, "labels.json"), 1),
    "while the proxy is trained": (("transformers:Trainer", "training_step", True), 3),
    "before a checkpoint of the proxy is whole": (
        ("aligner.training.callbacks", "mark_complete", True),
        1,
    ),
    "before the manifest of the proxy": (("aligner.runs.run:Run", "finish", True), 1),
    "behind the manifest of the proxy": (("aligner.runs.run:Run", "finish", False), 1),
    "while the proxies are measured": ((f"{ONLINE}.refresh_stage", "_accuracy", True), 2),
    "while responses are scored again": ((f"{ONLINE}.scoring:Scoring", "_asked", True), 8),
    "while the second round's oracle is asked": ((f"{ONLINE}.ledger:Ledger", "add", True), 8),
}
"""The same of rounds with an oracle, which has six queries in each."""

STAGES_OF_AN_ORACLE = (4, 5, 6, 12, 13, 14)
"""Which stages of two rounds are its own: query, refresh and rescore of each."""

STAGES_OF_TWO_ROUNDS = 11
"""The start measured, and of each round sample, score, pair, train, eval."""

FLYWHEEL: dict[str, tuple[Place | FilePlace, int]] = {
    "while the target answers": (("aligner.generation.shards", "_as_json", True), 20),
    "before games are in the log": (("aligner.arena.battle.log:GameLog", "add", True), 2),
    "behind games in the log": (("aligner.arena.battle.log:GameLog", "add", False), 2),
    "before the battles have their name": (("os", "replace", True, "battles.jsonl"), 2),
    "behind the name of the battles": (("os", "replace", False, "battles.jsonl"), 2),
    "while the target fights itself": (("aligner.arena.battle.log:GameLog", "add", True), 3),
    "before the chosen rows have their name": (("os", "replace", True, "train.jsonl"), 1),
    "behind the name of the chosen rows": (("os", "replace", False, "train.jsonl"), 1),
    "while sft is trained": (("transformers:Trainer", "training_step", True), 2),
    "behind the manifest of sft": (("aligner.runs.run:Run", "finish", False), 1),
    "while dpo is trained": (("transformers:Trainer", "training_step", True), 4),
    "while the reward model is trained": (("transformers:Trainer", "training_step", True), 6),
    "while rl samples": (("aligner.methods.rlhf.rollout:Roller", "_response", True), 5),
    "before what is known so far": (("os", "replace", True, "flywheel.json"), 2),
    "before the end": (("aligner.methods.flywheel.run", "_finish", True), 1),
    "before the report": (("os", "replace", True, "report.html"), 5),
}
"""Moments of a round of the flywheel, and at which passage the process dies."""

PRELOADED = [
    "aligner.methods.sft.train",
    "aligner.methods.dpo.train",
    "aligner.methods.rlhf.train",
    "aligner.methods.reward.train",
    "aligner.methods.online.rounds",
    "aligner.methods.flywheel.run",
    "aligner.reports.training",
    "aligner.data.loading",
    "peft",
]
PATIENCE_S = 900


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
    return _exit_code(context.Process(target=_work, args=settings), "run")


def _exit_code(process: BaseProcess, what: str) -> int:
    """Start a process, and return how it ended."""
    process.start()
    process.join(PATIENCE_S)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"the {what} did not end within {PATIENCE_S} s")
    return process.exitcode


TRACKED: dict[str, Place] = {
    "once trackers are open": ("aligner.runs.metrics_log:MetricsLog", "start_tracking", False),
    "before the end is recorded": ("aligner.runs.run:Run", "_end", True),
}
"""Moments of every command with a run directory."""


def command_in_process(
    folder: Path, arguments: Sequence[str], environment: dict[str, str], moment: str | None = None
) -> int:
    """Run `aligner ARGUMENTS` in a folder, in a process of its own, which is killed at one of
    `TRACKED`; returns its exit code, -9 when it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    settings = (folder, arguments, environment, moment)
    return _exit_code(context.Process(target=_command, args=settings), "command")


def _command(
    folder: Path, arguments: Sequence[str], environment: dict[str, str], moment: str | None
) -> None:
    from aligner.cli.app import app

    os.chdir(folder)
    os.environ.update(environment)
    if moment is not None:
        _, name, before = TRACKED[moment]
        owner = owner_of(TRACKED[moment], "")
        setattr(owner, name, _deadly(getattr(owner, name), 1, before))
    app([*arguments])


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

    from aligner.methods.flywheel.run import run_flywheel
    from aligner.methods.online.rounds import run_online
    from aligner.methods.pipeline import run_recipe

    torch.set_num_threads(1)
    if cache is not None:
        os.environ["ALIGNER_CACHE"] = cache
    if moment is not None:
        _die_at(moment, method, count)
    if method == "flywheel":
        run_flywheel(flywheel_recipe(world, folder, *overrides, **flags), resume=resume)
        return
    carry_out = run_online if method == "online" else run_recipe
    carry_out(small_recipe(method, world, folder, *overrides, **flags), resume=resume)


def _die_at(moment: str, method: str, count: int) -> None:
    place: Place | FilePlace
    if moment in ("before a stage is done", "after a stage is done"):
        place = (STAGE, "finish", moment.startswith("before"))
    elif method == "flywheel":
        place = FLYWHEEL[moment][0]
    elif moment in MOMENTS and method != "online":
        place = MOMENTS[moment]
    else:
        place = {**ROLLOUTS, **ROUNDS, **ORACLE}[moment][0]
    _, name, before, *ending = place
    owner = owner_of(place, method)
    setattr(owner, name, _deadly(getattr(owner, name), count, before, *ending))


def owner_of(place: Place | FilePlace, method: str) -> Any:
    """Return the module or class whose attribute a place names."""
    module, _, class_name = place[0].format(method=method).partition(":")
    owner: Any = __import__(module, fromlist=["x"])
    return getattr(owner, class_name) if class_name else owner


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
