"""The training that measures an objective, as `aligner plan` looks at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from aligner.config.load import Resolved, load_recipe
from aligner.memory.changes import settings_of
from aligner.methods.plan_memory import InnerTraining


def trainings(resolved: Resolved) -> list[InnerTraining]:
    """Return the training that measures an objective, where a recipe does."""
    settings = resolved.recipe.discover
    if settings.task != "recipe":
        return []
    inner = load_recipe("dpo", settings.recipe, settings.overrides).recipe
    typed = partial(_typed, settings.overrides)
    return [InnerTraining("training with a proposed objective", inner, typed)]


def _typed(overrides: Sequence[str], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """How values of the inner recipe are typed: as the list of what is laid over it, whole."""
    kept = [text for text in overrides if text.partition("=")[0] not in values]
    return {"discover.overrides": [*kept, *settings_of(values)]}
