"""The forest plot of a leaderboard as PNG, for slides and papers. Needs matplotlib, the extra
`plots`; all other pictures are SVG and need nothing (`figures.py`)."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from aligner.errors import UsageError

ROW_INCHES, FRAME_INCHES, WIDTH_INCHES = 0.32, 1.0, 8.0
DPI = 160
MOST_PIXELS = 60_000
"""Of one side; matplotlib draws at most 2^16."""
LONGEST_NAME = 40
BLUE, GREY = "#2563c9", "#5b6472"

Record = dict[str, Any]

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def refuse_without_matplotlib() -> None:
    """Raise UsageError where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise UsageError(
            "--png needs matplotlib, which is not installed",
            "pip install 'aligner-toolkit[plots]'; leaderboard.svg is the same picture without it",
        )


def forest_png(rows: Sequence[Record], anchor: str | None) -> bytes:
    """Each model's rating as a dot on its interval, the best on top; an open end is an arrow, the
    anchor a dashed line."""
    refuse_without_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = FRAME_INCHES + ROW_INCHES * len(rows)
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ends = [row[key] for row in rows for key in ("rating", "low", "high") if row[key] is not None]
    room = (max(ends) - min(ends)) * 0.05 or 10.0
    left, right = min(ends) - room, max(ends) + room
    for place, row in enumerate(rows):
        _draw(axes, place, row, left, right)
        if row["model"] == anchor:
            axes.axvline(row["rating"], color=GREY, linestyle="--", linewidth=1, zorder=1)
    axes.set_xlim(left, right)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    names = [_short(row["model"]) for row in rows]
    axes.set_yticks(range(len(rows)), labels=names, parse_math=False)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("rating, with the middle 95% of resamples")
    axes.grid(axis="x", color="#e2e5ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=min(DPI, MOST_PIXELS / height))
    return content.getvalue()


def _draw(axes: Any, place: int, row: Record, left: float, right: float) -> None:
    """A model's interval and dot."""
    if row["has_interval"]:
        low = left if row["low"] is None else row["low"]
        high = right if row["high"] is None else row["high"]
        axes.plot([low, high], [place, place], color=BLUE, linewidth=2, solid_capstyle="butt")
        for end, known, arrow in ((low, row["low"], "<"), (high, row["high"], ">")):
            marker = "|" if known is not None else arrow
            axes.plot([end], [place], marker=marker, color=BLUE, markersize=7, clip_on=False)
    axes.plot([row["rating"]], [place], marker="o", color=BLUE, markersize=6)


def _short(name: str) -> str:
    shown = _CONTROLS.sub(" ", name)
    return shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 1]}…"
