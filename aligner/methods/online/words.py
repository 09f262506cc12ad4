"""A round in a few cells and in one line, for the screen, the report and `aligner online status`.
Imports no torch.

Numbers are those of the validation prompts, which choose the best round; wins are over the test
prompts, which do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEASURED = (
    ("reward", "reward", "{:.3f}"),
    ("gold", "gold", "{:.3f}"),
    ("KL", "kl", "{:.3g}"),
    ("tokens", "tokens", "{:.1f}"),
    ("finished", "finished", "{:.0%}"),
)
"""Column, key of what a round measured, and how it is written."""

WINS = "wins against the start"


def name_of_round(number: int) -> str:
    """Return what a round is called in a table; 0 is the start."""
    return "start" if number == 0 else str(number)


def wins_text(facts: Mapping[str, Any], other: str = "start") -> str:
    """Return `61% (55% to 67%)`; nothing where it was not compared with the other."""
    wins = (facts.get("wins") or {}).get(other)
    if wins is None:
        return ""
    return f"{wins['value']:.0%} ({wins['low']:.0%} to {wins['high']:.0%})"


def measured_cells(facts: Mapping[str, Any], part: str = "validation") -> dict[str, str]:
    """Return column -> text of what a round measured, empty where it did not."""
    values = facts.get(part) or {}
    cells = {}
    for column, key, form in MEASURED:
        value = values.get(key)
        cells[column] = "" if value is None else form.format(value)
    return {**cells, WINS: wins_text(facts)}


def round_line(number: int, facts: Mapping[str, Any]) -> str:
    """Return what a round measured, as one line."""
    cells = measured_cells(facts)
    said = [f"{name} {cells[name]}" for name in ("reward", "gold") if cells[name]]
    said += [f"KL {cells['KL']}"] if number else []
    said += [f"{cells['tokens']} tokens", f"{cells['finished']} finished"]
    said += [f"wins {cells[WINS]} against the start"] if cells[WINS] else []
    name = f"round {number}" if number else "start"
    return f"{name}: {', '.join(said)}"


QUERIES, DISAGREES = "queries", "oracle disagrees"
"""Columns of a run with an oracle."""


def oracle_cells(query: Mapping[str, Any], refresh: Mapping[str, Any]) -> dict[str, str]:
    """Return column -> text of what an oracle said in a round, empty where it was not asked.

    Queries are those spent so far. How often it disagrees with the proxy, before and after the
    refresh, is of held-out labels; where none are held out, before alone, of the round's labels.
    """
    cells = {QUERIES: "", DISAGREES: ""}
    if query:
        cells[QUERIES] = f"{query['spent']:,} of {query['budget']:,}"
        known = refresh.get("accuracy") or {}
        if known.get("after") is not None:
            cells[DISAGREES] = f"{1 - known['before']:.0%} to {1 - known['after']:.0%}"
        elif query["disagree"] is not None:
            cells[DISAGREES] = f"{query['disagree']:.0%}"
    return cells


def oracle_line(query: Mapping[str, Any], refresh: Mapping[str, Any]) -> str:
    """Return what the oracle and its labels were worth in a round, as one line."""
    said = f"{query['spent']:,} of {query['budget']:,} queries spent, {query['queries']:,} of them"
    said += f" now ({query['from the ledger']:,} answers were in the ledger)"
    lost = [f"{query[why]:,} {why}" for why in ("ties", "without a verdict") if query[why]]
    said += f"; {query['labels']:,} labels" + (f"; {', '.join(lost)}" if lost else "")
    if query["disagree"] is not None:
        said += f"; the proxy disagrees with {query['disagree']:.0%}"
    known = refresh.get("accuracy") or {}
    if known.get("after") is not None:
        said += (
            f"; of {refresh['held out']:,} held-out ones with {1 - known['before']:.0%}, and once "
            f"it is refreshed with {1 - known['after']:.0%}"
        )
    return said
