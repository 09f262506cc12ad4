"""Instruct-SkillMix (arXiv 2408.14774): skills are listed first, then each row is written so that a
few of them are needed together. Uses no seeds.

Lists, asked for once: topics, skills of each topic, kinds of query. What is listed twice, letter
case and punctuation aside, counts once. A model that lists fewer than it was asked for is asked
again, until a reply brings nothing new; the rows then do with what there is, as long as there are
`k` skills. Rows: `k` different skills and a kind of query, drawn by the recipe's seed; no
combination comes twice before all had their turn.

Where we differ from the paper: all prompts are our own; the answer is asked for by itself, as in
every mode, where the paper has query and answer in one reply; and the lists are not looked through
by people.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from aligner.builders.evolve.contract import INSTRUCTION_SCHEMA
from aligner.builders.evolve.evolving import Clients, Evolution, side_by_side
from aligner.builders.evolve.failures import failure_of_evolution
from aligner.builders.evolve.made import Turn
from aligner.builders.evolve.recipe import Evolve
from aligner.builders.evolve.sections import last_section
from aligner.builders.evolve.seeds import Seed
from aligner.builders.evolve.skillmix_prompts import (
    LIST_LABEL,
    QUERY_LABEL,
    kinds_prompt,
    query_prompt,
    skills_prompt,
    topics_prompt,
)
from aligner.builders.evolve.structured import read_object, response_format, takes_schemas
from aligner.data.normal_text import normal_text
from aligner.data.reasoning import without_reasoning
from aligner.endpoints.request import ChatRequest
from aligner.errors import EndpointError
from aligner.events import Notice, OnEvent, tell

MOST_AT_ONCE = 50
"""Items that one reply is asked for."""
LONGEST_ITEM = 120
"""Characters of an item; a longer line is a sentence about the list."""

NEXT_TRY = 1_000_000_000
"""Between the sample indices of two tries at one row."""

ListPrompt = Callable[[int, Sequence[str]], str]
"""From a number of items, and those that are there, to what asks for more."""

_MARK = re.compile(r"^\s*(?:[-*\u2022+]|\(?\d{1,4}[.):])\s+")


@dataclass(frozen=True)
class Skill:
    """A skill, and the topic that it was listed for."""

    topic: str
    name: str


@dataclass(frozen=True)
class Skills:
    """What rows are drawn from, and how it was come by. `listed`: name of a list -> items that were
    asked for, that came, and that had come before."""

    skills: tuple[Skill, ...]
    kinds: tuple[str, ...]
    listed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, which `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Skills:
        """What `to_json` wrote."""
        skills = tuple(Skill(**skill) for skill in values["skills"])
        return cls(skills, tuple(values["kinds"]), values["listed"])


@dataclass
class _Listing:
    """A list that grows: its items, and how many of them came twice."""

    wanted: int
    items: list[str] = field(default_factory=list)
    twice: int = 0

    def add(self, items: Iterable[str]) -> int:
        """Take new items up to the number that is wanted, and return how many there were."""
        before = len(self.items)
        known = {normal_text(item) for item in self.items}
        for item in items:
            if (name := normal_text(item)) in known:
                self.twice += 1
            elif name and len(self.items) < self.wanted:
                known.add(name)
                self.items.append(item)
        return len(self.items) - before

    def counts(self) -> dict[str, int]:
        """For the record."""
        return {"wanted": self.wanted, "listed": len(self.items), "twice": self.twice}


async def list_skills(roles: Clients, settings: Evolve, on_event: OnEvent | None = None) -> Skills:
    """Have topics, their skills and kinds of query listed.

    Raises: LLMError where there is no reply; EndpointError when there are fewer skills than a row
    needs, or no kind of query.
    """
    mix = settings.skillmix
    topics, kinds = await side_by_side(
        [
            _listed(roles, settings, mix.topics, topics_prompt),
            _listed(roles, settings, mix.query_types, kinds_prompt),
        ]
    )
    of_topics = await side_by_side(
        _listed(roles, settings, mix.skills_per_topic, partial(skills_prompt, topic))
        for topic in topics.items
    )
    whole = _Listing(mix.topics * mix.skills_per_topic)
    skills = []
    for topic, found in zip(topics.items, of_topics):
        whole.twice += found.twice
        skills += [Skill(topic, name) for name in found.items if whole.add([name])]
    lists = {"topics": topics, "skills": whole, "query types": kinds}
    _look_at(lists, mix.k, on_event)
    listed = {name: found.counts() for name, found in lists.items()}
    return Skills(tuple(skills), tuple(kinds.items), listed)


def _look_at(lists: Mapping[str, _Listing], k: int, on_event: OnEvent | None) -> None:
    short = [
        f"{len(found.items):,} of {found.wanted:,} {name}"
        for name, found in lists.items()
        if len(found.items) < found.wanted
    ]
    if len(lists["skills"].items) < k or not lists["query types"].items:
        raise EndpointError(
            f"the model listed {', '.join(short)}, and a row needs {k} skills and a query type",
            "ask a stronger model, or look at its replies in the run directory",
        )
    if short:
        tell(on_event, Notice(f"the model listed {', '.join(short)}; rows are drawn from those"))


async def _listed(roles: Clients, settings: Evolve, wanted: int, prompt: ListPrompt) -> _Listing:
    """Ask for items until there are enough, or a reply brings none."""
    found = _Listing(wanted)
    while (missing := wanted - len(found.items)) > 0:
        text = prompt(min(missing, MOST_AT_ONCE), found.items)
        completion = await roles.evolver.chat(
            ChatRequest(
                messages=({"role": "user", "content": text},),
                temperature=settings.temperature,
                max_tokens=settings.max_tokens,
                purpose="skills",
            )
        )
        if found.add(read_list(completion.text, is_cut=completion.truncated)) == 0:
            break
    return found


def read_list(reply: str, *, is_cut: bool = False) -> list[str]:
    """Return the items of a list, one in a line, without bullets and numbers. The last one of a
    reply that was cut is left out, and so is what is no item."""
    text = without_reasoning(reply)
    section = last_section(text, [LIST_LABEL])
    lines = (text if section is None else section).splitlines()
    lines = lines[:-1] if is_cut else lines
    items = [_MARK.sub("", line).strip(" \t*_`\"'.;,") for line in lines]
    return [item for item in items if 0 < len(item) <= LONGEST_ITEM and not item.endswith(":")]


class SkillMix:
    """Writes instructions that need some skills together, as an `Author` of rows. `seed`: of the
    recipe."""

    def __init__(self, roles: Clients, settings: Evolve, skills: Skills, seed: int) -> None:
        assert settings.rows is not None, "the recipe has looked"
        self.roles, self.settings, self.skills = roles, settings, skills
        self.draws = draws_of(skills, settings.skillmix.k, settings.rows, seed)

    def method_id(self, seed: Seed, round_: int) -> str | None:
        """None: rows have no evolving method."""

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
        """Return the instruction of a row. Raises: LLMError where there is no reply."""
        chosen, kind = self.draws[seed.number]
        structured = await takes_schemas(self.roles.evolver, self.settings)
        pairs = [(skill.name, skill.topic) for skill in chosen]
        text = query_prompt(pairs, kind, structured)
        completion = await self.roles.evolver.chat(
            ChatRequest(
                messages=({"role": "user", "content": text},),
                temperature=self.settings.temperature if temperature is None else temperature,
                max_tokens=self.settings.max_tokens,
                sample_index=seed.number + NEXT_TRY * sample_index,
                purpose="evolve",
                extra=response_format(INSTRUCTION_SCHEMA) if structured else {},
            )
        )
        facts = {"skills": [skill.name for skill in chosen], "query_type": kind}
        query = _read_query(completion.text, structured)
        rules, reason = self.settings.failures, completion.finish_reason
        if query is None:
            is_cut = reason == "length" and rules.rules == "robust"
            return Evolution("", "truncated" if is_cut else "parse", completion, facts)
        failure = failure_of_evolution("", query, rules, reason)
        return Evolution(query, failure, completion, facts)


def _read_query(reply: str, structured: bool) -> str | None:
    if not structured:
        return last_section(without_reasoning(reply), [QUERY_LABEL])
    values = read_object(reply, INSTRUCTION_SCHEMA)
    return None if values is None else str(values["instruction"]).strip()


Draw = tuple[tuple[Skill, ...], str]


def draws_of(skills: Skills, k: int, rows: int, seed: int) -> list[Draw]:
    """Return `k` skills and a kind of query for each row. The first rows of a longer run are those
    of a shorter one; no combination comes again before each was drawn once."""
    generator = random.Random(f"{seed}:skillmix")
    names = range(len(skills.skills))
    all_of_them = math.comb(len(names), k) * len(skills.kinds)
    seen: set[tuple[tuple[int, ...], int]] = set()
    found: list[Draw] = []
    while len(found) < rows:
        if len(seen) == all_of_them:
            seen.clear()
        draw = tuple(sorted(generator.sample(names, k))), generator.randrange(len(skills.kinds))
        if draw not in seen:
            seen.add(draw)
            found.append((tuple(skills.skills[i] for i in draw[0]), skills.kinds[draw[1]]))
    return found
