"""How far a run of `aligner online` is, read from its stages; changes nothing. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aligner.config.method import RunStatus
from aligner.config.oracle import Oracle, queries_of
from aligner.generation.shards import RESPONSES
from aligner.methods.online.pairing import FUTURE, START, STRONGER, WEAKER
from aligner.methods.online.words import (
    DISAGREES,
    MEASURED,
    QUERIES,
    WINS,
    measured_cells,
    name_of_round,
    oracle_cells,
)
from aligner.runs.files import read_json, read_metrics
from aligner.runs.lock import is_held
from aligner.runs.recipes import recipe_of
from aligner.runs.stages import done_record

COLUMNS = ("round", "stages", "pairs")
"""The first columns; those of what a round measured follow."""

AHEAD = [f"{stage}-{FUTURE}" for stage in ("train", "sample", "score", "pair")]
"""Stages of `online.future`."""

ORACLE = ("query", "refresh")
"""Stages of `online.oracle`; the scores follow."""

Record = Mapping[str, Any]


def status_of(run_dir: Path) -> RunStatus:
    """Say how far a run is, a row for each round.

    Raises: UsageError where this is no such run.
    """
    recipe = recipe_of(run_dir, "online")
    rows, rounds = [], []
    for number in reached(run_dir, recipe):
        records = records_of(run_dir, recipe, number)
        rows.append(_row(recipe, number, records))
        facts = {
            name: None if record is None else record["facts"] for name, record in records.items()
        }
        rounds.append({"round": number, "stages": facts})
    remark = how_far(run_dir, recipe)
    asked = (QUERIES, DISAGREES) if recipe["online"].get("oracle") else ()
    columns = (*COLUMNS, *asked, *(column for column, _, _ in MEASURED), WINS, "seconds")
    return RunStatus(columns, rows, remark, {"rounds": rounds, "remark": remark})


def reached(run_dir: Path, recipe: Record) -> list[int]:
    """Return the rounds that were started, the start among them as 0."""
    found = [0]
    for number in range(1, int(recipe["online"]["rounds"]) + 1):
        if not any(
            (round_folder(run_dir, number) / name).is_dir() for name in stages_of(recipe, number)
        ):
            break
        found.append(number)
    return found


def how_far(run_dir: Path, recipe: Record) -> str:
    """Return a line on what a run does next, or how it ended."""
    summary, total = read_json(run_dir, "rounds.json"), int(recipe["online"]["rounds"])
    if summary is not None and (run_dir / "manifest.json").exists():
        said = f"; ended early: {summary['stopped']}" if summary["stopped"] else ""
        return f"done; the best round is {summary['best']}{said}"
    state = "running" if is_held(run_dir) else "stopped; the same command with --resume continues"
    for number in range(total + 1):
        for name, record in records_of(run_dir, recipe, number).items():
            if record is None:
                place = f"{name} of round {number} of {total}" if number else "eval of the start"
                return f"{state}; next: {place}{_within(round_folder(run_dir, number) / name)}"
    return f"{state}; next: the end, where the best round becomes final/"


def stages_of(recipe: Record, number: int) -> list[str]:
    """Return the stages of a round, in their order; 0 is the start, which is only measured."""
    if number == 0:
        return ["eval"]
    online = recipe["online"]
    sources = [""]
    if online["pairing"]["rule"] == "two_models":
        sources = [f"-{STRONGER}", f"-{WEAKER}"]
    elif online["pairing"]["rule"] == "anchored" and number > 1:
        sources = ["", f"-{START}"]
    stages = []
    is_scored = bool(online["reward_models"] or online.get("self_rewarding"))
    for source in sources:
        stages += [f"sample{source}", *([f"score{source}"] if is_scored else [])]
    if (asked := online.get("oracle")) and queries_of(Oracle(**asked), online["rounds"], number):
        stages += [*ORACLE, *(f"rescore{source}" for source in sources)]
    return [*stages, "pair", *(AHEAD if online["future"] else []), "train", "eval"]


def records_of(run_dir: Path, recipe: Record, number: int) -> dict[str, dict[str, Any] | None]:
    """Return what each stage of a round wrote of itself; None for one that is not finished."""
    folder = round_folder(run_dir, number)
    return {name: done_record(folder / name) for name in stages_of(recipe, number)}


def round_folder(run_dir: Path, number: int) -> Path:
    return run_dir / "rounds" / f"{number:02d}"


def _within(folder: Path) -> str:
    """How far an unfinished stage is, where its folder says so."""
    if (folder / "run").is_dir():
        steps = [int(line["step"]) for line in read_metrics(folder / "run")]
        return f", at step {max(steps)}" if steps else ""
    shards = _lines(sorted(folder.glob("scores-*.jsonl"))[-1:] or [folder / f"{RESPONSES}.jsonl"])
    if not shards:
        return ""
    return f", {shards} shards done" if shards > 1 else ", 1 shard done"


def _lines(files: Sequence[Path]) -> int:
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


def _row(
    recipe: Record, number: int, records: Mapping[str, dict[str, Any] | None]
) -> tuple[str, ...]:
    done = [name for name, record in records.items() if record is not None]
    seconds = sum(record["seconds"] for record in records.values() if record is not None)
    pair, measured = records.get("pair"), records.get("eval")
    cells = measured_cells((measured or {}).get("facts", {}))
    if recipe["online"].get("oracle"):
        query, refresh = ((records.get(name) or {}).get("facts", {}) for name in ORACLE)
        cells = {**oracle_cells(query, refresh), **cells}
    return (
        name_of_round(number),
        " ".join(done) or "-",
        f"{pair['facts']['pairs']:,}" if pair is not None else "",
        *cells.values(),
        f"{seconds:,.0f}",
    )
