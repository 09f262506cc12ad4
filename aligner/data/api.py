"""What `aligner` hands out of this room: the typed rows of a source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aligner.config.recipe import Source
from aligner.data import loading
from aligner.data.ledger import Ledger
from aligner.data.memory import IN_MEMORY, memory_rows
from aligner.data.rows import Row, Task

if TYPE_CHECKING:
    from aligner.data.loading import OnBadRow
    from aligner.data.memory import RowList


def load_rows(
    source: str | Path | Source | RowList, task: Task, *, on_bad_row: OnBadRow = "error"
) -> list[Row]:
    """Return all rows of a source, typed, in their order.

    `source` is a file, a folder, a glob or a hub id, a `Source` with columns or a function of its
    own, or rows in memory. `task` says what they are for: `sft`, `preference` (PreferenceRow) or
    `prompts` (PromptRow).

    Raises: DataError that lists broken rows by file and line, or as `rows[3]`; with `on_bad_row`
    "drop" they are left out, as long as some are left.
    """
    memory = None
    if isinstance(source, str | Path):
        source = Source(path=str(source))
    elif not isinstance(source, Source):
        memory, source = memory_rows("rows", source), Source(path=IN_MEMORY)
    return loading.read_source(source, task, on_bad_row, Ledger(), memory=memory)
