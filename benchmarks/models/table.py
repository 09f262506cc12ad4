"""What works with which family of models? `python -m benchmarks.models.table [--write] [FAMILY
...]`.

Each family is a small random model, made from its config class by `aligner.models.twin`; the checks
run through the library as a user calls it, on CPU. With `--write` the rows go into
`docs/models.md`, those of the named families or all.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.models.checks import CHECKS, check
from benchmarks.models.families import FAMILIES, build

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
HEAD = ("family", *CHECKS)


def row_of(kind: str) -> list[str]:
    """Return the cells of a family."""
    with tempfile.TemporaryDirectory(prefix="aligner-family-") as name:
        folder = build(kind, Path(name))
        return [f"`{kind}`", *(check(folder, column) for column in CHECKS)]


def rows_on_page() -> dict[str, list[str]]:
    """Return the cells of each family on the page."""
    lines = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    ]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip("`"): row for row in rows}


def write(rows: dict[str, list[str]]) -> None:
    """Put rows into the table of the page; those of other families stay."""
    text = PAGE.read_text(encoding="utf-8")
    every = {**rows_on_page(), **rows}
    lines = [HEAD, ["---"] * len(HEAD), *(every[kind] for kind in FAMILIES if kind in every)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    begin, end = text.index("| family |"), text.rindex("|\n") + 2
    PAGE.write_text(f"{text[:begin]}{table}\n{text[end:]}", encoding="utf-8")


def main() -> None:
    """Check families, print their rows, and write them where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "families",
        nargs="*",
        metavar="FAMILY",
        help="model types of transformers; without one: all",
    )
    parser.add_argument("--write", action="store_true", help="write the rows into docs/models.md")
    arguments = parser.parse_args()
    for kind in arguments.families or FAMILIES:
        row = row_of(kind)
        print(" | ".join(row), flush=True)
        if arguments.write:
            write({kind: row})


if __name__ == "__main__":
    main()
