"""The report of `aligner evolve`: what came out, what was lost and why, how the method became what
it is, and rows to read, before and after.

Made from the run directory alone. Everything that comes from outside is escaped here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from aligner.builders.evolve.accounts import USAGE
from aligner.builders.evolve.history import History
from aligner.builders.evolve.methods_report import methods_section
from aligner.builders.evolve.output import REASONS, SUMMARY, poor_evolver
from aligner.errors import UsageError
from aligner.reports.charts import bar_chart, number
from aligner.reports.training import page
from aligner.runs.files import read_json, write_atomically

Cells = Sequence[str]

EDGES = (-20, -10, 0, 1, 10, 20, 40, 80)
"""Where the groups of added words begin; before the first and behind the last there is one more."""


def write_evolve_report(run_dir: Path) -> Path:
    """Write `report.html` from what the run directory holds.

    Raises: UsageError where no row is finished yet.
    """
    summary = read_json(run_dir, SUMMARY)
    if summary is None:
        hint = "continue it with --resume"
        raise UsageError(f"{run_dir} has no finished rows, so there is nothing to report yet", hint)
    recipe = read_json(run_dir, "resolved.json")["recipe"]
    usage = read_json(run_dir, USAGE) or {}
    sections = [
        ("Rows", _rows(summary)),
        ("The method", _method(summary)),
        ("Added words", _added_words(summary["added_words"])),
        ("Before and after", "".join(map(_sample, summary["samples"]))),
        ("Dropped, one of each", _examples(summary)),
        ("Requests", _requests(usage)),
    ]
    body = "".join(
        f"<section><h2>{escape(title)}</h2>{text}</section>" for title, text in sections if text
    )
    path = run_dir / "report.html"
    html = page(
        run_dir.resolve().name,
        "evolve",
        _facts(recipe, summary),
        _STYLE + body,
        tiles=_tiles(summary, usage),
        warnings=_warnings(summary),
    )
    write_atomically(path, html)
    return path


_STYLE = "<style>.row pre{white-space:pre-wrap;overflow-wrap:anywhere}</style>"


def _facts(recipe: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    evolve = recipe["evolve"]
    found = [("mode", evolve["mode"]), ("rounds", f"{evolve['rounds']}")]
    roles = {"evolves": recipe["endpoint"], "answers": evolve["answerer"] or recipe["endpoint"]}
    found += [(what, section["model"] or section["backend"]) for what, section in roles.items()]
    if summary["method"] is not None:
        found.append(("method", summary["method"]["id"][:12]))
    return [*found, ("seed", f"{recipe['seed']}")]


def _warnings(summary: Mapping[str, Any]) -> list[str]:
    found = poor_evolver(summary)
    if summary["unfinished"]:
        found.insert(0, f"{summary['unfinished']:,} rows are not finished: {summary['ended']}")
    return found


def _tiles(summary: Mapping[str, Any], usage: Mapping[str, Any]) -> list[dict[str, str]]:
    lost = sum(summary["dropped"].values())
    total = lost + summary["rows"]
    share = f"{summary['rows'] / total:.0%} of {total:,}" if total else ""
    tiles = [
        {"label": "rows", "value": f"{summary['rows']:,}", "note": share},
        {"label": "seeds", "value": f"{summary['seeds']:,}", "note": ""},
    ]
    calls = sum(used["calls"] for used in usage.values())
    cost = [used["usd"] for used in usage.values() if used.get("usd") is not None]
    note = f"${sum(cost):,.2f}" if cost else "no prices are known"
    return [*tiles, {"label": "requests", "value": f"{calls:,}", "note": note}]


def _rows(summary: Mapping[str, Any]) -> str:
    """What became of all rows, and what else was counted."""
    lines = [("kept", f"{summary['rows']:,}", "")]
    for reason, count in summary["dropped"].items():
        lines.append((f"dropped: {reason}", f"{count:,}", REASONS.get(reason, "")))
    if summary["unfinished"]:
        lines.append(("not finished", f"{summary['unfinished']:,}", summary["ended"]))
    counts = {**summary["counts"], **summary["found"]}
    if "round 2" not in counts:
        counts.pop("round 1", None)
    lines += [
        (_COUNTED.get(what, what.replace("_", " ")), f"{count:,}", "")
        for what, count in counts.items()
    ]
    return _table(("what", "rows", ""), lines)


_COUNTED = {
    "questions": "answers that end with a question mark",
    "compared": "pairs compared as near duplicates",
    "confirmed": "of these confirmed",
    "short_overlap": "rows with 8 words of a test set",
    "long_overlap": "rows with more words of a test set, kept",
}


def _method(summary: Mapping[str, Any]) -> str:
    if "optimization" in summary:
        return methods_section(History.from_json(summary["optimization"]))
    if (method := summary["method"]) is None:
        return ""
    text = "The method was given, or used as it starts."
    return f'<p>{text}</p><div class="row"><pre>{escape(method["steps"])}</pre></div>'


def _added_words(added: Sequence[int]) -> str:
    if not added:
        return ""
    names = [f"below {EDGES[0]}"]
    names += [f"{low} to {high - 1}" for low, high in pairwise(EDGES)]
    names.append(f"{EDGES[-1]} and more")
    names[EDGES.index(0) + 1] = "0"
    counts = [0] * len(names)
    for words in added:
        counts[sum(words >= edge for edge in EDGES)] += 1
    bars = [(name, float(count)) for name, count in zip(names, counts)]
    chart = bar_chart("rows by words that were added", bars, last_stands_out=False)
    middle = sorted(added)[len(added) // 2]
    return f'{chart}<p class="soft small">Median {middle:+d}.</p>'


def _sample(sample: Mapping[str, Any]) -> str:
    head = f"round {sample['round']}, from {sample['seed_id']}"
    return _texts(
        head, {name: sample[name] for name in ("before", "instruction", "answer")}, is_open=True
    )


def _examples(summary: Mapping[str, Any]) -> str:
    found = []
    for reason, example in summary["examples"].items():
        head = f"{reason}: {REASONS.get(reason, reason)}"
        texts = {"from": example["from"], "instruction": example["instruction"]}
        texts |= {"answer": example["answer"], "the same as": example.get("detail", "")}
        found.append(_texts(head, texts, is_open=False))
    return "".join(found)


def _texts(head: str, texts: Mapping[str, str], *, is_open: bool) -> str:
    parts = "".join(
        f'<p class="soft small">{escape(name)}</p><pre>{escape(text)}</pre>'
        for name, text in texts.items()
        if text
    )
    state = " open" if is_open else ""
    return f'<details class="row"{state}><summary>{escape(head)}</summary>{parts}</details>'


def _requests(usage: Mapping[str, Any]) -> str:
    """What was asked for which purpose, of each client."""
    columns = ("calls", "cached", "retries", "prompt_tokens", "completion_tokens", "usd")
    lines = []
    for client, used in usage.items():
        for purpose, counts in used.get("purposes", {}).items():
            cells = [counts.get(column) for column in columns]
            errors = ", ".join(f"{kind} {count}" for kind, count in counts["errors"].items())
            shown = ["" if cell is None else number(cell) for cell in cells]
            lines.append((client, purpose, *shown, errors))
    head = ("client", "purpose", "calls", "cached", "retries", "tokens in", "tokens out", "usd")
    return _table((*head, "errors"), lines) if lines else ""


def _table(head: Cells, lines: Sequence[Cells]) -> str:
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    rows = "".join(map(_line, lines))
    table = f"<table><thead><tr>{names}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _line(cells: Cells) -> str:
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
