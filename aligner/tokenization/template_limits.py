"""Render conversations by the tokenizer's chat template, within limits of time, memory and
characters.

A template is a program that came with a model, and `template_probe` has seen it on short
conversations only: what it does may depend on the rows. So every rendering here has a deadline,
kept by a thread that raises in the one that renders, and may take so much memory more than the
process has, which the kernel refuses beyond (Linux alone). Neither is noticed where templates are
sound: a call takes a few microseconds longer, whether for one conversation or for five hundred. Not
here: what one operation does within the memory allowed cannot be interrupted, so a deadline can
pass by a second or so.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import time
from pathlib import Path
from threading import Event, Lock, Thread, get_ident
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_S = 30.0
"""Seconds of the processor for one call, for a few hundred conversations at most; where the system
counts none for a thread, seconds on the wall."""
MOST_BYTES = 4 * 2**30
"""Memory that a call may take beside what the process has."""
MOST_CHARACTERS = 50_000_000
"""Characters of one rendered conversation, or tokens where it comes as such."""
POLL_S = 0.2
FRESH_S = 0.05
"""For so long the memory of the process is taken to be what it was: reading it takes longer than
most of what is done here."""

REFUSALS = (
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)
"""What a template raises beside its own words; RuntimeError is the recursion of a macro that calls
itself, and what is beyond a limit."""


class BeyondLimitError(RuntimeError):
    """A rendering took more than its time, its memory or its characters."""


class TooLongError(BeyondLimitError):
    """Raised in the rendering thread from outside, which takes a class that needs no arguments."""

    def __init__(self) -> None:
        super().__init__(f"it runs for more than {LONGEST_S:g} seconds")


def apply_template(tokenizer: PreTrainedTokenizerBase, chats: Any, **options: Any) -> Any:
    """Return what `apply_chat_template` makes of one conversation, or of a list of them.

    Raises: one of REFUSALS, or Jinja's TemplateError, for a template that refuses these;
    BeyondLimitError is among them. `refuse_endless` comes first.
    """
    made = _within_limits(tokenizer, chats, options)
    is_text = isinstance(made, str | list)
    found = made if is_text else made["input_ids"]
    is_single = isinstance(found, str) or isinstance(next(iter(found), None), int)
    longest = max(map(len, [found] if is_single else found), default=0)
    if longest > MOST_CHARACTERS:
        unit = "characters" if is_text else "tokens"
        raise BeyondLimitError(f"it writes {longest:,} {unit}, and {MOST_CHARACTERS:,} are read")
    return made


def _within_limits(tokenizer: PreTrainedTokenizerBase, chats: Any, options: dict[str, Any]) -> Any:
    """What the template makes, in its time and memory; no context managers, which cost as much as
    the rest."""
    _MEMORY.lower()
    try:
        # Within: what the clock raises late may not keep the memory from being put back.
        _CLOCK.start()
        try:
            return tokenizer.apply_chat_template(chats, **options)
        finally:
            _CLOCK.stop()
    except MemoryError as error:
        raise BeyondLimitError(f"it takes more than {MOST_BYTES / 2**30:g} GiB") from error
    finally:
        _MEMORY.put_back()


class _Clock:
    """A thread that looks after renderings, and ends those that are beyond their deadline."""

    def __init__(self) -> None:
        self.lock, self.is_busy = Lock(), Event()
        self.deadlines: dict[int, tuple[int, float]] = {}
        """Thread -> its clock, and when its rendering is ended by that."""
        self.ended: set[int] = set()
        self.thread: Thread | None = None

    def start(self) -> None:
        """Raise TooLongError in this thread once the time is over, until `stop`."""
        with self.lock:
            thread = get_ident()
            clock = _clock_of(thread)
            self.deadlines[thread] = clock, time.clock_gettime(clock) + LONGEST_S
            if self.thread is None:
                self.thread = Thread(target=self._look, name="template-clock", daemon=True)
                self.thread.start()
            if not self.is_busy.is_set():
                self.is_busy.set()

    def stop(self) -> None:
        """Raise nothing from now on, also not what is on its way."""
        with self.lock:
            thread = get_ident()
            self.deadlines.pop(thread, None)
            if thread in self.ended:
                self.ended.discard(thread)
                _raise_in(thread, None)

    def _look(self) -> None:
        while True:
            self.is_busy.wait()
            time.sleep(POLL_S)
            with self.lock:
                over = []
                for thread, (clock, end) in self.deadlines.items():
                    if time.clock_gettime(clock) > end:
                        over.append(thread)
                for thread in over:
                    del self.deadlines[thread]
                    self.ended.add(thread)
                    _raise_in(thread, TooLongError)
                if not self.deadlines:
                    self.is_busy.clear()


def _clock_of(thread: int) -> int:
    """What a thread has had of the processor: a busy machine takes nothing from a rendering's
    time."""
    if hasattr(time, "pthread_getcpuclockid"):
        return time.pthread_getcpuclockid(thread)
    return time.CLOCK_MONOTONIC


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise an error in another thread at its next step of Python; None takes one back."""
    given = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), given)


class _Memory:
    """The process's limit on data, which is lower while something is rendered."""

    def __init__(self) -> None:
        self.lock, self.rendering = Lock(), 0
        self.before, self.lowered, self.read_at = (-1, -1), (-1, -1), -FRESH_S

    def lower(self) -> None:
        """Let allocations beyond the limit fail, until `put_back`."""
        if sys.platform != "linux":
            return
        with self.lock:
            self.rendering += 1
            if self.rendering == 1:
                if time.monotonic() - self.read_at >= FRESH_S:
                    self._read()
                resource.setrlimit(resource.RLIMIT_DATA, self.lowered)

    def put_back(self) -> None:
        """Set the limit that was there, once nothing is rendered."""
        if sys.platform != "linux":
            return
        with self.lock:
            self.rendering -= 1
            if self.rendering == 0:
                resource.setrlimit(resource.RLIMIT_DATA, self.before)

    def _read(self) -> None:
        self.before = _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        pages = int(STATM.read_bytes().split()[5])
        wanted = pages * resource.getpagesize() + MOST_BYTES
        known = [limit for limit in self.before if limit != resource.RLIM_INFINITY]
        self.lowered, self.read_at = (min([wanted, *known]), hard), time.monotonic()


STATM = Path("/proc/self/statm")
_CLOCK, _MEMORY = _Clock(), _Memory()


def _start_anew() -> None:
    """A forked process has neither the thread of its parent nor the limit of what that renders."""
    global _CLOCK, _MEMORY
    if _MEMORY.rendering:
        resource.setrlimit(resource.RLIMIT_DATA, _MEMORY.before)
    _CLOCK, _MEMORY = _Clock(), _Memory()


os.register_at_fork(after_in_child=_start_anew)
