"""The trackers of a run as mirrors of its `metrics.jsonl`. Imports no torch.

A tracker is never what is true of a run: `metrics.jsonl` is, and a tracker that is opened is
brought to it first. So a run that was killed and resumed has one curve in which nothing is missing
and no step stands twice, a tracker that is named for the first time at a resumption has the whole
curve, and steps that are trained again replace those that were lost, where the tracker lets points
be removed (each module says whether it does).

A tracker that cannot be opened ends the run before its first step. One that fails later is left
behind with a warning: a training is worth more than its picture.
"""

from __future__ import annotations

import atexit
import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from aligner.config.trainer_rules import is_installed
from aligner.config.trainer_values import REPORTERS
from aligner.errors import TrainingError
from aligner.events import OnEvent, Warned, tell
from aligner.runs.files import dumps, read_json, write_atomically
from aligner.runs.trackers.facts import Facts, facts_of, parents_of, trackers_in

MODULES = {
    "mlflow": ("mlflow_tracker", "MLFLOW_EXPERIMENT_NAME"),
    "tensorboard": ("tensorboard_tracker", ""),
    "trackio": ("trackio_tracker", "TRACKIO_PROJECT"),
    "wandb": ("wandb_tracker", "WANDB_PROJECT"),
}
"""Word of `report_to` -> the module that writes to it, and the environment variable that names its
project. The other words are transformers' own."""

IDS = "trackers.json"
"""In the run directory: under which ids trackers know the run."""

Records = Sequence[Mapping[str, Any]]


class Tracker(Protocol):
    """What writes to one tracker; each module has one as `Writer`."""

    def begin(self, facts: Facts, known: Mapping[str, Any], records: Records) -> dict[str, Any]:
        """Open the run, with `known` as the ids it was opened under before, or nothing; bring it to
        these records. Return the ids to find it by."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one line of `metrics.jsonl`."""

    def finish(self, facts: Facts, results: Mapping[str, Any]) -> None:
        """Add what came out, and what is known of the run at its end; then close it."""

    def abandon(self) -> None:
        """Close a run that was stopped or failed."""


def ours(words: Sequence[str]) -> list[str]:
    """Return the trackers that are written to here, of words of `report_to`; `all` are those that
    are installed."""
    if "all" in words:
        return [name for name in MODULES if all(map(is_installed, REPORTERS[name]))]
    return [name for name in MODULES if name in words]


class Trackers:
    """The trackers of one run, fed by the one process that writes its `metrics.jsonl`."""

    def __init__(self, run_dir: Path, on_event: OnEvent | None = None) -> None:
        self.run_dir, self.on_event = run_dir, on_event
        recipe = (read_json(run_dir, "resolved.json") or {}).get("recipe", {})
        self._open: dict[str, Tracker] = {
            name: import_module(f"{__package__}.{MODULES[name][0]}").Writer()
            for name in ours(trackers_in(recipe))
        }
        self._ids: dict[str, Any] = read_json(run_dir, IDS) or {}
        self._lines: list[str] = []

    def begin(self, records: Records) -> None:
        """Open each tracker and bring it to these records.

        Raises: TrainingError for one that cannot be opened.
        """
        atexit.register(self.abandon)
        for name in list(self._open):
            try:
                self._begin(name, records)
            except Exception as error:
                del self._open[name]
                self.abandon()
                raise TrainingError(
                    f"report_to: {name} cannot be opened: {_in_short(error)}",
                    "drop it, or see what its own documentation says; metrics.jsonl and the report "
                    "need no tracker",
                ) from error
        self._lines = [dumps(record) for record in records]

    def _begin(self, name: str, records: Records) -> None:
        with _quiet():
            facts = facts_of(self.run_dir, MODULES[name][1])
            found = self._open[name].begin(facts, self._ids.get(name, {}), records)
        if found != self._ids.get(name):
            self._ids[name] = found
            write_atomically(self.run_dir / IDS, dumps(self._ids, indent=2) + "\n")

    def follow(self, records: Records) -> None:
        """Bring the trackers to these records: further ones are added; where earlier ones changed
        or went, each tracker is opened again."""
        lines = [dumps(record) for record in records]
        if lines[: len(self._lines)] == self._lines:
            for record in records[len(self._lines) :]:
                self.add(record)
            return
        self._each(lambda name, _: self._begin(name, records))
        self._lines = lines

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one line of `metrics.jsonl`."""
        self._each(lambda _, tracker: tracker.add(record))
        self._lines.append(dumps(record))

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Add the results and the parents of a manifest, and close the trackers."""

        def finish(name: str, tracker: Tracker) -> None:
            facts = facts_of(self.run_dir, MODULES[name][1])
            facts.lineage.update(parents_of(manifest.get("parents", [])))
            tracker.finish(facts, manifest["results"])

        self._each(finish)
        self._open = {}
        atexit.unregister(self.abandon)

    def abandon(self) -> None:
        """Close the trackers of a run that was stopped or failed."""
        self._each(lambda _, tracker: tracker.abandon())
        self._open = {}
        atexit.unregister(self.abandon)

    def _each(self, action: Callable[[str, Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                with _quiet():
                    action(name, tracker)
            except Exception as error:
                del self._open[name]
                text = f"{name} failed and gets nothing more of this run: {_in_short(error)}"
                tell(self.on_event, Warned(f"{text}; metrics.jsonl has everything"))


def _in_short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Trackers greet on stdout, which is ours."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
