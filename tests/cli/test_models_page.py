"""docs/models.md holds what the script finds: `python -m benchmarks.models.table`."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COLUMNS = 7
TELLING = ("llama", "opt", "gpt_oss", "falcon_h1")
"""A family as most are, learned positions, experts with sinks, and states beside attention."""


def rows() -> dict[str, list[str]]:
    """Family -> its cells, the first of which is its name."""
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row for row in cells}


def test_the_page_of_families_has_a_full_row_for_each() -> None:
    found = rows()
    assert len(found) >= 25
    for name, cells in found.items():
        assert len(cells) == COLUMNS, name
        assert all(cells), name


def test_no_family_on_the_page_fails_in_a_way_that_aligner_has_no_words_for() -> None:
    assert not [
        name for name, cells in rows().items() if any(cell.startswith("fails") for cell in cells)
    ]


def some_families() -> list[str]:
    """The telling ones and two that change from day to day, so that each is checked again in a
    month."""
    others = [name for name in rows() if name not in TELLING]
    day = datetime.date.today().toordinal()
    return [*TELLING, *(others[(2 * day + i) % len(others)] for i in range(2))]


@pytest.mark.slow
def test_rows_of_families_are_what_the_script_finds() -> None:
    names = some_families()
    command = [sys.executable, "-m", "benchmarks.models.table", *names]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("`")]
    assert found == [rows()[name] for name in names]
