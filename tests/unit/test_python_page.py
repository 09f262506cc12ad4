"""docs/python.md is true: its blocks run, top to bottom, and its table names every name."""

from __future__ import annotations

import linecache
import re
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

import aligner
from aligner.losses.types import PairLogps, Settings

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_the_blocks_of_the_page_run_from_top_to_bottom(
    toy_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toy_world, tmp_path / "toy", ignore=shutil.ignore_patterns("runs"))
    program = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", program)
    for number, block in enumerate(BLOCKS):
        name = f"<block {number} of {PAGE.name}>"
        linecache.cache[name] = (len(block), None, block.splitlines(keepends=True), name)
        exec(compile(block, name, "exec"), program.__dict__)


def test_a_training_takes_ten_lines() -> None:
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) <= 10
    assert "objective=" in BLOCKS[0]
    assert "rows=" in BLOCKS[0]


def test_the_table_has_every_name_and_no_other() -> None:
    table = TEXT.split("<!-- names: begin -->")[1].split("<!-- names: end -->")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(aligner.__all__)


def test_what_a_loss_sees_is_on_the_page() -> None:
    section = TEXT.split("## A loss of your own")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    seen = {field.name for field in fields(PairLogps)} - {"gather", "target"}
    shown = {name for name, value in vars(PairLogps).items() if isinstance(value, property)}
    assert seen | shown | {field.name for field in fields(Settings)} <= named


def test_the_signature_on_the_page_is_the_one_of_train() -> None:
    import inspect

    names = list(inspect.signature(aligner.train).parameters)
    shown = re.search(r"`aligner\.train\((.*?)\)`", TEXT)
    assert shown
    assert [part.partition("=")[0] for part in shown[1].replace("*, ", "").split(", ")] == names
