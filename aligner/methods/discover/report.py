"""The report of a search: fitness by proposal, every objective's curve, source and fate, in one
HTML file."""

from __future__ import annotations

import functools
from html import escape
from itertools import accumulate
from pathlib import Path

from aligner.methods.discover.archive import Archive, Record, mean_and_error, shown
from aligner.methods.discover.recipe import DiscoverRecipe
from aligner.reports.charts import Series, line_chart, number
from aligner.reports.training import page
from aligner.runs.files import read_json, write_atomically

MOST_OVERLAID = 5


def write_discovery_report(run_dir: Path) -> Path:
    """Write `report.html` from what is in the run directory."""
    recipe = DiscoverRecipe.model_validate(read_json(run_dir, "resolved.json")["recipe"])
    archive = Archive(run_dir / "archive")
    records = sorted(archive.records, key=lambda record: record.index)
    search = read_json(run_dir, "search.json") or {}
    path = run_dir / "report.html"
    body = "".join(
        (
            _section("progress", "Fitness", _progress(records, recipe.discover.beta)),
            _section("best", "The best", _best(archive)),
            _section("all", "All objectives", _table(records)),
            _section(
                "each",
                "One by one",
                "".join(_details(record, recipe.discover.beta) for record in records),
            ),
        )
    )
    facts = [
        ("task", recipe.discover.task),
        ("beta", f"{recipe.discover.beta:g}"),
        ("seeds", str(recipe.discover.seeds)),
        ("proposer", recipe.endpoint.model or recipe.endpoint.backend),
        ("ended", search.get("ended", "not yet")),
    ]
    usage = read_json(run_dir, "usage.json") or {}
    for key in ("calls", "cached", "usd"):
        if usage.get(key):
            facts.append((key, number(float(usage[key]))))
    write_atomically(
        path, page(run_dir.resolve().name, "discover run", facts, body, tiles=_tiles(archive))
    )
    return path


def _section(anchor: str, title: str, body: str) -> str:
    return f'<section id="{anchor}"><h2>{title}</h2>{body}</section>'


def _tiles(archive: Archive) -> list[dict[str, str]]:
    best, start = archive.best(), archive.best("start")
    proposals = [record for record in archive.records if record.origin == "proposal"]
    tiles = []
    for label, record in (("best", best), ("best at the start", start)):
        if record is not None:
            note = f"{record.name}; held out {shown(record.held_out)}"
            tiles.append(
                {"label": label, "value": number(mean_and_error(record.fitness)[0]), "note": note}
            )
    valid = sum(record.valid for record in proposals)
    tiles.append({"label": "proposals", "value": str(len(proposals)), "note": f"{valid} measured"})
    return tiles


def _progress(records: list[Record], beta: float) -> str:
    valid = [record for record in records if record.valid]
    fitness = [(float(record.index), mean_and_error(record.fitness)[0]) for record in valid]
    held_out = [(float(record.index), mean_and_error(record.held_out)[0]) for record in valid]
    highest = accumulate((value for _, value in fitness), max)
    best = [(x, value) for (x, _), value in zip(fitness, highest)]
    chart = line_chart(
        "fitness by number",
        [
            Series("best so far", best, 1, smooth=False),
            Series("fitness", fitness, 2, dots=True, smooth=False),
            Series("held out", held_out, 3, dots=True, smooth=False),
        ],
    )
    note = (
        "The best of many noisy numbers is too good to be true: the held-out result, which "
        "neither the ranking nor the "
        "language model saw, is the one to believe."
    )
    return f'<div class="grid">{chart}{_overlay(valid, beta)}</div><p class="soft small">{note}</p>'


def _overlay(valid: list[Record], beta: float) -> str:
    ranked = sorted(valid, key=lambda one: -mean_and_error(one.fitness)[0])
    series = [
        Series(record.name, curve, tone, smooth=False)
        for tone, record in enumerate(ranked[:MOST_OVERLAID], 1)
        if (curve := _curve(record, beta))
    ]
    return (
        line_chart(f"loss over z = beta * rho of the best {len(series)}", series) if series else ""
    )


def _best(archive: Archive) -> str:
    best = archive.best()
    if best is None:
        return "<p>Nothing was measured.</p>"
    return f"<p>{escape(best.name)}, {shown(best.fitness)}</p><pre>{escape(best.source)}</pre>"


def _table(records: list[Record]) -> str:
    rows = "".join(
        f"<tr><td class=n>{record.index}</td><td class=name>{escape(record.name)}</td><td "
        f"class=name>{record.origin}</td>"
        f"<td class=n>{shown(record.fitness) if record.valid else '-'}</td>"
        f"<td class=n>{shown(record.held_out) if record.valid else '-'}</td>"
        f"<td class=n>{record.seconds:.1f}</td><td>{escape(record.error)}</td></tr>"
        for record in records
    )
    head = (
        "<th class=n></th><th>objective</th><th>origin</th><th class=n>fitness</th><th "
        "class=n>held out</th>"
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}<th class=n>seconds</th><th>what went '
        "wrong</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _details(record: Record, beta: float) -> str:
    curve = _curve(record, beta)
    chart = (
        line_chart("loss over z = beta * rho", [Series(record.name, curve, smooth=False)])
        if curve
        else ""
    )
    facts = "".join(f"<li>{escape(text)}</li>" for text in record.facts.get("text", []))
    thought = f"<p>{escape(record.thought)}</p>" if record.thought else ""
    error = f'<p class="warning">{escape(record.error)}</p>' if record.error else ""
    seeds = ", ".join(number(value) for value in record.fitness)
    fates = f"<p class=small>fitness by seed: {seeds}</p>" if seeds else ""
    return (
        f"<details><summary>{record.index} · {escape(record.name)} "
        f"{shown(record.fitness) if record.valid else ''}"
        f'</summary><div>{thought}{error}{fates}<div class="grid">{chart}<ul '
        f"class=small>{facts}</ul></div>"
        f"<pre>{escape(record.source)}</pre></div></details>"
    )


@functools.cache
def _curve_of(source: str, beta: float) -> list[tuple[float, float]]:
    from aligner.losses.dsl.checks import curve_of
    from aligner.losses.dsl.interpreter import as_objective
    from aligner.losses.dsl.parser import parse_objective

    return curve_of(as_objective(parse_objective(source)), beta)


def _curve(record: Record, beta: float) -> list[tuple[float, float]]:
    """The objective over z, evaluated from its checked source by our own evaluator; drawn twice and
    computed once.

    A refused one is not evaluated here, outside the sandbox.
    """
    return _curve_of(record.source, beta) if record.valid else []
