"""What a recipe will ask of its language models: requests, tokens, money, before the first one.

Requests follow from the recipe: of the optimization the formula of `optimization_calls`, of each
row an evolution, an answer and what its checks ask. Tokens are estimated from the seeds' texts,
four bytes each. Both are ranges: at least where nothing is tried again, an optimization ends at
once and replies are as short as the seeds; at most where all that is allowed happens, each reply up
to its longest length. Replies that are in the cache already are not taken off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aligner.builders.evolve.contract import first_method, messages
from aligner.builders.evolve.optimization import optimization_calls
from aligner.builders.evolve.recipe import Evolve, EvolveRecipe
from aligner.builders.evolve.roles import name_of_model, sections_of, server_of
from aligner.builders.evolve.seeds import Seed, read_inputs
from aligner.builders.evolve.skillmix import MOST_AT_ONCE
from aligner.builders.evolve.skillmix_prompts import query_prompt, topics_prompt
from aligner.builders.evolve.structured import PROBE_TOKENS
from aligner.config.load import Resolved
from aligner.config.method import RunStatus
from aligner.endpoints.batch import PRICE
from aligner.endpoints.budget import Prices
from aligner.endpoints.request import estimated_tokens
from aligner.events import OnEvent

COLUMNS = ("for", "model", "requests", "tokens in", "tokens out", "US dollars")
SHORT_ANSWER = 50
"""Tokens of an answer that is short, where seeds bring none."""
ADDED = 20
"""Tokens that an evolution adds, about."""
TEMPLATE = 10
"""Tokens of a chat template before a user's words, about."""

ROLE_OF = {
    "evolve": "evolver",
    "skills": "evolver",
    "probe": "evolver",
    "answer": "answerer",
    "check": "answerer",
    "analyse": "optimizer",
    "rewrite": "optimizer",
    "judge": "judge",
    "target": "target",
}
"""Purpose of a request -> who gets it."""

Range = tuple[int, int]
"""At least, at most."""


@dataclass(frozen=True)
class Asked:
    """Requests for one purpose. `tokens_in` and `tokens_out` are those of one of them."""

    part: str
    purpose: str
    model: str
    calls: Range
    tokens_in: Range
    tokens_out: Range
    prices: Prices

    def of_all(self, tokens: Range) -> Range:
        """Tokens of all of them, from those of one, at least and at most."""
        return self.calls[0] * tokens[0], self.calls[1] * tokens[1]

    @property
    def tokens(self) -> Range:
        """Tokens of all of them, in and out, at least and at most."""
        (low_in, high_in), (low, high) = self.of_all(self.tokens_in), self.of_all(self.tokens_out)
        return low_in + low, high_in + high

    @property
    def usd(self) -> tuple[float, float]:
        """What they cost, at least and at most."""
        sent, got = self.of_all(self.tokens_in), self.of_all(self.tokens_out)
        return self.prices.usd(sent[0], got[0]), self.prices.usd(sent[1], got[1])


@dataclass(frozen=True)
class Estimate:
    """What a recipe will ask."""

    asked: list[Asked]

    @property
    def calls(self) -> Range:
        """Requests, at least and at most."""
        return sum(one.calls[0] for one in self.asked), sum(one.calls[1] for one in self.asked)

    @property
    def tokens(self) -> Range:
        """Tokens in and out, at least and at most."""
        return sum(one.tokens[0] for one in self.asked), sum(one.tokens[1] for one in self.asked)

    @property
    def usd(self) -> tuple[float, float] | None:
        """Money, at least and at most; None where no model has prices."""
        if not any(one.prices.prompt or one.prices.completion for one in self.asked):
            return None
        return sum(one.usd[0] for one in self.asked), sum(one.usd[1] for one in self.asked)


def estimate(recipe: EvolveRecipe, seeds: Sequence[Seed]) -> Estimate:
    """Say what a recipe will ask of its models."""
    sections = sections_of(recipe)
    lengths = _Lengths(recipe, seeds)
    found = []
    for part, purpose, calls in (*_before(recipe), *_rows(recipe, seeds)):
        section = sections[ROLE_OF[purpose]]
        share = PRICE if recipe.evolve.batch else 1.0
        prices = Prices(
            section.usd_per_million_prompt_tokens * share,
            section.usd_per_million_completion_tokens * share,
        )
        found.append(
            Asked(
                part,
                purpose,
                name_of_model(section),
                calls,
                lengths.tokens_in(purpose),
                lengths.tokens_out(purpose),
                prices,
            )
        )
    return Estimate([one for one in found if one.calls[1]])


def _before(recipe: EvolveRecipe) -> Iterator[tuple[str, str, Range]]:
    """Calls before the first row: of the optimization, at least those that measure the first
    method; of SkillMix, those that list; and whether a server takes schemas."""
    evolve, mix = recipe.evolve, recipe.evolve.skillmix
    optimizes = evolve.mode == "auto" and evolve.method is None
    if evolve.structured == "auto" and evolve.mode != "magpie":
        roles = ("evolver", "optimizer", "judge") if optimizes else ("evolver",)
        sections = (sections_of(recipe)[role] for role in roles)
        servers = {server_of(one) for one in sections if one.backend == "openai"}
        yield "before", "probe", (0, len(servers))
    if evolve.mode == "skillmix":
        lists = [mix.topics, mix.query_types, *[mix.skills_per_topic] * mix.topics]
        least = sum(-(-wanted // MOST_AT_ONCE) for wanted in lists)
        yield "lists", "skills", (least, 2 * least)
    if not optimizes:
        return
    first = evolve.optimization.development_size
    for purpose, most in optimization_calls(evolve).items():
        least = min(most, first) if purpose in ("evolve", "answer") else 0
        yield "optimization", purpose, (least, most)


def _rows(recipe: EvolveRecipe, seeds: Sequence[Seed]) -> Iterator[tuple[str, str, Range]]:
    evolve = recipe.evolve
    turns = sum(len(seed.users) for seed in seeds)
    rows, answers = len(seeds) * evolve.rounds, turns * evolve.rounds
    tries = 2 if evolve.failures.on_fail == "retry" else 1
    yield "rows", "evolve", (turns, answers * tries)
    more = len(seeds) if evolve.failures.on_fail == "keep_seed" else 0
    yield "rows", "answer", (turns, answers * tries + more)
    yield "checks", "check", (0, rows * (evolve.checks.majority - 1))
    if (limits := evolve.checks.pass_rate) is not None:
        yield "checks", "target", (0, rows * limits.samples)


class _Lengths:
    """Tokens of requests and replies, from the seeds' texts."""

    def __init__(self, recipe: EvolveRecipe, seeds: Sequence[Seed]) -> None:
        self.evolve = recipe.evolve
        texts = [text for seed in seeds for text in seed.users]
        self.seed = _mean([estimated_tokens(text) for text in texts])
        known = [estimated_tokens(seed.reference) for seed in seeds if seed.reference is not None]
        self.answer = max(SHORT_ANSWER, _mean(known))
        self.asks = _tokens_that_ask(recipe.evolve)
        chosen = recipe.evolve.optimization
        self.batch = chosen.batch_size * (1 + chosen.trajectory_rounds)
        is_magpie = recipe.evolve.mode == "magpie"
        self.longest = recipe.evolve.magpie.max_tokens if is_magpie else recipe.evolve.max_tokens

    def tokens_in(self, purpose: str) -> Range:
        """Return the tokens of one request."""
        evolved = self.seed + ADDED
        if purpose in ("answer", "check", "target"):
            system = estimated_tokens(self.evolve.answer_system or "")
            return system + evolved, system + max(evolved, self.longest)
        if purpose == "evolve":
            again = self.evolve.rounds > 1
            return self.asks + self.seed, self.asks + (self.longest if again else self.seed)
        sizes = {
            "analyse": self.asks + self.batch * evolved,
            "rewrite": 2 * self.asks + self.batch * evolved + self.answer,
            "judge": self.asks + 20 * evolved,
            "skills": estimated_tokens(topics_prompt(MOST_AT_ONCE, ())),
        }
        size = sizes.get(purpose, evolved)
        return size, size

    def tokens_out(self, purpose: str) -> Range:
        """Return the tokens of one reply."""
        chosen = self.evolve.optimization
        longest = {
            "evolve": self.longest,
            "skills": self.evolve.max_tokens,
            "probe": PROBE_TOKENS,
            "analyse": chosen.max_tokens,
            "rewrite": chosen.max_tokens,
            "judge": chosen.max_tokens,
        }
        shortest = {"evolve": self.seed + ADDED, "rewrite": self.asks}
        most = longest.get(purpose, self.evolve.answer_max_tokens)
        return min(most, shortest.get(purpose, self.answer)), most


def _tokens_that_ask(evolve: Evolve) -> int:
    """Tokens around an instruction that is to be evolved, or of what asks for one."""
    if evolve.mode == "magpie":
        return estimated_tokens(evolve.magpie.system or "") + TEMPLATE
    if evolve.mode == "skillmix":
        skills = [("a skill", "its topic")] * evolve.skillmix.k
        return estimated_tokens(query_prompt(skills, "a kind of query", False))
    chosen = evolve.optimization
    method = first_method(chosen.start, chosen.contract)
    return estimated_tokens("\n".join(turn["content"] for turn in messages(method, "")))


def _mean(values: Sequence[int]) -> int:
    return round(sum(values) / len(values)) if values else 0


def estimate_recipe(resolved: Resolved, on_event: OnEvent | None) -> RunStatus:
    """Say what a recipe will ask, as a table. Raises: DataError for seeds that cannot be read."""
    recipe = resolved.recipe
    assert isinstance(recipe, EvolveRecipe)
    seeds = read_inputs(recipe, on_event).seeds
    found = estimate(recipe, seeds)
    rows: list[tuple[str, ...]] = [
        (
            f"{one.part}: {one.purpose}",
            one.model,
            shown_range(one.calls),
            shown_range(one.of_all(one.tokens_in)),
            shown_range(one.of_all(one.tokens_out)),
            "" if found.usd is None else shown_dollars(one.usd),
        )
        for one in found.asked
    ]
    return RunStatus(COLUMNS, rows, remark_of(found, len(seeds)), _facts(found, len(seeds)))


def remark_of(found: Estimate, seeds: int) -> str:
    """Return the whole in a sentence."""
    money = "prices are not known: set usd_per_million_prompt_tokens and its like"
    if found.usd is not None:
        money = f"{shown_dollars(found.usd)} US dollars"
    said = f"{shown_range(found.calls)} requests, {shown_range(found.tokens)} tokens; {money}"
    return f"{seeds:,} seeds: {said}. Nothing was asked; --preview 3 shows what rows really take."


def _facts(found: Estimate, seeds: int) -> dict[str, Any]:
    asked = [
        {
            "part": one.part,
            "purpose": one.purpose,
            "model": one.model,
            "calls": one.calls,
            "tokens_in": one.tokens_in,
            "tokens_out": one.tokens_out,
            "usd": one.usd,
        }
        for one in found.asked
    ]
    whole = {"calls": found.calls, "tokens": found.tokens, "usd": found.usd}
    return {"seeds": seeds, **whole, "asked": asked}


def shown_range(ends: Range) -> str:
    """Return a range of whole numbers, as people read it."""
    low, high = ends
    return f"{high:,}" if low == high else f"{low:,} to {high:,}"


def shown_dollars(ends: tuple[float, float]) -> str:
    """Return a range of money."""
    low, high = (f"{end:,.2f}" for end in ends)
    return high if low == high else f"{low} to {high}"
