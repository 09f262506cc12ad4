"""The report of `aligner data select`: the numbers as a dict, and one HTML page with them, with
pairs to read and the labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from aligner.acquisition.ngrams import text_of
from aligner.acquisition.selection import Pair, Selection
from aligner.errors import UsageError
from aligner.reports.charts import bar_chart, number
from aligner.reports.training import page
from aligner.runs.files import read_json, write_atomically

BINS = 10
SHOWN_EXAMPLES = 12

LARGEST = {"entropy": math.log(2.0), "variance": 0.25, "bald": math.log(2.0)}
"""Measure -> the largest uncertainty that there can be."""


def summary_of(selection: Selection, prompts: int, models: Sequence[str]) -> dict[str, Any]:
    """Return every number there is to know of a selection."""
    return {
        "prompts": prompts,
        "with_a_pair": len(selection.picked) + len(selection.rest),
        "picked": len(selection.picked),
        "rest": len(selection.rest),
        "pair": selection.pair,
        "measure": selection.measure,
        "models": list(models),
        "left_out": {what: count for what, count in selection.counts.items() if count},
        "uncertainty": {
            "picked": _mean(selection.picked),
            "rest": _mean(selection.rest),
            "histogram": _histogram(selection),
        },
    }


def _mean(pairs: Sequence[Pair]) -> float | None:
    values = [pair.uncertainty for pair in pairs if pair.uncertainty is not None]
    return sum(values) / len(values) if values else None


def _histogram(selection: Selection) -> list[list[Any]]:
    """(lower end, upper end, picked, rest) of each bin; between 0 and the largest value that
    occurs."""
    if selection.measure is None:
        return []
    values = [pair.uncertainty or 0.0 for pair in [*selection.picked, *selection.rest]]
    width = (max(values, default=0.0) or LARGEST[selection.measure]) / BINS

    def histogram(pairs: Sequence[Any]) -> Counter[int]:
        return Counter(min(BINS - 1, int((pair.uncertainty or 0.0) / width)) for pair in pairs)

    counts = [histogram(selection.picked), histogram(selection.rest)]
    return [[i * width, (i + 1) * width, counts[0][i], counts[1][i]] for i in range(BINS)]


def results_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the few numbers that a screen shows."""
    results = {
        "prompts": float(summary["prompts"]),
        "pairs to choose from": float(summary["with_a_pair"]),
    }
    results["to be labelled"] = float(summary["picked"])
    for name in ("picked", "rest"):
        if summary["uncertainty"][name] is not None:
            results[f"mean uncertainty, {name}"] = round(summary["uncertainty"][name], 4)
    return results


# --- the page -------------------------------------------------------------------------------------


def write_select_report(run_dir: Path) -> Path:
    """Write `report.html` from `picked.json`, the recipe and, where there are some, the labels."""
    summary = read_json(run_dir, "picked.json")
    if summary is None:
        raise UsageError(
            f"{run_dir} is not finished, so there is nothing to report yet",
            "continue it with --resume",
        )
    recipe = read_json(run_dir, "resolved.json")["recipe"]
    settings = recipe["select"]
    policy = settings["policy"]
    facts = [
        (
            "responses",
            "of " + policy["name_or_path"]
            if settings["candidates"] is None
            else settings["candidates"],
        ),
        ("strategy", settings["strategy"]),
        ("pair", summary["pair"].replace("_", " ")),
        ("uncertainty", summary["measure"] or "none: no reward model"),
        ("reward models", ", ".join(summary["models"]) or "none"),
        ("budget", f"{settings['budget']:,}"),
        ("seed", f"{recipe['seed']}"),
    ]
    examples = "".join(_example(pair) for pair in summary["pairs"][:SHOWN_EXAMPLES])
    sections = (
        ("uncertainty", "Uncertainty", _histograms(summary)),
        ("labels", "Labels", _labels(run_dir)),
        ("pairs", "Pairs, first picks first", _STYLE + examples),
        ("losses", "What was left out", _left_out(summary)),
    )
    body = "".join(
        f'<section id="{anchor}"><h2>{title}</h2>{text}</section>'
        for anchor, title, text in sections
    )
    warnings = []
    if summary["picked"] < settings["budget"]:
        warnings.append(
            f"The budget was {settings['budget']:,} pairs, and there were {summary['picked']:,}."
        )
    path = run_dir / "report.html"
    html = page(
        run_dir.resolve().name, "select", facts, body, tiles=_tiles(summary), warnings=warnings
    )
    write_atomically(path, html)
    return path


def _tiles(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    tiles = [
        {
            "label": "to be labelled",
            "value": f"{summary['picked']:,}",
            "note": f"of {summary['with_a_pair']:,} pairs",
        },
        {
            "label": "prompts",
            "value": f"{summary['prompts']:,}",
            "note": f"{summary['with_a_pair']:,} have a pair",
        },
    ]
    picked, rest = summary["uncertainty"]["picked"], summary["uncertainty"]["rest"]
    if picked is not None:
        note = (
            f"of the picked pairs; {number(rest)} of the rest"
            if rest is not None
            else "of the picked pairs"
        )
        tiles.append({"label": f"mean {summary['measure']}", "value": number(picked), "note": note})
    return tiles


def _histograms(summary: Mapping[str, Any]) -> str:
    rows = summary["uncertainty"]["histogram"]
    if not rows:
        return "<p>No reward model took part, so nothing is known of it.</p>"
    names = [f"{low:.3f} to {high:.3f}" for low, high, _, _ in rows]
    charts = []
    for title, column in (("picked", 2), ("rest", 3)):
        bars = [(name, float(row[column])) for name, row in zip(names, rows)]
        charts.append(bar_chart(title, bars, last_stands_out=False))
    return (
        f'<div class="grid">{"".join(charts)}</div><p class="soft '
        f'small">{escape(_MEANING[summary["measure"]])}</p>'
    )


_MEANING = {
    "entropy": "Entropy in nats of the preference; 0.693 where the two responses are equally good "
    "to the model, or unknown to it.",
    "variance": "Variance between the reward models of the probability that one response is "
    "better; at most 0.25.",
    "bald": "Mutual information in nats of label and reward model: high where each is sure and "
    "they disagree.",
}


def _labels(run_dir: Path) -> str:
    from aligner.builders.select.label_store import counts_of, known_labels

    counts = counts_of(run_dir)
    if not known_labels(run_dir):
        return (
            f"<p>None yet. <code>aligner data select {escape(str(run_dir))} --labels FILE</code> "
            "reads them.</p>"
        )
    rows = "".join(
        f"<tr><td>{escape(what)}</td><td class=n>{escape(number(float(value)))}</td></tr>"
        for what, value in counts.items()
    )
    return _table("<th>what</th><th class=n>how many</th>", rows)


def _left_out(summary: Mapping[str, Any]) -> str:
    body = "".join(
        f"<tr><td>{escape(what)}</td><td class=n>{count:,}</td></tr>"
        for what, count in summary["left_out"].items()
    )
    return _table("<th>what</th><th class=n>how many</th>", body) if body else "<p>Nothing.</p>"


def _table(head: str, rows: str) -> str:
    return (
        "<div "
        f'class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


_STYLE = "<style>.pair pre{white-space:pre-wrap;overflow-wrap:anywhere}</style>"


def _example(pair: Mapping[str, Any]) -> str:
    facts = [f"{pair['rank']}"]
    if pair.get("uncertainty") is not None:
        facts.append(f"uncertainty {pair['uncertainty']:.4f}")
        facts.append(f"a is better with {pair['probability']:.0%}, the models say")
    parts = "".join(
        f'<p class="soft small">{name}</p><pre>{escape(text)}</pre>'
        for name, text in (("prompt", text_of(pair["prompt"])), ("a", pair["a"]), ("b", pair["b"]))
    )
    head = escape(" · ".join(facts))
    return f'<details class="pair" open><summary>{head}</summary>{parts}</details>'
