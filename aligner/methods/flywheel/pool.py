"""The prompts of the rounds: a pool without repeats and without what is in the test set, in parts.

The pool is filtered in this order, and each loss is counted: prompts that ask the same, prompts
that are nearly an earlier one, and prompts that overlap with the test set. What is left is put into
an order by the seed, and each strategy of each round takes its part; no prompt comes twice.

Of the paper's filters (arXiv 2407.10627, section 3.1) two have no part here, because they need a
model of their own: what is illegal or toxic, and what is not English. A function of yours can drop
such rows (`data.train[].function`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligner.arena.battle.plan import shuffled
from aligner.arena.battle.prompts import ID_COLUMNS, items_of
from aligner.arena.battle.sheets import Item
from aligner.arena.selection.reading import difficulties_of
from aligner.arena.testset.frozen import DEV, TEST, TestSet, read_testset
from aligner.arena.testset.layers import SharedWords
from aligner.arena.testset.pool import user_turns
from aligner.config.recipe import Data, Source
from aligner.data.duplicates import SeenTexts
from aligner.data.ledger import Ledger
from aligner.data.loading import load_rows
from aligner.data.row_texts import RowTexts
from aligner.data.rows import PromptRow, refuse_tools
from aligner.errors import DataError
from aligner.events import DataReady, Notice, OnEvent, StageStarted, tell
from aligner.methods.flywheel.recipe import FlywheelRecipe, Strategy

SAME = "asks what an earlier row asks"
NEARLY = "is nearly an earlier prompt"
OVERLAPS = "overlaps with the test set"
UNUSED = "that no part takes"

Place = tuple[int, Strategy]
"""A round, and a strategy in it."""


@dataclass
class Pool:
    """What the battles of a run are about.

    `parts`: the prompts of each strategy of each round. `dev`, `test`: those of the test set.
    `difficulties`: by the id of a prompt, where it has one. `lost`: reason -> prompts.
    """

    parts: dict[Place, list[Item]]
    dev: list[Item]
    test: list[Item]
    tests: TestSet
    difficulties: dict[str, float] = field(default_factory=dict)
    lost: Counter[str] = field(default_factory=Counter)
    files: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    ledger: dict[str, Any] = field(default_factory=dict)

    @property
    def items(self) -> list[Item]:
        """All prompts that anybody answers."""
        return [*(item for part in self.parts.values() for item in part), *self.dev, *self.test]


def read_pool(recipe: FlywheelRecipe, on_event: OnEvent | None) -> Pool:
    """Read prompts and test set, and say which strategy of which round gets which prompts.

    Raises: DataError for rows and test sets that cannot be used, and for too few prompts.
    """
    flywheel = recipe.flywheel
    tests = read_testset(Path(flywheel.test_set))
    dev, test = (_split(tests.folder / name, flywheel.category) for name in (DEV, TEST))
    for name, items in (("development", dev), ("test", test)):
        if len(items) < 2:
            raise DataError(
                f"flywheel.test_set: {tests.folder} has {len(items)} prompts in its {name} part",
                "build it with --dev 0.2: one part chooses models, the other one reports",
            )
    tell(on_event, StageStarted("reading the prompts"))
    columns = [name for name in (flywheel.category, flywheel.difficulty) if name is not None]
    loaded = load_rows(recipe.data, "prompts", recipe.seed, keep=(*ID_COLUMNS, *columns))
    loaded.warn(on_event)
    refuse_tools(loaded.train, "a contestant")
    rows = [row for row in loaded.train if isinstance(row, PromptRow)]
    category = flywheel.category
    if category is not None and not any(row.extra.get(category) is not None for row in rows):
        raise DataError(
            f"no row has the column {category}", "set flywheel.category to one they have"
        )
    items, repeated = items_of(rows, category)
    column = flywheel.difficulty
    difficulties = {} if column is None else difficulties_of(rows, column)
    tell(on_event, DataReady(loaded.ledger.table()))
    kept, lost = _filtered(items, tests)
    lost[SAME] += repeated
    parts = _parts(kept, recipe, lost)
    pool = Pool(parts, dev, test, tests, difficulties, lost, _files(loaded.ledger))
    pool.fingerprint, pool.ledger = loaded.fingerprint, loaded.ledger.to_json()
    if said := ", ".join(f"{count:,} {reason}" for reason, count in sorted(lost.items()) if count):
        tell(on_event, Notice(f"prompts left out: {said}"))
    return pool


def _split(path: Path, category: str | None) -> list[Item]:
    """The prompts of a part of the test set."""
    if not path.read_bytes().strip():
        return []
    columns = (*ID_COLUMNS, *([category] if category is not None else []))
    loaded = load_rows(Data(train=[Source(path=str(path))]), "prompts", 0, keep=columns)
    return items_of([row for row in loaded.train if isinstance(row, PromptRow)], category)[0]


def _files(ledger: Ledger) -> dict[str, str]:
    return {file.path: file.sha256 for source in ledger.sources for file in source.files}


def _filtered(items: Sequence[Item], tests: TestSet) -> tuple[list[Item], Counter[str]]:
    """The prompts that are neither nearly an earlier one nor in the test set."""
    words, seen = SharedWords(tests.items), SeenTexts(0.8)
    kept: list[Item] = []
    lost: Counter[str] = Counter()
    for item in items:
        asked = user_turns(item.prompt)
        text = "\n".join(asked)
        if words.hits(RowTexts(item.origin, asked, [])):
            lost[OVERLAPS] += 1
        elif seen.match(text) is not None:
            lost[NEARLY] += 1
        else:
            seen.add(text, item.id)
            kept.append(item)
    return kept, lost


def _parts(
    items: Sequence[Item], recipe: FlywheelRecipe, lost: Counter[str]
) -> dict[Place, list[Item]]:
    """Give each strategy of each round its prompts; what is left over is counted in `lost`."""
    flywheel = recipe.flywheel
    places = [
        (number, strategy)
        for number in range(1, flywheel.rounds + 1)
        for strategy in flywheel.strategies
    ]
    each = flywheel.prompts_per_battle or len(items) // len(places)
    if each < 1 or each * len(places) > len(items):
        raise DataError(
            f"{len(items):,} prompts are left, and {flywheel.rounds} rounds of "
            f"{len(flywheel.strategies)} strategies take {each * len(places) or len(places):,}",
            "give more prompts, or set fewer rounds or prompts_per_battle",
        )
    lost[UNUSED] += len(items) - each * len(places)
    order = shuffled(items, recipe.seed)
    return {place: order[start * each : (start + 1) * each] for start, place in enumerate(places)}
