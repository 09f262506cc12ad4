"""The memory of this process, for figures of peaks."""

from __future__ import annotations

from pathlib import Path


def peak_mib() -> float:
    """Return the most that this process has held, in MiB.

    The kernel's count of it starts with the program; `getrusage` takes over the peak of the process
    that started it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status names no peak")
