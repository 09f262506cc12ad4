"""The table of everything that a recipe can be for: training methods, searches and dataset
builders. A new one is a folder and a line here.

The folder's `recipe.py` holds `METHOD`, an `aligner.config.method.Method`, and is imported when
somebody asks for it; that of a training method holds `steps.py` with `STEPS` too
(`aligner.methods.steps`). Nothing else is known of a method here, so that `aligner --help` costs
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from aligner.config.method import Method, TrainingMethod
    from aligner.config.recipe import Recipe


class Entry(NamedTuple):
    """A line of the table."""

    folder: str
    """The package that holds it."""
    group: str
    """The heading that it stands below in `aligner --help`."""
    about: str
    """One line about it."""
    command: str = ""
    """What follows `aligner`, where that is not its name."""


METHODS: dict[str, Entry] = {
    "sft": Entry(
        "aligner.methods.sft",
        "Train",
        "Supervised fine-tuning on conversations, completions or text.",
    ),
    "dpo": Entry(
        "aligner.methods.dpo", "Train", "Direct preference optimization, on pairs of answers."
    ),
    "sapo": Entry(
        "aligner.methods.sapo",
        "Train",
        "Self-Augmented Preference Optimization, on single good answers.",
    ),
    "reward": Entry(
        "aligner.methods.reward",
        "Train",
        "Train a reward model, on pairs of answers or on ratings.",
    ),
    "rlhf": Entry(
        "aligner.methods.rlhf",
        "Train",
        "Reinforcement learning on sampled responses that are scored.",
    ),
    "online": Entry(
        "aligner.methods.online",
        "Train",
        "Preference training in rounds, on the policy's own responses.",
    ),
    "flywheel": Entry(
        "aligner.methods.flywheel",
        "Train",
        "Arena Learning: train on what is lost in battles, in rounds.",
    ),
    "discover": Entry(
        "aligner.methods.discover",
        "Search",
        "Let a language model search for preference objectives.",
    ),
    "evolve": Entry(
        "aligner.builders.evolve",
        "Build data",
        "Let a language model write harder instructions, and answer them.",
    ),
    "mosaic": Entry(
        "aligner.builders.mosaic",
        "Build data",
        "Glue instruction rows into samples of several instructions.",
    ),
    "select": Entry(
        "aligner.builders.select",
        "Build data",
        "Choose pairs for an expert to label, and read the labels back.",
        command="data select",
    ),
    "arena": Entry(
        "aligner.arena.battle",
        "Use and measure",
        "Let models battle on prompts: judges compare answers, ratings follow.",
        command="arena battle",
    ),
}
"""Name in a recipe's `method:` -> what it is."""


def method_of(name: str) -> Method:
    """Return what a method says of itself."""
    method: Method = import_module(f"{METHODS[name].folder}.recipe").METHOD
    return method


def training_of(name: str) -> TrainingMethod | None:
    """Return the same of a method that trains; None for one that does not, or that nobody knows."""
    from aligner.config.method import TrainingMethod

    found = method_of(name) if name in METHODS else None
    return found if isinstance(found, TrainingMethod) else None


def trainer_of(name: str) -> TrainingMethod:
    """Return the same of a method whose recipe has a `trainer:`, and which therefore trains."""
    found = training_of(name)
    assert found is not None, f"`{name}` has no trainer"
    return found


def trainings() -> dict[str, TrainingMethod]:
    """Return the methods that train."""
    found = {name: training_of(name) for name in METHODS}
    return {name: method for name, method in found.items() if method is not None}


def recipes() -> dict[str, type[Recipe]]:
    """Return the schema of each method's recipes."""
    return {name: method_of(name).recipe for name in METHODS}


def trainer_fields(name: str) -> Mapping[str, dict[str, Any]]:
    """Return key -> {"type", "default", "help"} and sometimes "choices" of a method's trainer;
    nothing for one that trains nothing."""
    from aligner.config import trainer_keys

    method = training_of(name)
    return trainer_keys.fields(method.trainer_class) if method else {}


def trainer_settings(name: str) -> list[str]:
    """Return the keys that a recipe of this method may set under `trainer`."""
    from aligner.config.trainer_keys import RESERVED

    return [key for key in trainer_fields(name) if key not in RESERVED]


def function_of(place: str) -> Any:
    """Return the function that a method names as `module:function`."""
    module, _, function = place.partition(":")
    return getattr(import_module(module), function)


def command_of(name: str) -> str:
    """Return what follows `aligner` for a method."""
    return METHODS[name].command or name
