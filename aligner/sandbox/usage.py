"""What a worker takes, looked at from outside: the memory of all its processes, and its folder.

Limits of the kernel hold for one process, and not for what belongs to none. So this process, which
waits for an answer anyway, adds up what the worker's processes hold: memory that several share
counts once where the system says so, and a file that is deleted while it is open counts as well.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a worker may use. Memory and processor time count from when the function is open."""

    memory_bytes: int
    """Address space of each process, and memory of all of them together."""
    cpu_s: float | None = None
    """Processor time of a worker over all its calls."""
    processes: int = 0
    """Processes and threads beside the worker."""
    file_bytes: int = 1_000_000
    """Size of a file."""
    folder_bytes: int = 64 * 2**20
    """What the temporary folder may hold on the disk, and `folder_files` how many; looked at every
    `LOOK_EVERY_S` of a call. With `user_files`, which can be anywhere, nobody looks."""
    folder_files: int = 2_000
    network: bool = False
    """Leave the network in reach."""
    user_files: bool = False
    """Leave the user's files writable, and a superuser its rights over files: for code that the
    user has written."""


class Usage:
    """What the processes below `keeper` hold, and what lies in `folder`, against the limits.

    `watched` says whether memory ("total") and disk can be seen: "yes", or why not.
    """

    def __init__(self, keeper: int, folder: str, limits: Limits) -> None:
        self._keeper, self._folder, self._limits = keeper, folder, limits
        self._next = 0.0
        has_processes = bool(list(processes_below(keeper)))
        self._at_start = memory_of(keeper) if has_processes else 0
        total = "yes" if has_processes else "this system does not list what a process has started"
        self.watched = {"total": total, "disk": self._disk()}

    def look(self) -> str:
        """What is wrong, in a sentence, or ""; no oftener than every `LOOK_EVERY_S`."""
        now = time.monotonic()
        if now < self._next:
            return ""
        self._next = now + LOOK_EVERY_S
        if self.watched["total"] == "yes":
            most = self._at_start + self._limits.memory_bytes
            if memory_of(self._keeper, more_than=most) > most:
                return f"it needed more than {self._limits.memory_bytes / 2**20:.0f} MiB of memory"
        if self.watched["disk"] != "not asked for" and (full := self._too_full()):
            return f"{full} and was stopped"
        return ""

    def _disk(self) -> str:
        if self._limits.user_files:
            return "not asked for"
        try:
            for pid in processes_below(self._keeper):
                os.stat(f"/proc/{pid}/fd/0")
        except FileNotFoundError:
            pass
        except OSError as error:
            return f"files that are deleted while they are open are not seen ({error.strerror})"
        return self._too_full() or "yes"

    def _too_full(self) -> str:
        """ "" or what is wrong with the folder: it holds more than it may, or a call has closed a
        part of it to this process."""
        folders, held, count = [self._folder], deleted_bytes(self._keeper), 0
        while folders:
            try:
                with os.scandir(folders.pop()) as entries:
                    for entry in entries:
                        with suppress(FileNotFoundError):  # deleted in the meantime
                            held += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                        count += 1
                        if held > self._limits.folder_bytes:
                            break
                        if count > self._limits.folder_files:
                            return f"it made more than {self._limits.folder_files} files"
            except FileNotFoundError:
                continue
            except OSError as error:
                return f"nobody can see how much it wrote ({error.strerror})"
        if held > self._limits.folder_bytes:
            return f"it wrote more than {self._limits.folder_bytes / 2**20:.0f} MiB"
        return ""


def processes_below(pid: int) -> Iterator[int]:
    """Process ids of what a process has started, and of what that has started."""
    above = [pid]
    while above:
        tasks = f"/proc/{above.pop()}/task"
        with suppress(OSError):  # it has ended in the meantime
            for task in os.listdir(tasks):
                found = [int(one) for one in Path(tasks, task, "children").read_text().split()]
                above += found
                yield from found


def memory_of(keeper: int, more_than: int = 0) -> int:
    """Bytes that the processes below a keeper hold in memory and on swap.

    What several of them share is counted for each, unless that is `more_than` and the system tells
    each one's share.
    """
    pids = list(processes_below(keeper))
    held = sum(_kilobytes(pid, "status", ("RssAnon", "RssShmem", "VmSwap")) for pid in pids)
    if held * 1024 <= more_than:
        return held * 1024
    return 1024 * sum(_share(pid) for pid in pids)


def _share(pid: int) -> int:
    """Kilobytes of a process, of what it shares its part; all of it where that is not told."""
    try:
        return _kilobytes(pid, "smaps_rollup", ("Pss_Anon", "Pss_Shmem", "SwapPss"))
    except PermissionError:
        return _kilobytes(pid, "status", ("RssAnon", "RssShmem", "VmSwap"))


def _kilobytes(pid: int, file: str, keys: tuple[str, ...]) -> int:
    """The sum of these lines; 0 for a process that has ended."""
    found = 0
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            name, _, value = line.partition(":")
            found += int(value.split()[0]) if name in keys else 0
    return found


def deleted_bytes(keeper: int) -> int:
    """Bytes on the disk of files that are open below a keeper and have no name any more."""
    held: dict[tuple[int, int], int] = {}
    for pid in processes_below(keeper):
        with suppress(OSError):  # it has ended, or is not shown
            for number in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    found = os.stat(f"/proc/{pid}/fd/{number}")
                    if stat.S_ISREG(found.st_mode) and not found.st_nlink:
                        held[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(held.values())
