"""The parts of RESULTS.md, each between two marks of its own: `<!-- NAME: begin -->` and `<!--
NAME: end -->`."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def read(name: str) -> str:
    """Return what stands between the marks of a part."""
    return _parts(name)[1]


def write(name: str, text: str) -> None:
    """Replace what stands between the marks of a part."""
    head, _, tail = _parts(name)
    RESULTS.write_text(f"{head}\n{text}\n{tail}", encoding="utf-8")


def _parts(name: str) -> tuple[str, str, str]:
    """Return what stands before, between and behind; the marks belong to what is around."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, rest = RESULTS.read_text(encoding="utf-8").split(begin)
    text, tail = rest.split(end)
    return head + begin, text.strip("\n"), end + tail
