"""The report of a run: one HTML file, made from the run directory alone."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from aligner.record import dumps, write_atomically


def write_report(run_dir: Path, manifest: dict[str, Any] | None = None) -> Path:
    path = Path(run_dir) / "report.html"
    write_atomically(path, f"<!doctype html><pre>{html.escape(dumps(manifest, indent=2))}</pre>\n")
    return path
