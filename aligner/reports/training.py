"""The report of a run: one HTML file that can be mailed, opened offline, read on a phone and
printed.

Made from the run directory alone, at any time: what is missing (a run killed early, no held-out
rows) is said, not hidden. Everything that comes from outside is escaped; a content security policy
forbids every request and every script but the one that moves the cursor over the curves. It judges
nothing: numbers are not coloured good or bad.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from aligner.config.method import Chart
from aligner.methods.catalogue import training_of
from aligner.reports.charts import SMOOTH_FROM, Series, bar_chart, line_chart, number
from aligner.reports.page import (
    duration,
    environment_part,
    files_part,
    held_out_part,
    ledger_part,
    lineage_part,
    moment,
    resolved_part,
    sample_part,
    value_text,
)
from aligner.reports.rollouts import rollout_rows
from aligner.runs.files import read_json, read_metrics, write_atomically
from aligner.runs.lock import LOCK_NAME

Record = dict[str, Any]
Metrics = list[Record]
Rows = list[tuple[str, str]]

LOSS: Chart = ("Loss", [("train", "loss", "train"), ("eval", "loss", "held out")])
ARENA: Chart = (
    "Win rate against the start",
    [
        ("eval", "arena_win_rate", "win rate"),
        ("eval", "arena_win_rate_low", "lower end of 95%"),
        ("eval", "arena_win_rate_high", "upper end of 95%"),
    ],
)
LEARNING_RATE: Chart = ("Learning rate", [("train", "learning_rate", "train")])
GRADIENT_NORM: Chart = ("Gradient norm", [("train", "grad_norm", "train")])
"""Charts of every training; a method adds its own between the first and the others."""

HEADLINES = (
    ("loss", "loss"),
    ("arena_win_rate", "win rate against the start"),
    ("rewards/accuracies", "reward accuracy"),
    ("rewards/margins", "reward margin"),
    ("accuracy", "accuracy"),
    ("margin", "margin"),
    ("mean_absolute_error", "mean absolute error"),
    ("mean_token_accuracy", "token accuracy"),
)
SHARES = ("rewards/accuracies", "accuracy", "mean_token_accuracy", "arena_win_rate")
EXACT = ("learning_rate", "num_tokens")
"""Curves without noise, which get no running mean."""
NOT_CURVES = frozenset(
    ["step", "epoch", "split", "time_s", "num_input_tokens_seen", "total_flos", "train_loss"]
)
NOT_CURVE_ENDINGS = ("runtime", "per_second")
MOST_BARS = 4
MAX_DIFF_CHARS = 60_000

SCRIPT = """
for (const figure of document.querySelectorAll("[data-chart]")) {
  const chart = JSON.parse(figure.dataset.chart);
  const svg = figure.querySelector("svg"), rule = figure.querySelector(".rule");
  const outputs = figure.querySelectorAll("output"), at = figure.querySelector(".at");
  const last = [...outputs].map((output) => output.textContent);
  const [low, high, left, right] = chart.x;
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const step = low + ((event.clientX - box.left) * scale - left) / (right - left) * (high - low);
    const nearer = (a, b) => Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a;
    const near = chart.s.map((series) => series.p.reduce(nearer));
    const x = left + (near[0][0] - low) / (high - low) * (right - left);
    rule.setAttribute("x1", x); rule.setAttribute("x2", x); rule.style.visibility = "visible";
    near.forEach((point, index) => { outputs[index].textContent = point[1]; });
    at.textContent = chart.u + " " + near[0][0];
  });
  svg.addEventListener("pointerleave", () => {
    rule.style.visibility = "hidden"; at.textContent = "";
    last.forEach((text, index) => { outputs[index].textContent = text; });
  });
}
"""


@dataclass(frozen=True)
class OwnParts:
    """What a method shows in place of curves and sample answers: (anchor, title, HTML in which what
    comes from outside is escaped). `reached`: how far a run is that has not finished."""

    sections: Sequence[tuple[str, str, Markup]]
    tiles: Sequence[dict[str, str]]
    facts: Rows
    reached: str


def write_report(
    run_dir: Path, manifest: Record | None = None, own: OwnParts | None = None
) -> Path:
    """Write `report.html` into the run directory. `manifest` is given when it is about to be
    written."""
    folder = Path(run_dir)
    path = folder / "report.html"
    content = _content(folder, manifest or read_json(folder, "manifest.json"), own)
    write_atomically(path, _template("report.html.j2").render(content))
    return path


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("aligner.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


def page(
    title: str,
    kind: str,
    facts: Rows,
    body: str,
    *,
    tiles: Sequence[dict[str, str]] = (),
    warnings: Sequence[str] = (),
) -> str:
    """Return a page in the style of the reports. `body` is HTML, in which the caller has escaped
    what comes from outside."""
    return _template("page.html.j2").render(
        title=title,
        kind=kind,
        facts=facts,
        body=Markup(body),
        tiles=tiles,
        warnings=warnings,
        **_script(),
    )


def _script() -> Record:
    """The script of the charts, and the hash by which the page's policy lets it run."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return {"script": Markup(SCRIPT), "script_hash": digest}


def _content(folder: Path, manifest: Record | None, own: OwnParts | None) -> Record:
    """Everything the template shows."""
    metrics = read_metrics(folder) if own is None else []
    resolved = read_json(folder, "resolved.json") or {}
    recipe = resolved.get("recipe", {})
    environment = read_json(folder, "environment.json") or {}
    evaluation = read_json(folder, "evaluation.json")
    data = read_json(folder, "data.json")
    method = training_of(str(recipe.get("method")))
    charts, more = _charts(metrics, method.charts if method else ())
    samples = read_json(folder, "samples.json") or []
    decided = read_json(folder, "decided.json") or {}
    content = {
        "name": folder.resolve().name,
        "run_dir": str(folder),
        "method": recipe.get("method") or "unknown",
        "shows_answers": own is None and (method is None or not method.makes_scorer),
        "own": [] if own is None else own.sections,
        "manifest": manifest,
        "version": environment.get("versions", {}).get("aligner", ""),
        "facts": [
            *_facts(recipe, environment, manifest, metrics, read_json(folder, "weights.json")),
            *(own.facts if own is not None else []),
        ],
        "warnings": _warnings(folder, manifest, _reached(metrics, own), environment),
        "tiles": _tiles(metrics, evaluation, data) if own is None else own.tiles,
        "evaluation": _evaluation(evaluation),
        "charts": charts,
        "more_charts": more,
        "curve_note": _curve_note(metrics, recipe, decided),
        "shown_rows": "Held-out rows" if recipe.get("data", {}).get("eval") else "Training rows",
        "samples": [sample_part(sample) for sample in samples],
        "no_samples": _no_samples(recipe, manifest, decided),
        "pairs": read_json(folder, "pairs.json") or [],
        "rollouts": rollout_rows(read_json(folder, "rollouts.json") or []),
        "scored": read_json(folder, "scored.json") or [],
        "ledger": ledger_part(data),
        "recipe_text": _text(folder / "recipe.yaml"),
        "resolved": resolved_part(resolved, environment.get("arguments", {})),
        "lineage": lineage_part(folder, manifest),
        "environment": environment_part(environment),
        "diff": _text(folder / "code.diff")[:MAX_DIFF_CHARS],
        "results": [
            (key, value_text(value)) for key, value in (manifest or {}).get("results", {}).items()
        ],
        "files": files_part(folder, manifest),
        **_script(),
    }
    return {**content, "sections": _sections(content)}


def _sections(content: Record) -> Rows:
    titles = [
        ("evaluation", "Evaluation"),
        ("curves", "Curves"),
        ("samples", "Before and after"),
        ("scored", "Scores"),
        ("pairs", "Rewritten answers"),
        ("rollouts", "Sampled responses"),
        ("data", "Data"),
        ("recipe", "Recipe"),
        ("lineage", "Lineage"),
        ("environment", "Environment"),
        ("files", "Results and files"),
    ]
    optional = ("evaluation", "pairs", "rollouts", "scored")
    own = [(anchor, title) for anchor, title, _ in content["own"]]
    hidden = () if content["shows_answers"] else ("samples",)
    hidden = (*hidden, "curves") if own else hidden
    return own + [
        (anchor, title)
        for anchor, title in titles
        if anchor not in hidden and (anchor not in optional or content[anchor])
    ]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _facts(
    recipe: Record, environment: Record, manifest: Record | None, metrics: Metrics, weights: Any
) -> Rows:
    """The line below the title."""
    facts: Rows = []
    model = recipe.get("model", {})
    if model:
        facts.append(("from", str(model.get("name_or_path"))))
        kind = "LoRA" if model.get("lora") else "full fine-tuning"
        quantized = model.get("quantization", "none")
        facts.append(("training", kind if quantized == "none" else f"{kind} on {quantized}"))
    if weights:
        facts.append(("weights trained", f"{weights['trained']:,} of {weights['total']:,}"))
    sessions = environment.get("sessions", [])
    if sessions:
        facts.append(("started", moment(sessions[0]["started"])))
    if manifest and manifest.get("seconds") is not None:
        facts.append(("took", duration(manifest["seconds"])))
    if len(sessions) > 1:
        facts.append(("resumed", "once" if len(sessions) == 2 else f"{len(sessions) - 1} times"))
    if metrics:
        facts.append(("steps", f"{max(record.get('step', 0) for record in metrics):,}"))
    return facts


def _reached(metrics: Metrics, own: OwnParts | None) -> str:
    """Where a run is that has not finished."""
    if own is not None:
        return own.reached
    step = max((record.get("step", 0) for record in metrics), default=None)
    return "before a step was logged" if step is None else f"at or after step {step:,}"


def _warnings(
    folder: Path, manifest: Record | None, reached: str, environment: Record
) -> list[str]:
    found = []
    if manifest is None:
        held = "still works on it, or was killed" if (folder / LOCK_NAME).exists() else "stopped"
        found.append(
            f"This run has not finished: its process {held} {reached}. Continue it with `--resume`."
        )
    found += [text[0].upper() + text[1:] for text in read_json(folder, "warnings.json") or []]
    for session in environment.get("sessions", []):
        for name, version in session.get("versions", {}).items():
            found.append(
                f"Resumed with {name} {version}; it began with {environment['versions'].get(name)}."
            )
    return found


def _series(metrics: Metrics, split: str, key: str) -> list[tuple[float, float]]:
    """(step, value) of a metric; of several values at one step the last, as after a resume."""
    points = {
        record["step"]: float(record[key])
        for record in metrics
        if record.get("split") == split
        and isinstance(record.get(key), int | float)
        and "step" in record
    }
    return sorted(points.items())


def _charts(metrics: Metrics, own: Sequence[Chart]) -> tuple[list[Markup], list[Markup]]:
    """The charts everybody looks for, and those of every other number that was logged. One none of
    whose keys were logged is left out."""
    charts: list[str] = []
    known: set[str] = set()
    for title, lines in (LOSS, ARENA, *own, LEARNING_RATE, GRADIENT_NORM):
        series = [
            _drawn(metrics, split, key, name, tone)
            for tone, (split, key, name) in enumerate(lines, 1)
        ]
        known.update(key for _, key, _ in lines)
        bounds = (0.0, 1.0) if lines[0][1] in SHARES else None
        charts.append(line_chart(title, series, bounds=bounds))
    others = sorted({key for record in metrics for key in record} - known - NOT_CURVES)
    more = []
    for key in others:
        if not key.endswith(NOT_CURVE_ENDINGS):
            trained = _drawn(metrics, "train", key, "train", 1)
            more.append(line_chart(key, [trained, _drawn(metrics, "eval", key, "held out", 2)]))
    return [Markup(chart) for chart in charts if chart], [Markup(chart) for chart in more if chart]


def _drawn(metrics: Metrics, split: str, key: str, name: str, tone: int) -> Series:
    return Series(
        name, _series(metrics, split, key), tone, dots=split == "eval", smooth=key not in EXACT
    )


def _curve_note(metrics: Metrics, recipe: Record, decided: Record) -> str:
    if any(record.get("split") == "eval" for record in metrics):
        long = len(_series(metrics, "train", "loss")) >= SMOOTH_FROM
        lines = "Faint lines are single log lines, strong ones their running mean." if long else ""
        return f"{held_out_part(decided)} {lines}".strip()
    reason = (
        "the recipe gives no data.eval"
        if not recipe.get("data", {}).get("eval")
        else "no evaluation was reached"
    )
    return f"No held-out curve: {reason}."


def _cadence(decided: Record) -> Record:
    """How often the training was evaluated, as was decided at its start."""
    return decided.get("cadence") or {}


def _tiles(metrics: Metrics, evaluation: Any, data: Any) -> list[dict[str, str]]:
    """The few numbers a colleague asks for first: what was measured, how training went, how much it
    saw."""
    tiles = []
    if evaluation:
        tiles += _evaluation_tile(evaluation)
    split = "eval" if _series(metrics, "eval", "loss") else "train"
    where = "held out" if split == "eval" else "training"
    for key, label in HEADLINES:
        points = _series(metrics, split, key)
        if points:
            tiles.append(_change_tile(label, where, points, as_share=key in SHARES))
    train = (data or {}).get("splits", {}).get("train", {})
    if train.get("rows"):
        note = f"{train['trained_tokens']:,} tokens trained" if train.get("trained_tokens") else ""
        tiles.append({"label": "training rows", "value": f"{train['rows']:,}", "note": note})
    return tiles[:5]


def _evaluation_tile(evaluation: Metrics) -> list[dict[str, str]]:
    """The first metric that was measured: its last value, and the way to it."""
    for metric in _metric_names(evaluation):
        bars = [(name, number(value)) for name, value in _bars(evaluation, metric)]
        if bars:
            way = " → ".join(f"{name} {value}" for name, value in bars[:-1])
            return [{"label": metric.replace("_", " "), "value": bars[-1][1], "note": way}]
    return []


def _change_tile(
    label: str, where: str, points: list[tuple[float, float]], *, as_share: bool
) -> dict[str, str]:
    def shown(value: float) -> str:
        return f"{value:.1%}" if as_share and math.isfinite(value) else number(value)

    note = f"{where}, from {shown(points[0][1])}" if len(points) > 1 else where
    return {"label": label, "value": shown(points[-1][1]), "note": note}


def _metric_names(evaluation: list[Record]) -> list[str]:
    return list(dict.fromkeys(metric for entry in evaluation for metric in entry["metrics"]))


def _bars(evaluation: Metrics, metric: str) -> list[tuple[str, float]]:
    values = [(entry["name"], _as_float(entry["metrics"].get(metric))) for entry in evaluation]
    return [(name, value) for name, value in values if value is not None]


def _as_float(value: Any) -> float | None:
    """The number that was written, also NaN and infinities; None for anything else."""
    if isinstance(value, bool) or not (
        isinstance(value, int | float) or value in ("NaN", "Infinity", "-Infinity")
    ):
        return None
    return float(value)


def _evaluation(evaluation: Any) -> Record | None:
    """Bars for the first metrics; a table when there are more, or values that are not numbers."""
    if not evaluation:
        return None
    metrics = _metric_names(evaluation)
    bars = {metric: _bars(evaluation, metric) for metric in metrics}
    rows = []
    for entry in evaluation:
        cells = [value_text(entry["metrics"].get(metric, "")) for metric in metrics]
        rows.append({"name": entry["name"], "cells": cells})
    told = len(metrics) <= MOST_BARS and all(
        len(values) == len(evaluation) for values in bars.values()
    )
    charts = [
        Markup(bar_chart(metric.replace("_", " "), bars[metric])) for metric in metrics[:MOST_BARS]
    ]
    return {"metrics": metrics, "rows": [] if told else rows, "bars": charts}


def _no_samples(recipe: Record, manifest: Record | None, decided: Record) -> str:
    if recipe.get("report", {}).get("num_prompts") == 0:
        return "None: report.num_prompts is 0."
    cadence = _cadence(decided)
    if cadence.get("prompts") == 0 and cadence.get("answer_share") is not None:
        return "None: they would have taken too long. report.num_prompts asks for them."
    return "None were recorded." if manifest else "None yet: they are written when training ends."
