"""The fourth stage of a round: training on its pairs, as an ordinary run of `aligner dpo`, or
`sft`, in `train/run`, whose recipe can be run again by hand.

So everything that is true of such a run is true here: it resumes from its last whole checkpoint,
trains with LoRA, 4-bit bases and several processes, and has a report of its own. The reference is
named in its recipe: the model that the first round started from, in every round, also where
adapters are trained further (`online.reference`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from aligner.config.defaults import is_default
from aligner.config.load import Resolved
from aligner.config.recipe import Data, Model, Report, Source, TrainRecipe
from aligner.events import DataReady, Event, Finished, Notice, OnEvent, Plan, tell
from aligner.methods.dpo.recipe import DpoRecipe
from aligner.methods.online.recipe import OnlineRecipe
from aligner.methods.pipeline import run_recipe
from aligner.methods.sft.recipe import SftRecipe
from aligner.runs.changes import changed_keys
from aligner.runs.files import parse_json, read_json, read_metrics
from aligner.runs.stages import Stage

RUN = "run"
"""The run directory in the folder of the stage."""

SHOWN = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")


@dataclass(frozen=True)
class Training:
    """What a round trains: from which model, on which files, against which reference.

    `replayed`: files of earlier rounds, and how many rows of each.
    """

    start: Model
    pairs: Sequence[Path]
    replayed: Sequence[tuple[Path, int]]
    reference: str | None


def final_of(stage: Stage) -> Path:
    """Return the folder of the policy that a finished stage trained."""
    return stage.folder / RUN / "final"


def train(
    stage: Stage,
    recipe: OnlineRecipe,
    origins: dict[str, str],
    training: Training,
    on_event: OnEvent | None,
) -> None:
    """Train, and finish the stage."""
    if stage.is_done:
        return
    results, kept = carry_out(stage, recipe_of(stage, recipe, origins, training), on_event)
    run = stage.folder / RUN
    stage.finish({**results, **_last(run), "rows": _rows(run)}, kept)


def carry_out(
    stage: Stage, inner: TrainRecipe, on_event: OnEvent | None
) -> tuple[Mapping[str, float], list[Path]]:
    """Do the run of a stage, or what is left of it; return its results, and its files that stay.
    Its checkpoints are removed behind it."""
    run = stage.folder / RUN
    text = yaml.safe_dump(
        inner.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True
    )
    resolved = Resolved(inner, _origins(inner), text, None)
    if run.is_dir() and not is_of(run, inner):
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


def is_of(run: Path, inner: TrainRecipe) -> bool:
    """Say whether what was started in a folder can be resumed with this recipe: in a run directory
    that was moved meanwhile, files have other names."""
    known = read_json(run, "resolved.json")
    return known is None or not changed_keys(known["recipe"], inner.model_dump(mode="json"))


def recipe_of(
    stage: Stage, recipe: OnlineRecipe, origins: dict[str, str], training: Training
) -> TrainRecipe:
    """Return the recipe of the round's own run."""
    sources = [Source(path=str(path)) for path in training.pairs]
    sources += [Source(path=str(path), max_rows=rows) for path, rows in training.replayed if rows]
    shared: dict[str, Any] = {
        "output_dir": str(stage.folder / RUN),
        "seed": recipe.seed,
        "model": training.start,
        "data": Data(train=sources, max_length=recipe.data.max_length),
        "trainer": given_trainer(recipe, origins),
        "launch": recipe.launch,
        "report": Report(num_prompts=0),
    }
    if recipe.online.train == "sft":
        return SftRecipe(method="sft", **shared)
    dpo = recipe.dpo.model_copy(update={"reference_model": training.reference})
    return DpoRecipe(method="dpo", dpo=dpo, preference=recipe.preference, **shared)


def given_trainer(recipe: OnlineRecipe, origins: dict[str, str]) -> dict[str, Any]:
    """Return what the runs of stages have of the trainer's settings."""
    return {key: value for key, value in recipe.trainer.items() if _is_given(key, origins)}


def _is_given(key: str, origins: dict[str, str]) -> bool:
    """Say whether somebody wrote a key, or this method decides it: its round's method would have
    other defaults."""
    origin = origins.get(f"trainer.{key}", "")
    return not is_default(origin) or origin.startswith("default of online")


def _origins(recipe: TrainRecipe) -> dict[str, str]:
    return {f"trainer.{key}": "the online recipe" for key in recipe.trainer}


def _last(run: Path) -> dict[str, float]:
    lines = [line for line in read_metrics(run) if line["split"] == "train"]
    last = lines[-1] if lines else {}
    return {name: last[name] for name in SHOWN if name in last}


def _rows(run: Path) -> int:
    ledger = parse_json(run / "data.json", "delete the folder of the stage")
    return int(ledger["splits"]["train"]["rows"])
