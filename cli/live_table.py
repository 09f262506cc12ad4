"""A table that grows while a search runs: what was tried, and how good it was. Drawn by rich, on a
terminal only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligner.events import Candidate

from .console import shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MOST_ROWS = 15
"""The latest ones; the best of all stays in the title."""


class LiveTable:
    """The candidates of a search, the latest last, with what is being done in the caption."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self.console = console
        self.candidates: list[Candidate] = []
        self.stage = ""
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def add(self, candidate: Candidate) -> None:
        """Show one more."""
        self.candidates.append(candidate)
        self._draw()

    def say(self, stage: str) -> None:
        """Show what is being done."""
        self.stage = stage
        self._draw()

    def stop(self) -> None:
        """Leave the table on the screen."""
        self.say("")
        self._live.stop()

    def _draw(self) -> None:
        self._live.update(self.table(), refresh=True)

    def table(self) -> Table:
        """The table as it stands."""
        from rich.table import Table
        from rich.text import Text

        best = next((one for one in reversed(self.candidates) if one.is_best), None)
        title = (
            f"best so far: {best.name}, fitness {best.fitness}" if best else "nothing measured yet"
        )
        stage = f"{shown(self.stage)} ..." if self.stage else ""
        table = Table(title=Text(shown(title)), caption=Text(stage), box=None)
        for name, right in (
            ("", True),
            ("objective", False),
            ("fitness", True),
            ("held out", True),
            ("", False),
        ):
            table.add_column(name, justify="right" if right else "left", overflow="fold")
        for one in self.candidates[-MOST_ROWS:]:
            cells = (str(one.index), one.name, one.fitness, one.held_out, one.error)
            style = "bold green" if one is best else "red" if one.error else None
            table.add_row(*(Text(shown(cell)) for cell in cells), style=style)
        return table
