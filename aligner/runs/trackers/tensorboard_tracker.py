"""TensorBoard: one event file in `tensorboard/` of the run directory, so that `tensorboard --logdir
runs` shows all runs.

A run that is opened again writes its file from `metrics.jsonl`, with the times at which points were
first written, and removes the old file: each step has one point, whatever was killed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aligner.runs.trackers.facts import Facts, Value, points_of, table_of

FOLDER = "tensorboard"
FILES = "events.out.tfevents.*"


class Writer:
    """Writes the event file of one run."""

    def __init__(self) -> None:
        self._file: Any = None

    def begin(
        self, facts: Facts, known: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Write a new event file, and remove those that were there."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._file is not None:
            self._file.close()
        folder = facts.run_dir / FOLDER
        old = sorted(folder.glob(FILES))
        times = {point: at for file in old for point, at in _times_in(file).items()}
        started = min(times.values(), default=time.time())
        self._file = EventFileWriter(str(folder))
        self._add(hparams_pb(facts.recipe, facts.name, started), started)
        self._add_table("recipe", facts.recipe, started)
        self._add_table("lineage", facts.lineage, started)
        at = started
        for record in records:
            for name, step, value in points_of(record):
                at = times.get((name, step), at)
                self._add_point(name, step, value, at)
        self._file.flush()
        for file in old:
            file.unlink()
        return {"folder": FOLDER}

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one line of `metrics.jsonl`, and hand it to the operating system."""
        now = time.time()
        for name, step, value in points_of(record):
            self._add_point(name, step, value, now)
        self._file.flush()

    def finish(self, facts: Facts, results: Mapping[str, Any]) -> None:
        """Add the results, one point each, and the whole lineage."""
        now = time.time()
        for name, value in results.items():
            if isinstance(value, int | float):
                self._add_point(f"results/{name}", 0, float(value), now)
        self._add_table("lineage", facts.lineage, now, step=1)
        self._close("STATUS_SUCCESS")

    def abandon(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._close("STATUS_FAILURE")

    def _close(self, status: str) -> None:
        """Say how the run ended. TensorBoard's own function for it imports TensorFlow."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

        now = time.time()
        end = SessionEndInfo(status=api_pb2.Status.Value(status), end_time_secs=now)
        data = metadata.create_summary_metadata(HParamsPluginData(session_end_info=end))
        tag, nothing = metadata.SESSION_END_INFO_TAG, metadata.NULL_TENSOR
        self._add(Summary(value=[Summary.Value(tag=tag, metadata=data, tensor=nothing)]), now)
        self._file.close()

    def _add_point(self, name: str, step: int, value: float, at: float) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(Summary(value=[Summary.Value(tag=name, simple_value=value)]), at, step)

    def _add_table(self, name: str, values: Mapping[str, Value], at: float, step: int = 0) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._add(text_pb(name, table_of(values)), at, step)

    def _add(self, summary: Any, at: float, step: int = 0) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._file.add_event(Event(wall_time=at, step=step, summary=summary))


def _times_in(file: Path) -> dict[tuple[str, int], float]:
    """When each point of an event file was written; what a kill cut short at its end is left
    out."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: dict[tuple[str, int], float] = {}
    for event in LegacyEventFileLoader(str(file)).Load():
        for value in event.summary.value:
            found[value.tag, event.step] = event.wall_time
    return found
