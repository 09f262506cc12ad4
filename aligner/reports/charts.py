"""Charts as inline SVG text: lines over steps, points, bars, and one bar split into parts.

No plotting library: the charts take their colours from the page's style sheet, so they follow light
and dark, stay sharp in print, and cost a few kilobytes each. Long series are thinned so that every
peak and dip remains; a noisy series is drawn faintly with its running mean on top. Values that are
not numbers leave a gap and are counted in the caption. Everything that comes from outside is
escaped here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import accumulate

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 12, 26
MAX_POINTS = 400
SMOOTH_FROM = 60
"""Series with at least this many points get a running mean."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart. `tone` chooses its colour (1 to 6), `dots` marks each point (for rare
    ones, evaluations), `smooth` draws a running mean over a long series."""

    name: str
    points: list[Point]
    tone: int = 1
    dots: bool = False
    smooth: bool = True

    @cached_property
    def finite(self) -> list[Point]:
        return [point for point in self.points if _drawable(point[1])]


def _drawable(value: float) -> bool:
    """False for NaN, infinities, and what overflows as soon as two are subtracted."""
    return abs(value) < 1e100


def number(value: float) -> str:
    """A number as a person would write it: four digits that count, thousands apart, powers of ten
    when they help."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e9):
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")
    if float(value).is_integer() or size >= 1e4:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.{max(0, 3 - math.floor(math.log10(size)) if size >= 1 else 3)}f}".replace(
        "-", "−"
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values within the range, apart by 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    steps = [factor * power for factor in (1, 2, 2.5, 5, 10)]
    step = min(steps, key=lambda step: abs((high - low) / step + 1 - count))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _tick(value: float, spacing: float) -> str:
    """A tick's label, with as many decimals as the spacing needs."""
    if value == 0:
        return "0"
    if spacing < 1e-3 or abs(value) >= 1e6:
        return (
            f"{value:.1e}".replace(".0e", "e")
            .replace("e-0", "e-")
            .replace("e+0", "e")
            .replace("-", "−")
        )
    decimals = next(
        places for places in range(5) if abs(spacing - round(spacing, places)) < spacing * 1e-6
    )
    return f"{value:,.{decimals}f}".replace("-", "−")


def thin(points: list[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most about `limit` points, keeping the lowest and highest of every stretch, the first and
    the last."""
    if len(points) <= limit:
        return points
    stretch = math.ceil(len(points) / (limit // 2))
    kept = [points[0]]
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept.extend(sorted(ends))
    return [*kept, points[-1]]


def running_mean(points: list[Point]) -> list[Point]:
    """Mean over a window around each point, narrower near the ends so that it lags behind no
    trend."""
    sums = [0.0, *accumulate(value for _, value in points)]
    reach, last = max(1, len(points) // 40), len(points) - 1
    out = []
    for index, (step, _) in enumerate(points):
        half = max(min(reach, index, last - index), reach // 3)
        low, high = max(0, index - half), min(last, index + half) + 1
        out.append((step, (sums[high] - sums[low]) / (high - low)))
    return out


@dataclass(frozen=True)
class _Scale:
    """Where a value stands in the drawing."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, step: float) -> float:
        return LEFT + (step - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return (
            HEIGHT
            - BOTTOM
            - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)
        )

    def path(self, points: Sequence[Point]) -> str:
        return "M" + "L".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)


def _scale(points: Sequence[Point], bounds: tuple[float, float] | None) -> _Scale:
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    y_low, y_high = bounds or (min(y for _, y in points), max(y for _, y in points))
    if bounds is None:
        room = (y_high - y_low) * 0.06 or abs(y_high) * 0.1 or 1.0
        floor = 0.0 if y_low >= 0 else -math.inf
        ceiling = 0.0 if y_high <= 0 < -y_low else math.inf
        y_low, y_high = max(floor, y_low - room), min(ceiling, y_high + room)
    return _Scale(x_low, x_high, y_low, y_high)


def _axes(scale: _Scale, *, whole_steps: bool = True) -> str:
    lines = []
    rows = ticks(scale.y_low, scale.y_high)
    spacing = rows[1] - rows[0] if len(rows) > 1 else scale.y_high - scale.y_low
    for value in rows:
        y = scale.y(value)
        kind = "zero" if value == 0 else "grid"
        lines.append(
            f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        lines.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(value, spacing)}</text>'
        )
    columns = ticks(scale.x_low, scale.x_high)
    apart = columns[1] - columns[0] if len(columns) > 1 else scale.x_high - scale.x_low
    for step in columns:
        if whole_steps and not float(step).is_integer():
            continue
        label = f"{step:,.0f}" if whole_steps else _tick(step, apart)
        lines.append(
            f'<text x="{scale.x(step):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{label}</text>'
        )
    return "".join(lines)


def _line(series: Series, scale: _Scale) -> str:
    points = series.finite
    parts: list[str] = []
    smooth = series.smooth and not series.dots and len(points) >= SMOOTH_FROM
    for piece in _pieces(series.points):
        if len(piece) == 1 or (series.dots and len(points) <= 40):
            dots = (
                f'<circle cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="2.6"/>' for x, y in piece
            )
            parts.append(f'<g class="dot t{series.tone}">{"".join(dots)}</g>')
        if len(piece) > 1:
            faint = " faint" if smooth else ""
            parts.append(
                f'<path class="line t{series.tone}{faint}" d="{scale.path(thin(piece))}"/>'
            )
    if smooth:
        parts.append(
            f'<path class="line t{series.tone}" d="{scale.path(thin(running_mean(points)))}"/>'
        )
    return "".join(parts)


def _pieces(points: Sequence[Point]) -> list[list[Point]]:
    """The stretches between values that are not numbers."""
    pieces: list[list[Point]] = [[]]
    for point in points:
        if _drawable(point[1]):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    bounds: tuple[float, float] | None = None,
    unit: str = "step",
) -> str:
    """A figure with its legend; only the warning where nothing can be drawn, nothing where nothing
    was logged. `unit`: what the horizontal axis counts."""
    drawn = [line for line in series if line.finite]
    if not drawn:
        gaps = _gaps(series)
        return (
            f'<figure class="chart"><figcaption><b>{escape(title)}</b></figcaption>{gaps}</figure>'
            if gaps
            else ""
        )
    scale = _scale([point for line in drawn for point in line.finite], bounds)
    body = _axes(scale) + "".join(_line(line, scale) for line in drawn)
    label = escape(
        f"{title}: "
        + ", ".join(f"{line.name} ends at {number(line.points[-1][1])}" for line in drawn)
    )
    curves = []
    for line in drawn:
        points = [[x, number(y)] for x, y in thin(line.finite)]
        curves.append({"n": line.name, "p": points})
    data = {"x": [scale.x_low, scale.x_high, LEFT, WIDTH - RIGHT], "s": curves, "u": unit}
    rule = f'<line class="rule" x1="0" x2="0" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    return (
        f'<figure class="chart" data-chart="{escape(json.dumps(data, ensure_ascii=False))}">'
        f"<figcaption><b>{escape(title)}</b>{_legend(drawn)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}{rule}</svg>'
        f"{_gaps(series)}</figure>"
    )


def _legend(series: Sequence[Series]) -> str:
    items = (
        f'<span class="key"><i class="t{line.tone}"></i>{escape(line.name)} '
        f"<output>{number(line.points[-1][1])}</output></span>"
        for line in series
    )
    return f'<span class="legend">{"".join(items)}<span class="at"></span></span>'


def _gaps(series: Sequence[Series]) -> str:
    """A line below the chart when a value was NaN or infinite: a run that diverged must not look
    like a short one."""
    missing = [(line.name, x) for line in series for x, y in line.points if not _drawable(y)]
    if not missing:
        return ""
    values = "value" if len(missing) == 1 else "values"
    first_name, first_step = min(missing, key=lambda item: item[1])
    return (
        f'<p class="warning small">{len(missing):,} {values} could not be drawn (NaN, infinite or '
        "beyond 1e100), "
        f"the first one at step {first_step:,.0f} ({escape(first_name)}).</p>"
    )


def point_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_bounds: tuple[float, float] | None = None,
    bounds: tuple[float, float] | None = None,
    joined: bool = False,
    diagonal: bool = False,
) -> str:
    """Points that are not steps of a run: a cloud, or `joined` a curve through them. `diagonal`
    shows where both axes are equal. Empty where there is no point."""
    drawn = [line for line in series if line.finite]
    if not drawn:
        return ""
    points = [point for line in drawn for point in line.finite]
    across = _scale([(y, x) for x, y in points], x_bounds)
    upright = _scale(points, bounds)
    scale = _Scale(across.y_low, across.y_high, upright.y_low, upright.y_high)
    body = _axes(scale, whole_steps=False)
    if diagonal:
        ends = max(scale.x_low, scale.y_low), min(scale.x_high, scale.y_high)
        body += f'<path class="ideal" d="{scale.path([(end, end) for end in ends])}"/>'
    for line in drawn:
        dots = "".join(
            f'<circle cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="2.6"/>' for x, y in line.finite
        )
        curve = f'<path class="line t{line.tone}" d="{scale.path(line.finite)}"/>' if joined else ""
        body += f'{curve}<g class="{"dot" if joined else "cloud"} t{line.tone}">{dots}</g>'
    keys = "".join(
        f'<span class="key"><i class="t{line.tone}"></i>{escape(line.name)}</span>'
        for line in drawn
    )
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b><span '
        f'class="legend">{keys}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{body}</svg></figure>'
    )


def bar_chart(
    title: str,
    bars: Sequence[tuple[str, float]],
    *,
    last_stands_out: bool = True,
    spans: Sequence[tuple[float, float] | None] = (),
) -> str:
    """Horizontal bars with their values, in the order given. Scores between 0 and 1 are drawn on
    that whole scale.

    The last bar has a colour of its own where bars stand for what came after one another. `spans`
    holds an interval for each bar, or None.
    """
    assert not spans or len(spans) == len(bars), f"{len(spans)} intervals for {len(bars)} bars"
    finite = [value for _, value in bars if math.isfinite(value)]
    if not finite:
        return ""
    finite += [end for span in spans if span is not None for end in span]
    low, high = min(0.0, *finite), max(0.0, *finite)
    if low == 0 and high <= 1:
        high = 1.0
    span = (high - low) or 1.0
    rows = []
    for index, (name, value) in enumerate(bars):
        share = abs(value) / span if math.isfinite(value) else 0.0
        start = (min(value, 0.0) - low) / span if math.isfinite(value) else 0.0
        last = " last" if last_stands_out and index == len(bars) - 1 else ""
        between = spans[index] if spans else None
        rows.append(
            f'<div class="bar{last}"><span>{escape(name)}</span><span class="track">'
            f'<i style="margin-left:{start:.2%};width:{share:.2%}"></i>'
            f"{_span(between, low, span)}</span>"
            f"<b>{number(value)}</b></div>"
        )
    return (
        "<figure "
        f'class="bars"><figcaption><b>{escape(title)}</b></figcaption>{"".join(rows)}</figure>'
    )


def _span(ends: tuple[float, float] | None, low: float, whole: float) -> str:
    if ends is None:
        return ""
    return (
        "<em "
        f'style="left:{(ends[0] - low) / whole:.2%};width:{(ends[1] - ends[0]) / whole:.2%}"></em>'
    )


def split_bar(parts: Sequence[tuple[str, int, int]]) -> str:
    """One bar split by share, with a legend: (name, amount, tone). Parts of nothing are left
    out."""
    shown = [part for part in parts if part[1] > 0]
    total = sum(amount for _, amount, _ in shown)
    if not total:
        return ""
    cells = "".join(
        f'<i class="t{tone}" style="flex-grow:{amount / total:.5f}" title="{escape(name)}: '
        f'{amount:,}"></i>'
        for name, amount, tone in shown
    )
    keys = "".join(
        f'<span class="key"><i class="t{tone}"></i>{escape(name)} <b>{amount:,}</b> '
        f"{_share(amount / total)}</span>"
        for name, amount, tone in shown
    )
    return f'<div class="split">{cells}</div><div class="legend">{keys}</div>'


def _share(share: float) -> str:
    """A percentage that never rounds something to nothing, or nearly all to all."""
    if share == 1:
        return ""
    return (
        "<0.1%".replace("<", "&lt;")
        if share < 0.001
        else "&gt;99.9%"
        if share > 0.999
        else f"{share:.1%}"
    )
