"""Processes that die at a chosen passage through a function: SIGKILL, from within, so that it is
exact. Loads nothing heavy, so that such a process starts at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

PATIENCE_S = 300

Place = tuple[str, str, bool, int]
"""Module or "module:Class", function, whether the process dies before it (else after it), and at
which passage."""


def set_trap(place: Place) -> None:
    """Let this process die there."""
    where, name, before, count = place
    owner = owner_of(where)
    setattr(owner, name, deadly(getattr(owner, name), before, count))


def owner_of(where: str) -> Any:
    """The module or class of a place."""
    module, _, class_name = where.partition(":")
    owner: Any = import_module(module)
    return getattr(owner, class_name) if class_name else owner


def deadly(function: Callable[..., Any], before: bool, count: int) -> Callable[..., Any]:
    """The function, which is the last thing that its process does."""
    passed = 0

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal passed
        passed += 1
        if before and passed == count:
            die()
        result = function(*args, **kwargs)
        if passed == count:
            die()
        return result

    return wrapper


def die() -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def in_process(target: Callable[..., None], *args: Any) -> int | None:
    """Run in a child of this process, and return its exit code."""
    process = multiprocessing.get_context("forkserver").Process(target=target, args=args)
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode
