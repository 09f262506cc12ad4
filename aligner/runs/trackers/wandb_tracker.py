"""Weights & Biases: a run in `wandb/` of the run directory, offline unless `WANDB_MODE` says
otherwise; `wandb sync RUN/wandb/offline-run-*` sends it.

Offline, a run that is opened again is written again from `metrics.jsonl` under the same id, and the
folders that were there before and are not synced are removed, so that one folder holds one curve.
A server keeps what it has: it takes no step below its last one, so steps that are trained again
after a kill keep the values that they had first.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aligner.runs.trackers.facts import Facts, points_of

OFFLINE = "offline"


class Writer:
    """Writes one run of Weights & Biases."""

    def __init__(self) -> None:
        self._run: Any = None

    def begin(
        self, facts: Facts, known: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Open the run under its id."""
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", OFFLINE)
        if self._run is not None:
            self._run.finish()
        if mode == OFFLINE:
            _remove_unsynced(facts.run_dir / "wandb")
        run_id = known.get("id") or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            project=facts.project,
            name=facts.name,
            group=facts.group,
            id=run_id,
            resume=None if mode == OFFLINE else "allow",
            dir=facts.run_dir,
            mode=mode,
            config={**facts.recipe, **facts.lineage},
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                quiet=True,
                silent=True,
                disable_code=True,
                disable_git=True,
                x_disable_stats=True,
            ),
        )
        for record in records:
            self.add(record)
        return {"project": facts.project, "id": run_id}

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one line of `metrics.jsonl`."""
        values = {name: value for name, _, value in points_of(record)}
        self._run.log(values, step=int(record["step"]))

    def finish(self, facts: Facts, results: Mapping[str, Any]) -> None:
        """Add the results to the summary, and the whole lineage to the configuration."""
        self._run.config.update(facts.lineage, allow_val_change=True)
        self._run.summary.update({f"results/{name}": value for name, value in results.items()})
        self._run.finish()

    def abandon(self) -> None:
        """Close the run as failed."""
        if self._run is not None:
            self._run.finish(exit_code=1)


def _remove_unsynced(folder: Path) -> None:
    """Remove the offline folders of a run that nobody has sent."""
    for one in folder.glob("offline-run-*"):
        if not any(one.glob("*.synced")):
            shutil.rmtree(one)
