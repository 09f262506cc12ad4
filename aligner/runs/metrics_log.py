"""`metrics.jsonl` of a run that is going on, and the trackers that mirror it. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from aligner.events import OnEvent
from aligner.runs.files import dumps, read_metrics, write_atomically
from aligner.runs.trackers.mirror import Trackers


class MetricsLog:
    """The file, appended to line by line, and what follows it."""

    def __init__(self, run_dir: Path) -> None:
        self.dir = run_dir
        self.file = run_dir / "metrics.jsonl"
        self._open: IO[bytes] | None = None
        self._trackers: Trackers | None = None

    def start_tracking(self, on_event: OnEvent | None) -> None:
        """Open the trackers that the recipe names in `report_to`, and bring them to what the file
        says; called once, by the process that logs.

        Raises: TrainingError for one that cannot be opened.
        """
        trackers = Trackers(self.dir, on_event)
        trackers.begin(read_metrics(self.dir))
        self._trackers = trackers

    def add(self, record: Mapping[str, Any]) -> None:
        """Append one line, and hand it to the operating system, so that a kill does not lose it."""
        if self._open is None:
            self.repair()
            self._open = open(self.file, "ab")  # noqa: SIM115 (kept open between lines)
        self._open.write(dumps(record).encode() + b"\n")
        self._open.flush()
        if self._trackers is not None:
            self._trackers.add(record)

    def repair(self) -> None:
        """Cut off a last line that a kill left unfinished."""
        content = self.file.read_bytes() if self.file.exists() else b""
        if content and not content.endswith(b"\n"):
            os.truncate(self.file, content.rfind(b"\n") + 1)

    def trim(self, step: int) -> None:
        """Drop what was logged after `step`, or everything for step 0."""
        kept = [record for record in read_metrics(self.dir) if step and record["step"] <= step]
        if self.file.exists():
            self.replace(kept)

    def replace(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write the file whole."""
        self._close_file()
        write_atomically(self.file, "".join(dumps(record) + "\n" for record in records))
        if self._trackers is not None:
            self._trackers.follow(records)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Give the trackers what came out, and close all."""
        if self._trackers is not None:
            self._trackers.finish(manifest)
        self.close()

    def close(self) -> None:
        """Close the file, and the trackers as those of a run that was stopped."""
        self._close_file()
        if self._trackers is not None:
            self._trackers.abandon()
            self._trackers = None

    def _close_file(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None
