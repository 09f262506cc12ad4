"""Which walls this machine can build around a worker, and what programs can do where one is
missing."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from aligner.sandbox.worker import Limits, Worker

WALLS = {
    "reading": "read your files, the right answers among them",
    "writing": "change your files",
    "network": "reach the network",
    "sockets": "reach Unix sockets",
    "descendants": "leave processes behind",
    "processes": "start any number of processes",
    "memory": "take more memory than they may",
    "memory files": "take more memory than they may, in memory files and shared segments",
    "total": "take the memory that they may once for each of their processes",
    "disk": "fill the disk",
}
"""Wall (a part of `Worker.isolation`) -> what a program could do without it."""

CURE = "judge answers that you do not trust in a container or a virtual machine of their own"


@functools.cache
def _standing(without: tuple[str, ...]) -> dict[str, str]:
    with Worker("operator:itemgetter", 0, Limits(memory_bytes=2**28), site=False) as worker:
        worker.call(["started"], timeout_s=60.0)
        return worker.isolation


def standing_walls() -> dict[str, str]:
    """Start a worker that runs nothing, once for this process: part -> "yes" or why it is missing.

    Raises: StartError when no worker can be started.
    """
    from aligner.sandbox import worker

    return dict(_standing(tuple(worker.WITHOUT)))


def what_is_open(isolation: Mapping[str, str]) -> str:
    """What programs can do within these walls and should not, with the reasons, or ""."""
    absent = [
        f"{words} ({isolation[wall]})"
        for wall, words in WALLS.items()
        if isolation.get(wall, "yes") != "yes"
    ]
    return ", ".join(absent)
