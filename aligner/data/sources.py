"""Where rows come from: a file, a folder, a glob or a hub dataset, found by the shape of `path`.

A path that exists is local. A folder is either laid out by split (`train.jsonl`,
`data/train-00000-of-00002.parquet`, `train/part.jsonl`), of which the wanted split is read, or
every known file in it is read, in the order of their names. What exists nowhere but could be a hub
id goes to `datasets.load_dataset`. A missing file, split or column is answered with what there is
instead.
"""

from __future__ import annotations

import difflib
import glob
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from aligner.config.recipe import Data, Source
from aligner.data.columnar import Nulls
from aligner.data.files import (
    KINDS,
    can_be_drawn_from,
    count_rows,
    file_record,
    kind_of_file,
    read_file,
)
from aligner.data.ledger import FileRecord
from aligner.data.memory import IN_MEMORY, decoded, fingerprinted
from aligner.errors import DataError

SPLIT_NAMES = ("train", "test", "validation", "valid", "val", "dev", "eval")
NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")

DRAWN_AT_ONCE = 1000

RawRows = Iterator[tuple[str, Any]]
"""Origin ("data/x.jsonl:17") and the raw row, or what stands in its place."""


def open_source(
    source: Source, files: list[FileRecord] | None = None, nulls: Nulls | None = None
) -> RawRows:
    """The raw rows of a source.

    With `files`, each file is read once more for its hash, and recorded there before its first row.
    `nulls` counts the nulls in nested columns of Parquet, Arrow and hub datasets that were taken
    as absent keys.
    """
    nulls = nulls or Nulls()
    try:
        paths = local_files(source)
    except OSError as error:
        where = error.filename or source.path
        raise DataError(
            f"{where} cannot be read: {error.strerror}", "check the path and its permissions"
        ) from error
    if paths is None:
        name = f"{source.path}[{source.split}]"
        rows = list(decoded(_load_hub(source), nulls))
        if files is not None:
            files.append(fingerprinted(name, rows))  # over the rows: the files are not at hand
        for number, row in enumerate(rows, start=1):
            yield f"{name}:{number}", row
        return
    if paths and paths[0].suffix == ".arrow":
        yield from _saved_rows(paths, files, nulls)
        return
    for path in paths:
        if files is not None:
            files.append(file_record(path))
        name = str(path)  # a path takes as long to become text as its row takes to be read
        for number, row in read_file(path, nulls):
            yield f"{name}:{number}", row


def drawn_rows(source: Source, draw: random.Random) -> RawRows | None:
    """Yield the raw rows of local files in a random order, of which nothing is decoded that is not
    asked for; None for a source that can only be read from its beginning.

    Yields in rounds: where a round holds broken rows alone, the next one is drawn.
    """
    paths = local_files(source)
    if paths is None or not all(can_be_drawn_from(path) for path in paths):
        return None
    return _drawn(paths, draw)


def _drawn(paths: list[Path], draw: random.Random) -> RawRows:
    totals = [count_rows(path) for path in paths]
    left = set[int]()
    total = sum(totals)
    while len(left) < total:
        wanted = set(draw.sample(range(total), min(DRAWN_AT_ONCE, total))) - left
        left |= wanted
        found, first = [], 0
        for path, count in zip(paths, totals, strict=True):
            numbers = {place - first + 1 for place in wanted if first <= place < first + count}
            rows = read_file(path, only=numbers) if numbers else iter(())
            found += [(f"{path}:{number}", row) for number, row in rows]
            first += count
        draw.shuffle(found)
        yield from found


def local_files(source: Source) -> list[Path] | None:
    """The files of a local source, or None for a hub id."""
    if not source.path.strip():
        raise DataError("`path` of a source is empty", "name a file, a folder, a glob or a hub id")
    if source.path == IN_MEMORY:
        raise DataError(
            "the rows of this recipe were given in Python, and are in no file",
            "run it from Python again, with `aligner.train(..., rows=...)`, or name a file",
        )
    path = Path(source.path).expanduser()
    if path.is_dir():
        _refuse_hub_settings(source, allow_split=True)
        return _folder_files(path, source)
    if path.is_file():
        _refuse_hub_settings(source)
        if kind_of_file(path) is None:
            raise DataError(
                f"{source.path}: files of this kind cannot be read", f"known are {_known_kinds()}"
            )
        return [path]
    if glob.has_magic(source.path):
        _refuse_hub_settings(source)
        return _glob_files(source)
    is_named_as_file = kind_of_file(path) is not None
    if not is_named_as_file and re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", source.path):
        owner, slash, _ = source.path.partition("/")
        if not (slash and Path(owner).is_dir()):
            return None
    raise DataError(f"there is no file or folder {source.path}", _near_names(path))


def reads_hub(data: Data) -> bool:
    """Say whether some rows come from the hub, once all files that are named are there. Raises:
    DataError for one that is not."""
    held_out = data.eval if isinstance(data.eval, list) else []
    found = [local_files(source) for source in (*data.train, *held_out)]
    return None in found


def _known_kinds() -> str:
    return ", ".join(KINDS) + " (each but .parquet also as .gz)"


def _refuse_hub_settings(source: Source, *, allow_split: bool = False) -> None:
    """A setting that would say nothing is a mistake, not a detail."""
    given = {"subset": source.subset, "revision": source.revision}
    if not allow_split:
        given["split"] = None if source.split == "train" else source.split
    named = [name for name, value in given.items() if value is not None]
    if named:
        what = "a local folder" if allow_split else "a local file"
        raise DataError(
            f"{source.path} is {what}: `{named[0]}: {given[named[0]]}` has no meaning there",
            f"remove `{named[0]}`",
        )


def _glob_files(source: Source) -> list[Path]:
    found = sorted(
        Path(name) for name in glob.glob(str(Path(source.path).expanduser()), recursive=True)
    )
    files = [path for path in found if path.is_file() and kind_of_file(path)]
    if not files:
        matched = f"; it matches {found[0]}, which is not a file of a known kind" if found else ""
        raise DataError(f"no file matches {source.path}{matched}", f"known are {_known_kinds()}")
    return files


def _saved_rows(paths: list[Path], files: list[FileRecord] | None, nulls: Nulls) -> RawRows:
    """Rows of a folder that `save_to_disk` wrote, numbered through all of its files."""
    import pyarrow
    from datasets import load_from_disk

    if files is not None:
        files.extend(file_record(path) for path in paths)
    folder = paths[0].parent
    try:
        rows = load_from_disk(str(folder))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{folder} is broken as a saved dataset: {error}", "write or copy it again"
        ) from error
    for number, row in enumerate(decoded(rows, nulls), start=1):
        yield f"{folder}:{number}", row


def _saved_folder(folder: Path, source: Source) -> Path | None:
    """The folder of a dataset that `save_to_disk` wrote: this one, or that of the wanted split in
    it."""
    if (folder / "state.json").is_file():
        if source.split != "train":
            raise DataError(f"{source.path} holds one dataset and no splits", "remove `split`")
        return folder
    if not (folder / "dataset_dict.json").is_file():
        return None
    splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
    if source.split not in splits:
        raise DataError(
            f"{source.path}: no split `{source.split}`", f"there are {', '.join(splits) or 'none'}"
        )
    return folder / source.split


def _folder_files(folder: Path, source: Source) -> list[Path]:
    saved = _saved_folder(folder, source)
    if saved is not None:
        return sorted(saved.glob("*.arrow"))
    files = [path for path in sorted(folder.rglob("*")) if _holds_rows(path, folder, source)]
    if not files:
        raise _no_files(folder, source)
    splits = {path: _split_of(path, folder) for path in files}
    wanted = [path for path, name in splits.items() if _is_split(name, source.split)]
    if wanted:
        return wanted
    if not any(_is_split(name, known) for name in splits.values() for known in SPLIT_NAMES):
        if source.split == "train":
            return files
        raise DataError(
            f"{source.path}: no split `{source.split}`: the folder is not laid out by split",
            "remove `split`",
        )
    there = sorted(set(splits.values()))
    near = difflib.get_close_matches(source.split, there, n=1)
    raise DataError(
        f"{source.path}: no split `{source.split}`; there {'is' if len(there) == 1 else 'are'} "
        f"{', '.join(there)}",
        f"did you mean `split: {near[0]}`?" if near else f"say `split: {there[0]}`",
    )


def _holds_rows(path: Path, folder: Path, source: Source) -> bool:
    """Known files outside hidden folders; text files only where the user asks for text."""
    inside = path.relative_to(folder).parts
    if not path.is_file() or path.name in NOT_ROWS or any(part.startswith(".") for part in inside):
        return False
    kind = kind_of_file(path)
    return kind is not None and (kind != ".txt" or source.format == "text")


def _no_files(folder: Path, source: Source) -> DataError:
    if any(folder.rglob("*.arrow")):
        hint = (
            "the files that `save_to_disk` writes beside them (state.json) are missing; copy the "
            "whole folder"
        )
    elif any(folder.rglob("*.txt")):
        hint = "to train on the lines of its text files say `format: text`"
    else:
        hint = f"known are {_known_kinds()}"
    return DataError(f"{source.path}: the folder holds no file of rows", hint)


def _split_of(path: Path, folder: Path) -> str:
    """The split that a file's place or name says it belongs to."""
    parents = path.relative_to(folder).parts[:-1]
    named = [part for part in parents if part in SPLIT_NAMES]
    if named:
        return named[-1]
    stem = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    return re.sub(r"-\d+-of-\d+.*$", "", stem)


def _is_split(name: str, split: str) -> bool:
    return name == split or name.startswith((f"{split}-", f"{split}."))


def _near_names(path: Path) -> str:
    """What lies nearby and is spelt alike."""
    if path.is_symlink():
        return f"it is a link to {path.readlink()}, which is not there"
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    if parent != path.parent:
        return (
            f"there is no folder {path.parent} either; relative paths are taken from {Path.cwd()}"
        )
    names = sorted(item.name for item in parent.iterdir())
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {path.parent / near[0]}?"
    return (
        f"{path.parent.resolve()} holds "
        f"{', '.join(names[:10]) or 'nothing'}{' ...' if len(names) > 10 else ''}"
    )


def _load_hub(source: Source) -> Any:
    _refuse_unreachable_hub(source)
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        dataset = datasets.load_dataset(
            source.path, source.subset, split=source.split, revision=source.revision
        )
    except (
        OSError,
        ValueError,
        RuntimeError,
        DatasetsError,
    ) as error:  # not found or offline; unknown split or subset; a script
        raise _hub_error(source, error) from error
    return dataset


def _refuse_unreachable_hub(source: Source) -> None:
    """Say at once that there is no network: the hub's client would try for half a minute."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    if constants.HF_HUB_OFFLINE or getproxies() or host is None:
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        near = _near_names(Path(source.path))
        raise DataError(
            f"{source.path} is not a local path, and the hub cannot be reached ({error.strerror})",
            near
            if near.startswith("did you mean")
            else "HF_HUB_OFFLINE=1 uses datasets that are in the cache",
        ) from error


def _hub_error(source: Source, error: Exception) -> DataError:
    told = str(error).strip().split("\n")[0]
    if isinstance(error, OSError):
        near = _near_names(Path(source.path))
        return DataError(
            f"{source.path} is neither a local path nor a dataset that can be reached on the hub "
            f"({told})",
            near
            if near.startswith("did you mean")
            else "check the name, the network, and access to it (`hf auth login`)",
        )
    splits = re.search(r"Unknown split \S+ Should be one of \[(.*)\]", told)
    if splits:
        there = [name.strip("'\" ") for name in splits.group(1).split(",")]
        near_split = difflib.get_close_matches(source.split, there, n=1)
        return DataError(
            f"{source.path}: no split `{source.split}`; there are {', '.join(there)}",
            f"did you mean `split: {near_split[0]}`?" if near_split else f"say `split: {there[0]}`",
        )
    return DataError(
        f"{source.path} cannot be loaded from the hub: {told}",
        "check `subset`, `split` and `revision`",
    )
