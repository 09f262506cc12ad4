"""The report of `aligner arena battle`: who is best, how sure that is, whether its judges can be
trusted, and what it cost.

Made from the run directory alone. Everything that comes from outside is escaped here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from aligner.arena.battle.log import SUMMARY
from aligner.arena.battle.spend import in_words
from aligner.arena.leaderboard import FILES, board_sections
from aligner.errors import UsageError
from aligner.reports.training import page
from aligner.runs.files import parse_json, read_json, write_atomically

Record = Mapping[str, Any]
Cells = Sequence[str]

WORDS = {
    "failed": "could not be read",
    "refused": "refused",
    "truncated": "was cut off",
    "error": "failed at the server",
}
"""States of a reply without scores, in words."""


def write_arena_report(run_dir: Path) -> Path:
    """Write `report.html` from what the run directory holds.

    Raises: UsageError where nothing was rated yet.
    """
    summary = read_json(run_dir, SUMMARY)
    if summary is None:
        hint = "continue it with --resume"
        raise UsageError(f"{run_dir} has no rated battles, so there is nothing to report", hint)
    board = parse_json(run_dir / FILES[1], "continue the run with --resume")
    recipe = read_json(run_dir, "resolved.json")["recipe"]
    sections = [
        ("The target", _win_rates(summary)),
        ("The plan", _plan(summary["plan"])),
        ("Contestants", _contestants(summary)),
        ("Judges", _judges(summary)),
        ("Requests", _spend(summary["spend"])),
    ]
    body = board_sections(board) + "".join(
        f"<section><h2>{escape(title)}</h2>{text}</section>" for title, text in sections if text
    )
    path = run_dir / "report.html"
    facts = [("plan", summary["plan"]["name"]), ("seed", f"{recipe['seed']}")]
    facts += [("prompts", f"{board['prompts']:,}"), ("anchor", board["settings"]["anchor"] or "")]
    html = page(
        run_dir.resolve().name,
        "arena",
        [(name, value) for name, value in facts if value],
        body,
        tiles=_tiles(summary),
        warnings=_warnings(summary, board),
    )
    write_atomically(path, html)
    return path


def _tiles(summary: Record) -> list[dict[str, str]]:
    best, counts, total = summary["models"][0], summary["battles"], summary["spend"]["total"]
    money = "no prices are known" if total["usd"] is None else f"${total['usd']:,.2f}"
    ruled = sum(counts["by_rule"].values())
    return [
        {"label": "first", "value": best["model"], "note": f"rating {best['rating']:,.0f}"},
        {"label": "battles", "value": f"{counts['played']:,}", "note": f"{ruled:,} by rule"},
        {"label": "requests", "value": f"{total['calls']:,}", "note": money},
    ]


def _warnings(summary: Record, board: Record) -> list[str]:
    found = [*board["notes"]]
    found += [f"{count:,} {what}: left out" for what, count in board["left_out"].items()]
    for name, row in summary["health"].get("judges", {}).items():
        found += [f"the judge {name} fails: {text}" for text in row["failed"]]
        found += [row["liking"]] if row.get("liking") else []
    for name, facts in summary["contestants"].items():
        for what, count in facts["missing"].items():
            found.append(f"{name} has no answer to {count:,} prompts: {what}")
    return found


def _win_rates(summary: Record) -> str:
    rows = []
    for name, row in summary["win_rates"].items():
        ends = "-" if row["low"] is None else f"{row['low']:.1%} to {row['high']:.1%}"
        rate = "-" if row["rate"] is None else f"{row['rate']:.1%}"
        counts = "/".join(f"{row[key]:,}" for key in ("wins", "ties", "losses"))
        rows.append((name, rate, ends, counts, f"{row['prompts']:,}"))
    note = f"What {escape(str(summary['plan']['target']))} wins, ties as half; intervals by prompt."
    head = ("against", "win rate", "95% interval", "W/T/L", "prompts")
    return f'<p class="soft">{note}</p>{_table(head, rows)}' if rows else ""


def _plan(plan: Record) -> str:
    """Which pairs were told apart, or the rounds of a bracket."""
    rows: list[Cells] = []
    if plan["name"] == "adaptive":
        for pair in plan["pairs"]:
            state = f"told apart at look {pair['looks']}" if pair["separated"] else "open"
            rate = "-" if pair["win_rate"] is None else f"{pair['win_rate']:.1%}"
            rows.append((" / ".join(pair["models"]), rate, f"{pair['prompts']:,}", state))
        return _table(("pair", "win rate of the first", "prompts", ""), rows)
    if plan["name"] == "bracket":
        for number, matches in enumerate(plan["rounds"], 1):
            for match in matches:
                rate = match["win_rate"]["rate"]
                shown = "-" if rate is None else f"{rate:.1%}"
                said = "even: the better seed" if match["by_seed"] else ""
                names = " / ".join(match["models"])
                rows.append((f"{number}", names, shown, str(match["winner"]), said))
        return _table(("round", "match", "win rate of the first", "advances", ""), rows)
    return ""


def _contestants(summary: Record) -> str:
    rows = []
    for name, facts in summary["contestants"].items():
        counts = (f"{facts[key]:,}" for key in ("cut", "empty", "reasoned"))
        rows.append((name, f"{facts['prompts']:,}", f"{facts['mean_length']:,.0f}", *counts))
    head = ("contestant", "answers", "mean length", "cut off", "empty", "with thinking")
    return _table(head, rows)


def _judges(summary: Record) -> str:
    """What each judge says of each contestant, and whether it can be trusted."""
    names = [row["model"] for row in summary["models"]]
    rows = []
    for judge, row in summary["judges"].items():
        shares = (row["win_share"].get(name) for name in names)
        unread = ", ".join(f"{count:,} {WORDS[what]}" for what, count in row["unread"].items())
        cells = ("-" if share is None else f"{share:.1%}" for share in shares)
        rows.append((judge, f"{row['battles']:,}", f"{row['ties']:,}", *cells, unread))
    head = ("judge", "battles", "ties", *names, "replies")
    text = _table(head, rows)
    said = []
    for judge, row in summary["health"].get("judges", {}).items():
        for sentence in (*row["failed"], *row["findings"]):
            said.append(f"<li>{escape(judge)}: {escape(sentence)}</li>")
    return text + (f"<ul>{''.join(said)}</ul>" if said else "")


def _spend(spend: Record) -> str:
    rows = [(name, in_words(one) or "nothing was asked") for name, one in spend["by"].items()]
    each = spend["usd_per_battle"]
    note = "" if each is None else f'<p class="soft">${each:,.4f} a battle.</p>'
    return note + _table(("of", "spent"), rows) if rows else ""


def _table(head: Cells, rows: Sequence[Cells]) -> str:
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    for row in rows:
        lines.append("".join(f"<td>{escape(cell)}</td>" for cell in row))
    inside = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table class="tight">{inside}</table></div>'
