"""What a command reports when it is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from aligner.events import Notice, OnEvent, tell
from aligner.runs.run import Run


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command reports: where the run is, what came out, and the picture of it."""

    run_dir: Path
    results: dict[str, float] = field(default_factory=dict)
    report: Path | None = None


def already_done(run: Run, on_event: OnEvent | None) -> Outcome:
    """Say that there is nothing left to do, and return what the run gave."""
    tell(
        on_event,
        Notice(f"{run.dir} is finished already; --overwrite starts it again from nothing"),
    )
    return Outcome(run.dir, run.read_json("manifest.json")["results"], run.dir / "report.html")
