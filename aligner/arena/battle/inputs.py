"""What a recipe of battles names: its prompts, and the answers that are in files. Read before
anything is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner.arena.battle.answer_files import AnswerFile, items_in
from aligner.arena.battle.contestants import read_files
from aligner.arena.battle.prompts import Prompts, read_prompts
from aligner.arena.battle.recipe import ArenaRecipe
from aligner.arena.battle.sheets import Item
from aligner.events import OnEvent
from aligner.models.fingerprint import model_fingerprint
from aligner.reward_models.named_inputs import named_inputs
from aligner.runs.digests import digests_of


@dataclass(frozen=True)
class Inputs:
    """What a recipe names: prompts, and the answers of files."""

    prompts: Prompts
    files: Mapping[str, AnswerFile]

    @property
    def items(self) -> list[Item]:
        """The prompts."""
        return self.prompts.items


def read_inputs(recipe: ArenaRecipe, on_event: OnEvent | None) -> Inputs:
    """Read prompts and files of answers.

    Raises: DataError for what cannot be used, and for prompts without an answer.
    """
    arena = recipe.arena
    if recipe.data is not None:
        prompts = read_prompts(recipe.data, recipe.seed, arena.category, on_event)
    else:
        first = next(one.answers for one in arena.contestants if one.answers is not None)
        path = Path(first).expanduser()
        prompts = Prompts(items_in(path), {str(path): digests_of([path])[path]})
    return Inputs(prompts, read_files(arena.contestants, prompts.items))


def record_of(recipe: ArenaRecipe, inputs: Inputs) -> dict[str, Any]:
    """Return what was read, and what stands behind the recipe's other names."""
    prompts = inputs.prompts
    found = {"fingerprint": prompts.fingerprint, "sources": prompts.files}
    return {**found, "named": named_inputs(recipe)}


def parents_of(recipe: ArenaRecipe, inputs: Inputs) -> list[dict[str, Any]]:
    """Where prompts and answers came from."""
    found = [
        {"kind": "data", "path": path, "fingerprint": digest}
        for path, digest in inputs.prompts.files.items()
    ]
    for section in recipe.arena.contestants:
        if section.answers is not None:
            path = Path(section.answers).expanduser()
            digest = digests_of([path])[path]
            found.append({"kind": "data", "path": str(path), "fingerprint": digest})
        elif section.model is not None:
            digest = model_fingerprint(section.model)
            name = section.model.name_or_path
            found.append({"kind": "model", "path": name, "fingerprint": digest})
    return found
