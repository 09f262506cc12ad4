"""Work in parts that a kill interrupts and that is gone on with: one line of JSON for each finished part.

A line says which part it is and what it was made with (a fingerprint of a model), so that two processes may write side by side
where nothing keeps them apart, and parts of two models are never mixed. A line that a kill cut short counts as not there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from aligner.errors import UsageError
from aligner.events import Notice, OnEvent, StageProgress, tell
from aligner.record import dumps

P = TypeVar("P")

Work = Callable[[P], Any]
"""From a part to its result, as JSON can hold it."""


def carry_on(
    path: Path,
    what: str,
    parts: Sequence[P],
    make: Callable[[], tuple[str, Work[P]]],
    on_event: OnEvent | None,
    size: Callable[[P], int],
) -> list[Any]:
    """Return the result of each part, in order, doing those that the journal does not have.

    `make` returns the fingerprint of what does the work, and what does it; it is called only when there is work to do. `size` counts
    the pieces of a part, for the progress that is told under the name `what`.

    Raises: UsageError when the journal was begun with something else.
    """
    known = {part["part"]: part for part in _lines(path)}
    assert all(number < len(parts) for number in known), f"{path} holds part {max(known)} of {len(parts)}"
    if len(known) == len(parts):
        return [known[number]["result"] for number in range(len(parts))]
    if known:
        tell(on_event, Notice(f"Going on with {what}: {len(known)} of {len(parts)} parts are there already."))
    made_with, work = make()
    _check(path, known, made_with, what)
    total = sum(map(size, parts))
    count = sum(size(parts[number]) for number in known)
    _prepare(path)
    with open(path, "ab") as file:
        for number, part in enumerate(parts):
            if number in known:
                continue
            line = _append(file, {"part": number, "made with": made_with, "result": work(part)})
            known[number] = json.loads(line)
            count += size(part)
            tell(on_event, StageProgress(what, count, total))
    return [known[number]["result"] for number in range(len(parts))]


def begun_with(path: Path) -> str | None:
    """Return the fingerprint of what a journal was made with; None where no part is done."""
    return next((part["made with"] for part in _lines(path)), None)


def _prepare(path: Path) -> None:
    """Make the folder, and end a line that was cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")


def _append(file: IO[bytes], value: dict[str, Any]) -> str:
    """Write a line so that it survives a kill, and return it."""
    line = dumps(value)
    file.write(line.encode("utf-8") + b"\n")
    file.flush()
    os.fsync(file.fileno())
    return line


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of finished parts; one that was cut short is none."""
    if path.exists():
        with open(path, "rb") as file:
            for line in file:
                with suppress(ValueError):
                    yield json.loads(line)


def _check(path: Path, known: dict[int, dict[str, Any]], made_with: str, what: str) -> None:
    if any(part["made with"] != made_with for part in known.values()):
        raise UsageError(
            f"{path} was begun with another model: {what} would be partly of one and partly of the other.",
            "Put the old model back, or start again with --overwrite.",
        )
