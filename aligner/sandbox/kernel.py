"""Calls of the kernel that Python does not offer, and what they say."""

from __future__ import annotations

import ctypes
import os
from typing import Any

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

ABSENT: set[str] = set()
"""Functions that are said to be missing, as on a machine that lacks them: for tests."""


def call_kernel(function: str, *values: Any) -> str:
    """ "yes", or why the call of this function of the C library did not work."""
    if function in ABSENT:
        return f"{function} is left out"
    try:
        called = getattr(ctypes.CDLL(None, use_errno=True), function)
    except AttributeError:
        return f"this system has no {function}"
    return "yes" if called(*values) >= 0 else os.strerror(ctypes.get_errno())
