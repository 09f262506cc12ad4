"""The fourth stage of a round: training on its pairs, as an ordinary run of `aligner dpo`, or
`sft`, in `train/run` (`aligner.methods.stage_run`).

The reference is named in its recipe: the model that the first round started from, in every round,
also where adapters are trained further (`online.reference`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner.config.defaults import is_default
from aligner.config.load import Resolved
from aligner.config.recipe import Data, Model, Report, Source, TrainRecipe
from aligner.events import OnEvent
from aligner.methods.dpo.recipe import DpoRecipe
from aligner.methods.online.recipe import OnlineRecipe
from aligner.methods.plan_memory import InnerTraining
from aligner.methods.sft.recipe import SftRecipe
from aligner.methods.stage_run import RUN, carry_out, last_measured, rows_of
from aligner.runs.stages import Stage

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
    inner = recipe_of(stage, recipe, origins, training)
    results, kept = carry_out(stage, inner, origins_of(inner), on_event)
    run = stage.folder / RUN
    stage.finish({**results, **last_measured(run, SHOWN), "rows": rows_of(run)}, kept)


def recipe_of(
    stage: Stage, recipe: OnlineRecipe, origins: dict[str, str], training: Training
) -> TrainRecipe:
    """Return the recipe of the round's own run."""
    return _recipe(stage.folder / RUN, recipe, origins, training)


def planned(resolved: Resolved) -> list[InnerTraining]:
    """Return the training of a round, with pairs that are not there yet. Its keys are those of the
    recipe itself, but for what becomes of long rows, which there is about prompts."""
    recipe, start = resolved.recipe, resolved.recipe.model
    training = Training(start, [Path("pairs.jsonl")], (), start.name_or_path)
    run = Path(recipe.output_dir) / RUN
    inner = _recipe(run, recipe, resolved.origins, training)
    return [InnerTraining("training of a round", inner, _typed)]


def _typed(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: value for key, value in values.items() if key != "data.on_too_long"}


def _recipe(
    run: Path, recipe: OnlineRecipe, origins: dict[str, str], training: Training
) -> TrainRecipe:
    sources = [Source(path=str(path)) for path in training.pairs]
    sources += [Source(path=str(path), max_rows=rows) for path, rows in training.replayed if rows]
    shared: dict[str, Any] = {
        "output_dir": str(run),
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


def origins_of(recipe: TrainRecipe) -> dict[str, str]:
    """Return where the trainer's settings of a stage's run came from."""
    return {f"trainer.{key}": "the online recipe" for key in recipe.trainer}
