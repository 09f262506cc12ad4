"""How far a run of `aligner online` is, read from its stages; changes nothing. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligner.errors import UsageError
from aligner.runs.files import read_json
from aligner.runs.stages import done_record

STAGES = ("sample", "score", "pair", "train", "eval")
COLUMNS = (
    *("round", "stages", "pairs", "reward", "gold", "KL", "tokens", "finished"),
    *("wins against the start", "seconds"),
)


def status_of(run_dir: Path) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """Return the columns and a row of texts for each round, and a line on what is next.

    Raises: UsageError where this is no such run.
    """
    resolved = read_json(run_dir, "resolved.json")
    if resolved is None or resolved["recipe"].get("method") != "online":
        raise UsageError(
            f"{run_dir} is not a run of `aligner online`", "give the output_dir of one"
        )
    total = int(resolved["recipe"]["online"]["rounds"])
    rows, next_stage = [], ""
    for number in range(total + 1):
        stages = ("eval",) if number == 0 else STAGES
        records = {name: done_record(_folder(run_dir, number, name)) for name in stages}
        if number and not any((_folder(run_dir, number, name)).is_dir() for name in stages):
            break
        left = [name for name in stages if records[name] is None and name != "score"]
        next_stage = next_stage or (f"round {number}, {left[0]}" if left else "")
        rows.append(_row(number, records))
    if (summary := read_json(run_dir, "rounds.json")) is not None and not next_stage:
        said = f"; ended early: {summary['stopped']}" if summary["stopped"] else ""
        return COLUMNS, rows, f"done; the best round is {summary['best']}{said}"
    return COLUMNS, rows, f"next: {next_stage or f'round {len(rows)}'} of {total} rounds"


def _folder(run_dir: Path, number: int, stage: str) -> Path:
    return run_dir / "rounds" / f"{number:02d}" / stage


def _row(number: int, records: Mapping[str, dict[str, Any] | None]) -> tuple[str, ...]:
    done = [name for name, record in records.items() if record is not None]
    seconds = sum(record["seconds"] for record in records.values() if record is not None)
    pair, measured = records.get("pair"), records.get("eval")
    facts = (measured or {}).get("facts", {})
    part = facts.get("validation") or {}
    wins = (facts.get("wins") or {}).get("start")
    return (
        "start" if number == 0 else str(number),
        " ".join(done) or "-",
        f"{pair['facts']['pairs']:,}" if pair is not None else "",
        *(_text(part.get(key), "{:.3f}") for key in ("reward", "gold", "kl")),
        _text(part.get("tokens"), "{:.1f}"),
        _text(part.get("finished"), "{:.0%}"),
        "" if wins is None else f"{wins['value']:.0%} ({wins['low']:.0%} to {wins['high']:.0%})",
        f"{seconds:,.0f}",
    )


def _text(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
