"""Errors of libraries whose cause lies outside this program: a full disk, another process that
ended, a user who is not here.

Libraries report both in their own ways: torch writes "unexpected pos 704 vs 598" where the disk is
full, safetensors puts the number of the system's error into its text, and a rank whose neighbour
was killed hears "Connection reset by peer". `outside_cause` says which error of ours it is. Imports
no torch.
"""

from __future__ import annotations

import errno
import os
import re

from aligner.errors import AlignerError, TrainingError, UsageError
from aligner.launch.world import world

DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.EISDIR,
    errno.ENOTDIR,
)
"""Errors of the system that say why a file could not be read or written."""

_IN_TEXT = re.compile(r"\(os error (\d+)\)")
_NO_HOME = "Could not determine home directory"
"""What pathlib says of `~nobody/x`, without the path."""

_TORCH_WRITER = "inline_container.cc"
_CONNECTION = re.compile(
    r"connection (was )?(reset|closed|refused|aborted)|broken pipe|socket closed"
    r"|NCCL .*(error|abort)|Gloo .*failed",
    re.IGNORECASE,
)


class LostConnectionError(TrainingError):
    """Another rank ended, and this one noticed: a consequence, never the cause."""


def outside_cause(error: BaseException) -> AlignerError | None:
    """Return what a library's error comes from, as one of ours, or None where it is something
    else."""
    # What was merely being handled when it was raised may have nothing to do with it.
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for one in chain:
        number = _number_of(one)
        if number in DISK:
            name = getattr(one, "filename", None) or "a file could not be written"
            return UsageError(f"{name}: {os.strerror(number)}", _cure(number))
    if any(isinstance(one, RuntimeError) and _TORCH_WRITER in str(one) for one in chain):
        what = "a file could not be written: torch does not say why, and mostly the disk is full"
        return UsageError(what, _cure(errno.ENOSPC))
    if isinstance(error, RuntimeError) and _NO_HOME in str(error):
        return UsageError(
            "a path begins with ~NAME, and nobody of that name is on this machine",
            "write the path in full",
        )
    if world()[1] > 1 and any(map(_is_lost_connection, chain)):
        reason = str(error).strip().splitlines()[0][:200]
        return LostConnectionError(
            f"this rank stopped because another one ended ({reason})",
            "what that one said, or the system's log if it was killed, names the cause; then "
            "--resume",
        )
    return None


def _cure(number: int) -> str:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "free some space and add --resume: everything that was complete is kept"
    if number in (errno.EISDIR, errno.ENOTDIR):
        return "move away what stands there, or choose another place"
    return "choose another place, or make this one readable and writable"


def _number_of(error: BaseException) -> int:
    """The number of the system's error, or 0: safetensors has it in its text alone."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = _IN_TEXT.search(str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else 0


def _is_lost_connection(error: BaseException) -> bool:
    is_torchs = isinstance(error, RuntimeError) or type(error).__module__.startswith("torch")
    return isinstance(error, ConnectionError) or (
        is_torchs and bool(_CONNECTION.search(str(error)))
    )
