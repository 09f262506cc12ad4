"""Who writes the instruction of a row, by mode: a method that was optimized, operations that are
drawn, skills that were listed, or the model's own template; and which method that is where nothing
has to be optimized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aligner.builders.evolve.classic import draw_operation
from aligner.builders.evolve.contract import EvolvingMethod, first_method, read_method
from aligner.builders.evolve.evolving import Evolution, evolve_once
from aligner.builders.evolve.made import Turn
from aligner.builders.evolve.recipe import Evolve, EvolveRecipe
from aligner.builders.evolve.roles import Roles
from aligner.builders.evolve.row import Author
from aligner.builders.evolve.seeds import Seed
from aligner.builders.evolve.skillmix import SkillMix, Skills


@dataclass(frozen=True)
class _Evolving:
    """Who evolves an instruction that is there, by the method of its row."""

    roles: Roles
    settings: Evolve

    def method_of(self, seed: Seed, round_: int) -> EvolvingMethod:
        """Return the method of a row in a round."""
        raise NotImplementedError

    def method_id(self, seed: Seed, round_: int) -> str:
        """Return its id."""
        return self.method_of(seed, round_).id

    async def write(
        self,
        seed: Seed,
        round_: int,
        instruction: str,
        history: Sequence[Turn],
        *,
        temperature: float | None,
        sample_index: int,
    ) -> Evolution:
        """Have an instruction evolved. Raises: LLMError."""
        return await evolve_once(
            self.roles,
            self.settings,
            self.method_of(seed, round_),
            instruction,
            history=history,
            temperature=temperature,
            sample_index=sample_index,
        )


@dataclass(frozen=True)
class ByMethod(_Evolving):
    """One method for all rows."""

    method: EvolvingMethod

    def method_of(self, seed: Seed, round_: int) -> EvolvingMethod:
        """Return the method."""
        return self.method


@dataclass(frozen=True)
class ByOperation(_Evolving):
    """An operation for each row and round, drawn by its id and `seed`."""

    seed: int

    def method_of(self, seed: Seed, round_: int) -> EvolvingMethod:
        """Return the operation of a row in a round."""
        return draw_operation(self.seed, seed.id, round_)


def given_method(recipe: EvolveRecipe) -> EvolvingMethod | None:
    """Return the method of a recipe that names one, or has none optimized; else None. Raises:
    DataError for a file that holds none."""
    evolve = recipe.evolve
    if evolve.mode != "auto":
        return None
    if evolve.method is not None:
        return read_method(Path(evolve.method).expanduser())
    chosen = evolve.optimization
    return None if chosen.steps else first_method(chosen.start, chosen.contract)


def author_of(
    recipe: EvolveRecipe,
    roles: Roles,
    method: EvolvingMethod | None = None,
    skills: Skills | None = None,
) -> Author:
    """Return who writes the instructions of a recipe: by a method, or from skills. Asks nobody."""
    evolve = recipe.evolve
    if evolve.mode == "classic":
        return ByOperation(roles, evolve, recipe.seed)
    if evolve.mode == "auto":
        assert method is not None, "rows are evolved by a method"
        return ByMethod(roles, evolve, method)
    if evolve.mode == "magpie":
        from aligner.builders.evolve.magpie import open_magpie

        return open_magpie(roles, recipe)
    assert skills is not None, "rows are drawn from skills"
    return SkillMix(roles, evolve, skills, recipe.seed)
