"""Optimizing an evolving method against a simulated model whose failure rates are known exactly.

    python -m benchmarks.effects.evolve [--seeds N] [--write]

The model is that of `tests/simulated_evolver.py`: three hazards, each cured by a rule in the
method, and an optimizer of which `bad` of the rewritten methods are useless (no method in the
reply, a method that breaks the contract, or one that lost a rule). 250 instructions, 50 of them for
development, batches of 10, at most 10 steps. Arms:

* keep-best: `robust`, with the default patience and with all steps;
* the paper's rule: the best candidate in any case; as shipped, which ends when the rate falls no
  more, and with all steps;
* reflective search: a population whose members are each best somewhere, one of them rewritten
  after a look at three instructions and measured only where it did better on these (in the manner
  of GEPA, arXiv 2507.19457), with as many calls as keep-best made with five candidates on the same
  seed.

The simulation shows what a rule of selection does with good and bad proposals. It says nothing
about prompts, real models or benchmark scores.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from statistics import fmean

from aligner.builders.evolve.contract import EvolvingMethod, first_method
from aligner.builders.evolve.evolving import Clients
from aligner.builders.evolve.measuring import Tried, try_method
from aligner.builders.evolve.optimization import RULES, Rule, never_ends, optimize
from aligner.builders.evolve.recipe import Evolve, Optimization
from aligner.builders.evolve.rewriting import Case, write_candidate
from aligner.builders.evolve.split import split_seeds
from aligner.endpoints.scripted import ScriptedBackend
from benchmarks.results import write
from tests.simulated_evolver import Roles, SimulatedModel, oracle, seeds

BAD = {"hostile": 0.65, "mild": 0.3}
CANDIDATES = (1, 3, 5, 9)
MINIBATCH = 3
SEEDS, OTHERS = seeds(250), seeds(400, first=1000)
"""What is optimized with, and 400 instructions that no arm sees."""


@dataclass(frozen=True)
class Found:
    """What a search ended with. `rose`: whether the failure rate did at some step."""

    method: EvolvingMethod
    failure_rate: float
    calls: int
    rose: bool = False


def settings(candidates: int, preset: str, patience: int) -> Evolve:
    return Evolve(
        optimization=Optimization(candidates=candidates, preset=preset, patience=patience)
    )


def climb(
    model: SimulatedModel, seed: int, candidates: int, preset: str, *, all_steps: bool
) -> Found:
    """One optimization by the product."""
    given = settings(candidates, preset, patience=10 if all_steps else 3)
    rule = Rule(RULES[preset].choose, never_ends) if all_steps and preset == "paper" else None
    roles = Roles(ScriptedBackend(model.reply))
    found = asyncio.run(optimize(given, SEEDS, roles, None, None, seed, rule=rule))
    rates = [measured.failure_rate for _, measured in found.history.in_force()]
    rose = any(later > one for one, later in pairwise(rates))
    return Found(found.best, rates[-1], sum(model.asked.values()), rose)


def reflect(model: SimulatedModel, seed: int, budget: int) -> Found:
    """One reflective search with so many calls."""
    return asyncio.run(_reflect(model, Roles(ScriptedBackend(model.reply)), seed, budget))


async def _reflect(model: SimulatedModel, roles: Clients, seed: int, budget: int) -> Found:
    given, draw = Evolve(), Random(f"{seed} reflective")
    split = split_seeds(SEEDS, given.optimization, seed)

    async def failures(method: EvolvingMethod, on: Sequence[str]) -> tuple[list[Tried], list[bool]]:
        tried, _ = await try_method(roles, given, method, on)
        return tried, [one.failure is not None for one in tried]

    start = first_method("full", "owned")
    pool = [(start, (await failures(start, split.development))[1])]
    for number in range(1, 10_000):
        if sum(model.asked.values()) >= budget or min(sum(failed) for _, failed in pool) == 0:
            break
        method = _drawn(pool, draw)
        batch = draw.sample(split.train, MINIBATCH)
        tried, failed = await failures(method, batch)
        if not any(failed):
            continue
        cases = [Case(one.instruction, (one.evolution,)) for one in tried]
        candidate = await write_candidate(
            roles, given, method, cases, step=number, sample_index=number
        )
        if candidate.outcome != "measured" or candidate.method is None:
            continue
        if sum((await failures(candidate.method, batch))[1]) < sum(failed):
            pool.append(
                (candidate.method, (await failures(candidate.method, split.development))[1])
            )
    best, failed = min(pool, key=lambda one: sum(one[1]))
    return Found(best, fmean(failed), sum(model.asked.values()))


def _drawn(pool: Sequence[tuple[EvolvingMethod, list[bool]]], draw: Random) -> EvolvingMethod:
    """A member, as often as there are instructions on which none does better."""
    wins = [0] * len(pool)
    for outcomes in zip(*(failed for _, failed in pool)):
        lowest = min(outcomes)
        for place, outcome in enumerate(outcomes):
            wins[place] += outcome == lowest
    return draw.choices([method for method, _ in pool], weights=wins)[0]


def row(name: str, found: Sequence[Found]) -> str:
    solved = sum(one.failure_rate == 0.0 for one in found)
    rose = sum(one.rose for one in found)
    others = fmean(oracle(one.method, OTHERS) for one in found)
    cells = (
        f"{solved}/{len(found)}",
        f"{fmean(one.failure_rate for one in found):.3f}",
        f"{others:.3f}",
        f"{rose}/{len(found)}",
        f"{fmean(one.calls for one in found):.0f}",
    )
    return f"| {name} | " + " | ".join(cells) + " |"


ARMS: dict[str, tuple[str, bool]] = {
    "keep-best, all steps": ("robust", True),
    "keep-best, patience 3": ("robust", False),
    "paper's rule, all steps": ("paper", True),
    "paper's rule, until no fall": ("paper", False),
}


def table(bad: float, number: int) -> Iterator[str]:
    """The rows of one optimizer."""
    yield "| rule, candidates | 0 reached | final rate | on others | rose | calls |"
    yield "| --- | --- | --- | --- | --- | --- |"
    budgets: list[int] = []
    for name, (preset, all_steps) in ARMS.items():
        for candidates in CANDIDATES:
            found = [
                climb(SimulatedModel(bad, seed=seed), seed, candidates, preset, all_steps=all_steps)
                for seed in range(number)
            ]
            if (name, candidates) == ("keep-best, all steps", 5):
                budgets = [one.calls for one in found]
            yield row(f"{name}, {candidates}", found)
    found = [
        reflect(SimulatedModel(bad, seed=seed), seed, budget) for seed, budget in enumerate(budgets)
    ]
    yield row("reflective search", found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument(
        "--write", action="store_true", help="write the tables into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    for name, bad in BAD.items():
        lines = []
        for line in table(bad, options.seeds):
            print(line, flush=True)
            lines.append(line)
        if options.write:
            write(f"evolve-{name}", "\n".join(lines))


if __name__ == "__main__":
    main()
