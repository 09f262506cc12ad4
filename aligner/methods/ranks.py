"""Training in several processes: starting them, and being one of them.

The launching process prepares everything, starts the ranks through accelerate's launcher, and they
find the prepared run directory through the environment. With several machines the launching
processes meet (`aligner.launch.meeting`), and that of machine 0 prepares. Under somebody else's
launcher (`accelerate launch -m aligner ...`), rank 0 prepares while the others wait, with a
time-out of a day instead of NCCL's ten minutes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

from aligner.config.defaults import as_given
from aligner.config.load import Resolved
from aligner.config.recipe import Launch, TrainRecipe
from aligner.data.loading import Loaded
from aligner.data.sources import reads_hub
from aligner.errors import TrainingError, UsageError
from aligner.events import Notice, OnEvent, Warned, tell
from aligner.launch.causes import LostConnectionError
from aligner.launch.command import free_port, launch_line, run_ranks
from aligner.launch.meeting import Meeting, before_meeting, interface_of, meet
from aligner.launch.world import strategy_of_launcher
from aligner.methods.execution import train_and_finish
from aligner.methods.preparation import (
    check_named,
    job_of,
    load_checked_tokenizer,
    load_data,
    load_method,
    prepare,
    sizes_once_loaded,
    within_sizes,
)
from aligner.methods.steps import steps_of
from aligner.runs.environment import PACKAGES
from aligner.runs.result import RunResult, already_done
from aligner.runs.run import Run
from aligner.runs.session import Session

PREPARED_RUN = "ALIGNER_PREPARED_RUN"
"""Environment variable: the run directory that the launching process has prepared for its ranks."""


RANKS_RECIPE = "prepared/recipe.json"
"""The recipe with overrides and flags applied, as the ranks read it."""


LONGEST_WAIT = timedelta(days=1)
FOLDER_S = 60.0
"""How long a shared folder may take to show a machine what another one wrote."""


def start_ranks(
    resolved: Resolved,
    run: Run,
    loaded: Loaded,
    on_event: OnEvent | None,
    meeting: Meeting | None = None,
) -> RunResult:
    """Prepare everything here, then start the ranks and wait for them; with a meeting, machines
    that wait there start theirs."""
    recipe = resolved.recipe
    job = prepare(recipe, run, loaded, on_event)
    steps_of(recipe.method).before_ranks(job)
    given = as_given(recipe, resolved.origins)
    run.write_json(RANKS_RECIPE, given.model_dump(mode="json", exclude_unset=True))
    launch = recipe.launch
    if meeting is not None:
        # the port of the recipe is that of the meeting
        launch = launch.model_copy(update={"main_process_port": free_port()})
        digest = _digest(run.dir / RANKS_RECIPE)
        meeting.say("start", port=launch.main_process_port, digest=digest)
    _launch(launch, recipe.method, run, on_event, meeting)
    assert run.is_done, "ranks that end well have finished the run"
    return RunResult(run.dir, run.read_json("manifest.json")["results"], run.dir / "report.html")


def start_machine(
    session: Session, load: Callable[[], Loaded], on_event: OnEvent | None
) -> RunResult:
    """Start this machine's ranks among those of several: machine 0 prepares, in a folder that all
    machines share, and the others wait for it. What each can check by itself, it checks before they
    meet: machine 0 reads the rows then, but those of the hub, which may take longer to come than
    the others wait."""
    recipe = session.resolved.recipe
    done, loaded = None, None
    with before_meeting(recipe.launch):
        check_named(recipe)
        if recipe.launch.machine_rank == 0:  # which alone writes there
            session.check_place()
            done = session.done()
            if done is None and not reads_hub(recipe.data):
                loaded = load()
    with meet(recipe.launch, _facts(recipe), on_event) as meeting:
        if recipe.launch.machine_rank > 0:
            return _follow(recipe, meeting, on_event)
        if done is not None:
            return done
        loaded = load() if loaded is None else loaded
        return start_ranks(session.resolved, session.open(), loaded, on_event, meeting)


def _follow(recipe: TrainRecipe, meeting: Meeting, on_event: OnEvent | None) -> RunResult:
    """Start the ranks of a machine that is not the first, in the run that machine 0 prepares."""
    tell(on_event, Notice("machine 0 prepares the data"))
    start = meeting.wait_for("start", "done")
    if start["kind"] == "start":
        _refuse_other_folder(Path(recipe.output_dir), start["digest"])
        run = Run.attach(recipe.output_dir)
        launch = recipe.launch.model_copy(update={"main_process_port": start["port"]})
        _launch(launch, recipe.method, run, on_event, meeting)
        meeting.wait_for("done")
    run = Run.attach(recipe.output_dir)
    results = (run.read_json("manifest.json") or {}).get("results", {})
    return RunResult(run.dir, results, run.dir / "report.html")


def _facts(recipe: TrainRecipe) -> dict[str, str]:
    """What has to be the same on all machines: the version, and each key of the recipe."""
    values = recipe.model_dump(mode="json")
    values["launch"].pop("machine_rank")
    facts = {"the version of aligner": metadata.version(PACKAGES["aligner"])}
    for section, value in values.items():
        parts = value if isinstance(value, dict) else {"": value}
        for key, part in parts.items():
            text = json.dumps(part, sort_keys=True)
            facts[f"{section}.{key}" if key else section] = sha256(text.encode()).hexdigest()[:16]
    return facts


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _refuse_other_folder(run_dir: Path, digest: str) -> None:
    """Raise where the run directory is not the one that machine 0 writes to; a network's file
    system may take moments to show a file."""
    file, ends = run_dir / RANKS_RECIPE, time.monotonic() + FOLDER_S
    while not (file.is_file() and _digest(file) == digest):
        if time.monotonic() > ends:
            raise UsageError(
                f"{run_dir} of this machine is not the folder that machine 0 writes to",
                "set output_dir to a folder that all machines share",
            )
        time.sleep(0.5)


def _launch(
    launch: Launch, method: str, run: Run, on_event: OnEvent | None, meeting: Meeting | None
) -> None:
    """Run this machine's ranks to their end, in a run that is prepared."""
    line = launch_line(launch, [method, str(run.dir / RANKS_RECIPE)])
    os.environ[PREPARED_RUN] = str(run.dir)
    try:
        code = run_ranks(
            line,
            on_line=lambda text: tell(on_event, Notice(f"launching: {text}")),
            check=None if meeting is None else meeting.check,
            interface=None if meeting is None else interface_of(meeting.address),
        )
    except LostConnectionError:
        if meeting is not None and (cause := meeting.cause()) is not None:
            raise cause from None
        raise
    finally:
        del os.environ[PREPARED_RUN]
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
    from aligner.launch.cpu_fsdp import let_cpus_shard

    let_cpus_shard()
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
    """Let the recipe say how many processes there really are, and whether they split the model, as
    somebody else's launcher decided."""
    decided: dict[str, Any] = {"num_processes": size}
    if (strategy := strategy_of_launcher()) is not None:
        decided["strategy"] = strategy
    launch = resolved.recipe.launch.model_copy(update=decided)
    return replace(resolved, recipe=resolved.recipe.model_copy(update={"launch": launch}))
