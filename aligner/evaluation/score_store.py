"""Scores that are kept until all rows are scored, in the folder of an unfinished output.

The folder is that of `aligner.runs.partial_output`, and in it is

    scores.jsonl   a line for each answer, appended part by part and flushed to disk; behind each
                   part `{"end": answers}`

A part that a kill cut short has no such end, and is taken off when the folder is opened again: its
scores may belong together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aligner.errors import DataError
from aligner.evaluation.answer_rows import Scored
from aligner.runs.files import json_line
from aligner.runs.partial_output import Unfinished

SCORES = "scores.jsonl"
END = "end"
"""Key of the line behind a part: how many answers it holds."""


class ScoreStore(Unfinished):
    """An unfinished file of scored rows; used as `with ScoreStore(...) as store:`."""

    def __init__(self, output: Path, header: Mapping[str, Any], *, overwrite: bool = False) -> None:
        super().__init__(output, header, overwrite=overwrite)
        self.done: dict[int, Scored] = {}

    def __enter__(self) -> ScoreStore:
        super().__enter__()
        return self

    def _open(self) -> None:
        super()._open()
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
                raise DataError(
                    f"{path}:{number} is not a score", "start again with --overwrite"
                ) from error
            self.done.update(part)
            part = {}

    def clear(self) -> None:
        """Forget all scores."""
        (self.folder / SCORES).unlink(missing_ok=True)
        self.done.clear()

    def add(self, scored: Mapping[int, Scored]) -> None:
        """Keep the scores of some answers, all of them or none, on disk before this returns."""
        lines = [
            {
                "answer": answer,
                "score": found.score,
                "attributes": found.attributes,
                "remark": found.remark,
            }
            for answer, found in scored.items()
        ]
        with open(self.folder / SCORES, "a", encoding="utf-8", newline="\n") as file:
            file.writelines(map(json_line, [*lines, {END: len(lines)}]))
            file.flush()
            os.fsync(file.fileno())
        self.done.update(scored)

    def finish_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the scored rows."""
        self.finish(json_line(row, default=str) for row in rows)


def _whole_parts(data: bytes) -> bytes:
    """The bytes up to the last line that ends a part."""
    lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
    mark = f'{{"{END}":'.encode()
    last = max(
        (place for place, line in enumerate(lines, start=1) if line.startswith(mark)), default=0
    )
    return b"".join(lines[:last])
