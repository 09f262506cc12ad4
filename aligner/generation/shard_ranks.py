"""Have shards of prompts answered: here, or in several processes, that each hold the model whole
and answer every so-manyth shard, started and ended by the one that needs them.

    ranks/job.json         how the model is asked, and the prompts
    ranks/12.json          shard 12, whole or not there; taken into the journal in the shards' order
    ranks/rank-1.log       what a process says

So the journal is the one that a single process writes, byte for byte. What was finished when a kill
came is taken up again. A process whose starter is gone ends itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from aligner.config.recipe import Generation, Model
from aligner.data.rows import PromptRow
from aligner.errors import AlignerError, TrainingError
from aligner.events import Notice, StageProgress, StageStarted, tell
from aligner.generation.engines import HELD
from aligner.generation.shards import Asking, shards, writer_of
from aligner.launch.command import STARTER, count_gpus, watch_launcher
from aligner.runs.files import dumps, parse_json, write_atomically
from aligner.runs.journal import Journal
from aligner.runs.stages import Stage

FOLDER = "ranks"
WAIT_S = 0.2
VISIBLE = "CUDA_VISIBLE_DEVICES"
NOT_SENT = ("section", "generation", "cache", "on_event", "before", "processes")


def sample(
    stage: Stage, rows: Sequence[PromptRow], asking: Asking, journal: Journal
) -> Iterator[int]:
    """Have every shard answered that is not yet in the journal, and yield the number of each once
    it is there, in their order."""
    parts = shards(rows, asking.shard_size)
    if 0 < journal.done < len(parts):
        text = f"resuming {stage.name}: {journal.done} of {len(parts)} parts are there already"
        tell(asking.on_event, Notice(text))
    if asking.processes > 1 and asking.generation.engine in HELD:
        _sample_in_ranks(stage, rows, asking, journal)
    with ExitStack() as stack:
        work: Callable[[range], Any] | None = None
        for number, part in enumerate(parts):
            if number not in journal:
                work = writer_of(asking, rows, stack) if work is None else work
                journal.add(number, work(part))
                asked = StageProgress(stage.name, part.stop, len(rows))
                tell(asking.on_event, asked)
            yield number


def _sample_in_ranks(
    stage: Stage, rows: Sequence[PromptRow], asking: Asking, journal: Journal
) -> None:
    """Have every shard answered that is not yet in the journal, by `asking.processes` processes.

    Raises: TrainingError where one of them ends before its work is done.
    """
    folder, parts = stage.folder / FOLDER, shards(rows, asking.shard_size)
    missing = [number for number in range(len(parts)) if number not in journal]
    left = [number for number in missing if not _file(folder, number).exists()]
    processes: list[subprocess.Popen[bytes]] = []
    if left:
        asking.before()
        _write_job(folder, rows, asking, left)
        tell(asking.on_event, StageStarted(f"loading {asking.who} {asking.processes} times"))
    try:
        for rank in range(min(asking.processes, len(left))):
            processes.append(_start(folder, rank, asking.processes))
        for number in missing:
            _await(folder, number, processes)
            journal.add(number, parse_json(_file(folder, number), "delete it", list))
            _file(folder, number).unlink()
            done = StageProgress(stage.name, parts[number].stop, len(rows))
            tell(asking.on_event, done)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number}.json"


def _write_job(
    folder: Path, rows: Sequence[PromptRow], asking: Asking, left: Sequence[int]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in vars(asking).items() if key not in NOT_SENT}
    job = {
        "section": asking.section.model_dump(mode="json"),
        "generation": asking.generation.model_dump(mode="json"),
        "settings": settings,
        "prompts": [row.prompt for row in rows],
        "left": list(left),
    }
    write_atomically(folder / "job.json", dumps(job))


def _start(folder: Path, rank: int, processes: int) -> subprocess.Popen[bytes]:
    """Start a process, on a GPU of its own where there are any."""
    environment = {**os.environ, STARTER: str(os.getpid())}
    gpus = count_gpus()
    if gpus:
        known = environment.get(VISIBLE, "")
        names = known.split(",") if known else [str(number) for number in range(gpus)]
        environment[VISIBLE] = names[rank % len(names)]
    command = [sys.executable, "-m", __name__, str(folder), str(rank), str(processes)]
    with open(folder / f"rank-{rank}.log", "wb") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _await(folder: Path, number: int, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    while not (file := _file(folder, number)).exists():
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code:
                log = (folder / f"rank-{rank}.log").read_text(encoding="utf-8", errors="replace")
                last = log.strip().splitlines()[-1:] or ["nothing was said"]
                raise TrainingError(
                    f"sampling process {rank} ended with {code}: {last[0]}",
                    f"{folder}/rank-{rank}.log has all of it; --resume keeps what is sampled",
                )
        if None not in codes and not file.exists():
            raise TrainingError(
                f"every sampling process has ended, and {file} is not there",
                "--resume keeps what is sampled, and samples the rest",
            )
        time.sleep(WAIT_S)


def _work(folder: Path, rank: int, processes: int) -> None:
    """What each process does: every so-manyth of the shards that are left."""
    watch_launcher()
    job: dict[str, Any] = parse_json(folder / "job.json", "start again")
    asking = Asking(
        section=Model.model_validate_json(json.dumps(job["section"])),
        generation=Generation.model_validate_json(json.dumps(job["generation"])),
        **job["settings"],
    )
    rows = [PromptRow(prompt) for prompt in job["prompts"]]
    parts = shards(rows, asking.shard_size)
    with ExitStack() as stack:
        write = writer_of(asking, rows, stack)
        for number in job["left"][rank::processes]:
            write_atomically(_file(folder, number), dumps(write(parts[number])))


if __name__ == "__main__":
    try:
        _work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    except AlignerError as error:
        sys.exit(error.message)
