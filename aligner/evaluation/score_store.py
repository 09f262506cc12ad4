"""Where scores are kept until all of them are there: a folder `OUTPUT.part` beside the file that they will be in.

    header.json    what is scored with what; written first
    scores.jsonl   a line for each answer, appended part by part and flushed to disk; behind each part `{"end": answers}`
    lock           the process that writes

A part that a kill cut short has no such end, and is taken off when the folder is opened again: its scores may belong
together. Scores of other data, or of another reward model, are never mixed in: opening refuses them and says what
changed. Nothing is removed, also to begin again, before the lock is held. The finished file is written under a
temporary name and renamed, and then the folder is gone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aligner.errors import DataError, UsageError
from aligner.evaluation.answer_rows import Scored
from aligner.lock import LOCK_NAME, acquire_lock, release_lock
from aligner.record import dumps, plain, sync_folder, write_atomically

HEADER = "header.json"
SCORES = "scores.jsonl"
END = "end"
"""Key of the line behind a part: how many answers it holds."""

NAMES = {"data": "the data", "reward_model": "the reward model", "answers": "the number of answers"}
"""Keys of the header, in words."""


def part_folder(output: Path) -> Path:
    """Where the scores of an unfinished file lie."""
    return output.with_name(f"{output.name}.part")


def check_output(output: Path, data: str, *, resume: bool, overwrite: bool) -> None:
    """Say what is in the way, before anything is read or computed.

    Raises: UsageError for an output that exists, or that was begun, unless the user says what to do with it.
    """
    if resume and overwrite:
        raise UsageError("--resume goes on and --overwrite begins again", "Give one of them.")
    if output.suffix in (".csv", ".parquet", ".gz"):
        raise UsageError(f"{output} would hold lines of JSON, which its name does not say", "Name it .jsonl.")
    if output.is_dir():
        raise UsageError(f"{output} is a folder", "Name a file: scored.jsonl.")
    if Path(data).expanduser().resolve() in (output.resolve(), *output.resolve().parents):
        where = "in the folder of the data" if Path(data).expanduser().is_dir() else "the data itself"
        raise UsageError(f"{output} is {where}", "Write the scored rows to another place.")
    part = part_folder(output)
    if part.exists() and not _is_ours(part):
        raise UsageError(f"{part} is in the way, and no scoring made it", "Move it away, or name another output.")
    if overwrite:
        return
    if part.exists() and not resume:
        raise UsageError(f"{output} was begun and not finished", "--resume goes on; --overwrite begins again.")
    if output.exists() and not part.exists():
        hint = "--overwrite scores again; nothing is left to be resumed." if resume else "--overwrite replaces it."
        raise UsageError(f"{output} exists", hint)


def _is_ours(part: Path) -> bool:
    """Whether a scoring made it; one that was killed at once left a lock and perhaps a temporary file."""
    if not part.is_dir():
        return False
    names = [item.name for item in part.iterdir()]
    return HEADER in names or all(name == LOCK_NAME or (name[0] == "." and name.endswith(".tmp")) for name in names)


class ScoreStore:
    """The folder of an unfinished output; used as `with open_store(...) as store:`, which holds its lock."""

    def __init__(self, output: Path, header: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.output = output
        self.overwrite = overwrite
        self.folder = part_folder(output)
        self.header = dict(header)
        self.done: dict[int, Scored] = {}

    def __enter__(self) -> ScoreStore:
        self.folder.mkdir(parents=True, exist_ok=True)
        acquire_lock(self.folder)
        try:
            self._open()
        except BaseException:
            release_lock(self.folder)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        release_lock(self.folder)

    def _open(self) -> None:
        path = self.folder / HEADER
        if self.overwrite:
            self.clear()
            path.unlink(missing_ok=True)
        if not path.exists():
            write_atomically(path, dumps(self.header, indent=2))
            return
        known = json.loads(path.read_text(encoding="utf-8"))
        changed = [NAMES.get(key, key) for key in self.header if known.get(key) != self.header[key]]
        if changed:
            raise UsageError(
                f"{self.output} was begun with something else: {' and '.join(changed)} changed since",
                "Give what it was begun with, or begin again with --overwrite.",
            )
        self._read()

    def _read(self) -> None:
        path = self.folder / SCORES
        if not path.exists():
            return
        data = path.read_bytes()
        whole = _whole_parts(data)
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        part: dict[int, Scored] = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                if END not in record:
                    answer = int(record.pop("answer"))
                    part[answer] = Scored(**record)
                    continue
                if record != {END: len(part)}:
                    raise ValueError(f"a part of {len(part)} answers")
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise DataError(f"{path}:{number} is no score", "Begin again with --overwrite.") from error
            self.done.update(part)
            part = {}

    def clear(self) -> None:
        """Forget all scores."""
        (self.folder / SCORES).unlink(missing_ok=True)
        self.done.clear()

    def add(self, scored: Mapping[int, Scored]) -> None:
        """Keep the scores of some answers, all of them or none, on disk before this returns."""
        lines = [
            {"answer": answer, "score": found.score, "attributes": found.attributes, "remark": found.remark}
            for answer, found in scored.items()
        ]
        with open(self.folder / SCORES, "a", encoding="utf-8", newline="\n") as file:
            file.write("".join(dumps(line) + "\n" for line in [*lines, {END: len(lines)}]))
            file.flush()
            os.fsync(file.fileno())
        self.done.update(scored)

    def finish(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the output, whole or not at all, and remove the folder."""
        temporary = self.output.with_name(f".{self.output.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                for row in rows:
                    file.write(_line(row))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.output)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(self.output.parent)
        shutil.rmtree(self.folder)


def _whole_parts(data: bytes) -> bytes:
    """The bytes up to the last line that ends a part."""
    lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
    mark = f'{{"{END}":'.encode()
    last = max((place for place, line in enumerate(lines, start=1) if line.startswith(mark)), default=0)
    return b"".join(lines[:last])


def _line(row: Mapping[str, Any]) -> str:
    """The row as strict JSON; half a surrogate pair in a column that nobody reads stays as it is, escaped."""
    line = json.dumps(plain(row), ensure_ascii=False, allow_nan=False, default=str) + "\n"
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(plain(row), allow_nan=False, default=str) + "\n"
    return line


def open_store(output: Path, header: Mapping[str, Any], *, overwrite: bool) -> ScoreStore:
    """The store of an output; `check_output` has been asked before."""
    return ScoreStore(output, header, overwrite=overwrite)
