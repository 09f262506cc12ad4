"""How torch, transformers and datasets are imported, and kept from drawing on the screen."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

NO_COMPILER = "TORCHDYNAMO_DISABLE"
"""torch's own switch, read where a function is wrapped in `torch.compile`."""


def disable_progress_bars() -> None:
    """Leave progress to our events: transformers draws a bar for each file that it reads or writes,
    and datasets for each pass over rows."""
    from datasets.utils import logging as of_datasets
    from transformers.utils import logging as of_transformers

    of_datasets.disable_progress_bar()
    of_transformers.disable_progress_bar()


@contextmanager
def quick_imports() -> Iterator[None]:
    """Let the garbage collector wait while torch and its like are imported.

    Half a million objects of thousands of modules hold no garbage, and searching them again and
    again takes a quarter of the time of the import. What they made is left out of later searches
    too.
    """
    was_enabled, count = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > count:
            gc.freeze()
        if was_enabled:
            gc.enable()


def import_bitsandbytes_plainly() -> None:
    """Import bitsandbytes before peft does, without wrapping its functions in `torch.compile`.

    peft imports it wherever it is installed. Four of its functions for CPUs (dequantizing, and a
    step of its optimizers) are wrapped as they are defined, which loads all of Inductor: a seventh
    of the time of all imports. They stay as they are written for the rest of the process, so this
    is for trainings that have no use for them.
    """
    if "bitsandbytes" in sys.modules:
        return
    importlib.import_module("torch")
    before = os.environ.get(NO_COMPILER)
    os.environ[NO_COMPILER] = "1"
    try:
        with suppress(ImportError):
            importlib.import_module("bitsandbytes")
    finally:
        if before is None:
            del os.environ[NO_COMPILER]
        else:
            os.environ[NO_COMPILER] = before
