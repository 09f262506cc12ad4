"""Every key of every recipe is read by something that acts on it: a key that is documented,
validated, and changes nothing is worse than none."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from aligner.config.introspect import walk
from aligner.config.recipe import Section
from aligner.methods.catalogue import recipes

ROOT = Path(__file__).parents[2]

READ_BY_NAME = {
    "Budget.minutes": ("aligner/endpoints/budget.py", "getattr(budget, name)"),
    "Flywheel.batch_size": ("aligner/methods/flywheel/battles.py", '"batch_size"'),
    "Flywheel.dpo": ("aligner/methods/flywheel/rounds.py", "getattr(flywheel, strategy)"),
    "Flywheel.max_new_tokens": ("aligner/methods/flywheel/battles.py", '"max_new_tokens"'),
    "Flywheel.system": ("aligner/methods/flywheel/battles.py", '"system"'),
    "Flywheel.top_p": ("aligner/methods/flywheel/battles.py", '"top_p"'),
    "Lora.use_rslora": ("aligner/models/adapters.py", "**lora.model_dump()"),
    "RewardRecipe.preference": ("aligner/training/prefix.py", "recipe.preference"),
    "RlhfRecipe.preference": ("aligner/training/prefix.py", "recipe.preference"),
    "SapoRecipe.preference": ("aligner/training/prefix.py", "recipe.preference"),
    "Strategies.format": ("aligner/builders/mosaic/plan.py", "in settings.strategies"),
    "Strategies.maskout": ("aligner/builders/mosaic/plan.py", "in settings.strategies"),
    "Strategies.permute": ("aligner/builders/mosaic/plan.py", "in settings.strategies"),
    "Strategies.primary": ("aligner/builders/mosaic/plan.py", "in settings.strategies"),
    "Trainings.dpo": ("aligner/methods/flywheel/trainings.py", "getattr(recipe.trainings, method)"),
    "Trainings.rlhf": (
        "aligner/methods/flywheel/trainings.py",
        "getattr(recipe.trainings, method)",
    ),
    "Trainings.sft": ("aligner/methods/flywheel/trainings.py", "getattr(recipe.trainings, method)"),
}
"""Keys that no typed attribute reads -> the file that reads them, and how."""


@pytest.fixture(scope="module")
def reads() -> dict[str, dict[str, list[str]]]:
    program = [sys.executable, str(ROOT / "tests/packaging/typed_reads.py")]
    printed = subprocess.run(program, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(printed.stdout)


def sections() -> list[type[Section]]:
    """Every section that a recipe of any method can hold, and what they inherit from."""
    found = {Section}
    for recipe in recipes().values():
        for kind in chain.from_iterable(section.__mro__ for _, section in walk(recipe)):
            found |= {kind} if issubclass(kind, Section) else set()
    return sorted(found, key=lambda section: section.__qualname__)


def is_acting(module: str) -> bool:
    """Rules only check a key, and migration only writes it."""
    return "rules" not in module.rsplit(".", 1)[-1] and ".migrate" not in module


def unread(reads: dict[str, dict[str, list[str]]]) -> set[str]:
    """The keys that no module acts on, by the types of what it reads."""
    found = set()
    for section in sections():
        kin = [one for one in sections() if issubclass(section, one) or issubclass(one, section)]
        names = [f"{one.__module__}.{one.__qualname__}" for one in kin]
        for key in section.__annotations__.keys() & section.model_fields.keys():
            readers = [module for name in names for module in reads.get(name, {}).get(key, ())]
            if not any(is_acting(module) for module in readers):
                found.add(f"{section.__name__}.{key}")
    return found


def test_every_key_of_every_section_is_acted_on(reads: dict[str, dict[str, list[str]]]) -> None:
    assert unread(reads) == set(READ_BY_NAME)


@pytest.mark.parametrize("key", READ_BY_NAME)
def test_a_key_that_is_read_by_name_is_read_where_the_list_says(key: str) -> None:
    file, how = READ_BY_NAME[key]
    assert how in (ROOT / file).read_text(encoding="utf-8")


def test_a_key_that_only_a_rule_reads_is_found(reads: dict[str, dict[str, list[str]]]) -> None:
    planted = json.loads(json.dumps(reads))
    planted["aligner.methods.dpo.recipe.Dpo"]["tau"] = ["aligner.config.rules"]
    assert unread(planted) - unread(reads) == {"Dpo.tau"}
