"""The training of a stage, as an ordinary run of another method in the folder `run` of the stage,
whose recipe can be run again by hand.

So everything that is true of such a run is true here: it resumes from its last whole checkpoint,
trains with LoRA, 4-bit bases and several processes, and has a report of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from aligner.config.load import Resolved
from aligner.config.recipe import TrainRecipe
from aligner.events import DataReady, Event, Finished, Notice, OnEvent, Plan, tell
from aligner.methods.pipeline import run_recipe
from aligner.runs.changes import changed_keys
from aligner.runs.files import parse_json, read_json, read_metrics
from aligner.runs.stages import Stage

RUN = "run"
"""The run directory in the folder of the stage."""


def final_of(stage: Stage) -> Path:
    """Return the folder of the model that a finished stage trained."""
    return stage.folder / RUN / "final"


def carry_out(
    stage: Stage, inner: TrainRecipe, origins: Mapping[str, str], on_event: OnEvent | None
) -> tuple[Mapping[str, float], list[Path]]:
    """Do the run of a stage, or what is left of it; return its results, and its files that stay.
    Its checkpoints are removed behind it. `origins`: where values of its recipe came from."""
    run = stage.folder / RUN
    text = yaml.safe_dump(
        inner.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True
    )
    resolved = Resolved(inner, dict(origins), text, None)
    if run.is_dir() and not _is_of(run, inner):
        tell(on_event, Notice(f"{stage.name} is started again: its files lie elsewhere now"))
        shutil.rmtree(run)
    result = run_recipe(resolved, resume=run.is_dir(), on_event=_heard(on_event))
    manifest = parse_json(run / "manifest.json", "delete the folder of the stage")
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return result.results, [run / name for name in manifest["files"] if not name.endswith(".md")]


def _heard(listener: OnEvent | None) -> OnEvent | None:
    """What is heard of the run of a stage: all but its plan and its end."""

    def hear(event: Event) -> None:
        if not isinstance(event, Plan | Finished | DataReady):
            tell(listener, event)

    return None if listener is None else hear


def _is_of(run: Path, inner: TrainRecipe) -> bool:
    """Say whether what was started in a folder can be resumed with this recipe: in a run directory
    that was moved meanwhile, files have other names."""
    known = read_json(run, "resolved.json")
    return known is None or not changed_keys(known["recipe"], inner.model_dump(mode="json"))


def last_measured(run: Path, names: tuple[str, ...]) -> dict[str, float]:
    """Return the last of these measures of a run's training."""
    lines = [line for line in read_metrics(run) if line["split"] == "train"]
    last = lines[-1] if lines else {}
    return {name: last[name] for name in names if name in last}


def rows_of(run: Path) -> int:
    """Return how many rows a run trained on."""
    ledger = parse_json(run / "data.json", "delete the folder of the stage")
    return int(ledger["splits"]["train"]["rows"])
