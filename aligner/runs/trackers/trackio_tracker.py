"""Trackio: a run in its local database, or in the Space or on the server that the recipe
(`trainer.trackio_space_id`) or the environment (`TRACKIO_SPACE_ID`, `TRACKIO_SERVER_URL`) names.

In the local database, a run that is opened again is removed and written again under its name from
`metrics.jsonl`. A Space or a server keeps what it has: there, only later lines are sent, and steps
that are trained again after a kill stand twice. Nothing is logged of the machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from aligner.runs.trackers.facts import Facts, points_of, table_of


class Writer:
    """Writes one run of Trackio."""

    def __init__(self) -> None:
        self._run: Any = None

    def begin(
        self, facts: Facts, known: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Open the run, or write it again where its points can be removed."""
        import trackio

        space = facts.trainer.get("trackio_space_id") or os.environ.get("TRACKIO_SPACE_ID")
        is_local = not (space or os.environ.get("TRACKIO_SERVER_URL"))
        if self._run is not None:
            self._run.finish()
        if known and is_local:
            _remove(known)
        self._run = trackio.init(
            project=facts.project,
            name=facts.name,
            group=facts.group,
            config={**facts.recipe, **facts.lineage},
            resume="allow" if known and not is_local else "never",
            space_id=space,
            bucket_id=facts.trainer.get("trackio_bucket_id"),
            private=facts.trainer.get("hub_private_repo"),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        # Else Trackio ends this run when the next one is opened, and prints when Python ends.
        trackio.context_vars.current_run.set(None)
        if is_local or not known:
            for record in records:
                self.add(record)
        return {"project": facts.project, "name": facts.name, "id": self._run.id}

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one line of `metrics.jsonl`; Trackio writes it within a second."""
        values = {name: value for name, _, value in points_of(record)}
        self._run.log(values, step=int(record["step"]))

    def finish(self, facts: Facts, results: Mapping[str, Any]) -> None:
        """Add the results at step 0, and the whole lineage as a table: a configuration is kept as
        it was first written."""
        from trackio import Markdown

        lineage = Markdown(table_of(facts.lineage))
        named = {f"results/{name}": value for name, value in results.items()}
        self._run.log({**named, "lineage": lineage}, step=0)
        self._run.finish()

    def abandon(self) -> None:
        """Write what is waiting."""
        if self._run is not None:
            self._run.finish()


def _remove(known: Mapping[str, Any]) -> None:
    """Remove a run from the local database, if it is there."""
    import trackio

    try:
        runs = list(trackio.Api().runs(known["project"]))
    except ValueError:  # there is no such project any more
        return
    for run in runs:
        if run.id == known["id"]:
            run.delete()
