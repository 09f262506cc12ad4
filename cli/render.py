"""Everything that is drawn on the screen; rich is imported only when something is drawn.

What a person watches goes to stderr, what a program may read to stdout. On a terminal a live bar
shows step, loss and time left; elsewhere there are plain lines, at most one every few seconds.
"""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from aligner import events

from .console import say, shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from .live_table import LiveTable

PLAIN_WIDTH = 160  # a pipe has no width; never cut what a log should hold
PLAIN_INTERVAL_S = 5.0
TABLE_INTERVAL_S = 0.2
BAR_METRICS = ("loss", "eval_loss", "arena_win_rate", "rewards/accuracies", "accuracy", "mse")


def console(stream: str = "stderr") -> Console:
    """A rich console on stdout or stderr, as wide as the terminal, or wide enough for a log."""
    from rich.console import Console

    target = sys.stderr if stream == "stderr" else sys.stdout
    return Console(
        file=target,
        width=None if target.isatty() else PLAIN_WIDTH,
        highlight=False,
        soft_wrap=False,
    )


def columns(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A plain table on stdout: as wide as its words, no frame, the header in bold on a terminal."""
    lines = [list(map(shown, header)), *(list(map(shown, row)) for row in rows)]
    widths = [max(map(_places, column)) for column in zip(*lines)]
    for number, row in enumerate(lines):
        padded = (cell + " " * (width - _places(cell)) for cell, width in zip(row, widths))
        say("  ".join(padded).rstrip(), bold=number == 0 or None)


def _places(text: str) -> int:
    """How many places a text takes on a terminal: Chinese letters take two, accents none."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def result_table(results: Mapping[str, float], paths: Mapping[str, object]) -> None:
    """The numbers that a run ended with, and where to look."""
    if results:
        columns(("result", "value"), [(name, number(value)) for name, value in results.items()])
    say()
    width = max((len(name) for name in paths), default=0)
    for name, path in paths.items():
        if path:
            say(f"{name.ljust(width)}  {path}")


def number(value: object) -> str:
    """Four significant digits, but counts and other large numbers whole: 0.05123, 26,348."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


class Screen:
    """Draws events: a live bar on a terminal, lines elsewhere, nothing on ranks other than 0."""

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.live = not silent and sys.stderr.isatty()
        self._progress: Progress | None = None
        self._task: Any = None
        self._table: LiveTable | None = None
        self._stage = self._started = ""
        """What is shown, and the last stage that was started: progress may be of a part of it."""
        self._first: tuple[int, float] | None = (
            None  # what was done when the stage was first heard of, and when
        )
        self._last_line = 0.0

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._stop_bar()
        if self._table is not None:
            self._table.stop()
            self._table = None

    def on_event(self, event: events.Event) -> None:
        """Draw one event."""
        if self.silent:
            return
        if isinstance(event, events.StageStarted):
            self._start_stage(event.name)
        elif isinstance(event, events.StageProgress):
            self._advance(event.name, event.done, event.total, event.text)
        elif isinstance(event, events.Metrics):
            self._metrics(event)
        elif isinstance(event, events.TableRow):
            self._row(event)
        elif isinstance(event, events.Notice):
            self.line(event.text)
        elif isinstance(event, events.Warned):
            self.line(f"warning: {event.text}", "yellow")
        elif isinstance(event, events.Plan):
            self.summary(event.rows)
        elif isinstance(event, events.DataReady):
            self.summary([(name, value, "") for name, value in event.table])

    def start(self, name: str) -> None:
        """Begin a stage, for callers that send no events."""
        self.on_event(events.StageStarted(name))

    def counter(self, name: str) -> Callable[[int, int], None]:
        """A stage for functions that report (done, total)."""
        return lambda done, total: self.on_event(events.StageProgress(name, done, total))

    def share(self, name: str) -> Callable[[float, str], None]:
        """A stage for functions that report (share done, a few words)."""
        return lambda done, text: (
            None if self.silent else self._advance(name, round(done * 100), 100, text)
        )

    def line(self, text: str, style: str = "", after: str = "") -> None:
        """One line on stderr, above the bar when there is one; `after` stands behind it, dim."""
        if self.silent:
            return
        drawn = self._progress or self._table
        if drawn is not None:
            from rich.text import Text

            drawn.console.print(
                Text(shown(text), style) + Text(f"  {shown(after)}".rstrip(), "dim")
            )
        else:
            say(text, err=True, after=after, is_dim=self.live, fg=style or None)

    def summary(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Rows of (what, value, origin), aligned; origins dimmed on a terminal."""
        if self.silent or not rows:
            return
        rows = [(shown(what), shown(value), shown(origin)) for what, value, origin in rows]
        width = max(len(what) for what, _, _ in rows)
        middle = min(
            max(len(value) for _, value, origin in rows if origin)
            if any(o for *_, o in rows)
            else 0,
            60,
        )
        for what, value, origin in rows:
            text = f"{what.ljust(width)}  {value.ljust(middle) if origin else value}"
            self.line(text, after=origin)
        self.line("")

    def _start_stage(self, name: str) -> None:
        self._stop_bar()
        self._begin(name)
        self._started = name
        if self._table is not None:
            self._table.say(name)
        else:
            self.line(f"{name} ...")

    def _row(self, event: events.TableRow) -> None:
        if not self.live:
            self.line(event.line)
            return
        from .live_table import LiveTable

        self._stop_bar()
        self._table = self._table or LiveTable(console())
        self._table.add(event)

    def _begin(self, name: str) -> None:
        self._stage = name
        self._first = None
        self._last_line = time.monotonic()

    def _metrics(self, event: events.Metrics) -> None:
        shown = {key: value for key, value in event.values.items() if key in BAR_METRICS}
        text = "  ".join(f"{key} {number(float(value))}" for key, value in shown.items())
        if event.split != "train":
            self.line(f"step {event.step}: held out  {text}")
            return
        # The first loss is worth a line of its own, whenever it comes.
        self._advance(
            self._started or "training",
            event.step,
            event.total_steps,
            text,
            at_once=event.step == 1,
        )

    def _advance(
        self, name: str, done: int, total: int, text: str, *, at_once: bool = False
    ) -> None:
        if name != self._stage:
            self._stop_bar()
            self._begin(name)
        if self.live and self._table is None:
            self._advance_bar(name, done, total, text)
            return
        now, interval = (
            time.monotonic(),
            PLAIN_INTERVAL_S if self._table is None else TABLE_INTERVAL_S,
        )
        self._first = self._first or (done, now)
        if done < total and not at_once and now - self._last_line < interval:
            return
        self._last_line = now
        left = _left(done, total, *self._first, now)
        said = f"{name}: {done}/{total or '?'}  {text}{left}".rstrip()
        if self._table is not None:
            self._table.say(said)
        else:
            self.line(said)

    def _advance_bar(self, name: str, done: int, total: int, text: str) -> None:
        if self._progress is None:
            self._progress = _bar()
            self._progress.start()
            self._task = self._progress.add_task(shown(name), total=total or None, text="")
        self._progress.update(
            self._task,
            description=shown(name),
            completed=done,
            total=total or None,
            text=shown(text),
        )
        if total and done >= total:
            self._stop_bar()

    def _stop_bar(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress, self._task = None, None


def _left(done: int, total: int, first: int, since: float, now: float) -> str:
    """`  (2.1/s, 0:40 left)`, once there is something to divide by; what was there before the first
    event does not count."""
    if done <= first or now - since < 1:
        return ""
    rate = (done - first) / (now - since)
    if done >= total:
        return f"  ({rate:.3g}/s)"
    minutes, seconds = divmod(int((total - done) / rate), 60)
    return f"  ({rate:.3g}/s, {minutes}:{seconds:02d} left)"


def _bar() -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console(),
    )
