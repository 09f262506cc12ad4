"""Resumable work in parts: one line of JSON for each finished part.

A line says which part it is and what it was made with (a fingerprint of a model), so that two
processes may write side by side where nothing keeps them apart, and parts of two models are never
mixed. A line that a kill cut short counts as not there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from aligner.errors import UsageError
from aligner.events import Notice, OnEvent, StageProgress, Warned, tell
from aligner.runs.files import json_line

P = TypeVar("P")

LINE = frozenset({"part", "made with", "result", "sum"})
"""Keys of a line."""

Work = Callable[[P], Any]
"""From a part to its result, as JSON can hold it."""


class Journal:
    """Results of parts, by number: those that a file held when it was opened, and those added
    since. Memory holds where a part lies, and it is read when it is asked for.

    `done`: how many it held; `damaged`: how many lines are not what was written, without one that a
    kill cut short at the end; `recorded_fingerprint`: that of what they were made with, None where
    there is none.
    """

    def __init__(self, path: Path | None, fingerprint: str = "") -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.recorded_fingerprint: str | None = None
        self._all_with: set[str] = set()
        self._starts: dict[int, int] = {}
        self.damaged = 0
        for start, line in _lines(path):
            part = _part(line)
            if part is None:
                self.damaged += line.endswith(b"}\n")
                continue
            self._starts[part["part"]] = start
            self._all_with.add(part["made with"])
            if self.recorded_fingerprint is None:
                self.recorded_fingerprint = part["made with"]
        self.done = len(self._starts)

    def __contains__(self, part: int) -> bool:
        return part in self._starts

    def __getitem__(self, part: int) -> Any:
        assert self.path is not None, "without a file no part is known"
        with open(self.path, "rb") as file:
            file.seek(self._starts[part])
            return json.loads(file.readline())["result"]

    def check(self, what: str) -> None:
        """Refuse a file whose parts were made with something else. `what`: the work, in words.

        Raises: UsageError.
        """
        if self._all_with - {self.fingerprint}:
            raise UsageError(
                f"{self.path} was started with a different model: {what} would be partly of one "
                "and partly of the other",
                "put the old model back, or start again with --overwrite",
            )

    def tell_resumed(self, what: str, parts: int, on_event: OnEvent | None) -> None:
        """Say where the work resumes, if some of its parts are done and not all, and what of it is
        damaged."""
        self.tell_damaged(on_event)
        if 0 < self.done < parts:
            notice = f"resuming {what}: {self.done} of {parts} parts are there already"
            tell(on_event, Notice(notice))

    def tell_damaged(self, on_event: OnEvent | None) -> None:
        """Say that parts are done again whose lines are not what was written, if there are any."""
        if self.damaged:
            lines = "1 line is" if self.damaged == 1 else f"{self.damaged} lines are"
            tell(on_event, Warned(f"{self.path}: {lines} damaged; their parts are done again"))

    def add(self, part: int, result: Any) -> Any:
        """Keep the result of a part, and return it; in a file, it is on disk before this
        returns."""
        if self.path is None:
            return result
        line = self._line(part, result)
        self._starts[part] = _append(self.path, [line])[0]
        return json.loads(line)["result"]

    def add_all(self, results: Sequence[tuple[int, Any]]) -> None:
        """Keep the results of several parts, which takes as long as one: all are on disk before
        this returns."""
        assert self.path is not None, "what is kept together is kept in a file"
        lines = [self._line(part, result) for part, result in results]
        for (part, _), start in zip(results, _append(self.path, lines)):
            self._starts[part] = start

    def _line(self, part: int, result: Any) -> str:
        text = json_line({"part": part, "made with": self.fingerprint, "result": result})
        return f'{text[:-2]}, "sum": "{_digest(text)}"}}\n'

    def results(self, parts: Iterable[P], work: Work[P]) -> Iterator[tuple[Any, bool]]:
        """The result of each part, in order, and whether it is new: not there yet, and worked on
        when it is asked for."""
        for number, part in enumerate(parts):
            known = number in self
            yield (self[number] if known else self.add(number, work(part))), not known


def run_resumable(
    path: Path,
    what: str,
    parts: Sequence[P],
    make: Callable[[], tuple[str, Work[P]]],
    on_event: OnEvent | None,
    size: Callable[[P], int],
) -> list[Any]:
    """Return the result of each part, in order, doing those that the file does not have.

    `make` returns the fingerprint of what does the work, and what does it; it is called only when
    there is work to do. `size` counts the pieces of a part, for the progress that is reported under
    the name `what`.

    Raises: UsageError when the file was started with something else.
    """
    journal = Journal(path)
    assert journal.done <= len(parts), f"{path} holds {journal.done} of {len(parts)} parts"
    if journal.done == len(parts):
        return [journal[number] for number in range(len(parts))]
    journal.tell_resumed(what, len(parts), on_event)
    journal.fingerprint, work = make()
    journal.check(what)
    total, count, found = sum(map(size, parts)), 0, []
    for part, (result, is_new) in zip(parts, journal.results(parts, work)):
        found.append(result)
        count += size(part)
        if is_new:
            tell(on_event, StageProgress(what, count, total))
    return found


def _digest(text: str) -> str:
    """The checksum of a value, of its line of JSON."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _append(path: Path, lines: Sequence[str]) -> list[int]:
    """Write lines so that they survive a kill, and return where each begins; behind a line that was
    cut short, on a line of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    starts = []
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
        start = file.seek(0, os.SEEK_END)
        for line in lines:
            content = line.encode("utf-8")
            starts.append(start)
            file.write(content)
            start += len(content)
        file.flush()
        os.fsync(file.fileno())
    return starts


def _lines(path: Path | None) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, each with the byte that it begins at."""
    if path is not None and path.exists():
        start = 0
        with open(path, "rb") as file:
            for line in file:
                yield start, line
                start += len(line)


def _part(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    is_line = isinstance(found, dict) and found.keys() >= LINE and type(found["part"]) is int
    return found if is_line and _is_what_was_written(found) else None


def _is_what_was_written(line: dict[str, Any]) -> bool:
    """Whether a line has its checksum; older versions took that of the result alone."""
    said = {key: line[key] for key in ("part", "made with", "result")}
    known = line["sum"]
    return known == _digest(json_line(said)) or known == _digest(json_line(line["result"]))
