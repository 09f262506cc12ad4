"""What a command reports when it is done, or was done before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aligner.events import Finished, Notice, OnEvent, tell
from aligner.runs.run import Run


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a command reports: where the run is, what came out, and the picture of it."""

    run_dir: Path
    results: Mapping[str, float] = field(default_factory=dict)
    report: Path | None = None


def finished(run: Run, results: Mapping[str, float], on_event: OnEvent | None) -> RunResult:
    """Tell what a run gave whose manifest and report are written, and return it."""
    report = run.dir / "report.html"
    tell(on_event, Finished(results, {"run": str(run.dir), "report": str(report)}))
    return RunResult(run.dir, results, report)


def already_done(run: Run, on_event: OnEvent | None) -> RunResult:
    """Say that there is nothing left to do, and return what the run gave."""
    tell(
        on_event,
        Notice(f"{run.dir} is finished already; --overwrite starts it again from nothing"),
    )
    return RunResult(run.dir, run.read_json("manifest.json")["results"], run.dir / "report.html")
