"""What a recipe will ask: answers, games, tokens and money, before the first request.

Games follow from the plan; of `adaptive` they are the most, of which a look may spare some. Tokens
are estimated from the texts, four bytes each; an answer that is not there yet is taken to be
between a short one and the longest. Battles that a rule decides are taken off where all answers are
known. What is in the cache or in the log is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aligner.arena.battle.answer_files import AnswerFile
from aligner.arena.battle.inputs import read_inputs
from aligner.arena.battle.judge_prompt import TEMPLATE_TOKENS
from aligner.arena.battle.judges import names_of
from aligner.arena.battle.log import rule_of
from aligner.arena.battle.plan import Match, most_battles, pairs_of
from aligner.arena.battle.recipe import Arena, ArenaRecipe, names_of_contestants
from aligner.arena.battle.sheets import Item
from aligner.config.load import Resolved
from aligner.config.method import RunStatus
from aligner.config.recipe import Endpoint
from aligner.data.rows import as_turns
from aligner.endpoints.budget import Prices
from aligner.endpoints.request import estimated_tokens
from aligner.events import OnEvent

COLUMNS = ("for", "of", "requests", "tokens in", "tokens out", "US dollars")
SHORT_ANSWER = 50
"""Tokens of an answer that is short."""
VERDICT = (60, 400)
"""Tokens of a judge's reply, about."""

Range = tuple[int, int]
"""At least, at most."""


@dataclass(frozen=True)
class Asked:
    """Requests for one purpose, and the tokens of all of them."""

    purpose: str
    name: str
    calls: Range
    tokens_in: Range
    tokens_out: Range
    prices: Prices | None = None

    @property
    def usd(self) -> tuple[float, float] | None:
        """What they cost; None without prices."""
        if self.prices is None or not (self.prices.prompt or self.prices.completion):
            return None
        low, high = zip(self.tokens_in, self.tokens_out)
        return self.prices.usd(*low), self.prices.usd(*high)


def estimate(
    recipe: ArenaRecipe, items: Sequence[Item], files: Mapping[str, AnswerFile]
) -> list[Asked]:
    """Return what will be asked of contestants and judges. Raises: RecipeError for judges without a
    name of their own."""
    arena = recipe.arena
    prompts = sum(estimated_tokens(_text(item)) for item in items)
    found = []
    for section in arena.contestants:
        if section.answers is None:
            count = len(items)
            system = count * estimated_tokens(arena.system or "")
            longest = count * arena.max_new_tokens
            found.append(
                Asked(
                    "answers",
                    section.name,
                    (count, count),
                    (prompts + system,) * 2,
                    (min(count * SHORT_ANSWER, longest), longest),
                    None if section.endpoint is None else _prices(section.endpoint),
                )
            )
    games = _games(arena, items, files)
    for name, judge in zip(names_of(arena.judges), arena.judges):
        if judge.endpoint is None:
            found.append(Asked("scores", name, games, (0, 0), (0, 0)))
            continue
        low, high = _tokens_of_games(arena, items, files, games)
        out = games[0] * VERDICT[0], games[1] * min(2 * VERDICT[1], judge.endpoint.max_tokens)
        found.append(Asked("games", name, games, (low, high), out, _prices(judge.endpoint)))
    return found


def _games(arena: Arena, items: Sequence[Item], files: Mapping[str, AnswerFile]) -> Range:
    """Both orders of every battle, at least and at most."""
    most = most_battles(arena, len(items))
    least = most
    if arena.plan == "adaptive":
        looks = min(len(items), arena.adaptive.prompts_per_look)
        least = most_battles(arena, looks)
    elif arena.plan != "bracket" and len(files) == len(arena.contestants):
        most = least = most - _ruled(arena, items, files)
    elif len(files) != len(arena.contestants):
        least = 0
    return 2 * least, 2 * most


def _ruled(arena: Arena, items: Sequence[Item], files: Mapping[str, AnswerFile]) -> int:
    """Battles that a rule decides."""
    target = arena.target if arena.plan == "target" else None
    count = 0
    for a, b in pairs_of(files, target):
        first, second = files[a].answers, files[b].answers
        count += sum(
            rule_of(Match(item, first[item.id], second[item.id])) is not None for item in items
        )
    return count


def _tokens_of_games(
    arena: Arena, items: Sequence[Item], files: Mapping[str, AnswerFile], games: Range
) -> Range:
    """Tokens of what a judge reads, from the mean length of prompts and answers."""
    count = max(1, len(items))
    prompt = sum(estimated_tokens(_text(item)) for item in items) / count
    known = sum(_mean_tokens(files[one.name]) for one in arena.contestants if one.name in files)
    unknown = len(arena.contestants) - len(files)
    low = (known + unknown * min(SHORT_ANSWER, arena.max_new_tokens)) / len(arena.contestants)
    high = (known + unknown * arena.max_new_tokens) / len(arena.contestants)
    ends = [TEMPLATE_TOKENS + prompt + 2 * answer for answer in (low, high)]
    return round(games[0] * ends[0]), round(games[1] * ends[1])


def _mean_tokens(file: AnswerFile) -> float:
    found = [estimated_tokens(answer.text) for answer in file.answers.values()]
    return sum(found) / max(1, len(found))


def _text(item: Item) -> str:
    return "\n".join(str(turn["content"]) for turn in as_turns(item.prompt, "user"))


def _prices(section: Endpoint) -> Prices:
    return Prices(section.usd_per_million_prompt_tokens, section.usd_per_million_completion_tokens)


def shown_rows(asked: Sequence[Asked]) -> list[tuple[str, str, str]]:
    """Return what a dry run says."""
    rows = [(f"{one.purpose} of {one.name}", _shown(one.calls), "") for one in asked]
    money = [one.usd for one in asked if one.usd is not None]
    if money:
        low, high = (sum(ends) for ends in zip(*money))
        rows.append(("US dollars", f"{low:,.2f} to {high:,.2f}", "by the prices of the recipe"))
    return rows


def estimate_recipe(resolved: Resolved, on_event: OnEvent | None) -> RunStatus:
    """Say what a recipe will ask, as a table. Raises: DataError for prompts or answers that cannot
    be read."""
    recipe = resolved.recipe
    assert isinstance(recipe, ArenaRecipe)
    inputs = read_inputs(recipe, on_event)
    asked = estimate(recipe, inputs.items, inputs.files)
    rows: list[tuple[str, ...]] = []
    sources = dict(names_of_contestants(recipe.arena))
    for one in asked:
        source = sources.get(one.name, one.name) if one.purpose == "answers" else one.name
        money = "" if one.usd is None else f"{one.usd[0]:,.2f} to {one.usd[1]:,.2f}"
        tokens = (_shown(one.tokens_in), _shown(one.tokens_out)) if one.tokens_in[1] else ("", "")
        rows.append((one.purpose, source, _shown(one.calls), *tokens, money))
    battles = most_battles(recipe.arena, len(inputs.items)) * len(recipe.arena.judges)
    remark = (
        f"{len(inputs.items):,} prompts, {len(recipe.arena.contestants)} contestants, "
        f"{battles:,} battles of two games at most. Nothing was asked."
    )
    return RunStatus(COLUMNS, rows, remark, _facts(asked, len(inputs.items), battles))


def _facts(asked: Sequence[Asked], prompts: int, battles: int) -> dict[str, Any]:
    found = [
        {
            "for": one.purpose,
            "name": one.name,
            "calls": one.calls,
            "tokens_in": one.tokens_in,
            "tokens_out": one.tokens_out,
            "usd": one.usd,
        }
        for one in asked
    ]
    return {"prompts": prompts, "battles": battles, "asked": found}


def _shown(ends: Range) -> str:
    low, high = ends
    return f"{high:,}" if low == high else f"{low:,} to {high:,}"
