"""The pages say what is there: the map of the code is the code's own, and paths, modules and
sections that a page names exist."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MAPPED = ("cli", "recipes", "reward_models")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "aligner|cli|recipes|reward_models|tests|examples|benchmarks|findings|docs"
PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]*)`")
MODULE = re.compile(r"(?<![\w/-])(aligner(?:\.\w+)+)")
EXAMPLES = ("aligner/methods/x/", "aligner/builders/x/", "recipes/proposals.jsonl")
"""Places that a page makes up, or that a command creates."""

STALE = re.compile(r"\b(begun with|anew|mend|no number|is told|goes on|tokenis\w+|data sets?)\b")
"""Words for which the glossary of the pages has others."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_the_map_of_the_code_is_what_the_docstrings_say() -> None:
    """When this fails: `python docs/write_architecture.py`."""
    script: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "write_architecture.py"))
    assert read(ROOT / "docs" / "architecture.md") == script["page"]()


@each_page
def test_files_and_folders_on_a_page_exist(page: Path) -> None:
    named = [path for path in PATH.findall(read(page)) if path not in EXAMPLES]
    assert [path for path in named if not (ROOT / path).exists()] == []


@each_page
def test_modules_on_a_page_exist(page: Path) -> None:
    named = set(MODULE.findall(read(page)))
    assert [name for name in sorted(named) if not exists(name)] == []


@each_page
def test_names_that_a_page_imports_exist(page: Path) -> None:
    lines = re.findall(r"^from (aligner[\w.]*) import ([\w, ]+)$", read(page), flags=re.MULTILINE)
    named = [f"{module}.{name}" for module, names in lines for name in names.split(", ")]
    assert [name for name in named if not exists(name)] == []


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or a name that a module holds."""
    module, _, last = name.rpartition(".")
    if any(file.exists() for file in files_of(name)):
        return True
    holders = [file for file in files_of(module) if file.exists()]
    return any(re.search(rf"\b{last}\b", read(file)) for file in holders)


def files_of(module: str) -> Iterator[Path]:
    """Where the code of a module would be."""
    first, *rest = module.split(".")
    folder = ROOT.joinpath(*(rest if rest and rest[0] in MAPPED else (first, *rest)))
    yield folder / "__init__.py"
    yield folder.with_suffix(".py")


@each_page
def test_sections_that_a_page_points_to_exist(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", read(page)):
        if not target.startswith("http"):
            assert anchor in anchors(page.parent / target if target else page), anchor


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", read(page), flags=re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in kept}


@each_page
def test_a_page_speaks_in_one_voice(page: Path) -> None:
    assert STALE.findall(read(page)) == []


def test_every_page_is_on_the_map() -> None:
    text = read(ROOT / "docs" / "README.md")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert [name for name in sorted(pages) if f"]({name}" not in text] == []
