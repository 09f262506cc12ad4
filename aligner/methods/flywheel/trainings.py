"""The recipes of the flywheel's trainings: what `trainings` says, and what the flywheel decides.

All of them are checked before the first battle, with the file and line that a key was written at.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aligner.config.load import Resolved, Unsettled, settle
from aligner.config.overrides import Draft
from aligner.config.recipe import Model, Source, TrainRecipe
from aligner.config.yaml_lines import KeyPath
from aligner.errors import Problem, RecipeError
from aligner.methods.flywheel.recipe import FlywheelRecipe
from aligner.methods.plan_memory import InnerTraining
from aligner.models.files import adapter_config

MODEL = ("model", "name_or_path")
DECIDED = (
    ("method",),
    ("output_dir",),
    ("seed",),
    ("launch",),
    MODEL,
    ("data", "train"),
    ("rlhf", "reward_models"),
    ("rlhf", "segment_model"),
    ("rlhf", "algorithm"),
)
"""Keys that the flywheel decides; the reward model may start from another model."""

KEPT = ("model", "data", "trainer")

PLACEHOLDER = "data-of-the-flywheel.jsonl"

TRAININGS = {"sft": ("sft",), "dpo": ("dpo",), "rl": ("reward", "rlhf")}
"""Strategy -> the methods that train it."""


@dataclass(frozen=True)
class Given:
    """What a training starts from, and what it trains on. `settings`: further keys that the
    flywheel decides."""

    model: Model
    data: Sequence[Source]
    output_dir: Path
    settings: Mapping[KeyPath, Any]


def training_of(
    resolved: Resolved, method: str, given: Given
) -> tuple[TrainRecipe, dict[str, str]]:
    """Return the recipe of a training, and where its values came from.

    Raises: RecipeError for what is wrong with `trainings`, and with values that do not fit the
    model.
    """
    recipe: FlywheelRecipe = resolved.recipe
    written = getattr(recipe.trainings, method)
    draft = Draft(copy.deepcopy(written), _marks(resolved.origins, method))
    name = f"trainings.{method}"
    if problems := _decided(draft, name, method):
        raise RecipeError(f"{name} has keys that the flywheel decides", "drop them", problems)
    for path, value in _values(recipe, given).items():
        if not (path[0] in KEPT and draft.holds(path)):
            draft.put(path, value, "the flywheel")
    return settle(Unsettled(method, name, draft))


def _marks(origins: Mapping[str, str], method: str) -> dict[KeyPath, str]:
    """Where the keys of a training were written."""
    prefix = f"trainings.{method}."
    return {
        tuple(key.removeprefix(prefix).split(".")): place
        for key, place in origins.items()
        if key.startswith(prefix)
    }


def _decided(draft: Draft, name: str, method: str) -> list[Problem]:
    """What is written and decided here."""
    return [
        Problem("is decided by the flywheel", draft.where(path), f"{name}.{'.'.join(path)}")
        for path in DECIDED
        if draft.holds(path) and not (method == "reward" and path == MODEL)
    ]


def _values(recipe: FlywheelRecipe, given: Given) -> dict[KeyPath, Any]:
    """What the flywheel decides. Keys of `KEPT` sections that a training says stay as they are."""
    model = given.model.model_dump(mode="json", exclude_unset=True)
    found: dict[KeyPath, Any] = {("model", key): value for key, value in model.items()}
    found[("output_dir",)] = str(given.output_dir)
    found[("seed",)] = recipe.seed
    sources = [one.model_dump(mode="json", exclude_unset=True) for one in given.data]
    found[("data", "train")] = sources
    found[("data", "max_length")] = recipe.data.max_length
    found[("data", "on_too_long")] = "drop"  # what others answer must not end the rounds
    if recipe.report_to:
        found[("trainer", "report_to")] = list(recipe.report_to)
    found[("launch",)] = recipe.launch.model_dump(mode="json", exclude_unset=True)
    return {**found, **given.settings}


def planned(resolved: Resolved) -> list[InnerTraining]:
    """Return the trainings of a round, with data that are not there yet."""
    return [
        InnerTraining(
            f"training by {method}",
            _with_placeholder(resolved, method),
            partial(_typed, getattr(resolved.recipe.trainings, method), f"trainings.{method}"),
        )
        for method in _needed(resolved.recipe)
    ]


def _typed(written: Mapping[str, Any], name: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """How values of a training are typed: the model and how processes share it are the same for
    all, but where that training says otherwise."""
    found = {}
    for key, value in values.items():
        section, _, rest = key.partition(".")
        own = rest in (written.get(section) or {})
        shared = section in ("model", "launch") and not own
        found[key if shared else f"{name}.{key}"] = value
    return found


def _needed(recipe: FlywheelRecipe) -> list[str]:
    """The methods that are trained, in their order."""
    needed = ["sft"] if recipe.flywheel.initial is not None else []
    for strategy in recipe.flywheel.strategies:
        needed += [name for name in TRAININGS[strategy] if name not in needed]
    return needed


def _with_placeholder(resolved: Resolved, method: str) -> TrainRecipe:
    """The recipe of a training, as far as it is known before the first battle."""
    recipe: FlywheelRecipe = resolved.recipe
    settings = settings_of(recipe, method)
    given = Given(recipe.model, [Source(path=PLACEHOLDER)], Path("run"), settings)
    return training_of(resolved, method, given)[0]


def check_trainings(resolved: Resolved) -> None:
    """Check the recipes of all trainings that the flywheel will do, as far as they are known.

    Raises: RecipeError with every problem of all of them.
    """
    recipe: FlywheelRecipe = resolved.recipe
    problems: list[Problem] = []
    needed = _needed(recipe)
    for method in needed:
        try:
            _with_placeholder(resolved, method)
        except RecipeError as error:
            problems += error.problems or [Problem(error.message, key=f"trainings.{method}")]
    from_model = "reward" in needed and not _names_model(recipe.trainings.reward)
    if from_model and adapter_config(recipe.model.name_or_path) is not None:
        message = f"cannot start from the adapter {recipe.model.name_or_path}"
        hint = "name a whole model: a merged one (`aligner merge`), or the adapter's base"
        problems.append(Problem(message, "", "trainings.reward.model.name_or_path", hint))
    if problems:
        many = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError(f"{many} in trainings", "", problems)


def _names_model(training: Mapping[str, Any]) -> bool:
    model = training.get("model")
    return isinstance(model, dict) and "name_or_path" in model


def settings_of(
    recipe: FlywheelRecipe, method: str, reward_model: str = "toy"
) -> dict[KeyPath, Any]:
    """Return what the flywheel decides of a method beside model, data and place."""
    if method != "rlhf":
        return {}
    return {
        ("rlhf", "algorithm"): recipe.flywheel.rl.algorithm,
        ("rlhf", "reward_models"): [reward_model],
    }
