"""A leaderboard: what was rated, as one record, and that as CSV, JSON, SVG and one HTML file.

The record is what `--json` prints and what `consistency.py` reads back. Numbers that do not exist
(the open end of a bound, an interval without resamples) are null in JSON and empty in CSV; `bound`
and `notes` say why.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from aligner.arena.figures import forest, heat_map
from aligner.arena.png import forest_png
from aligner.arena.rating import Ratings, Settings
from aligner.arena.records import SCHEMA_VERSION
from aligner.arena.votes import Floats, Votes
from aligner.arena.win_rates import pairs, records
from aligner.reports.charts import number
from aligner.reports.training import page
from aligner.runs.files import dumps, write_atomically, write_bytes_atomically

Record = dict[str, Any]

FILES = ("leaderboard.csv", "leaderboard.json", "leaderboard.svg", "leaderboard.html")

PNG = "leaderboard.png"
"""Written where it is asked for."""

CSV_COLUMNS = (
    *(
        "rank",
        "rank_low",
        "rank_high",
        "model",
        "rating",
        "low",
        "high",
        "uncontrolled",
        "win_rate",
    ),
    *("wins", "ties", "losses", "votes", "prompts", "mean_length", "flags"),
)

BOUNDS = {
    "at_least": "never lost to the rest: a lower bound",
    "at_most": "never won against the rest: an upper bound",
    "unplaced": "cannot be placed by these battles",
}


def leaderboard(
    votes: Votes, ratings: Ratings, how: Settings, *, uncontrolled: Ratings | None = None
) -> Record:
    """Everything about a rating. `uncontrolled`: the ratings without length and style, to stand
    beside."""
    share, met = pairs(votes)
    return {
        "schema_version": SCHEMA_VERSION,
        "votes": len(votes),
        "prompts": len(votes.prompts),
        "tie_rate": float(np.mean(votes.outcome == 0.5)),
        "judges": votes.judges,
        "settings": asdict(how),
        "coefficients": {
            name: dict(zip(("value", "low", "high"), map(_known, values)))
            for name, values in ratings.coefficients.items()
        },
        "unstable_resamples": ratings.unstable,
        "left_out": votes.left_out,
        "notes": [*votes.notes, *ratings.notes],
        "models": rows(votes, ratings, uncontrolled),
        "pairs": {
            "models": ratings.models,
            "win_share": _table(share),
            "votes": met.tolist(),
            "above": _table(ratings.above),
        },
    }


def rows(votes: Votes, ratings: Ratings, uncontrolled: Ratings | None = None) -> list[Record]:
    """One for each model, the best first."""
    found = []
    places, ranks = ratings.rank_ends, ratings.rank
    median = np.median(ratings.draws, axis=0) if len(ratings.draws) else ratings.rating * np.nan
    for model, happened in enumerate(records(votes)):
        name, bound, place = ratings.models[model], ratings.bound[model], places[model]
        found.append(
            {
                "rank": ranks[model],
                "rank_low": place and place[0],
                "rank_high": place and place[1],
                "model": name,
                "rating": float(ratings.rating[model]),
                "low": _known(ratings.low[model]),
                "high": _known(ratings.high[model]),
                "has_interval": not math.isnan(ratings.low[model] + ratings.high[model])
                or bound == "unplaced",
                "median": _known(median[model]),
                "uncontrolled": None if uncontrolled is None else float(uncontrolled.rating[model]),
                **asdict(happened),
                "bound": bound,
                "flags": [
                    *([BOUNDS[bound]] if bound else []),
                    *(["is a judge"] if name in votes.judges else []),
                ],
            }
        )
    return sorted(found, key=lambda row: (-row["rating"], row["model"]))


def category_rows(ratings: dict[str, Ratings | str]) -> Record:
    """Category -> rating and interval of each model, or why there are none."""
    found: Record = {}
    for name, rated in ratings.items():
        if isinstance(rated, str):
            found[name] = {"not_rated": rated}
            continue
        figures = zip(rated.models, rated.rating, rated.low, rated.high, rated.bound)
        found[name] = {
            model: {"rating": float(value), "low": _known(low), "high": _known(high), "bound": end}
            for model, value, low, high, end in figures
        }
    return found


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _table(cells: Floats) -> list[list[float | None]]:
    found = []
    for row in cells.tolist():
        found.append([_known(value) for value in row])
    return found


def write(record: Record, folder: Path, *, png: bool = False) -> list[Path]:
    """Write all forms of a leaderboard; what stands there is replaced, and an older picture as PNG
    goes where none is asked for.

    Raises: UsageError where `png` is, without matplotlib.
    """
    folder.mkdir(parents=True, exist_ok=True)
    anchor = record["settings"]["anchor"]
    texts = (
        as_csv(record["models"]),
        dumps(record, indent=2) + "\n",
        forest(record["models"], anchor) + "\n",
        as_html(record),
    )
    paths = [folder / name for name in FILES]
    for path, text in zip(paths, texts):
        write_atomically(path, text)
    if not png:
        (folder / PNG).unlink(missing_ok=True)
        return paths
    write_bytes_atomically(folder / PNG, forest_png(record["models"], anchor))
    return [*paths, folder / PNG]


def as_csv(models: Sequence[Record]) -> str:
    """A line for each model."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in models:
        writer.writerow({**row, "flags": "; ".join(row["flags"])})
    return text.getvalue()


def as_html(record: Record) -> str:
    """One file that needs nothing else."""
    anchor = record["settings"]["anchor"]
    facts = [("votes", f"{record['votes']:,}"), ("prompts", f"{record['prompts']:,}")]
    facts += [("ties", f"{record['tie_rate']:.1%}"), ("anchor", anchor or "mean of the models")]
    lost = [f"{count:,} {what}: left out" for what, count in record["left_out"].items()]
    warnings = [*record["notes"], *lost]
    return page("Leaderboard", "arena", facts, board_sections(record), warnings=warnings)


def board_sections(record: Record) -> str:
    """Return the sections of a page: ratings, heat maps, categories."""
    names = [row["model"] for row in record["models"]]
    order = [record["pairs"]["models"].index(name) for name in names]

    def cells(what: str) -> Floats:
        return np.array(record["pairs"][what], dtype=np.float64)[np.ix_(order, order)]

    anchor = record["settings"]["anchor"]
    drawn = (
        f"<section><h2>Ratings</h2>{forest(record['models'], anchor)}"
        f"{_main_table(record['models'])}</section>"
    )
    body = drawn + heat_map(
        "Share won",
        names,
        cells("win_share"),
        is_share=True,
        note="The row's model against the column's; a tie is half a win.",
    )
    if record["settings"]["resamples"]:
        body += heat_map(
            "Above in how many resamples",
            names,
            cells("above"),
            is_share=True,
            note="What a claim about two models rests on, more than intervals that overlap or not.",
        )
    body += heat_map("Votes", names, cells("votes"), is_share=False)
    return body + _categories(record.get("categories") or {}, names)


def _main_table(models: Sequence[Record]) -> str:
    head = ("rank", "model", "rating", "95% interval", "win rate", "votes", "length", "")
    lines = ["".join(f"<th>{name}</th>" for name in head)]
    for row in models:
        length = "" if row["mean_length"] is None else number(row["mean_length"])
        cells = (
            *(row["rank"], row["model"], rating_text(row), interval_text(row)),
            *(f"{row['win_rate']:.1%}", f"{row['votes']:,}", length, "; ".join(row["flags"])),
        )
        lines.append("".join(f"<td>{escape(str(cell))}</td>" for cell in cells))
    inside = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table class="tight">{inside}</table></div>'


def _categories(categories: Record, names: Sequence[str]) -> str:
    if not categories:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *names))
    lines = [head]
    for category, found in categories.items():
        first = f"<th>{escape(category or 'none')}</th>"
        if "not_rated" in found:
            why = escape(str(found["not_rated"]))
            lines.append(f'{first}<td class="soft" colspan="{len(names)}">{why}</td>')
            continue
        cells = (rating_text(found[name]) if name in found else "·" for name in names)
        lines.append(first + "".join(f'<td class="n">{escape(cell)}</td>' for cell in cells))
    inside = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        '<section><h2>Ratings by category</h2><div class="scroll"><table class="tight">'
        f"{inside}</table></div></section>"
    )


def rating_text(row: Record) -> str:
    """`1,034`, or `>= 1,512` for a bound."""
    sign = {"at_least": ">= ", "at_most": "<= ", "unplaced": "? "}.get(row["bound"], "")
    return f"{sign}{row['rating']:,.0f}"


def interval_text(row: Record) -> str:
    """`1,020 to 1,049`; an open end is `...`."""
    if not row["has_interval"]:
        return "-"
    ends = ("..." if row[end] is None else f"{row[end]:,.0f}" for end in ("low", "high"))
    return " to ".join(ends)
