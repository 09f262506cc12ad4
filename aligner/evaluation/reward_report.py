"""The evaluation of reward models as one HTML file: accuracy with its intervals, length,
calibration, scores by length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from aligner.evaluation.groups import length_differences
from aligner.evaluation.length_bias import centred
from aligner.evaluation.pair_scores import DifferentAnswers, Judged, Pair
from aligner.evaluation.segment_accuracy import spans
from aligner.reports.charts import Series, bar_chart, number, point_chart
from aligner.reports.training import page
from aligner.runs.files import write_atomically

MOST_CATEGORIES = 40
MOST_POINTS = 2000

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """One reward model: its numbers from `measure`, and what they were computed from."""

    name: str
    numbers: Record
    judged: Judged


def write_picture(
    shown: Sequence[Shown],
    pairs: Sequence[Pair],
    answers: DifferentAnswers,
    record: Record,
    path: Path,
) -> None:
    """Write the picture; `record` is what `--json` prints. Raises: OSError when the place cannot be
    written."""
    numbers = shown[0].numbers
    facts = [
        ("pairs", f"{numbers['pairs']:,}"),
        ("prompts", f"{numbers['prompts']:,}"),
        ("data", str(record["data"])),
    ]
    resamples = record["bootstrap"]["resamples"]
    body = "".join(_section(one, pairs, answers, record) for one in shown)
    if record["agreement"] is not None:
        body += _agreement(shown, record["agreement"])
    drawn = f"95% of {resamples:,} resamplings of the prompts" if resamples else "not computed"
    body += (
        f'<p class="soft small">Dark marks on bars are intervals: {drawn}. A tie counts as half a '
        "win. "
        "Lengths are in characters.</p>"
    )
    tiles = []
    for one in shown:
        figure = one.numbers["accuracy"]
        note = "" if figure["low"] is None else f"{figure['low']:.1%} to {figure['high']:.1%}"
        value = f"{figure['value']:.1%}"
        tiles.append({"label": f"accuracy, {one.name}", "value": value, "note": note})
    write_atomically(path, page("Reward models on pairs", "evaluation", facts, body, tiles=tiles))


def _section(one: Shown, pairs: Sequence[Pair], answers: DifferentAnswers, record: Record) -> str:
    figures = [
        _overall(one.numbers),
        _calibration(one.numbers),
        _lengths(one.numbers),
        _segments(one.numbers),
        _cloud(one, pairs, answers),
    ]
    notes, remarks = [*one.numbers["left_out"]], one.numbers["remarks"]
    if remarks["count"]:
        first = "; ".join(f"{remark['row']}: {remark['said']}" for remark in remarks["first"])
        notes.append(f"{remarks['count']:,} remarks of the scorer. The first: {first}")
    warnings = "".join(f'<p class="warning small">{escape(text)}</p>' for text in notes)
    grid = "".join(f"<div>{figure}</div>" for figure in figures if figure)
    categories = _categories(one.numbers, record["category_column"])
    return (
        f"<section><h2>{escape(one.name)}</h2><div "
        f'class="grid">{grid}</div>{categories}{warnings}</section>'
    )


def _bars(title: str, rows: Sequence[tuple[str, Record]]) -> str:
    """Shares with their intervals; those that are not defined are left out."""
    known = [(name, figure) for name, figure in rows if figure["value"] is not None]
    spans = [
        None if figure["low"] is None else (figure["low"], figure["high"]) for _, figure in known
    ]
    return bar_chart(
        title,
        [(name, figure["value"]) for name, figure in known],
        last_stands_out=False,
        spans=spans,
    )


def _overall(numbers: Record) -> str:
    rows = [("all pairs", numbers["accuracy"])]
    if numbers["ties"]:
        rows.append(("without ties", numbers["accuracy_without_ties"]))
    bench = numbers["rewardbench"]
    if bench is not None:
        rows += [("RewardBench", bench["overall"]), *bench["sections"].items()]
    flips = numbers["order_flips"]
    facts = [f"{numbers['ties']:,} ties"]
    if flips is not None:
        facts.append(
            f"another answer after a change of order: {flips['pairs']:,} pairs "
            f"({flips['share']:.1%})"
        )
    return _bars("Accuracy", rows) + _note(", ".join(facts))


def _lengths(numbers: Record) -> str:
    length = numbers["length"]
    rows = [
        (f"chosen {row['name']} ({row['pairs']:,})", row["accuracy"]) for row in length["chosen_is"]
    ]
    for row in length["buckets"]:
        ends = (row["from"], row["to"])
        low, high = (f"{end:+,}".replace("-", "−") if end else "0" for end in ends)
        name = low if low == high else f"{low} to {high}"
        rows.append((f"{name} ({row['pairs']:,})", row["accuracy"]))
    return _bars("Accuracy by length", rows) + _note(
        "Ranges: characters of the chosen answer less the rejected one's."
    )


def _segments(numbers: Record) -> str:
    """Of a segment reward model; nothing of others."""
    if numbers["segments"] is None:
        return ""
    rows = [
        (name if pairs is None else f"{name} ({pairs:,})", figure)
        for name, figure, pairs in spans(numbers["segments"])
    ]
    return _bars("Accuracy by segments", rows) + _note(
        "Pairs by the mean number of their segments; then all pairs, ranked by the values in one "
        "third of the answers alone."
    )


def _calibration(numbers: Record) -> str:
    curve = [(row["confidence"], row["accuracy"]) for row in numbers["calibration"]["curve"]]
    chart = point_chart(
        "Calibration",
        [Series("accuracy", curve)],
        x_bounds=(0.5, 1.0),
        bounds=(0.0, 1.0),
        joined=True,
        diagonal=True,
    )
    held = ", ".join(f"{row['pairs']:,}" for row in numbers["calibration"]["curve"])
    error = number(numbers["calibration"]["ece"]["value"])
    return chart + _note(
        f"Across: how sure it is; up: how often right. ECE {error}. Pairs of each point: {held}."
    )


def _cloud(one: Shown, pairs: Sequence[Pair], answers: DifferentAnswers) -> str:
    """Scores against lengths, each less the mean of its prompt; of a comparer, its choices against
    the difference."""
    if one.judged.scores is None:
        across, up = length_differences(pairs).astype(np.float64), one.judged.probabilities
        title, note = (
            "Choice by length",
            "Across: characters of the chosen answer less the rejected one's; up: P(chosen).",
        )
    else:
        lengths = np.array([len(text) for text in answers.texts], dtype=np.float64)
        across, up = centred(lengths, answers.groups), centred(one.judged.scores, answers.groups)
        found = one.numbers["length"]["correlation"]["centred"]
        shown = (
            "not defined"
            if found["pearson"] is None
            else f"{found['pearson']:.2f}".replace("-", "−")
        )
        title = "Score by length"
        note = (
            "Across: characters, up: score, both less the mean of the prompt. Pearson's "
            f"correlation {shown}."
        )
    some = np.arange(len(across))
    if len(some) > MOST_POINTS:
        some = np.random.default_rng(0).choice(len(across), MOST_POINTS, replace=False)
        note += f" Drawn are {MOST_POINTS:,} of {len(across):,}, chosen at random."
    points = list(zip(across[some].tolist(), up[some].tolist()))
    return point_chart(
        title, [Series("answers" if one.judged.scores is not None else "pairs", points)]
    ) + _note(note)


def _categories(numbers: Record, column: str | None) -> str:
    rows = numbers["categories"]
    if not rows:
        return ""
    chart = _bars(
        f"Accuracy by {column}",
        [(f"{row['name']} ({row['pairs']:,})", row["accuracy"]) for row in rows[:MOST_CATEGORIES]],
    )
    more = len(rows) - MOST_CATEGORIES
    return chart + (
        _note(f"The {MOST_CATEGORIES} largest; {more:,} more are in the JSON.") if more > 0 else ""
    )


def _agreement(shown: Sequence[Shown], numbers: Record) -> str:
    rows = [("same choice", numbers["same_choice"])]
    kappa = numbers["kappa"]["value"]
    difference = numbers["accuracy_difference"]
    ends = (
        ""
        if difference["low"] is None
        else f" ({number(difference['low'])} to {number(difference['high'])})"
    )
    facts = [
        f"Cohen's kappa {'not defined' if kappa is None else number(kappa)}",
        f"accuracy of the first less that of the second {number(difference['value'])}{ends}",
        f"both right {numbers['both_right']:,}, only {shown[0].name} "
        f"{numbers['only_first_right']:,}, "
        f"only {shown[1].name} {numbers['only_second_right']:,}, neither "
        f"{numbers['neither_right']:,}",
    ]
    bars, note = _bars("Share of pairs", rows), _note("; ".join(facts))
    return f"<section><h2>Agreement</h2>{bars}{note}</section>"


def _note(text: str) -> str:
    return f'<p class="soft small">{escape(text)}</p>' if text else ""
