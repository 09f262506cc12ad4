"""A table that grows while something runs that compares: what was tried, and how good it was. Drawn
by rich, on a terminal only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from aligner.events import TableRow

from .console import shown

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

MOST_ROWS = 15
"""The latest ones; the best of all stays in the title."""
WORDS = ("objective", "what went wrong")
"""Columns of texts, which stand to the left; the others hold numbers."""


class LiveTable:
    """The rows so far, the latest last, and below them what is being done."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self.console = console
        self.rows: list[TableRow] = []
        self.stage = ""
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def add(self, row: TableRow) -> None:
        """Show one more."""
        self.rows.append(row)
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
        self._live.update(self.drawn(), refresh=True)

    def drawn(self) -> Group:
        """What is on the screen: the title, the table, and below it what is being done."""
        from rich.console import Group
        from rich.text import Text

        # A title and a caption of the table itself would be wrapped to its width.
        title = Text(shown(self.rows[-1].title if self.rows else ""), "italic")
        return Group(title, self.table(), Text(f"{shown(self.stage)} ..." if self.stage else ""))

    def table(self) -> Table:
        """The table as it stands."""
        from rich.table import Table
        from rich.text import Text

        best = next((row for row in reversed(self.rows) if row.is_best), None)
        table = Table(box=None)
        columns = list(dict.fromkeys(name for row in self.rows for name in row.cells))
        for name in columns:
            justify: Literal["left", "right"] = "left" if name in WORDS else "right"
            table.add_column(Text(shown(name)), justify=justify, overflow="fold")
        for row in self.rows[-MOST_ROWS:]:
            cells = (Text(shown(row.cells.get(name, ""))) for name in columns)
            style = "bold green" if row is best else "red" if row.is_failed else None
            table.add_row(*cells, style=style)
        return table
