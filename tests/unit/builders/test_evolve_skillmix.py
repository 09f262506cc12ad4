"""Lists of skills, and rows that need some of them together."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aligner.builders.evolve.build import run_evolve
from aligner.builders.evolve.evolving import Evolution
from aligner.builders.evolve.recipe import Evolve
from aligner.builders.evolve.seeds import Seed
from aligner.builders.evolve.skillmix import (
    Skill,
    SkillMix,
    Skills,
    draws_of,
    list_skills,
    read_list,
)
from aligner.config.load import load_recipe
from aligner.endpoints.request import ChatRequest, Completion
from aligner.endpoints.scripted import ScriptedBackend
from aligner.errors import EndpointError
from aligner.events import Notice

ROOT = Path(__file__).parents[3]
QUERY = "Plan a street party with me."


@dataclass
class Roles:
    """One client in all roles."""

    client: Any

    def __post_init__(self) -> None:
        self.evolver = self.answerer = self.optimizer = self.judge = self.client


def settings(rows: int = 4, **skillmix: Any) -> Evolve:
    return Evolve.model_validate({"mode": "skillmix", "rows": rows, "skillmix": skillmix})


def listing(*items: str) -> str:
    return "Let me think.\n\n### List\n" + "\n".join(items)


def lister(request: ChatRequest) -> str:
    """A model with three topics, of which it knows two skills each, one of them the same."""
    asked = request.messages[-1]["content"]
    number = int(re.findall(r"Name (\d+)", asked)[0])
    topic = re.search(r"about this topic: (\w+)", asked)
    if topic is not None:
        items = ["Patience", f"{topic[1]} sense"]
    elif "kinds of request" in asked:
        items = ["decision", "explanation", "text to be written"]
    else:
        items = ["Cooking", "Law", "Travel"]
    known = asked.partition("there already")[2]
    return listing(
        *[f"{n}. {item}" for n, item in enumerate(items, 1) if item not in known][:number]
    )


def listed(evolve: Evolve, script: Any = lister) -> tuple[Skills, list[str], ScriptedBackend]:
    events: list[Any] = []
    backend = ScriptedBackend(script)
    found = asyncio.run(list_skills(Roles(backend), evolve, events.append))
    return found, [event.text for event in events if isinstance(event, Notice)], backend


@pytest.mark.parametrize(
    ("reply", "items"),
    [
        (listing("a", "b c"), ["a", "b c"]),
        (
            "### List\n1. **One**\n2) `two`\n- three;\n(4) four.\n\n\u2022 five",
            "one two three four five",
        ),
        ("Here are some:\nOne\nTwo", ["One", "Two"]),
        ("<think>### List\nno</think>### List\nyes", ["yes"]),
        (listing("x" * 121, "Notes:", "ok"), ["ok"]),
        ("", []),
    ],
)
def test_a_list_is_read_line_by_line(reply: str, items: Any) -> None:
    found = read_list(reply)
    if isinstance(items, str):
        found, items = [item.lower() for item in found], items.split()
    assert found == items


def test_the_last_item_of_a_list_that_was_cut_is_left_out() -> None:
    assert read_list(listing("one", "tw"), is_cut=True) == ["one"]


def test_skills_are_listed_by_topic_and_each_counts_once() -> None:
    evolve = settings(topics=3, skills_per_topic=2, query_types=3)
    found, notices, backend = listed(evolve)
    assert found.skills == (
        Skill("Cooking", "Patience"),
        Skill("Cooking", "Cooking sense"),
        Skill("Law", "Law sense"),
        Skill("Travel", "Travel sense"),
    )
    assert found.kinds == ("decision", "explanation", "text to be written")
    assert found.listed["skills"] == {"wanted": 6, "listed": 4, "twice": 2}
    assert notices == ["the model listed 4 of 6 skills; rows are drawn from those"]
    assert Counter(request.purpose for request in backend.requests) == {"skills": 5}
    assert Skills.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_model_is_asked_again_until_it_has_no_more() -> None:
    """It lists one more topic with every reply, and then repeats itself."""

    def one_by_one(request: ChatRequest) -> str:
        asked = request.messages[-1]["content"]
        if "bring very different matters" not in asked:
            return lister(request)
        known = asked.count("\n- ")
        return listing(*[f"topic{number}" for number in range(min(known + 1, 3))])

    evolve = settings(topics=5, skills_per_topic=2, query_types=1)
    found, notices, _ = listed(evolve, one_by_one)
    assert found.listed["topics"] == {"wanted": 5, "listed": 3, "twice": 6}
    assert "3 of 5 topics" in notices[0]


def test_more_items_than_asked_for_are_left() -> None:
    whole = listing(*[f"item {number}" for number in range(30)])
    evolve = settings(topics=2, skills_per_topic=3, query_types=1)
    found, _, backend = listed(evolve, lambda request: whole)
    assert [skill.name for skill in found.skills] == ["item 0", "item 1", "item 2"]
    assert found.kinds == ("item 0",)
    assert len(backend.requests) == 4


def test_too_few_skills_for_a_row_end_the_run_and_say_how_many_there_are() -> None:
    evolve = settings(topics=1, skills_per_topic=5, query_types=3, k=3)
    with pytest.raises(EndpointError, match="2 of 5 skills, and a row needs 3 skills"):
        listed(evolve)
    with pytest.raises(EndpointError, match="0 of 3 query types"):
        listed(
            settings(topics=1, skills_per_topic=2, query_types=3),
            lambda one: "" if "kinds" in one.messages[-1]["content"] else lister(one),
        )


# --- rows -----------------------------------------------------------------------------------------

SKILLS = Skills(tuple(Skill("t", f"s{n}") for n in range(4)), ("decision", "text"))


def test_no_combination_comes_twice_before_all_were_drawn() -> None:
    """Four skills, two of them at a time, and two kinds: twelve combinations."""
    draws = draws_of(SKILLS, 2, 30, seed=1)
    assert len(set(draws[:12])) == len(set(draws[12:24])) == 12
    assert all(len(set(skills)) == 2 for skills, _ in draws)
    assert draws_of(SKILLS, 2, 5, seed=1) == draws[:5]
    assert draws_of(SKILLS, 2, 30, seed=2) != draws


def write(backend: ScriptedBackend, number: int = 0, attempt: int = 0) -> Evolution:
    author = SkillMix(Roles(backend), settings(), SKILLS, seed=1)
    temperature = 0.7 if attempt else None
    return asyncio.run(
        author.write(Seed("row", number), 1, "", (), temperature=temperature, sample_index=attempt)
    )


@pytest.mark.parametrize(
    ("reply", "text", "failure"),
    [
        (f"Hm.\n\n### Finished instruction\n{QUERY}", QUERY, None),
        (f"### Finished instruction: {QUERY}", QUERY, None),
        (QUERY, "", "parse"),
        ("### Finished instruction\n", "", "empty"),
        (Completion("Hm. Wh", finish_reason="length"), "", "truncated"),
        ("### Finished instruction\nI'm sorry, but I can't help.", None, "refusal"),
    ],
)
def test_a_reply_becomes_an_instruction_or_a_class_of_failure(
    reply: Any, text: str | None, failure: str | None
) -> None:
    found = write(ScriptedBackend([reply]))
    assert found.failure == failure
    assert text is None or found.text == text


def test_a_row_asks_for_its_skills_and_says_so_in_its_facts() -> None:
    backend = ScriptedBackend(lambda request: f"### Finished instruction\n{QUERY}")
    found = [write(backend, 0), write(backend, 1), write(backend, 1, 1)]
    draws = draws_of(SKILLS, 2, 4, seed=1)
    for evolution, request, (skills, kind) in zip(
        found, backend.requests, [draws[0], draws[1], draws[1]], strict=True
    ):
        assert evolution.facts == {"skills": [skill.name for skill in skills], "query_type": kind}
        asked = request.messages[-1]["content"]
        assert all(f"- {skill.name} (topic: t)" in asked for skill in skills)
        assert f"of this kind: {kind}" in asked
    assert len({request.sample_index for request in backend.requests}) == 3
    assert [request.temperature for request in backend.requests] == [0.0, 0.0, 0.7]


def test_a_server_with_schemas_is_asked_for_json() -> None:
    class Server(ScriptedBackend):
        def capabilities(self) -> frozenset[str]:
            return super().capabilities() | {"schema"}

    def reply(request: ChatRequest) -> str:
        if request.purpose == "probe":
            return '{"colour": "blue"}'
        assert "response_format" in request.extra
        return json.dumps({"work": "hm", "instruction": QUERY})

    assert write(Server(reply)).text == QUERY


def test_the_tiny_recipe_makes_rows_and_says_what_each_was_drawn_from(tmp_path: Path) -> None:
    script = ROOT / "recipes/tiny/skillmix-replies.jsonl"
    changes = [f"output_dir={tmp_path / 'run'}", f"endpoint.script={script}"]
    told: list[Any] = []
    run_evolve(load_recipe("evolve", "tiny/skillmix", changes), on_event=told.append)
    rows, provenance, dropped = (
        (tmp_path / "run" / name).read_text().splitlines()
        for name in ("data/train.jsonl", "provenance.jsonl", "dropped.jsonl")
    )
    assert (len(rows), len(provenance), len(dropped)) == (27, 27, 3)
    assert {json.loads(line)["reason"] for line in dropped} == {"near_duplicate"}
    assert all(len(json.loads(line)["skills"]) == 2 for line in provenance)
    said = [event.text for event in told if isinstance(event, Notice)]
    assert "the model listed 4 of 5 topics, 12 of 15 skills; rows are drawn from those" in said
