"""How torch, transformers and datasets are imported, and kept from drawing on the screen."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
