"""How one training is started on several machines: the line for each, and a script for Slurm.

Both are text to look at and to change; nothing is started here. Every machine runs the same
command with its own number, and they meet at an address of machine 0. The script takes all of that
from Slurm: machine 0 is the first node of the job, the port follows from the job's number, so that
two jobs on one node do not meet.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aligner.config.recipe import Launch
from aligner.errors import UsageError

DEFAULT_PORT = 29500
FIRST_PORT = 20000
"""The ports of jobs lie above it and below those that systems hand out by themselves."""
NUM_PORTS = 10000

NUMBER = "launch.machine_rank="
ADDRESS = "launch.main_process_ip="
PORT = "launch.main_process_port="

PLACES = tuple(
    f"launch.{key}"
    for key in (
        "num_processes",
        "num_machines",
        "machine_rank",
        "main_process_ip",
        "main_process_port",
    )
)
"""Keys of a recipe that say where it runs, which a line and a script write themselves."""

_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")
_PLAIN = re.compile(r"[\w.,:=+@%/\[\]*&|()-]+")
"""What a value of an #SBATCH line may consist of: no space, quote or other sign of a shell."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a script asks Slurm for."""

    nodes: int
    gpus_per_node: int
    name: str
    output_dir: str
    cpus_per_node: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    further: Sequence[str] = ()
    """Other options of sbatch, as `qos=high` or `exclusive`."""
    setup: Sequence[str] = field(default_factory=lambda: own_environment())
    """Lines of shell that run before anything else."""


def own_environment() -> list[str]:
    """Return the line that makes this program's environment that of a script; none outside of
    one."""
    if sys.prefix == sys.base_prefix:
        return []
    return [f"source {shlex.quote(str(Path(sys.prefix) / 'bin' / 'activate'))}"]


def placed(launch: Launch) -> list[str]:
    """Return the keys of a recipe that say how many processes and machines take part."""
    if launch.num_processes == 1:
        return []
    found = [f"launch.num_processes={launch.num_processes}"]
    if launch.num_machines > 1:
        found.append(f"launch.num_machines={launch.num_machines}")
    return found


def machine_lines(launch: Launch, command: Sequence[str]) -> list[str]:
    """Return the line to type on each machine. `command`: the command with its recipe and settings,
    without keys of `launch` that say where."""
    line = ["aligner", *command, *placed(launch)]
    if launch.num_machines == 1:
        return [shlex.join(line)]
    where = [
        f"{ADDRESS}{launch.main_process_ip}",
        f"{PORT}{launch.main_process_port or DEFAULT_PORT}",
    ]
    return [
        shlex.join([*line, *where, f"{NUMBER}{machine}"]) for machine in range(launch.num_machines)
    ]


def sbatch_script(job: Job, launch: Launch, command: Sequence[str]) -> str:
    """Return a script for `sbatch` that starts a command on every node of a job.

    Raises: UsageError where an option has no form that Slurm reads.
    """
    parts = [
        ["#!/bin/bash", *_directives(job), *_remarks(job)],
        _before(job),
        _restart(),
        _meeting() if job.nodes > 1 else [],
        _step(job, launch, command),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _directives(job: Job) -> list[str]:
    if job.time is not None and not _TIME.fullmatch(job.time):
        raise UsageError(
            f"--time: {job.time!r} is no time that Slurm reads",
            "write minutes, hours:minutes:seconds or days-hours: 90, 12:00:00, 2-0",
        )
    options: dict[str, object] = {
        "job-name": re.sub(r"[^\w.-]", "-", job.name),
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": job.gpus_per_node or None,
        "cpus-per-task": job.cpus_per_node,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "output": "%x-%j.log",
        "open-mode": "append",
    }
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    for option in [*given, "requeue", *job.further]:
        if not _PLAIN.fullmatch(option):
            raise UsageError(
                f"{option!r} is no option that an #SBATCH line can hold",
                "write NAME=VALUE or NAME, without spaces and quotes",
            )
    return [f"#SBATCH --{option}" for option in [*given, "requeue", *job.further]]


def _remarks(job: Job) -> list[str]:
    lines = [
        "# Submit with `sbatch FILE`; continue a run that was stopped: `sbatch FILE --resume`."
    ]
    if job.nodes > 1:
        lines.append(f"# {job.output_dir} has to lie in a folder that all nodes share.")
    return lines


def _before(job: Job) -> list[str]:
    # activation scripts of conda and others read variables that nobody has set
    checked = ["# shellcheck disable=SC1090,SC1091", *job.setup] if job.setup else []
    return [*checked, "set -euo pipefail"]


def _restart() -> list[str]:
    return [
        "# Slurm has started the job again: continue from the last checkpoint.",
        'if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then set -- --resume; fi',
    ]


def _meeting() -> list[str]:
    return [
        "# The first node is machine 0; the port is the job's own.",
        'read -r MAIN_NODE < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        f"MAIN_PORT=$(({FIRST_PORT} + SLURM_JOB_ID % {NUM_PORTS}))",
    ]


def _step(job: Job, launch: Launch, command: Sequence[str]) -> list[str]:
    """The command, once on each node. Each node says its own number, which only it knows."""
    step = [f"srun --nodes={job.nodes}", f"--ntasks={job.nodes}", "--kill-on-bad-exit=1"]
    if job.cpus_per_node is not None:
        step.append(f"--cpus-per-task={job.cpus_per_node}")  # since Slurm 22.05 it is not inherited
    train = shlex.join(["aligner", *command])
    if job.nodes == 1:
        train = shlex.join(["aligner", *command, *placed(launch)])
        return [" ".join(step) + " \\", f'  {train} "$@"']
    return [
        "# shellcheck disable=SC2016",
        " ".join(step) + f' bash -c \'exec "$@" {NUMBER}"$SLURM_NODEID"\' node \\',
        f"  {train} \\",
        f"  {shlex.join(placed(launch))} \\",
        f'  {ADDRESS}"$MAIN_NODE" {PORT}"$MAIN_PORT" "$@"',
    ]
