"""Where rows begin: the prompts of `data.train`, as instructions and conversations.

Only what the user asks is taken, and a system prompt; of the answers only the last one is kept,
which verifiers compare with. A conversation gives its first turn, or all turns of the user
(`evolve.multiturn`). Modes that write instructions from nothing get seeds without a text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from aligner.builders.evolve.made import Turn
from aligner.builders.evolve.output_checks import TestSets, load_test_sets
from aligner.builders.evolve.recipe import EvolveRecipe
from aligner.data.ledger import Ledger
from aligner.data.loading import load_rows
from aligner.data.rows import PromptRow, as_turns, refuse_tools
from aligner.errors import DataError
from aligner.events import DataReady, OnEvent, StageStarted, tell
from aligner.reward_models.named_inputs import inputs_changed, named_inputs
from aligner.runs.files import read_json
from aligner.runs.run import Run

ID_DIGITS = 16
SYSTEM = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Seed:
    """Where a row begins. `number`: its place among all, from 0. `users`: what the user asks, turn
    by turn. `reference`: the last answer that it came with."""

    id: str
    number: int
    users: tuple[str, ...] = ("",)
    system: tuple[Turn, ...] = ()
    reference: str | None = None
    origin: str = ""


@dataclass
class Inputs:
    """The seeds, what they came from, and the test sets that rows may not overlap with."""

    seeds: list[Seed]
    tests: TestSets | None = None
    files: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    ledger: dict[str, Any] = field(default_factory=dict)

    @property
    def instructions(self) -> list[str]:
        """The first turn of each seed."""
        return [seed.users[0] for seed in self.seeds]

    def record(self, run: Run, recipe: EvolveRecipe, models: Mapping[str, Any]) -> None:
        """Write down what was read, what stands behind the recipe's other names, and what its
        models are; what changed since is seen by the stages."""
        found = {"fingerprint": self.fingerprint, "sources": {**self.files, **self.test_files()}}
        found |= {"named": named_inputs(recipe), "models": dict(models)}
        run.write_json("inputs.json", found)
        run.write_json("data.json", {**self.ledger, "seeds": len(self.seeds)})

    def parents(self) -> list[dict[str, Any]]:
        """Return where the rows came from."""
        return [
            {"kind": "data", "path": path, "fingerprint": digest}
            for path, digest in self.files.items()
        ]

    def test_files(self) -> dict[str, str]:
        """Return the files of the test sets."""
        return {} if self.tests is None else _files_of(self.tests.ledger)

    def digest(self) -> str:
        """Return a hash of the seeds."""
        found = [[seed.id, seed.users, seed.system, seed.reference] for seed in self.seeds]
        return sha256(json.dumps(found).encode()).hexdigest()


def read_inputs(recipe: EvolveRecipe, on_event: OnEvent | None) -> Inputs:
    """Read the seeds of a recipe.

    Raises: DataError for rows that cannot be evolved, as for those that cannot be read.
    """
    settings = recipe.evolve
    tests = load_test_sets(settings)
    if recipe.data is None:
        assert settings.rows is not None, "a rule asks for it"
        seeds = [Seed(f"row {number + 1}", number) for number in range(settings.rows)]
        return Inputs(seeds, tests)
    tell(on_event, StageStarted("reading the data"))
    loaded = load_rows(recipe.data, "prompts", recipe.seed, keep=("answer",))
    loaded.warn(on_event)
    refuse_tools(loaded.train, "the model that answers")
    rows = [row for row in loaded.train if isinstance(row, PromptRow)]
    seeds = list(_seeds(rows[: settings.rows], is_whole=settings.multiturn == "sequential"))
    table = loaded.ledger.table()
    if len(seeds) < len(rows):
        table.append(("seeds", f"{len(seeds):,}, the first ones (evolve.rows)"))
    tell(on_event, DataReady(table))
    ledger = loaded.ledger
    return Inputs(seeds, tests, _files_of(ledger), loaded.fingerprint, ledger.to_json())


def inputs_are_other(folder: Path, recipe: EvolveRecipe, models: Mapping[str, Any]) -> bool:
    """Say whether data, files or models are not what a run in this folder was made of."""
    known = read_json(folder, "inputs.json") or {}
    now = json.loads(json.dumps(models))
    return inputs_changed(folder, recipe) or known.get("models", now) != now


def _files_of(ledger: Ledger) -> dict[str, str]:
    return {file.path: file.sha256 for source in ledger.sources for file in source.files}


def _seeds(rows: Iterable[PromptRow], *, is_whole: bool) -> Iterator[Seed]:
    seen: Counter[str] = Counter()
    for number, row in enumerate(rows):
        turns = as_turns(row.prompt, "user")
        system = tuple(turn for turn in turns if turn["role"] in SYSTEM)
        users = _asked(turns, row.origin)
        users = users if is_whole else users[:1]
        # the answer that a row came with is that to its last turn
        is_answered = is_whole or sum(turn["role"] == "user" for turn in turns) == 1
        name = _digest([system, users])
        seen[name] += 1
        yield Seed(
            name if seen[name] == 1 else f"{name}-{seen[name]}",
            number,
            users,
            tuple({"role": turn["role"], "content": turn["content"]} for turn in system),
            row.answer if is_answered else None,
            row.origin,
        )


def _asked(turns: Sequence[dict[str, Any]], origin: str) -> tuple[str, ...]:
    users = tuple(turn["content"] for turn in turns if turn["role"] == "user")
    if not users or not all(isinstance(text, str) and text.strip() for text in users):
        raise DataError(
            f"{origin}: there is no instruction to evolve: a turn of the user is empty, or there "
            "is none",
            "take such rows out, with a `function:` of yours for example",
        )
    return users


def _digest(value: Any) -> str:
    return sha256(json.dumps(value).encode()).hexdigest()[:ID_DIGITS]
