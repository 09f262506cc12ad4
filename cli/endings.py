"""How a command ends that is stopped from outside: Ctrl-C and SIGTERM.

Both unwind it, so that locks and temporary files go, and say what was kept and how to continue. A
second one stops the unwinding; what is on disk then is what a kill at that moment leaves.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from aligner.launch.world import world
from aligner.runs.lock import lost_locks, release_locks

from .console import say


class Terminated(KeyboardInterrupt):
    """SIGTERM: it ends a command as Ctrl-C does."""


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM meanwhile. Not in processes that hold nothing (ranks but the
    first, and those that another process of ours answers for): they end at once."""
    from aligner.launch.command import is_our_rank

    in_main = threading.current_thread() is threading.main_thread()
    is_first = world()[0] == 0 and not is_our_rank()
    if not (in_main and is_first and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL):
        yield
        return
    owner = os.getpid()

    def leave(number: int, _frame: Any) -> None:
        if os.getpid() != owner:  # a fork, which is to end as if nothing had been set
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise Terminated

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hear neither Ctrl-C nor SIGTERM meanwhile: the command is ending already. Afterwards either
    ends the process at once."""
    heard = _heard()
    for number in heard:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)


def stop_at_once() -> None:
    """Let Ctrl-C and SIGTERM end this process as they end any other: a command that only ends has
    nothing left to say, and Python would answer with a traceback."""
    for number in _heard():
        signal.signal(number, signal.SIG_DFL)


def _heard() -> list[signal.Signals]:
    """Those that this process does not ignore; a shell lets what it starts with `&` ignore
    Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        return []
    numbers = (signal.SIGINT, signal.SIGTERM)
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def code_of(stop: KeyboardInterrupt) -> int:
    """Return the exit code of a command that was stopped, as a shell has it."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def stopped(stop: KeyboardInterrupt) -> str:
    """Say why a command stopped, in a few words."""
    if lost := lost_locks():
        return f"stopped: {lost[0]} was taken over by another process while this one was suspended"
    return "stopped by SIGTERM" if isinstance(stop, Terminated) else "interrupted"


@contextmanager
def resumable(continues: str, kept: Callable[[], str] = str) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM say what was kept, and how to continue: "the same command with
    --resume ..."."""
    try:
        yield
    except KeyboardInterrupt as stop:
        with undisturbed():
            release_locks()
            state = f": {found}; " if (found := kept()) else ": "
            say(f"{stopped(stop)}{state}the same command with --resume {continues}", err=True)
        raise typer.Exit(code_of(stop)) from stop


def kept_in_run(folder: Path) -> str:
    """Say what a run directory holds, as far as it was begun."""
    from aligner.errors import AlignerError
    from aligner.runs.run import what_is_in

    if not (folder / "resolved.json").is_file():
        return "nothing was kept yet"
    try:
        return f"{folder} holds {what_is_in(folder)}"
    except AlignerError as error:
        return error.message
