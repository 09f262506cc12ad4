"""The report of `aligner online`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligner.reports.training import write_report


def write_online_report(run_dir: Path, manifest: dict[str, Any] | None = None) -> Path:
    """Write `report.html`."""
    return write_report(run_dir, manifest)
