"""Which of several processes this one is, as torchrun and accelerate say in the environment.
Imports nothing heavy."""

from __future__ import annotations

import os


def world() -> tuple[int, int]:
    """Return this process's rank and how many there are: (0, 1) when alone, whatever RANK says."""
    size = _number("WORLD_SIZE", 1)
    return (_number("RANK", 0), size) if size > 1 else (0, 1)


def local_world() -> tuple[int, int]:
    """Return the same among the processes of this machine, which are all where nothing else is
    said."""
    return _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", world()[1])


def _number(name: str, default: int) -> int:
    """What a launcher has set; anything but digits comes from somebody else."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
