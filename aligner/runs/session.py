"""The skeleton of a resumable command that works in a run directory. Imports no torch.

    session = Session(resolved, resume=..., overwrite=..., dry_run=..., on_event=...)
    session.check_place()                      before anything is read
    if (done := session.done()) is not None:   finished already, and resumed
        return done
    rows = ...                                 read and check what the recipe names
    if session.dry_run:
        return session.plan(...)
    run = session.open()                       create the run directory, or open it again
    ...                                        work, and keep what is done in `run`
    return session.finish(run, results)

What is refused by the first lines leaves an existing run as it was. Parts of the work that are done
are kept by `aligner.runs.journal`, or by the command in files that are whole or absent.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from aligner.config.load import Resolved
from aligner.errors import UsageError
from aligner.events import OnEvent, Plan, Warned, tell
from aligner.methods.catalogue import method_of
from aligner.runs.changes import changes
from aligner.runs.files import read_json
from aligner.runs.places import refuse_unusable
from aligner.runs.result import RunResult, already_done, finished
from aligner.runs.run import Run

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Session:
    """One call of a resumable command: its recipe, and what to do about a run that is there."""

    resolved: Resolved
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False
    on_event: OnEvent | None = None
    is_tracked: bool = True
    """Whether `open` starts the trackers; a training does it in the process that trains."""
    scratch: tuple[str, ...] = ()
    """Folders of the run directory that only the work needs; removed once the run is finished."""
    has_other_inputs: Callable[[], bool] = lambda: False
    """For a command of stages: whether what the recipe names is not what the run was made of. Asked
    of a finished run that is resumed."""

    @property
    def folder(self) -> Path:
        """The run directory."""
        return Path(self.resolved.recipe.output_dir)

    @property
    def _is_staged(self) -> bool:
        return method_of(self.resolved.recipe.method).is_staged

    @property
    def _is_resumed_when_finished(self) -> bool:
        return self.resume and (self.folder / MANIFEST).exists()

    @cached_property
    def _is_stale(self) -> bool:
        """Whether it is finished, and resumed with other inputs."""
        return self._is_resumed_when_finished and self.has_other_inputs()

    def check_place(self) -> None:
        """Raise UsageError for a place that cannot be used; a dry run only needs one that could
        be written to."""
        if self.dry_run:
            refuse_unusable(self.folder, "output_dir")
        else:
            Run.check_place(
                self.folder,
                resume=self.resume,
                overwrite=self.overwrite,
                is_staged=self._is_staged,
            )

    def done(self) -> RunResult | None:
        """Return what a run that is resumed, and finished already, gave; None where there is work.

        Raises: UsageError when that run has another recipe.
        """
        if self.dry_run or not self._is_resumed_when_finished or self._is_stale:
            return None
        if self._is_staged and changes(read_json(self.folder, "resolved.json"), self.resolved)[0]:
            return None  # its stages will see what that makes stale
        run = Run.create(self.resolved, resume=True)
        self._remove_scratch(run)
        return already_done(run, self.on_event)

    def plan(self, rows: Sequence[tuple[str, str, str]]) -> RunResult:
        """End a dry run: tell what would be done, as rows of what, how much, and why."""
        tell(self.on_event, Plan(rows))
        return RunResult(self.folder)

    def open(self) -> Run:
        """Create the run directory, or open it again, with its lock; say what is remarkable."""
        if self._is_stale:
            (self.folder / MANIFEST).unlink(missing_ok=True)
        run = Run.create(self.resolved, resume=self.resume, overwrite=self.overwrite)
        if run.is_done:
            raise UsageError(
                f"{run.dir} was finished by another process meanwhile",
                "the same command says what came out",
            )
        for note in run.notes:
            tell(self.on_event, Warned(note))
        if self.is_tracked:
            run.metrics.start_tracking(self.on_event)
        return run

    def finish(
        self,
        run: Run,
        results: Mapping[str, float],
        parents: Sequence[dict[str, Any]] = (),
        files: Path | None = None,
    ) -> RunResult:
        """Write the manifest of a run whose report is there, and tell the results; `files` is the
        folder of what it made."""
        run.finish_without_training(results, parents, files)
        self._remove_scratch(run)
        return finished(run, results, self.on_event)

    def _remove_scratch(self, run: Run) -> None:
        for name in self.scratch:
            shutil.rmtree(run.dir / name, ignore_errors=True)
