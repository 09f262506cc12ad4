"""Pictures of an arena as SVG and HTML text: ratings with their intervals, and tables of pairs as
heat maps.

As in `aligner.reports.charts` no plotting library is used. The forest plot is a whole file of its
own as well: it carries its colours, which the style sheet of a page overrides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from aligner.arena.votes import Floats
from aligner.reports.charts import number, ticks

ROW, LEFT, WIDTH, MARGIN = 24, 210, 760, 30
LONGEST_NAME = 30

Record = dict[str, Any]


def forest(rows: Sequence[Record], anchor: str | None) -> str:
    """Each model's rating as a dot on its interval; an open end is an arrow, the anchor a dashed
    line."""
    ends = [row[key] for row in rows for key in ("rating", "low", "high")]
    finite = [end for end in ends if end is not None]
    room = (max(finite) - min(finite)) * 0.05 or 10.0
    low, high = min(finite) - room, max(finite) + room
    bottom = ROW * len(rows) + 14

    def across(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - MARGIN)

    parts = []
    for tick in ticks(low, high):
        x = across(tick)
        parts.append(
            f'<line class="grid" stroke="#ddd" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{bottom}"/>'
        )
        parts.append(
            f'<text fill="#555" x="{x:.1f}" y="{bottom + 16}" '
            f'text-anchor="middle">{tick:,.0f}</text>'
        )
    for place, row in enumerate(rows):
        y = ROW * place + ROW / 2 + 6
        if row["model"] == anchor:
            x = across(row["rating"])
            parts.append(
                f'<path class="ideal" fill="none" stroke="#555" stroke-dasharray="4 4" '
                f'd="M{x:.1f},4V{bottom}"/>'
            )
        parts.append(_row(row, y, across, low, high))
    height = bottom + 26
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="Ratings with intervals" font-family="system-ui, sans-serif" font-size="12">'
        f"{''.join(parts)}</svg>"
    )


def _row(row: Record, y: float, across: Any, low: float, high: float) -> str:
    name = row["model"]
    shown = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    start = across(low if row["low"] is None else row["low"])
    end = across(high if row["high"] is None else row["high"])
    marks = ""
    if row["has_interval"]:
        marks = f'<path d="M{start:.1f},{y}H{end:.1f}" stroke="currentColor" stroke-width="2"/>'
        for x, value, way in ((start, row["low"], 1), (end, row["high"], -1)):
            tip = (
                f"M{x:.1f},{y - 4}v8"
                if value is not None
                else (f"M{x + 5 * way:.1f},{y - 4}L{x:.1f},{y}l{5 * way},4")
            )
            marks += f'<path d="{tip}" fill="none" stroke="currentColor" stroke-width="2"/>'
    return (
        f'<g class="t1" color="#2563c9"><title>{escape(name)}: {number(row["rating"])}</title>'
        f'<text fill="#555" x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(shown)}</text>'
        f'{marks}<circle cx="{across(row["rating"]):.1f}" cy="{y}" r="4" fill="currentColor"/></g>'
    )


def heat_map(
    title: str, names: Sequence[str], cells: Floats, *, is_share: bool, note: str = ""
) -> str:
    """A table of pairs, darker where the number is higher; the row's model against the column's."""
    finite = cells[~_missing(cells)]
    top = 1.0 if is_share else float(finite.max()) if finite.size else 1.0
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = []
    for name, row in zip(names, cells):
        shown = "".join(_cell(float(value), top, is_share) for value in row)
        body.append(f"<tr><th>{escape(name)}</th>{shown}</tr>")
    below = f'<p class="soft small">{escape(note)}</p>' if note else ""
    return (
        f'<section><h2>{escape(title)}</h2>{below}<div class="scroll"><table class="tight">'
        f"<tr><th></th>{head}</tr>{''.join(body)}</table></div></section>"
    )


def _missing(cells: Floats) -> Any:
    return cells != cells


def _cell(value: float, top: float, is_share: bool) -> str:
    if math.isnan(value) or (value == 0 and not is_share):
        return '<td class="n soft">·</td>'
    strength = 70.0 * value / (top or 1.0)
    shade = f"background:color-mix(in srgb,var(--t1) {strength:.0f}%,transparent)"
    return f'<td class="n" style="{shade}">{f"{value:.0%}" if is_share else f"{value:,.0f}"}</td>'
