"""Events: small frozen records of what a long command does, passed to one callable.

The library never prints. A function that takes a while accepts `on_event` and calls it with one of
the records below; the command line draws them, a test collects them, a program may ignore them
(`on_event=None`). Only the main process sends events. Nothing here is needed to compute anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A part of the work begins: "reading data", "loading the model", "training"."""

    name: str


@dataclass(frozen=True, slots=True)
class StageProgress:
    """`done` of `total` pieces of a stage are finished. `total` 0: not known. `text`: what else
    there is to say of it, in a few words."""

    name: str
    done: int
    total: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that was decided for the user, or found out: one sentence."""

    text: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that the user should look at, though the work continues: one sentence."""

    text: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is about to run: (what, value, where the value came from)."""

    rows: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class DataReady:
    """The data ledger, ready for the screen: (what, how many)."""

    table: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Metrics:
    """Numbers of one optimizer step, under the names of `metrics.jsonl`. `split` says whether they
    are held-out."""

    step: int
    total_steps: int
    values: Mapping[str, float]
    split: str = "train"


@dataclass(frozen=True, slots=True)
class TableRow:
    """One of several things that are compared is done: a candidate of a search, a round.

    `cells`: its column -> text. `line` says the same where there is no room for a table, and
    `title` stands above the table from now on. `is_best`: the best of all so far. `is_failed`: it
    could not be measured.
    """

    title: str
    cells: Mapping[str, str]
    line: str
    is_best: bool = False
    is_failed: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """The work is done: results by name, and what was written where."""

    results: Mapping[str, float]
    paths: Mapping[str, str]


Event = (
    StageStarted
    | StageProgress
    | Notice
    | Warned
    | Plan
    | DataReady
    | Metrics
    | TableRow
    | Finished
)
OnEvent = Callable[[Event], None]


def tell(on_event: OnEvent | None, event: Event) -> None:
    """Hand an event to the listener, if there is one."""
    if on_event is not None:
        on_event(event)


def counter(on_event: OnEvent | None, name: str) -> Callable[[int, int], None]:
    """Return what tells of the progress of a stage when it is called with (done, total)."""
    return lambda done, total: tell(on_event, StageProgress(name, done, total))
