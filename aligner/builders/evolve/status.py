"""How far a run of `aligner evolve` is, read from its stages; changes nothing. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligner.config.method import RunStatus
from aligner.runs.files import read_json
from aligner.runs.lock import is_held
from aligner.runs.recipes import recipe_of
from aligner.runs.stages import done_record

COLUMNS = ("stage", "state", "done", "seconds")
STAGES, USAGE, SUMMARY = "stages", "usage.json", "evolve.json"
PARTS = {"optimize": "steps", "rows": "rows"}
"""Stage -> its journal, whose lines are what is done of it."""


def status_of(run_dir: Path) -> RunStatus:
    """Say how far a run is, a row for each stage.

    Raises: UsageError where this is no such run.
    """
    recipe = recipe_of(run_dir, "evolve")
    data = read_json(run_dir, "data.json") or {}
    totals = {"rows": data.get("seeds"), "optimize": recipe["evolve"]["optimization"]["steps"]}
    rows, facts = [], {}
    for name in stages_of(recipe):
        folder = run_dir / STAGES / name
        record, parts = done_record(folder), _parts(folder, PARTS.get(name, ""))
        if name == "optimize":
            parts = max(0, parts - 1)  # the first line is what the first method was measured at
        facts[name] = {"done": record is not None, "parts": parts, "of": totals.get(name)}
        rows.append(_row(name, folder, record, parts, totals.get(name)))
    remark = how_far(run_dir, facts)
    spent = _spent(read_json(run_dir, USAGE) or {})
    return RunStatus(COLUMNS, rows, remark, {"stages": facts, "spent": spent, "remark": remark})


def stages_of(recipe: Mapping[str, Any]) -> list[str]:
    """Return the stages of a run, in their order."""
    evolve = recipe["evolve"]
    optimizes = evolve["mode"] == "auto" and evolve["method"] is None
    first = ["optimize"] if optimizes else ["skills"] if evolve["mode"] == "skillmix" else []
    return [*first, "rows", "checks"]


def how_far(run_dir: Path, facts: Mapping[str, Any]) -> str:
    """Return a line on what a run does next, or how it ended, and what it cost so far."""
    spent = _spent(read_json(run_dir, USAGE) or {})
    money = "" if spent["usd"] is None else f", ${spent['usd']:,.2f}"
    cost = f"{spent['calls']:,} requests, {spent['tokens']:,} tokens{money}"
    if (run_dir / "manifest.json").exists():
        summary = read_json(run_dir, SUMMARY) or {}
        lost = sum(summary.get("dropped", {}).values())
        return f"done: {summary.get('rows', 0):,} rows kept, {lost:,} dropped; {cost}"
    state = "running" if is_held(run_dir) else "stopped; the same command with --resume continues"
    unfinished = [name for name, known in facts.items() if not known["done"]]
    ahead = f"next: {unfinished[0]}" if unfinished else "next: the end"
    return f"{state}; {ahead}; {cost}"


def _row(
    name: str, folder: Path, record: Mapping[str, Any] | None, parts: int, total: int | None
) -> tuple[str, ...]:
    if record is not None:
        return name, "done", f"{total:,}" if name == "rows" and total else "", _seconds(record)
    state = "started" if folder.is_dir() else "-"
    of = f" of {total:,}" if total else ""
    return name, state, f"{parts:,}{of}" if folder.is_dir() and name in PARTS else "", ""


def _seconds(record: Mapping[str, Any]) -> str:
    return f"{record['seconds']:,.0f}"


def _parts(folder: Path, journal: str) -> int:
    path = folder / f"{journal}.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _spent(usage: Mapping[str, Any]) -> dict[str, Any]:
    money = [used["usd"] for used in usage.values() if used.get("usd") is not None]
    return {
        "calls": sum(used["calls"] for used in usage.values()),
        "tokens": sum(used["prompt_tokens"] + used["completion_tokens"] for used in usage.values()),
        "usd": sum(money) if money else None,
    }
