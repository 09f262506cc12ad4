"""What `aligner` hands out of this room: a run directory, to read.

Nothing here takes the run's lock or changes a file, so it may be read while it is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aligner.config.load import Resolved
from aligner.errors import DataError, UsageError
from aligner.runs.files import read_json, read_metrics


def open_run(path: str | Path) -> RunView:
    """Return a view of a run directory.

    Raises: UsageError when the path is none.
    """
    folder = Path(path).expanduser()
    if (folder / "resolved.json").is_file():
        return RunView(folder)
    if not folder.exists():
        raise UsageError(f"there is no folder {folder}", "give the `output_dir` of a run")
    around = next((one for one in folder.parents if (one / "resolved.json").is_file()), None)
    raise UsageError(
        f"{folder} is not a run directory: it has no resolved.json",
        "give the `output_dir` of a run" if around is None else f"the run is {around}",
    )


@dataclass(frozen=True)
class RunView:
    """A run directory, read only: each property reads its file again."""

    dir: Path

    @property
    def resolved(self) -> Resolved:
        """The recipe with the origin of each value.

        Raises: DataError when another version of aligner wrote it.
        """
        try:
            return Resolved.from_json(read_json(self.dir, "resolved.json"))
        except (ValidationError, KeyError) as error:
            raise DataError(
                f"{self.dir / 'resolved.json'} holds a recipe that this version does not know",
                "read it with the version that wrote it; `environment.json` names it",
            ) from error

    @property
    def recipe(self) -> Any:
        """The recipe with every value, defaults included: a `DpoRecipe`, for example."""
        return self.resolved.recipe

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What the finished run says of itself, or None while it is not finished."""
        manifest: dict[str, Any] | None = read_json(self.dir, "manifest.json")
        return manifest

    @property
    def is_done(self) -> bool:
        """Whether the run is finished."""
        return (self.dir / "manifest.json").exists()

    @property
    def results(self) -> dict[str, float]:
        """The numbers that the run ended with; none while it is not finished."""
        return (self.manifest or {}).get("results", {})

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps, in their order: `step`, `split` ("train" or "eval"), `loss`, ..."""
        return read_metrics(self.dir)

    @property
    def ledger(self) -> dict[str, Any] | None:
        """What became of every row and token (`data.json`), or None before the data are ready."""
        ledger: dict[str, Any] | None = read_json(self.dir, "data.json")
        return ledger

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Held-out prompts with the answers `before` and `after` training; none where there are
        none yet."""
        return read_json(self.dir, "samples.json") or []

    @property
    def final_dir(self) -> Path:
        """The folder of the trained model, with its tokenizer and card; it is there once the run is
        finished."""
        return self.dir / "final"

    @property
    def report(self) -> Path:
        """The report, one HTML file; it is there once the run is finished."""
        return self.dir / "report.html"
