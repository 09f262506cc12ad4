"""The part of the report of rounds that is about `online.oracle`: what was asked, what it said, and
whether the proxy learned from it."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from aligner.methods.online.read_rounds import Round, RunOfRounds
from aligner.methods.stage_run import RUN
from aligner.reports.charts import Series, line_chart
from aligner.reports.pieces import in_cell, joined, remark, table

COUNTS = ("queries", "from the ledger", "labels", "ties", "without a verdict", "not asked")
"""What a query says of itself, as columns."""
PROXIES = (("original", "original"), ("before", "before the refresh"), ("after", "refreshed"))
"""Proxies that held-out labels are ordered by: their key, and what they are called."""


def oracle_part(run: RunOfRounds) -> Markup:
    """Return the part; nothing where no oracle was asked."""
    asked = [one for one in run.rounds if one.facts("query")]
    if not asked:
        return Markup("")
    head = ["round", "spent", *COUNTS, "proxy disagrees", "trained on", "held out"]
    head += [f"{name}, right" for _, name in PROXIES]
    lines = [_line(run, one) for one in asked]
    return joined([table(head, [*lines]), remark(_said(run)), _curves(asked)])


def _line(run: RunOfRounds, one: Round) -> Sequence[str | Markup]:
    query, refresh = one.facts("query"), one.facts("refresh")
    line: list[str | Markup] = [str(one.number), f"{query['spent']:,} of {query['budget']:,}"]
    line += [f"{query[key]:,}" for key in COUNTS]
    line.append(in_cell(query["disagree"], "{:.0%}"))
    line += [f"{refresh[key]:,}" if refresh else "" for key in ("trained on", "held out")]
    known = refresh.get("accuracy") or {}
    line += [in_cell(known.get(key), "{:.0%}") for key, _ in PROXIES]
    report = one.folder / "refresh" / RUN / "report.html"
    if report.exists():
        place = report.relative_to(run.run_dir).as_posix()
        line[-1] = Markup('<a href="{}">{}</a>').format(place, line[-1] or "its training")
    return line


def _said(run: RunOfRounds) -> str:
    oracle = run.online["oracle"]
    return (
        f"{oracle['scorer']} was asked about pairs chosen by {oracle['selector']}. A query is "
        "about one pair; an answer that was in the ledger is one too. Proxy disagrees: of the "
        "labels of the round, before any was trained on. Right: of the held-out labels of all "
        "rounds so far, how many a proxy orders as the oracle does."
    )


def _curves(asked: Sequence[Round]) -> Markup:
    lines = []
    for tone, (key, name) in enumerate(PROXIES, 1):
        points = []
        for one in asked:
            value = (one.facts("refresh").get("accuracy") or {}).get(key)
            points += [] if value is None else [(float(one.number), float(value))]
        lines.append(Series(name, points, tone, dots=True))
    title = "Held-out labels that a proxy orders as the oracle does"
    return Markup('<div class="grid">{}</div>').format(
        Markup(line_chart(title, lines, bounds=(0.0, 1.0), unit="round"))
    )
