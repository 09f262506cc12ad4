"""MLflow: a run where `MLFLOW_TRACKING_URI` points, else in MLflow's own default, `mlflow.db` of
the working directory.

MLflow removes no point and keeps every value that a step is given. So a run that is opened again
gets the points that it lacks, and steps that are trained again after a kill keep the values that
they had first: on CPU they are the same ones, bit for bit.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aligner.runs.trackers.facts import Facts, Point, Value, points_of

AT_ONCE = {"metrics": 1000, "params": 100, "tags": 100}
"""How many of each MLflow takes in one call."""

LONGEST = {"params": 6000, "tags": 5000}
"""Characters of a value."""


class Writer:
    """Writes one run of MLflow."""

    def __init__(self) -> None:
        self._client: Any = None
        self._run_id = ""
        self._there: set[tuple[str, int]] = set()

    def begin(
        self, facts: Facts, known: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Open the run, or make it, and add what it lacks."""
        from mlflow import MlflowClient

        self._client = MlflowClient()
        experiment = self._experiment(facts.project)
        if not self._reopen(known.get("id")):
            tags = {"mlflow.runName": facts.name, "mlflow.source.name": "aligner"}
            if facts.group:
                tags["group"] = facts.group
            self._run_id = self._client.create_run(experiment, tags=tags).info.run_id
            self._there = set()
            self._send("params", facts.recipe)
        self._send("tags", facts.lineage)
        self._add(point for record in records for point in points_of(record))
        return {"experiment": facts.project, "id": self._run_id}

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _reopen(self, run_id: str | None) -> bool:
        """Open a run that was made before, if the store still has it."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return False
        try:
            run = self._client.get_run(run_id)
        except MlflowException:
            return False
        if run.info.lifecycle_stage == "deleted":
            return False
        self._run_id = run_id
        self._there = {
            (name, point.step)
            for name in run.data.metrics
            for point in self._client.get_metric_history(run_id, name)
        }
        self._client.update_run(run_id, "RUNNING")
        return True

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one line of `metrics.jsonl`."""
        self._add(points_of(record))

    def finish(self, facts: Facts, results: Mapping[str, Any]) -> None:
        """Add the results, one point each, and the whole lineage."""
        named = [(f"results/{name}", 0, float(value)) for name, value in results.items()]
        self._add(named)
        self._send("tags", facts.lineage)
        self._client.set_terminated(self._run_id, "FINISHED")

    def abandon(self) -> None:
        """Close the run as failed."""
        if self._run_id:
            self._client.set_terminated(self._run_id, "FAILED")

    def _add(self, points: Iterable[Point]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = ((_key(name), step, value) for name, step, value in points)
        new = [point for point in named if point[:2] not in self._there]
        self._there.update(point[:2] for point in new)
        metrics = [Metric(name, value, now, step) for name, step, value in new]
        for start in range(0, len(metrics), AT_ONCE["metrics"]):
            self._client.log_batch(
                self._run_id, metrics=metrics[start : start + AT_ONCE["metrics"]]
            )

    def _send(self, kind: str, values: Mapping[str, Value]) -> None:
        """Send hyper-parameters or tags, shortened to what MLflow takes."""
        from mlflow.entities import Param, RunTag

        make: Any = Param if kind == "params" else RunTag
        made = [make(_key(key), str(value)[: LONGEST[kind]]) for key, value in values.items()]
        for start in range(0, len(made), AT_ONCE[kind]):
            part = made[start : start + AT_ONCE[kind]]
            self._client.log_batch(self._run_id, **{kind: part})


def _key(name: str) -> str:
    """The name in the characters that MLflow allows, and no longer than it allows."""
    return re.sub(r"[^/\w.\- :]", "_", name)[:250]
