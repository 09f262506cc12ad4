"""Every example in docs/data.md does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from aligner.config.recipe import Data
from aligner.data.formats import OPTIONAL, REQUIRED
from aligner.data.loading import load_rows

PAGE = Path(__file__).parents[3] / "docs" / "data.md"
BLOCK = re.compile(r"^```(\w+) ([\w.]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
FILES = [(name, content) for language, name, content in BLOCKS if language in ("jsonl", "python")]
SECTIONS = [(task, content) for language, task, content in BLOCKS if language == "yaml"]


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in FILES:
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("task", "content"), SECTIONS)
def test_each_data_section_loads_and_its_books_balance(
    task: Any, content: str, examples: None
) -> None:
    loaded = load_rows(Data(**yaml.safe_load(content)["data"]), task, seed=42)
    loaded.ledger.check()
    assert loaded.train


def test_no_example_on_the_page_is_left_out() -> None:
    fences = PAGE.read_text(encoding="utf-8").count("```")
    assert fences == 2 * len(BLOCKS)
    assert len(SECTIONS) >= 12


def test_examples_of_forms_have_three_rows() -> None:
    assert all(len(content.splitlines()) == 3 for name, content in FILES if name.endswith(".jsonl"))


def test_the_ledger_on_the_page_is_the_one_that_is_printed(examples: None) -> None:
    shown = next(content for language, name, content in BLOCKS if name == "ledger")
    loaded = load_rows(Data(**yaml.safe_load(SECTIONS[-1][1])["data"]), "sft", seed=42)
    assert shown == "".join(f"{label:<14}{value}\n" for label, value in loaded.ledger.table())


def test_the_example_program_runs(examples: None, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(Path("example.py").read_text(), "example.py", "exec"), {})
    assert capsys.readouterr().out.startswith("1 2 chat.jsonl:")


def test_the_table_of_forms_names_every_form_and_column() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert set(rows) == set(REQUIRED)
    for form, line in rows.items():
        assert all(f"`{column}`" in line for column in (*REQUIRED[form], *OPTIONAL[form]))
