"""What a training takes of a GPU, and what makes it fit there, typed for the recipe that it stands
in. For `aligner plan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aligner.config.load import Resolved
from aligner.config.recipe import TrainRecipe
from aligner.errors import AlignerError
from aligner.launch.command import count_gpus
from aligner.memory.changes import Around, Change, options, with_values
from aligner.memory.estimate import Estimate, estimate
from aligner.memory.footprint import Lengths
from aligner.methods.catalogue import function_of, method_of

KEPT_FREE = 0.1
"""Share of a GPU that is left to what is not counted: CUDA's context and libraries, and what the
allocator holds in pieces."""
LEAST_FREE = 1024**3
"""Bytes that are left at the least."""

Again = Callable[[Sequence[str]], Resolved]
"""Settings -> the recipe that is planned with them behind what was typed. Raises as the command
line does."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a training takes on one device. `limit`: bytes of the device, None where nobody said;
    `usable`: those that the estimate may reach; `changes`: the cheapest ones that make it fit;
    `least`: what it takes with all changes there are, where none does."""

    estimate: Estimate
    limit: int | None = None
    usable: int | None = None
    changes: list[Change] = field(default_factory=list)
    least: Change | None = None

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None where there is no limit."""
        return None if self.usable is None else self.estimate.peak_bytes <= self.usable


@dataclass(frozen=True, slots=True)
class InnerTraining:
    """A training that another recipe consists of: its name, its recipe with data that are not there
    yet, and how values of that are typed in the recipe around it."""

    name: str
    recipe: TrainRecipe
    typed: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict


def memory_of(recipe: TrainRecipe, lengths: Lengths | None, limit: int | None) -> MemoryPlan:
    """Return what a training takes, of the GPU that is asked about, else of the device that is
    here."""
    cuda = limit is not None or count_gpus() > 0
    estimated = estimate(recipe, lengths, cuda=cuda)
    if limit is None:
        return MemoryPlan(estimated)
    return MemoryPlan(estimated, limit, max(0, limit - max(int(limit * KEPT_FREE), LEAST_FREE)))


def with_changes(
    memory: MemoryPlan, recipe: TrainRecipe, lengths: Lengths | None, around: Around
) -> MemoryPlan:
    """Return the same, with what makes it fit where it does not."""
    if memory.fits is not False:
        return memory
    assert memory.usable is not None, "there is a limit"
    found = options(recipe, memory.usable, lengths, cuda=True, around=around)
    return MemoryPlan(memory.estimate, memory.limit, memory.usable, found.changes, found.least)


def around_itself(recipe: TrainRecipe, again: Again | None) -> Around:
    """Return how changes of a training are typed for itself; those that its rules refuse are left
    out."""
    if again is None:
        return Around()

    def checked(overrides: Sequence[str], values: Mapping[str, Any]) -> TrainRecipe | None:
        return None if _again(again, overrides) is None else with_values(recipe, values)

    return Around(again=checked)


def inner_trainings(resolved: Resolved) -> list[InnerTraining]:
    """Return the trainings that a recipe consists of, where it is not one itself."""
    method = method_of(resolved.recipe.method)
    found: list[InnerTraining] = []
    if method.trainings:
        found = function_of(method.trainings)(resolved)
    return found


def memory_of_inner(
    one: InnerTraining, limit: int | None, again: Again | None = None
) -> MemoryPlan:
    """Return what a training within a recipe takes, for rows as long as they may be; `again` reads
    the recipe around it."""

    def changed(overrides: Sequence[str], _values: Mapping[str, Any]) -> TrainRecipe | None:
        assert again is not None, "it is asked where there is one"
        resolved = _again(again, overrides)
        inner = [] if resolved is None else _trainings_if_valid(resolved)
        return next((other.recipe for other in inner if other.name == one.name), None)

    around = Around(one.typed, changed if again is not None else None)
    return with_changes(memory_of(one.recipe, None, limit), one.recipe, None, around)


def _again(again: Again, overrides: Sequence[str]) -> Resolved | None:
    try:
        return again(overrides)
    except AlignerError:
        return None


def _trainings_if_valid(resolved: Resolved) -> list[InnerTraining]:
    try:
        return inner_trainings(resolved)
    except AlignerError:
        return []
