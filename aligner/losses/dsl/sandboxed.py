"""Running work on a proposed objective in a process of its own: the second of four layers of
safety.

`run_isolated` hands a job's name and a payload as JSON to a `Worker` (`aligner.sandbox.worker`): a
fresh interpreter with an almost empty environment and a temporary working folder. The child leaves
the network, loads torch and runs a small backward pass, and then its limits are set: memory,
processor time, size of files, no further processes, no privileges. Only then does it look at the
payload. The clock starts at that moment too, so that a busy machine's slow start costs no proposal
its time. All failures come back as a sentence.

What it is not: a defence against a hole in the kernel or in torch. What keeps proposals from
running Python at all is `parser.py` with `interpreter.py`; this is the wall behind that wall. Which
parts of the isolation could be had on this machine is in the answer, under `isolation`.

The child imports this module once it has left the network, so its top loads no torch.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aligner.errors import RecipeError
from aligner.sandbox.child import die_with_parent
from aligner.sandbox.worker import MAX_ERROR_CHARACTERS, Limits, StartError, Worker

__all__ = [
    "CHECK_LIMITS",
    "JOBS",
    "MAX_ERROR_CHARACTERS",
    "TABLE",
    "check",
    "die_with_parent",
    "run_isolated",
]

Job = Callable[[dict[str, Any]], dict[str, Any]]

CHECK_LIMITS: dict[str, Any] = {"timeout_s": 60.0, "memory_bytes": 2 * 2**30, "cpu_s": 60.0}
TABLE = "aligner.losses.dsl.sandboxed:JOBS"


def check(text: str, where: str, beta: float) -> tuple[str, dict[str, Any]]:
    """Try an objective here; return what is wrong with it ("" for nothing) and facts about its
    shape."""
    found = run_isolated("check", {"text": text, "where": where, "beta": beta}, **CHECK_LIMITS)
    if found["error"]:
        return found["error"], {}
    return "; ".join(found["result"]["errors"]), found["result"]["facts"]


def run_isolated(
    job: str,
    payload: dict[str, Any],
    *,
    timeout_s: float,
    memory_bytes: int,
    cpu_s: float,
    threads: int = 1,
    table: str = TABLE,
) -> dict[str, Any]:
    """Runs `JOBS[job](payload)` in a process of its own.

    `timeout_s` (wall clock, without what is waited for a core), `cpu_s` and `memory_bytes` (of
    address space) count from the moment when torch is loaded. `table` names another table of jobs
    as "module:name"; it is for tests and never comes from a payload.

    Returns `result` (what the job gave, or None), `error` (None, or a sentence: the job failed, ran
    too long, took too much, died or answered rubbish), `isolation` (part -> "yes" or why not; empty
    if the child never got that far) and `wall_s` with the start. Raises nothing for what a job
    does; an interrupt (Ctrl-C) kills the child and is raised again.
    """
    started = time.monotonic()
    setup = {"table": table, "job": job, "threads": threads}
    limits = Limits(memory_bytes=memory_bytes, cpu_s=cpu_s)
    with Worker("aligner.losses.dsl.sandboxed:open_job", setup, limits, threads=threads) as worker:
        try:
            outcome = worker.call(payload, timeout_s)
            result, error = outcome.result, outcome.error or outcome.stopped or None
        except StartError as failure:
            result, error = None, str(failure)
        isolation = worker.isolation
    return {
        "result": result,
        "error": error,
        "isolation": isolation,
        "wall_s": round(time.monotonic() - started, 3),
    }


# --- the child's side -----------------------------------------------------------------------------


def open_job(setup: dict[str, Any]) -> Job:
    """The job of that name, once torch is loaded and has the threads that it wants: later there may
    be no more."""
    import torch

    torch.set_num_threads(setup["threads"])
    for module in ("dsl.interpreter", "dsl.checks", "bandit"):
        importlib.import_module(f"aligner.losses.{module}")
    torch.nn.functional.logsigmoid(torch.zeros(100_000, requires_grad=True)).sum().backward()
    module, _, name = setup["table"].partition(":")
    jobs: dict[str, Job] = getattr(importlib.import_module(module), name)
    return jobs[setup["job"]]


# --- the jobs -------------------------------------------------------------------------------------


def _check(payload: dict[str, Any]) -> dict[str, Any]:
    """{text, beta, where?} -> {ok, errors, facts, name, hash, inputs}: reads the proposal and looks
    at its behaviour."""
    from aligner.losses.dsl.checks import check_behaviour
    from aligner.losses.dsl.interpreter import as_objective
    from aligner.losses.dsl.parser import SourceError, parse_objective

    try:
        source = parse_objective(payload["text"], payload.get("where", "proposal"))
    except SourceError as error:
        return {
            "ok": False,
            "errors": [str(error)],
            "facts": {},
            "name": None,
            "hash": None,
            "inputs": [],
        }
    found = check_behaviour(as_objective(source), payload["beta"])
    about = {"name": source.name, "hash": source.hash, "inputs": list(source.inputs)}
    return {"ok": found.ok, "errors": found.errors, "facts": found.facts, **about}


def _bandit(payload: dict[str, Any]) -> dict[str, Any]:
    """{text or objective, seeds, beta?, tau?, label_smoothing?, steps?, lr?, world?} -> results by
    seed, mean, error.

    `text` is a proposal, `objective` a name of the catalogue; `world` is "search" or "held_out".
    Gives `seeds` (a list of `BanditResult`s with their seed), and `mean` and `standard_error` of
    the reward gain (None for a single seed).
    """
    from aligner.losses.bandit import WORLDS, run_bandit
    from aligner.losses.catalogue import OBJECTIVES
    from aligner.losses.dsl.interpreter import as_objective
    from aligner.losses.dsl.parser import parse_objective
    from aligner.losses.types import Settings

    if "objective" in payload:
        objective = OBJECTIVES[payload["objective"]]
    else:
        objective = as_objective(parse_objective(payload["text"], payload.get("where", "proposal")))
    settings = Settings(
        **{key: payload[key] for key in ("beta", "tau", "label_smoothing") if key in payload}
    )
    options = {key: payload[key] for key in ("steps", "lr") if key in payload}
    world = WORLDS[payload.get("world", "search")]
    results = [
        {"seed": seed, **asdict(run_bandit(objective, settings, seed=seed, world=world, **options))}
        for seed in payload["seeds"]
    ]
    gains = [result["reward_gain"] for result in results]
    mean = sum(gains) / len(gains)
    spread = (
        math.sqrt(sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1))
        if len(gains) > 1
        else None
    )
    error = None if spread is None else spread / math.sqrt(len(gains))
    return {"seeds": results, "mean": mean, "standard_error": error}


JOBS: dict[str, Job] = {"check": _check, "bandit": _bandit}
"""What can be run in isolation: a name and its function, from a JSON object to a JSON object."""


def check_file(path: Path, beta: float) -> str:
    """Try the objective in a file in the sandbox, as a proposal of a search is tried; return its
    source.

    Raises: RecipeError when it may not be run, or could train nothing.
    """
    from aligner.losses.dsl.parser import read_objective

    source = read_objective(path)
    problem, _ = check(source.text, str(path), beta)
    if problem:
        raise RecipeError(
            f"the objective in {path} cannot be trained with: {problem}", "fix it, or use another"
        )
    return source.text
