"""A few rows, to be read before many are made: each as it was, evolved and answered, with what
became of it, and what all rows would take at this rate.

Replies are kept where a run of the recipe finds them: in its own file, or, before there is one, in
a file beside its folder, which it takes over together with what was spent. So they are paid for
once. Nothing is sent in batches here.

The method is the one that a run of the recipe would start with: `evolve.method`, else that of a run
which is in the recipe's `output_dir` already, else the one that an optimization begins with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aligner.builders.evolve.authors import author_of, given_method
from aligner.builders.evolve.build import check
from aligner.builders.evolve.contract import EvolvingMethod, first_method, read_method
from aligner.builders.evolve.evolving import side_by_side
from aligner.builders.evolve.optimization import METHOD
from aligner.builders.evolve.output import REASONS
from aligner.builders.evolve.recipe import EvolveRecipe
from aligner.builders.evolve.roles import PREVIEW, REPLIES, Roles, models_of, open_roles
from aligner.builders.evolve.row import RowWork
from aligner.builders.evolve.seeds import Seed, read_inputs
from aligner.builders.evolve.skillmix import list_skills
from aligner.config.load import Resolved
from aligner.config.method import Preview
from aligner.endpoints.batch import PRICE
from aligner.endpoints.budget import Prices
from aligner.endpoints.usage import Counts
from aligner.events import Notice, OnEvent, StageStarted, tell

ONCE = ("probe", "skills")
"""Purposes of requests that all rows have in common."""


def preview_rows(resolved: Resolved, count: int, on_event: OnEvent | None) -> Preview:
    """Make the first rows of a recipe.

    Raises: what a run of it would; EndpointError where a model cannot be asked.
    """
    recipe = resolved.recipe
    assert isinstance(recipe, EvolveRecipe)
    is_batched = recipe.evolve.batch
    recipe = recipe.model_copy(update={"evolve": recipe.evolve.model_copy(update={"batch": False})})
    checks = check(recipe)
    inputs = read_inputs(recipe, on_event)
    method, where = _method(recipe)
    if recipe.evolve.mode == "auto":
        tell(on_event, Notice(f"the method is {where}"))
    tell(on_event, StageStarted("making the first rows"))
    seeds = inputs.seeds[:count]

    async def go() -> tuple[list[dict[str, Any]], dict[str, _Took]]:
        async with open_roles(recipe, _replies_of(recipe)) as roles:
            lists = recipe.evolve.mode == "skillmix"
            skills = await list_skills(roles, recipe.evolve, on_event) if lists else None
            author = author_of(recipe, roles, method, skills)
            work = RowWork(roles, recipe.evolve, seeds, author, checks, models_of(recipe))
            found = await side_by_side(map(work, range(len(seeds))))
            return found, _took(roles)

    outcomes, took = asyncio.run(go())
    lines = [line for seed, outcome in zip(seeds, outcomes) for line in _shown(seed, outcome)]
    lines += _cost(took, len(seeds), len(inputs.seeds), PRICE if is_batched else 1.0)
    if given_method(recipe) is None and recipe.evolve.mode == "auto":
        lines.append("not counting the optimization of the method, which --estimate shows")
    spent = {purpose: asdict(one) for purpose, one in took.items()}
    return Preview(lines, {"rows": outcomes, "spent": spent, "seeds": len(inputs.seeds)})


def _replies_of(recipe: EvolveRecipe) -> Path:
    """The file of replies of the run, if it was begun; else the one that it will take over."""
    folder = Path(recipe.output_dir)
    is_begun = (folder / "resolved.json").exists()
    return folder / REPLIES if is_begun else Path(f"{folder}{PREVIEW}")


def _method(recipe: EvolveRecipe) -> tuple[EvolvingMethod | None, str]:
    """The method, if rows have one, and where it comes from, in words."""
    if (given := given_method(recipe)) is not None or recipe.evolve.mode != "auto":
        return given, recipe.evolve.method or "the first one"
    path, chosen = Path(recipe.output_dir) / METHOD, recipe.evolve.optimization
    if path.exists():
        return read_method(path), f"that of the run in {recipe.output_dir}"
    start = first_method(chosen.start, chosen.contract)
    return start, "the one that an optimization begins with, not yet optimized"


@dataclass
class _Took:
    """Requests for one purpose, with their tokens and what they cost, or would have: `cached` ones,
    answered before or the same as another, cost nothing."""

    calls: int = 0
    cached: int = 0
    tokens: int = 0
    usd: float | None = None

    def add(self, counts: Counts, prices: Prices) -> None:
        """Count those of a client."""
        sent = counts.prompt_tokens + counts.cached_prompt_tokens
        got = counts.completion_tokens + counts.cached_completion_tokens
        self.calls += counts.calls + counts.cached
        self.cached += counts.cached
        self.tokens += sent + got
        if prices.prompt or prices.completion:
            self.usd = (self.usd or 0.0) + prices.usd(sent, got)


def _took(roles: Roles) -> dict[str, _Took]:
    """What was asked, by purpose, of all clients."""
    found: dict[str, _Took] = {}
    for client in roles.clients().values():
        for purpose, counts in client.usage.purposes.items():
            found.setdefault(purpose, _Took()).add(counts, client.usage.prices)
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


def _cost(took: Mapping[str, _Took], rows: int, total: int, price: float) -> list[str]:
    """What these rows took, and what all would, at this share of the price."""
    lines = []
    whole = _Took()
    for purpose, one in took.items():
        before = f" ({one.cached:,} of them cost nothing)" if one.cached else ""
        lines.append(f"{purpose}: {_sum(one)}{before}")
        share = 1.0 if purpose in ONCE else total / rows
        whole.calls += round(share * one.calls)
        whole.tokens += round(share * one.tokens)
        if one.usd is not None:
            whole.usd = (whole.usd or 0.0) + price * share * one.usd
    batched = ", in batches" if price != 1.0 else ""
    return [*lines, f"all {total:,} rows at this rate{batched}: {_sum(whole)}"]


def _sum(took: _Took) -> str:
    usd = took.usd
    money = "" if usd is None else f", ${usd:,.4f}" if usd < 1 else f", ${usd:,.2f}"
    return f"{took.calls:,} requests, {took.tokens:,} tokens{money}"
