"""The README is true: its list of commands is the command line's own, and its links lead
somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from runner import aligner

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [
    *sorted((ROOT / "examples").rglob("*.md")),
    ROOT / "benchmarks" / "RESULTS.md",
    ROOT / "recipes" / "README.md",
]


def between(page: str, name: str) -> str:
    return page.split(f"<!-- {name}: begin -->\n")[1].split(f"\n<!-- {name}: end -->")[0]


def test_the_list_of_commands_is_what_help_prints() -> None:
    shown = between((ROOT / "README.md").read_text(encoding="utf-8"), "commands")
    printed = aligner("--help").output
    assert shown.strip("`\n").rstrip() == printed.strip("\n").rstrip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "mailto")):
            assert (page.parent / target).exists(), target


def test_recipes_and_commands_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^  (\w+)  ", aligner("--help").output, flags=re.MULTILINE))
    code = "".join(re.findall(r"```\n(.*?)```", text, flags=re.DOTALL))
    assert set(re.findall(r"^aligner (\w+)", code, flags=re.MULTILINE)) <= known
    for name in re.findall(r"tiny/[\w-]+", text):
        assert (ROOT / "recipes" / f"{name}.yaml").exists()
