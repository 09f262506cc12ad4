"""Tables and remarks of reports, as HTML that escapes what it is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup


def table(head: Sequence[str], lines: Iterable[Sequence[str | Markup]]) -> Markup:
    """A table whose first column holds names, and the others numbers."""
    named = joined(_cell("th", place, text) for place, text in enumerate(head))
    rows = []
    for line in lines:
        cells = joined(_cell("td", place, text) for place, text in enumerate(line))
        rows.append(Markup("<tr>{}</tr>").format(cells))
    return Markup(
        '<div class="scroll"><table class="tight"><thead><tr>{}</tr></thead><tbody>{}</tbody>'
        "</table></div>"
    ).format(named, joined(rows))


def _cell(tag: str, place: int, text: str | Markup) -> Markup:
    kind = ' class="n"' if place else ' class="name"'
    return Markup(f"<{tag}{kind}>{{}}</{tag}>").format(text)


def remark(said: str) -> Markup:
    """A remark below a table or a figure."""
    return Markup('<p class="soft small">{}</p>').format(said)


def joined(parts: Iterable[str | Markup]) -> Markup:
    """Join HTML; charts come as plain text, in which they escaped what comes from outside."""
    return Markup("").join(map(Markup, parts))


def in_cell(value: float | None, form: str) -> str:
    """A number in a cell, nothing where there is none."""
    return "" if value is None else form.format(value)
