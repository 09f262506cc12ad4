"""A filter over the system calls of a worker: what a program of an answer never needs.

Refused are Unix sockets that are reached by a name (a database's, Docker's; pairs of connected
sockets stay), families of sockets that a network of one's own does not close, memory that belongs
to no process (memory files, segments, message queues), further namespaces and mounts, other
processes' memory, keys, and files by handle; rights and times of files, where they are the user's
own and nothing else protects them. It holds for every thread and every process that is
started from here on, and needs Linux on x86_64 or aarch64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from aligner.sandbox.kernel import ABSENT

MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Machine -> its number for audits, and its column in `CALLS`."""

CALLS = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "seccomp": (317, 277),
    "socket": (41, 198),
    "socketpair": (53, 199),
}
"""Call -> its number on each machine."""

REFUSED = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "io_uring_setup": (425, 425),  # through a ring a socket could be had as well
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
}
"""Call that is always refused -> its number on each machine."""

ATTRIBUTES = {
    "chmod": (90, 52),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, 55),
    "fchown": (93, 55),
    "lchown": (94, 55),
    "fchownat": (260, 54),
    "utime": (132, 88),
    "utimes": (235, 88),
    "futimesat": (261, 88),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}
"""Call that changes rights, owners, times or attributes of files -> its number on each machine, or
that of the one in its place."""

_INTERNET = (2, 10)  # AF_INET and AF_INET6
_CONNECTED = (1, 5)  # SOCK_STREAM and SOCK_SEQPACKET: a datagram could be sent to any name
_NAMESPACES = 0x7E020000  # the flags of clone(2) that ask for one
_NUMBER, _MACHINE, _FIRST, _SECOND = 0, 4, 16, 24  # where they stand in what a filter sees
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _GIVE = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_SET_MODE_FILTER, _ALL_THREADS = 1, 1

Step = tuple[int, int, str, str]
"""Code, value, and the labels that are gone to where it holds and where it does not."""


def filter_calls(sockets: bool, attributes: bool) -> str:
    """Install the filter, for good: "yes", or why it is not there. `sockets` leaves those of the
    internet, `attributes` rights and times of files."""
    machine = os.uname().machine
    if not sys.platform.startswith("linux") or machine not in MACHINES:
        return f"not on {sys.platform} {machine}"
    if "seccomp" in ABSENT:
        return "seccomp is left out"
    packed = _assembled(*_program(machine, sockets, attributes))
    code = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("HxxxxxxP", len(packed) // 8, ctypes.addressof(code))
    number = CALLS["seccomp"][MACHINES[machine][1]]
    library = ctypes.CDLL(None, use_errno=True)
    said = library.syscall(number, _SET_MODE_FILTER, _ALL_THREADS, ctypes.c_char_p(program))
    if said > 0:
        return f"the thread {said} has another filter"
    return "yes" if said == 0 else os.strerror(ctypes.get_errno())


def _program(machine: str, sockets: bool, attributes: bool) -> tuple[list[Step], dict[str, int]]:
    """Steps, and where each label stands."""
    audit, column = MACHINES[machine]
    steps: list[Step] = [
        (_LOAD, _MACHINE, "", ""),
        (_EQUAL, audit, "", "refuse"),
        (_LOAD, _NUMBER, "", ""),
        (_AT_LEAST, 0x40000000, "refuse", ""),  # a second table of calls, on x86_64
        (_EQUAL, CALLS["clone"][column], "clone", ""),
        (_EQUAL, CALLS["clone3"][column], "absent", ""),  # its flags stand where no filter sees
        (_EQUAL, CALLS["socket"][column], "socket", ""),
        (_EQUAL, CALLS["socketpair"][column], "pair", ""),
    ]
    refused = REFUSED if attributes else {**REFUSED, **ATTRIBUTES}
    steps += [(_EQUAL, numbers[column], "refuse", "") for numbers in refused.values()]
    steps.append((_GIVE, _ALLOW, "", ""))
    labels = {"clone": len(steps)}
    steps += [(_LOAD, _FIRST, "", ""), (_ANY_BIT, _NAMESPACES, "refuse", "allow")]
    labels["socket"] = len(steps)
    steps.append((_LOAD, _FIRST, "", ""))
    steps += [(_EQUAL, family, "allow", "") for family in _INTERNET if sockets]
    steps.append((_GIVE, _REFUSE | errno.EACCES, "", ""))
    labels["pair"] = len(steps)
    steps += [(_LOAD, _SECOND, "", ""), (_AND, 0xF, "", "")]
    steps += [(_EQUAL, kind, "allow", "") for kind in _CONNECTED]
    labels["refuse"] = len(steps)
    steps.append((_GIVE, _REFUSE | errno.EACCES, "", ""))
    labels["absent"] = len(steps)
    steps.append((_GIVE, _REFUSE | errno.ENOSYS, "", ""))
    labels["allow"] = len(steps)
    steps.append((_GIVE, _ALLOW, "", ""))
    return steps, labels


def _assembled(steps: list[Step], labels: dict[str, int]) -> bytes:
    """As the kernel reads it: a jump is the number of steps that are left out; no label is 0."""
    packed = b""
    for place, (code, value, holds, fails) in enumerate(steps, start=1):
        jumps = [labels[label] - place if label else 0 for label in (holds, fails)]
        packed += struct.pack("HBBI", code, *jumps, value)
    return packed
