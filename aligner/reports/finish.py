"""The end of a run: its pages, then the manifest, whose presence means that it is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aligner.runs.run import Run


def finish_run(run: Run, results: Mapping[str, Any], parents: list[dict[str, Any]]) -> None:
    """Write the model card, the report, and last of all the manifest."""
    from aligner.reports.model_card import write_model_card
    from aligner.reports.training import write_report

    run.finish(results, parents, write_card=write_model_card, write_report=write_report)
