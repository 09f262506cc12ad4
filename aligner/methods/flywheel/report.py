"""The report of `aligner flywheel`: what each model is worth, what was learned from whom, and what
it cost. Written from `flywheel.json`, at any time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from markupsafe import Markup

from aligner.arena.battle.spend import totals
from aligner.arena.figures import forest
from aligner.errors import UsageError
from aligner.methods.flywheel.status import RESULT
from aligner.reports.charts import bar_chart
from aligner.reports.pieces import in_cell, joined, remark, table
from aligner.reports.training import page
from aligner.runs.files import read_json, write_atomically

Record = dict[str, Any]


def write_flywheel_report(run_dir: Path, manifest: Record | None = None) -> Path:
    """Write `report.html`.

    Raises: UsageError where no stage of the first round is done yet.
    """
    found = read_json(Path(run_dir), RESULT)
    if found is None:
        hint = "continue it with --resume"
        raise UsageError(f"{run_dir} has no finished stage, so there is nothing to report", hint)
    recipe = (read_json(Path(run_dir), "resolved.json") or {}).get("recipe", {})
    sections = [
        ("Ratings on the test prompts", _ratings(found, "test")),
        ("Ratings on the development prompts", _ratings(found, "dev")),
        ("Rounds", _gains(found)),
        ("What was learned, and from whom", _stages(found)),
        ("Losses against chance", _noise(found)),
        ("Topics", _categories(found)),
        ("Prompts that gave nothing", _dropped(found)),
        ("Length of answers", _lengths(found)),
        ("Spend", _spend(found)),
    ]
    body = "".join(
        f"<section><h2>{escape(title)}</h2>{text}</section>" for title, text in sections if text
    )
    flywheel = recipe.get("flywheel", {})
    facts = [
        ("rounds", f"{flywheel.get('rounds', '?')}"),
        ("strategies", ", ".join(flywheel.get("strategies", []))),
        ("best", found["best"]),
        ("seed", f"{recipe.get('seed', '?')}"),
    ]
    warnings = [f"ended early: {found['stopped']}"] if found["stopped"] else []
    path = Path(run_dir) / "report.html"
    name = Path(run_dir).resolve().name
    warnings += growing(found)
    html = page(name, "flywheel", facts, body, tiles=_tiles(found), warnings=warnings)
    write_atomically(path, html)
    return path


GROWN = 1.25
"""How many times as long as those of the start answers are before a warning says so."""


def growing(found: Record) -> list[str]:
    """Say where answers became longer from model to model: a judge that loves length teaches it."""
    ours = [(name, one["mean_length"]) for name, one in found["models"].items() if one["is_ours"]]
    if len(ours) < 2 or not ours[0][1]:
        return []
    (first, start), (last, length) = ours[0], max(ours[1:], key=lambda one: one[1])
    if length < GROWN * start:
        return []
    return [
        f"answers of {last} are {length / start:.2f} times as long as those of {first} "
        f"({length:,.0f} against {start:,.0f} characters): see `aligner arena diagnose` and "
        "`aligner arena rate --control length` on games.jsonl"
    ]


def _tiles(found: Record) -> list[dict[str, str]]:
    models = found["models"]
    start = next(one for one in models.values() if one["is_ours"])
    best = models[found["best"]]
    rows = sum(stage["selection"]["rows"] for stage in found["stages"])
    shown = {
        "rating of the best, test prompts": f"{best['test']['rating']:,.0f}",
        "of the start": f"{start['test']['rating']:,.0f}",
        "rows selected": f"{rows:,}",
    }
    return [{"label": name, "value": text, "note": ""} for name, text in shown.items()]


def _ratings(found: Record, part: str) -> str:
    rows = []
    for name, model in found["models"].items():
        one = model[part]
        has_interval = one["low"] is not None or one["high"] is not None
        rows.append({"model": name, **one, "has_interval": has_interval})
    rows.sort(key=lambda row: -row["rating"])
    best = f"The best by the development prompts: {found['best']}."
    said = (
        "These only report." if part == "test" else "These choose, and so flatter what is chosen."
    )
    return f'<figure class="chart">{forest(rows, None)}</figure>{remark(f"{best} {said}")}'


def _gains(found: Record) -> Markup | str:
    lines = []
    for one in found["gains"]:
        low, high = one.get("low"), one.get("high")
        ends = "" if low is None or high is None else f"{low:+.0f} to {high:+.0f}"
        gain = in_cell(one["value"], "{:+.0f}")
        lines.append((f"{one['round']}", one["before"], one["best"], gain, ends))
    if not lines:
        return ""
    return table(("round", "best before", "best of the round", "rating gained", "95%"), lines)


def _stages(found: Record) -> Markup | str:
    selections = [stage["selection"] for stage in found["stages"]]
    is_rated = any(one["difficulty"]["prompts"] is not None for one in selections)
    lines: list[Sequence[str | Markup]] = []
    for stage, chosen in zip(found["stages"], selections):
        difficulty = [chosen["difficulty"][name] for name in ("prompts", "rows")]
        scores = [chosen["scores"][name] for name in ("winners", "losers")]
        lines.append(
            (
                f"{stage['strategy']}-{stage['round']}",
                stage["target"],
                ", ".join(stage["opponents"]),
                f"{chosen['k']:g}",
                f"{chosen['prompts']:,}",
                f"{chosen['rows']:,}",
                _shares(chosen["winners"]),
                *(in_cell(value, "{:.2f}") for value in (difficulty if is_rated else [])),
                *(in_cell(value, "{:.2f}") for value in scores),
                _rows_link(stage),
            )
        )
    head = ["trains", "target", "against", "K", "prompts", "rows", "chosen answers by"]
    head += ["difficulty of prompts", "of rows"] if is_rated else []
    if not lines:
        return ""
    shown = table([*head, "score of winners", "of losers", "rows in"], lines)
    counts: Counter[str] = Counter()
    for chosen in selections:
        counts.update(chosen.get("licenses", {}))
    said = ", ".join(f"{name or 'not said'} {count:,}" for name, count in counts.most_common())
    return joined([shown, remark(f"Licences of the chosen answers: {said}.") if said else ""])


def _rows_link(stage: Record) -> Markup:
    """A link to the rows that a stage chose, beside which lie those that it dropped."""
    place = f"rounds/{stage['round']:02d}/{stage['strategy']}/select"
    return Markup('<a href="{0}/train.jsonl">{0}</a>').format(place)


def _shares(counts: Record) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _noise(found: Record) -> Markup | str:
    lines = []
    for stage in found["stages"]:
        noise = stage["noise"]
        if noise is not None:
            rates = [in_cell(noise[key], "{:.1%}") for key in ("loss_rate", "false_loss_rate")]
            lines.append((f"{stage['strategy']}-{stage['round']}", *rates, f"{noise['prompts']:,}"))
    if not lines:
        return ""
    shown = table(("trains", "lost to others", "lost to itself", "prompts against itself"), lines)
    text = "Losses by K or more. What the target loses to a second sample of itself is chance."
    return joined([shown, remark(text)])


def _categories(found: Record) -> Markup | str:
    names: dict[str, None] = {}
    for stage in found["stages"]:
        names |= dict.fromkeys(stage["selection"]["categories"])
    if not names:
        return ""
    head = ("topic", *(f"{stage['strategy']}-{stage['round']}" for stage in found["stages"]))
    lines = []
    for name in names:
        cells = []
        for stage in found["stages"]:
            one = stage["selection"]["categories"].get(name)
            cells.append("" if one is None else f"{one['rows']:,} of {one['prompts']:,}")
        lines.append((name, *cells))
    return table(head, lines)


def _dropped(found: Record) -> Markup | str:
    reasons: dict[str, None] = {}
    for stage in found["stages"]:
        reasons |= dict.fromkeys(stage["selection"]["dropped"])
    head = ("why", *(f"{stage['strategy']}-{stage['round']}" for stage in found["stages"]))
    lines: list[Sequence[str]] = []
    for reason in reasons:
        counts = (stage["selection"]["dropped"].get(reason) for stage in found["stages"])
        lines.append((reason, *(in_cell(count, "{:,}") for count in counts)))
    lost = ", ".join(f"{count:,} {why}" for why, count in found["lost_prompts"].items() if count)
    before = remark(f"Left out of the pool before any battle: {lost}.") if lost else ""
    return joined([table(head, lines) if lines else "", before])


def _lengths(found: Record) -> str:
    known = found["models"].items()
    bars = [(name, one["mean_length"]) for name, one in known if one["mean_length"] is not None]
    return bar_chart("Characters of an answer to the test set", bars, last_stands_out=False)


def _spend(found: Record) -> Markup | str:
    lines = [_account(name, totals(usage)) for name, usage in found["spend"].items()]
    shown = [line for line in lines if set(line[1:]) - {"0", ""}]
    head = ("who", "calls", "from the cache", "tokens in", "tokens out", "US dollars")
    return table(head, shown) if shown else ""


def _account(name: str, total: Record) -> tuple[str, ...]:
    keys: Iterable[str] = ("calls", "cached", "prompt_tokens", "completion_tokens")
    return (name, *(f"{total[key]:,}" for key in keys), in_cell(total["usd"], "{:,.2f}"))
