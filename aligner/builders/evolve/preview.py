"""A few rows, to be read before many are made: each as it was, evolved and answered, with what
became of it, and what all rows would take at this rate. Nothing is kept.

The method is the one that a run of the recipe would start with: `evolve.method`, else that of a run
which is in the recipe's `output_dir` already, else the one that an optimization begins with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligner.builders.evolve.authors import author_of, given_method
from aligner.builders.evolve.build import check
from aligner.builders.evolve.contract import EvolvingMethod, first_method, read_method
from aligner.builders.evolve.optimization import METHOD
from aligner.builders.evolve.output import REASONS
from aligner.builders.evolve.recipe import EvolveRecipe
from aligner.builders.evolve.roles import Roles, models_of, open_roles
from aligner.builders.evolve.row import RowWork
from aligner.builders.evolve.seeds import Seed, read_inputs
from aligner.builders.evolve.skillmix import list_skills
from aligner.config.load import Resolved
from aligner.config.method import Preview
from aligner.events import Notice, OnEvent, StageStarted, tell


def preview_rows(resolved: Resolved, count: int, on_event: OnEvent | None) -> Preview:
    """Make the first rows of a recipe.

    Raises: what a run of it would; EndpointError where a model cannot be asked.
    """
    recipe = resolved.recipe
    assert isinstance(recipe, EvolveRecipe)
    checks = check(recipe)
    inputs = read_inputs(recipe, on_event)
    method, where = _method(recipe)
    if recipe.evolve.mode == "auto":
        tell(on_event, Notice(f"the method is {where}"))
    tell(on_event, StageStarted("making the first rows"))
    seeds = inputs.seeds[:count]

    async def go() -> tuple[list[dict[str, Any]], dict[str, Any]]:
        async with open_roles(recipe) as roles:
            lists = recipe.evolve.mode == "skillmix"
            skills = await list_skills(roles, recipe.evolve, on_event) if lists else None
            author = author_of(recipe, roles, method, skills)
            work = RowWork(roles, recipe.evolve, seeds, author, checks, models_of(recipe))
            found = await asyncio.gather(*map(work, range(len(seeds))))
            return list(found), _spent(roles)

    outcomes, spent = asyncio.run(go())
    lines = [line for seed, outcome in zip(seeds, outcomes) for line in _shown(seed, outcome)]
    lines += _cost(spent, len(seeds), len(inputs.seeds))
    if given_method(recipe) is None and recipe.evolve.mode == "auto":
        lines.append("not counting the optimization of the method, which --estimate shows")
    return Preview(lines, {"rows": outcomes, "spent": spent, "seeds": len(inputs.seeds)})


def _method(recipe: EvolveRecipe) -> tuple[EvolvingMethod | None, str]:
    """The method, if rows have one, and where it comes from, in words."""
    if (given := given_method(recipe)) is not None or recipe.evolve.mode != "auto":
        return given, recipe.evolve.method or "the first one"
    path, chosen = Path(recipe.output_dir) / METHOD, recipe.evolve.optimization
    if path.exists():
        return read_method(path), f"that of the run in {recipe.output_dir}"
    start = first_method(chosen.start, chosen.contract)
    return start, "the one that an optimization begins with, not yet optimized"


def _spent(roles: Roles) -> dict[str, Any]:
    """Requests, tokens and money by purpose, of all clients."""
    found: dict[str, Any] = {}
    for client in roles.clients().values():
        for purpose, counts in client.usage.purposes.items():
            told = counts.to_json(client.usage.prices)
            entry = found.setdefault(purpose, {"calls": 0, "tokens": 0, "usd": None})
            entry["calls"] += told["calls"]
            entry["tokens"] += told["prompt_tokens"] + told["completion_tokens"]
            if told["usd"] is not None:
                entry["usd"] = (entry["usd"] or 0.0) + told["usd"]
    return found


def _shown(seed: Seed, outcome: Mapping[str, Any]) -> list[str]:
    """A seed and what came of it, as lines."""
    lines = [f"--- {seed.origin or seed.id}"]
    lines += _texts({"before": "\n".join(seed.users)} if any(seed.users) else {})
    for made in outcome["made"]:
        asked = [turn["content"] for turn in made["prompt"] if turn["role"] == "user"]
        lines += _texts({"evolved": "\n".join(asked), "answer": made["completion"]})
        lines.append(f"  kept, round {made['round']}")
    for dropped in outcome["dropped"]:
        lines += _texts({"evolved": dropped["instruction"], "answer": dropped["answer"]})
        reason = dropped["reason"]
        lines.append(f"  dropped, round {dropped['round']}: {REASONS.get(reason, reason)}")
    return [*lines, ""]


def _texts(texts: Mapping[str, str]) -> list[str]:
    lines = []
    for name, text in texts.items():
        lines.append(f"  {name}:")
        lines += [f"    {line}" for line in text.splitlines()]
    return lines


def _cost(spent: Mapping[str, Any], rows: int, total: int) -> list[str]:
    """What these rows took, and what all would."""
    lines = []
    for purpose, entry in spent.items():
        if entry["calls"]:
            lines.append(f"{purpose}: {_sum(entry['calls'], entry['tokens'], entry['usd'])}")
    money = [entry["usd"] for entry in spent.values() if entry["usd"] is not None]
    share = total / rows
    whole = _sum(
        round(share * sum(entry["calls"] for entry in spent.values())),
        round(share * sum(entry["tokens"] for entry in spent.values())),
        share * sum(money) if money else None,
    )
    return [*lines, f"all {total:,} rows at this rate: {whole}"]


def _sum(calls: int, tokens: int, usd: float | None) -> str:
    money = "" if usd is None else f", ${usd:,.4f}" if usd < 1 else f", ${usd:,.2f}"
    return f"{calls:,} requests, {tokens:,} tokens{money}"
