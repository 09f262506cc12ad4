"""Weights that a run wrote are what its manifest says they are, or they are refused before they are
loaded. Weights of other folders have nothing to be compared with."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from aligner.errors import RecipeError
from aligner.launch.world import world
from aligner.runs.files import file_sha256, read_json


def check_run_weights(folder: Path, where: str) -> None:
    """Refuse a folder of a finished run in which a weight changed since; of several ranks the first
    one looks.

    Raises: RecipeError naming the file; DataError where the manifest is damaged.
    """
    folder = folder.absolute()
    run = folder.parent
    is_run = (run / "resolved.json").is_file() and (run / "manifest.json").is_file()
    if not is_run or world()[0] != 0:
        return
    noted = read_json(run, "manifest.json").get("files", {})
    for file in sorted(folder.glob("*.safetensors")):
        known, seen = noted.get(f"{folder.name}/{file.name}"), file.stat()
        if known is not None and _digest(file, seen.st_size, seen.st_mtime_ns) != known:
            raise RecipeError(
                f"{where}: {file} is not what the run {run} wrote: it is damaged, or was changed",
                "restore it from a copy; weights that were changed on purpose belong into a folder "
                "outside of the run",
            )


@lru_cache(maxsize=256)
def _digest(file: Path, size: int, mtime_ns: int) -> str:
    """The checksum of a file, computed once for as long as it is the same."""
    return file_sha256(file)
