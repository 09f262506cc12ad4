"""Where things lie that were computed once and cost time only: `$ALIGNER_CACHE`, else `~/.cache/aligner`."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return the folder of one kind of them: `reference`, `rewards`, `samples`, `judge`."""
    root = os.environ.get("ALIGNER_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "aligner") / name
