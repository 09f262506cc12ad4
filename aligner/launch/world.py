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


def strategy_of_launcher() -> str | None:
    """Return how the launcher of this rank shares the model out, by the name of `launch.strategy`,
    or None where it does not split anything.

    Our own line sets the same variables, and so does a configuration file of accelerate's.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return "fsdp" if _number("FSDP_VERSION", 1) == 2 else "fsdp1"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        stage = _number("ACCELERATE_DEEPSPEED_ZERO_STAGE", 0)
        return f"zero{stage}" if stage else None
    return None


def _number(name: str, default: int) -> int:
    """What a launcher has set; anything but digits comes from somebody else."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
