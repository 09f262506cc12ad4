"""Whether the rows that a mosaic kept on disk (`aligner.data.row_store`) are whole and can be read.

    rows.jsonl       one row a line: its kind, then its fields in order
    rows.offsets     where each line begins, 8 bytes a row
    examples.table   what the planning knows of them (`Examples.save`)
    checksums.json   written last: its presence means that the others are whole

Nothing that is read here can run code, whoever wrote it. What was kept by a version with another
format, or is damaged, is not used: the rows are read again from where they came.
"""

from __future__ import annotations

import json
from pathlib import Path

from aligner.data.row_store import FORMAT
from aligner.errors import DataError
from aligner.events import Notice, OnEvent, tell
from aligner.runs.files import CHECKSUMS, check_checksums

ROWS = "rows.jsonl"
TABLE = "examples.table"


def are_kept(folder: Path, on_event: OnEvent | None) -> bool:
    """Say whether a folder holds whole rows of this format; tell why others are read again."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    reason = _why_read_again(folder)
    if reason is not None:
        tell(on_event, Notice(f"the rows in {folder} are read again: {reason}"))
    return reason is None


def _why_read_again(folder: Path) -> str | None:
    if not (folder / CHECKSUMS).exists():
        return "another version of aligner kept them"
    try:
        check_checksums(folder, "")
    except DataError as error:
        return error.message
    with (folder / TABLE).open("rb") as file:
        known = json.loads(file.readline())["format"]
    return None if known == FORMAT else "another version of aligner kept them"
