"""Work in parts that a kill interrupts and a resumed run goes on with: one line of JSON for each finished part.

The first line says what the parts were made with (a fingerprint of a model); a resumed run that would use another is refused.
A line that a kill cut short is removed when the file is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

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
    key, done = _read(path)
    assert len(done) <= len(parts), f"{path} holds {len(done)} parts of {len(parts)}"
    total = sum(map(size, parts))
    if len(done) == len(parts):
        return done
    if done:
        tell(on_event, Notice(f"Going on with {what}: {len(done)} of {len(parts)} parts are there already."))
    made_with, work = make()
    _check(path, key, made_with, what)
    count = sum(size(part) for part in parts[: len(done)])
    with open(path, "ab") as file:
        if key is None:
            _append(file, {"made with": made_with})
        for part in parts[len(done) :]:
            done.append(json.loads(_append(file, work(part))))
            count += size(part)
            tell(on_event, StageProgress(what, count, total))
    return done


def _append(file: Any, value: Any) -> str:
    """Write a line so that it survives a kill, and return it."""
    line = dumps(value)
    file.write(line.encode("utf-8") + b"\n")
    file.flush()
    os.fsync(file.fileno())
    return line


def _read(path: Path) -> tuple[str | None, list[Any]]:
    """Return what the parts were made with, and their results; cut off what a kill left unfinished."""
    path.parent.mkdir(exist_ok=True)
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        content = content[: content.rfind(b"\n") + 1]
        os.truncate(path, len(content))
    lines = [json.loads(line) for line in content.splitlines()]
    return (None, []) if not lines else (lines[0]["made with"], lines[1:])


def _check(path: Path, key: str | None, made_with: str, what: str) -> None:
    if key not in (None, made_with):
        raise UsageError(
            f"{path.parent.parent} was begun with another model: {what} would be partly of one and partly of the other.",
            "Put the old model back, or start again with --overwrite.",
        )
