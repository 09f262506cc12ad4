"""Runs beside each other, as a page with the curves of all runs on one plot, or as a PNG of the
plots. The PNG needs matplotlib, the extra `plots`; the page needs nothing."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aligner.errors import UsageError
from aligner.reports.charts import Series, line_chart
from aligner.reports.page import value_text
from aligner.reports.training import page
from aligner.runs.comparison import Curve, curves, curves_in_order, names_of
from aligner.runs.files import dumps

Record = dict[str, Any]

TONES = 6
SHOWN_AT_ONCE = 8
"""Charts that are open on the page; the others are folded."""
MOST_PLOTS = 24
COLUMNS = 3
LONGEST_NAME = 40
FINGERPRINT = 12

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def comparison_page(found: Record, folders: Sequence[Path]) -> str:
    """Return the page of a comparison (`aligner.runs.comparison.compare`)."""
    names = names_of(folders)
    charts = [
        chart
        for name, lines in curves_in_order(curves(folders))
        if (chart := line_chart(name, _series(names, lines)))
    ]
    parts = [
        _section("Results", _results_table(found, names)),
        _section("Curves", _curve_part(charts)),
        _section("Recipe", _recipe_table(found, names)),
        _section("Data and models", _data_table(found, names)),
        _section("Environment", _plain_table(found["environment"], names)),
    ]
    facts = [(name, f"{run['method']}, {run['state']}") for name, run in zip(names, found["runs"])]
    return page(" · ".join(names), "runs compared", facts, "".join(parts))


def _series(names: Sequence[str], lines: Sequence[Curve]) -> list[Series]:
    return [
        Series(name, line, tone=place % TONES + 1)
        for place, (name, line) in enumerate(zip(names, lines))
        if line
    ]


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _curve_part(charts: Sequence[str]) -> str:
    if not charts:
        return '<p class="soft">No step was logged.</p>'
    body = f'<div class="grid">{"".join(charts[:SHOWN_AT_ONCE])}</div>'
    if more := charts[SHOWN_AT_ONCE:]:
        body += f"<details><summary>{len(more)} more</summary>"
        body += f'<div class="grid">{"".join(more)}</div></details>'
    return body


def _results_table(found: Record, names: Sequence[str]) -> str:
    rows = [[row["name"], *map(cell, row["values"])] for row in found["results"]]
    return _table(["result", *names], rows, numbers=True)


def _recipe_table(found: Record, names: Sequence[str]) -> str:
    rows = []
    for row in found["recipe"]:
        cells = [
            f"{exact(value)} ({origin})" if origin != "absent" else "absent"
            for value, origin in zip(row["values"], row["origins"])
        ]
        rows.append([row["key"], *cells])
    note = _hidden_note(found)
    table = _table(["key", *names], rows) or '<p class="soft">The recipes are the same.</p>'
    return table + (f'<p class="soft small">{note}</p>' if note else "")


def _hidden_note(found: Record) -> str:
    hidden = found["hidden_defaults"]
    return f"{hidden:,} defaults that only some of the recipes have are left out." if hidden else ""


def _data_table(found: Record, names: Sequence[str]) -> str:
    if not found["data"]:
        return ""
    rows = [[row["name"], *map(short_fingerprint, row["values"])] for row in found["data"]]
    return _table(["file", *names], rows)


def _plain_table(rows: Sequence[Record], names: Sequence[str]) -> str:
    cells = [[row["name"], *map(cell, row["values"])] for row in rows]
    return _table(["", *names], cells) or '<p class="soft">The same.</p>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    if not rows:
        return ""
    head = _cells("th", header, numbers)
    body = "".join(f"<tr>{_cells('td', row, numbers)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def _cells(tag: str, texts: Sequence[str], numbers: bool) -> str:
    """The cells of a row; behind the first one they may be numbers."""
    kind = ' class="n"' if numbers else ""
    return "".join(
        f"<{tag}{kind if place else ''}>{escape(text)}</{tag}>" for place, text in enumerate(texts)
    )


def cell(value: Any) -> str:
    """Return a value as a cell shows it; nothing where a run has none."""
    return "" if value is None else value_text(value)


def exact(value: Any) -> str:
    """Return a value of a recipe as it would be written."""
    return value if isinstance(value, str) else dumps(value)


def short_fingerprint(value: str | int | None) -> str:
    """Return the first digits of a fingerprint, or a count; a dash where a run has none."""
    if isinstance(value, int):
        return f"{value:,}"
    return "–" if value is None else value[:FINGERPRINT]


def comparison_png(folders: Sequence[Path]) -> bytes:
    """Return the plots as a PNG.

    Raises: UsageError where matplotlib is not installed, or no run logged a step.
    """
    if find_spec("matplotlib") is None:
        raise UsageError(
            "--png needs matplotlib, which is not installed",
            "pip install 'aligner-toolkit[plots]'; --html has the same plots without it",
        )
    plots = list(curves_in_order(curves(folders)))[:MOST_PLOTS]
    if not plots:
        raise UsageError("no run logged a step, so there is nothing to plot", "leave out --png")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(plots))
    rows = math.ceil(len(plots) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.0 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    labels = [_label(name) for name in names_of(folders)]
    for axes, (name, lines) in zip(grid, plots):
        for place, line in enumerate(lines):
            _draw(axes, line, f"C{place}")
        axes.set_title(name, fontsize=9, loc="left", parse_math=False)
        axes.grid(color="#e2e5ea", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    for axes in grid[len(plots) :]:
        axes.set_visible(False)
    _legend(figure, labels)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def _draw(axes: Any, line: Curve, color: str) -> None:
    points = [(x, y if math.isfinite(y) else math.nan) for x, y in line]
    marker = "o" if len(points) <= 40 else None
    if points:
        steps, values = zip(*points)
        axes.plot(steps, values, color=color, linewidth=1.5, marker=marker, markersize=2.5)


def _legend(figure: Any, labels: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=f"C{place}") for place in range(len(labels))]
    legend = figure.legend(lines, labels, loc="outside upper left", ncols=3, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _label(name: str) -> str:
    shown = _CONTROLS.sub(" ", name)
    return shown if len(shown) <= LONGEST_NAME else f"…{shown[1 - LONGEST_NAME :]}"
