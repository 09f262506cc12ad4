"""Write the generated parts of docs/architecture.md: `python docs/write_architecture.py`.

The levels are those of `tests/packaging/test_walls.py`, and a line about a module is the first
sentence of its docstring. What stands outside the marks of a part is written by hand and kept.
"""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PAGE = DOCS / "architecture.md"
WALLS: dict[str, Any] = runpy.run_path(str(ROOT / "tests" / "packaging" / "test_walls.py"))
MODULES: dict[str, Path] = dict(WALLS["modules"]())
"""Dotted name as installed -> file, of everything that ships."""

SENTENCE = re.compile(r"(?<=[.?])\s+(?=[A-Z`])")
"""Where a sentence ends and the next one begins."""


def page() -> str:
    """The page as it is, with its generated parts as they should be."""
    text = PAGE.read_text(encoding="utf-8")
    for name, part in (("levels", levels()), ("modules", modules())):
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{part}\n{end}{rest.split(end)[1]}"
    return text


def levels() -> str:
    """A table of who stands on which level, from the ground up."""
    lines = ["| level | rooms |", "| --- | --- |"]
    for names in WALLS["LEVELS"]:
        shown = [f"`{name}`" for name in names if f"aligner.{name}" in MODULES or name == "aligner"]
        if shown:
            lines.append(f"| {len(lines) - 1} | {', '.join(shown)} |")
    return "\n".join(lines)


def modules() -> str:
    """A section for each room and each folder in it, from the ground up."""
    return "\n\n".join(section(package) for package in packages())


def packages() -> list[str]:
    """Dotted names of all packages, in the order of their levels, then by name."""
    found = [name for name, path in MODULES.items() if path.name == "__init__.py"]
    level, place = WALLS["LEVEL"], WALLS["place"]
    return sorted(found, key=lambda name: (level[place(name)], name))


def section(package: str) -> str:
    """A heading, what the room is for, and its modules."""
    folder = MODULES[package].parent
    rows = [row(name) for name in inside(package)]
    table = ["", "| module | what it does |", "| --- | --- |", *rows] if rows else []
    heading = f"### {folder.relative_to(ROOT).as_posix()}/"
    return "\n".join([heading, "", first_sentence(folder / "__init__.py"), *table])


def inside(package: str) -> Iterator[str]:
    """The modules of one folder, without those of the folders in it."""
    for name, path in sorted(MODULES.items()):
        if path.name != "__init__.py" and name.rpartition(".")[0] == package:
            yield name


def row(name: str) -> str:
    """A line of a table: a link to the module, a star where it loads torch, and what it does."""
    path = MODULES[name]
    link = f"[`{path.name}`](../{path.relative_to(ROOT).as_posix()})"
    folder, _, stem = name.removeprefix("aligner.").rpartition(".")
    star = " \\*" if stem in WALLS["LOADS_HEAVY"].get(folder, ()) else ""
    return f"| {link}{star} | {first_sentence(path)} |"


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, on one line of a table."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, f"{path} has no docstring"
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return SENTENCE.split(paragraph)[0].replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
