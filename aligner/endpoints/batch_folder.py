"""The folder that remembers batches, so that a run that was killed finds them again.

A batch has three files: the requests as they are uploaded, where it stands (written when it is
uploaded, submitted and ended), and its results once they are here. Only the owner may read the
folder: it holds prompts and replies in full.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from aligner.errors import DataError, UsageError
from aligner.runs.files import write_atomically

REQUESTS, STATE, RESULTS = ".requests.jsonl", ".json", ".results.jsonl"


@dataclass
class Batch:
    """Where a batch of `size` requests stands. `endpoint`: the path that they are for; `attempt`:
    2 where they are sent for the second time; `input_file_id` and `batch_id` are the server's."""

    number: int
    size: int
    endpoint: str
    attempt: int = 1
    status: Literal["prepared", "uploaded", "submitted", "ended"] = "prepared"
    input_file_id: str = ""
    batch_id: str = ""


class BatchFolder:
    """The files. `batches`: those that are remembered, by number."""

    def __init__(self, path: Path) -> None:
        """Make the folder, or read it. Raises: UsageError when it cannot be made; DataError for
        what is not a batch."""
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UsageError(
                f"the folder of batches {path} cannot be made: {error}", "name a folder that can"
            ) from error
        self.batches = {
            batch.number: batch for batch in map(_read_state, sorted(path.glob(f"[0-9]*{STATE}")))
        }
        self._last = max(self.batches, default=0)

    def prepare(self, endpoint: str, attempt: int, lines: Sequence[str]) -> Batch:
        """Write the requests of a new batch. It is remembered when `save` was called."""
        self._last += 1
        batch = Batch(self._last, len(lines), endpoint, attempt)
        self._write(batch, REQUESTS, "".join(lines))
        return batch

    def save(self, batch: Batch) -> None:
        """Write down where a batch stands."""
        self._write(batch, STATE, json.dumps(asdict(batch)) + "\n")
        self.batches[batch.number] = batch

    def end(self, batch: Batch, results: Sequence[Mapping[str, Any]]) -> None:
        """Keep the results of a batch."""
        self._write(batch, RESULTS, "".join(json.dumps(line) + "\n" for line in results))
        batch.status = "ended"
        self.save(batch)

    def forget(self, batch: Batch) -> None:
        """Remember a batch no longer: the server does not have it."""
        self.batches.pop(batch.number, None)
        self.file_of(batch, STATE).unlink(missing_ok=True)

    def requests(self, batch: Batch) -> dict[str, str]:
        """Return the lines of a batch by the key of the request."""
        content = self.file_of(batch, REQUESTS).read_text(encoding="utf-8")
        lines = [line + "\n" for line in content.split("\n") if line]
        return {json.loads(line)["custom_id"]: line for line in lines}

    def results(self, batch: Batch) -> Iterator[tuple[int, dict[str, Any]]]:
        """Go through the results of a batch; the number is for `result`."""
        with open(self.file_of(batch, RESULTS), "rb") as file:
            start = file.tell()
            while line := file.readline():
                yield start, json.loads(line)
                start = file.tell()

    def result(self, batch: Batch, start: int) -> dict[str, Any]:
        """Return one result."""
        with open(self.file_of(batch, RESULTS), "rb") as file:
            file.seek(start)
            found: dict[str, Any] = json.loads(file.readline())
            return found

    def file_of(self, batch: Batch, ending: str) -> Path:
        """Return the path of one of a batch's files."""
        return self.path / f"{batch.number:06d}{ending}"

    def _write(self, batch: Batch, ending: str, text: str) -> None:
        path = self.file_of(batch, ending)
        try:
            write_atomically(path, text)
        except OSError as error:
            raise UsageError(
                f"{path} cannot be written: {error}", "free some space, and start again"
            ) from error


def _read_state(path: Path) -> Batch:
    try:
        return Batch(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError) as error:
        raise DataError(
            f"{path}: not where a batch stands: {error}",
            "move the folder away: its batches are then submitted, and paid, once more",
        ) from error
