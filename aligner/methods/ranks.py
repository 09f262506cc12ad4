"""Training in several processes: starting them, and being one of them.

The launching process prepares everything, starts the ranks through accelerate's launcher, and they
find the prepared run directory through the environment. Under somebody else's launcher (`accelerate
launch -m aligner ...`), rank 0 prepares while the others wait, with a time-out of a day instead of
NCCL's ten minutes.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from aligner.config.defaults import as_given
from aligner.config.load import Resolved
from aligner.data.loading import Loaded
from aligner.errors import TrainingError
from aligner.events import Notice, OnEvent, Warned, tell
from aligner.launch.command import launch_line, run_ranks
from aligner.methods.execution import train_and_finish
from aligner.methods.preparation import (
    job_of,
    load_checked_tokenizer,
    load_data,
    load_method,
    prepare,
    sizes_once_loaded,
    within_sizes,
)
from aligner.methods.steps import steps_of
from aligner.runs.result import RunResult, already_done
from aligner.runs.run import Run

PREPARED_RUN = "ALIGNER_PREPARED_RUN"
"""Environment variable: the run directory that the launching process has prepared for its ranks."""


RANKS_RECIPE = "prepared/recipe.json"
"""The recipe with overrides and flags applied, as the ranks read it."""


LONGEST_WAIT = timedelta(days=1)


def start_ranks(
    resolved: Resolved, run: Run, loaded: Loaded, on_event: OnEvent | None
) -> RunResult:
    """Prepare everything here, then start the ranks and wait for them."""
    recipe = resolved.recipe
    job = prepare(recipe, run, loaded, on_event)
    steps_of(recipe.method).before_ranks(job)
    given = as_given(recipe, resolved.origins)
    run.write_json(RANKS_RECIPE, given.model_dump(mode="json", exclude_unset=True))
    line = launch_line(recipe.launch, [recipe.method, str(run.dir / RANKS_RECIPE)])
    os.environ[PREPARED_RUN] = str(run.dir)
    try:
        _launch(line, on_event)
    finally:
        del os.environ[PREPARED_RUN]
    assert run.is_done, "ranks that end well have finished the run"
    return RunResult(run.dir, run.read_json("manifest.json")["results"], run.dir / "report.html")


def start_machine(
    resolved: Resolved, resume: bool, overwrite: bool, on_event: OnEvent | None
) -> RunResult:
    """Start this machine's ranks among those of several: rank 0 prepares, in a folder that all
    machines share."""
    recipe = resolved.recipe
    options = [name for name, given in (("--resume", resume), ("--overwrite", overwrite)) if given]
    with tempfile.TemporaryDirectory(prefix="aligner-machine-") as folder:
        file = Path(folder) / "recipe.json"
        given = as_given(recipe, resolved.origins)
        file.write_text(
            json.dumps(given.model_dump(mode="json", exclude_unset=True)), encoding="utf-8"
        )
        line = launch_line(recipe.launch, [recipe.method, str(file), *options])
        _launch(line, on_event)
    run = Run.attach(recipe.output_dir)
    return RunResult(
        run.dir, (run.read_json("manifest.json") or {}).get("results", {}), run.dir / "report.html"
    )


def _launch(line: list[str], on_event: OnEvent | None) -> None:
    code = run_ranks(line, on_line=lambda text: tell(on_event, Notice(f"launching: {text}")))
    if code != 0:
        raise TrainingError(
            f"the processes ended with exit code {code} before the run was finished",
            "see the messages above; continue from the last checkpoint with --resume",
        )


def run_as_rank(
    resolved: Resolved, rank: int, resume: bool, overwrite: bool, on_event: OnEvent | None
) -> RunResult:
    """Train as one of several processes, whoever started them."""
    listener = on_event if rank == 0 else None
    load_method(resolved.recipe)
    prepared_run = os.environ.get(PREPARED_RUN)
    if prepared_run is not None:
        run = Run.attach(prepared_run)
    else:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        # Without `cpu`, ranks on a machine that has no GPU would each be alone, and wait for
        # nobody.
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=LONGEST_WAIT)
        if rank == 0:
            run = Run.create(resolved, resume=resume, overwrite=overwrite)
            for note in run.notes:
                tell(listener, Warned(note))
            if not run.is_done:
                prepare(resolved.recipe, run, load_data(resolved.recipe, listener), listener)
        state.wait_for_everyone()
        if rank != 0:
            run = Run.attach(resolved.recipe.output_dir)
        if run.is_done:
            return already_done(run, listener)
    from aligner.tokenization.dataset import load_tokenized

    tokenizer = load_checked_tokenizer(resolved.recipe, None)
    # What that changes was told by the process that prepared.
    recipe = within_sizes(resolved.recipe, sizes_once_loaded(resolved.recipe), None)
    job = job_of(recipe, run, tokenizer, load_tokenized(run.prepared_dir), listener)
    return train_and_finish(job)


def with_world(resolved: Resolved, size: int) -> Resolved:
    """Let the recipe say how many processes there really are, as somebody else's launcher
    decided."""
    launch = resolved.recipe.launch.model_copy(update={"num_processes": size})
    return replace(resolved, recipe=resolved.recipe.model_copy(update={"launch": launch}))
