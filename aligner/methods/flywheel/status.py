"""How far a flywheel is: a row for each training of its rounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligner.config.method import RunStatus
from aligner.runs.files import read_json, read_metrics
from aligner.runs.lock import is_held
from aligner.runs.recipes import recipe_of
from aligner.runs.stages import done_record

COLUMNS = ("model", "stages", "rows", "rating, test prompts", "95%", "seconds")
RESULT = "flywheel.json"

Record = Mapping[str, Any]


def status_of(run_dir: Path) -> RunStatus:
    """Say how far a run is.

    Raises: UsageError where this is no such run.
    """
    recipe = recipe_of(run_dir, "flywheel")
    found = read_json(run_dir, RESULT) or {"models": {}, "stopped": "", "best": ""}
    rows, facts = [], []
    following = ""
    for name, place, stages in places(recipe):
        records = {stage: done_record(run_dir / place / stage) for stage in stages}
        if not any((run_dir / place / stage).is_dir() for stage in stages):
            following = following or f"{stages[0]} of {name}"
            break
        missing = next((stage for stage, record in records.items() if record is None), "")
        if missing and not following:
            following = f"{missing} of {name}{_within(run_dir / place / missing)}"
        rows.append(_row(name, records, found))
        facts.append(
            {"model": name, "stages": [s for s, one in records.items() if one is not None]}
        )
    remark = _remark(run_dir, found, following)
    return RunStatus(COLUMNS, rows, remark, {"models": facts, "remark": remark})


def places(recipe: Record) -> list[tuple[str, str, list[str]]]:
    """Return each model's name, the folder of its stages, and these in their order."""
    flywheel = recipe["flywheel"]
    has_noise = bool(flywheel["temperature"] and flywheel["noise_prompts"])
    first = "sft-0" if flywheel["initial"] is not None else "start"
    before = ["train"] if flywheel["initial"] is not None else []
    found = [(first, "rounds/00", [*before, "eval/battle"])]
    for number in range(1, flywheel["rounds"] + 1):
        for strategy in flywheel["strategies"]:
            noise = ["noise"] if has_noise else []
            reward = ["reward"] if strategy == "rl" else []
            stages = ["battle", "select", *noise, *reward, "train", "eval/battle"]
            found.append((f"{strategy}-{number}", f"rounds/{number:02d}/{strategy}", stages))
    return found


def _row(name: str, records: Mapping[str, Record | None], found: Record) -> tuple[str, ...]:
    done = [stage.split("/")[0] for stage, record in records.items() if record is not None]
    seconds = sum(record["seconds"] for record in records.values() if record is not None)
    chosen = records.get("select")
    rows = "" if chosen is None else f"{chosen['facts']['rows']:,}"
    test = found["models"].get(name, {}).get("test")
    rating = "" if test is None else f"{test['rating']:,.0f}"
    ends = "" if test is None else f"{_end(test['low'])} to {_end(test['high'])}"
    return (name, " ".join(done) or "-", rows, rating, ends, f"{seconds:,.0f}")


def _end(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"


def _within(folder: Path) -> str:
    if not (folder / "run").is_dir():
        return ""
    steps = [int(line["step"]) for line in read_metrics(folder / "run")]
    return f", at step {max(steps)}" if steps else ""


def _remark(run_dir: Path, found: Record, following: str) -> str:
    if (run_dir / "manifest.json").exists():
        early = f"; ended early: {found['stopped']}" if found["stopped"] else ""
        return f"done; the best model is {found['best']}, by the development prompts{early}"
    state = "running" if is_held(run_dir) else "stopped; the same command with --resume continues"
    return f"{state}; next: {following or 'the end, where the best model becomes final/'}"
