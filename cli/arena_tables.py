"""A leaderboard as tables on the screen."""

from __future__ import annotations

from typing import Any

from .console import say

Record = dict[str, Any]

INTERVAL = "95% interval"
AGAINST = ("against the baseline", "win rate", INTERVAL, "length-controlled", INTERVAL)


def show_leaderboard(record: Record) -> None:
    """Everything as tables on stdout, remarks on stderr."""
    from aligner.arena.leaderboard import interval_text, rating_text

    from .render import columns, number

    for text in _remarks(record):
        say(f"warning: {text}", err=True)
    is_controlled = any(row["uncontrolled"] is not None for row in record["models"])
    head = ("rank", "ranks", "model", "rating", "95% interval", "win rate", "W/T/L", "prompts")
    lines = []
    for row in record["models"]:
        ranks = "-" if row["rank_low"] is None else f"{row['rank_low']}-{row['rank_high']}"
        counts = "/".join(number(row[name]) for name in ("wins", "ties", "losses"))
        before = [f"{row['uncontrolled']:,.0f}"] if is_controlled else []
        length = "-" if row["mean_length"] is None else f"{row['mean_length']:,.0f}"
        figures = (rating_text(row), interval_text(row), f"{row['win_rate']:.1%}", counts)
        last = (f"{row['prompts']:,}", *before, length, "; ".join(row["flags"]))
        lines.append((row["rank"], ranks, row["model"], *figures, *last))
    beside = ("uncontrolled",) if is_controlled else ()
    columns((*head, *beside, "length", ""), lines)
    _show_more(record)
    for path in record.get("wrote", ()):
        say(f"wrote {path}")


def _remarks(record: Record) -> list[str]:
    found = [*record["notes"]]
    found += [f"{count:,} {what}: left out" for what, count in record["left_out"].items()]
    if record["unstable_resamples"]:
        found.append(
            f"in {record['unstable_resamples']:,} of {record['settings']['resamples']:,} resamples "
            "some model never lost, or never won; those were fitted with a small prior"
        )
    against = record.get("against_baseline") or {}
    if unknown := [name for name, row in against.items() if row["controlled"] is None]:
        found.append(
            f"{', '.join(unknown)}: some answers have no length, so win rates are not controlled "
            "for it"
        )
    for name, row in against.items():
        if row["is_far"]:
            found.append(
                f"{name}: taking length out moved its win rate from {row['raw']:.1f}% to "
                f"{row['controlled']:.1f}%; look at its answers"
            )
    return found


def _show_more(record: Record) -> None:
    """Coefficients, what is against the baseline, rewards and categories, each as a table."""
    from aligner.arena.leaderboard import rating_text

    from .render import columns

    tables: list[tuple[tuple[str, ...], list[tuple[str, ...]]]] = []
    if record["coefficients"]:
        rows: list[tuple[str, ...]] = [
            (name, f"{row['value']:.3f}", _ends(row, 3))
            for name, row in record["coefficients"].items()
        ]
        tables.append((("coefficient (logits)", "value", "95% interval"), rows))
    if record.get("against_baseline"):
        tables.append((AGAINST, _against(record["against_baseline"])))
    if record.get("rewards"):
        rows = [(name, f"{row['mean']:+.1f}") for name, row in record["rewards"].items()]
        tables.append((("reward, -100 to 100", "mean"), rows))
    for category, found in (record.get("categories") or {}).items():
        name = category or "no category"
        if "not_rated" in found:
            tables.append(((name,), [(f"not rated: {found['not_rated']}",)]))
            continue
        ordered = sorted(found.items(), key=lambda item: -item[1]["rating"])
        rows = [(model, rating_text(row), _ends(row, 0)) for model, row in ordered]
        tables.append(((name, "rating", "95% interval"), rows))
    for heading, lines in tables:
        say()
        columns(heading, lines)


def _against(found: Record) -> list[tuple[str, ...]]:
    """Win rates against the baseline; without lengths they are raw alone."""
    lines: list[tuple[str, ...]] = []
    for name, row in found.items():
        raw = (f"{row['raw']:.1f}%", _ends({end: row[f"raw_{end}"] for end in ("low", "high")}, 1))
        controlled = "-" if row["controlled"] is None else f"{row['controlled']:.1f}%"
        lines.append((name, *raw, controlled, _ends(row, 1)))
    return lines


def _ends(row: Record, digits: int) -> str:
    """The ends of an interval; `...` for one that does not exist."""
    if row["low"] is None and row["high"] is None:
        return "-"
    ends = ("..." if row[end] is None else f"{row[end]:,.{digits}f}" for end in ("low", "high"))
    return " to ".join(ends)
