"""The stage in which rows are made: what came of each in a journal as it finishes, and of all in
their order at the end.

    rows/rows.jsonl        the journal, while the stage is not finished
    rows/outcomes.jsonl    a line for each seed, in their order; what the stage is known by
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aligner.builders.evolve.accounts import Accounts, Progress, ticking
from aligner.builders.evolve.checks import RowChecks
from aligner.builders.evolve.output import Outcomes
from aligner.builders.evolve.pipeline import Rows
from aligner.builders.evolve.recipe import EvolveRecipe
from aligner.builders.evolve.roles import Roles, models_of
from aligner.builders.evolve.row import Author, RowWork, failed_row
from aligner.builders.evolve.seeds import Seed
from aligner.endpoints.request import LLMError
from aligner.errors import EndpointError
from aligner.events import Notice, OnEvent, StageStarted, tell
from aligner.runs.files import json_line, write_parts_atomically
from aligner.runs.stages import Stage

OUTCOMES, JOURNAL = "outcomes.jsonl", "rows"


@dataclass(frozen=True)
class RowsStage:
    """The rows of a run."""

    stage: Stage
    recipe: EvolveRecipe
    seeds: list[Seed]
    checks: RowChecks
    on_event: OnEvent | None

    async def carry_out(
        self, author: Author, roles: Roles, accounts: Accounts
    ) -> EndpointError | None:
        """Make all rows that are not there yet; return what ended it early, with some made.

        Raises: EndpointError where none is, or where more than a budget is at fault.
        """
        if self.stage.is_done:
            return None
        journal, total = self.stage.journal(JOURNAL), len(self.seeds)
        if journal.done:
            there = f"{journal.done:,} of {total:,} rows are there already"
            tell(self.on_event, Notice(f"resuming: {there}"))
        progress = Progress("rows", total, accounts, self.on_event)
        for line in self._kept():
            progress.count(line)
        rows = Rows(journal, total, self._failed, progress.add)
        progress.in_flight = lambda: rows.in_flight
        models = models_of(self.recipe)
        work = RowWork(roles, self.recipe.evolve, self.seeds, author, self.checks, models)
        tell(self.on_event, StageStarted("evolving and answering rows"))
        async with ticking(progress.tick):
            # those that wait for a batch cost nothing, and a batch is better the more are in it
            all_at_once = total if self.recipe.evolve.batch else roles.max_in_flight
            most = self.recipe.evolve.rows_in_flight or all_at_once
            stopped = await rows.carry_out(work, most)
        if stopped is None:
            self._finish()
        elif not _is_budget(stopped) or not any(line["made"] for line in self._kept()):
            raise self._with_what_is_kept(stopped)
        return stopped

    def outcomes(self) -> Outcomes:
        """Return what came of the rows; of those that are finished, where it ended early."""
        return Outcomes(self._finished if self.stage.is_done else self._kept)

    def _failed(self, number: int, error: LLMError) -> dict[str, Any]:
        return failed_row(self.seeds[number], error)

    def _finished(self) -> Iterator[dict[str, Any]]:
        with open(self.stage.folder / OUTCOMES, encoding="utf-8") as file:
            yield from map(json.loads, file)

    def _kept(self) -> Iterator[dict[str, Any]]:
        journal = self.stage.journal(JOURNAL)
        return (journal[number] for number in range(len(self.seeds)) if number in journal)

    def _finish(self) -> None:
        path = self.stage.folder / OUTCOMES
        write_parts_atomically(path, map(json_line, self._kept()))
        self.stage.finish({"rows": len(self.seeds)}, [path])
        (self.stage.folder / f"{JOURNAL}.jsonl").unlink(missing_ok=True)

    def _with_what_is_kept(self, stopped: EndpointError) -> EndpointError:
        """The error, with how many rows are done."""
        done, total = sum(1 for _ in self._kept()), len(self.seeds)
        kept = f"{stopped.message}; {done:,} of {total:,} rows are finished and kept"
        return EndpointError(kept, stopped.hint or "continue with --resume")


def _is_budget(stopped: EndpointError) -> bool:
    return isinstance(stopped, LLMError) and stopped.kind == "budget"
