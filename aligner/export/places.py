"""A folder, or a file, that is there whole or not at all. Imports no torch.

What is being written lies in `NAME.unfinished/` beside its place, with the lock of the process, and
is moved there at the end. What a kill left goes when the same place is written again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aligner.errors import UsageError
from aligner.runs.files import share_weights, sync_folder
from aligner.runs.lock import acquire_lock, release_lock
from aligner.runs.places import refuse_unusable

UNFINISHED, WHOLE = ".unfinished", "whole"


def check_place(place: Path, record: str, source: str, *, overwrite: bool) -> None:
    """Refuse a place that cannot be written, that holds something already, or that is the source.

    `record`: the file in a folder of ours that says that we wrote it; only such a folder is
    replaced by `overwrite`.

    Raises: UsageError.
    """
    refuse_unusable(place, "--output")
    origin = Path(source).expanduser()
    if origin.exists() and place.resolve() in (origin.resolve(), *origin.resolve().parents):
        raise UsageError(
            f"--output: {place} is, or holds, the model that is read", "choose another place"
        )
    if place.is_file():
        raise UsageError(f"--output: {place} is a file", "name a folder that is to be made")
    if not place.is_dir() or not any(place.iterdir()):
        return
    if not (place / record).is_file():
        raise UsageError(
            f"--output: {place} is not empty, and holds no {record}: we did not write it",
            "choose another place",
        )
    if not overwrite:
        raise UsageError(f"{place} exists", "--overwrite replaces it")


def check_file(place: Path, suffix: str, source: str, *, overwrite: bool) -> None:
    """Refuse a place where no file can be written, or one is already, or of another name.

    Raises: UsageError.
    """
    refuse_unusable(place, "--output")
    if place.suffix != suffix:
        raise UsageError(
            f"--output: {place} does not end in {suffix}", f"name it {place.stem}{suffix}"
        )
    if place.is_dir():
        raise UsageError(f"--output: {place} is a folder", f"name a file: {place}/model{suffix}")
    if place.exists() and Path(source).expanduser().resolve() == place.resolve():
        raise UsageError(f"--output: {place} is the model that is read", "choose another place")
    if place.exists() and not overwrite:
        raise UsageError(f"{place} exists", "--overwrite replaces it")


@contextmanager
def unfinished(place: Path) -> Iterator[Path]:
    """Give an empty folder to write into while it lasts; `move` takes what was written from there
    to its place, and everything else goes, also where writing fails."""
    place = place.resolve() if place.is_symlink() else place
    around = place.with_name(f"{place.name}{UNFINISHED}")
    around.mkdir(parents=True, exist_ok=True)
    acquire_lock(around)
    folder = around / WHOLE
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        release_lock(around)
        with suppress(OSError):
            around.rmdir()


def move(written: Path, place: Path) -> None:
    """Give a folder or file that is whole its place; what was there before goes."""
    place = place.resolve() if place.is_symlink() else place
    if written.is_dir():
        share_weights(written)
        shutil.rmtree(place, ignore_errors=True)
    os.replace(written, place)
    sync_folder(place.parent)
