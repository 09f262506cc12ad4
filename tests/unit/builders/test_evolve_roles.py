"""Roles of evolve: which model plays which, and that one model is one client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aligner.builders.evolve.recipe import EvolveRecipe
from aligner.builders.evolve.roles import Roles, open_roles, sections_of
from aligner.endpoints.request import ChatRequest
from aligner.endpoints.scripted import ScriptedBackend

SERVER = {"model": "large", "base_url": "http://127.0.0.1:1/v1", "max_in_flight": 4}
OTHER = {"model": "small", "base_url": "http://127.0.0.1:1/v1", "max_in_flight": 16}


def recipe_of(**evolve: Any) -> EvolveRecipe:
    return EvolveRecipe(output_dir="unused", endpoint=SERVER, evolve=evolve)


def opened(recipe: EvolveRecipe, work: Any, cache: Path | None = None) -> Any:
    async def go() -> Any:
        backend = ScriptedBackend(lambda request: request.model)
        async with open_roles(recipe, cache, lambda section: backend) as roles:
            return await work(roles)

    return asyncio.run(go())


def test_the_endpoint_plays_every_role_that_has_no_section_of_its_own() -> None:
    async def ask(roles: Roles) -> list[str]:
        request = ChatRequest(messages=({"role": "user", "content": "hi"},))
        clients = (roles.evolver, roles.optimizer, roles.answerer, roles.judge)
        return [(await client.chat(request)).text for client in clients]

    assert opened(recipe_of(), ask) == ["large"] * 4
    assert opened(recipe_of(answerer=OTHER), ask) == ["large", "large", "small", "large"]


def test_one_model_on_one_server_is_one_client_with_one_limit() -> None:
    async def look(roles: Roles) -> tuple[bool, int, list[str]]:
        return roles.answerer is roles.judge, roles.max_in_flight, list(roles.clients())

    assert opened(recipe_of(answerer=OTHER, judge=OTHER), look) == (
        True,
        20,
        ["evolver", "answerer"],
    )


def test_the_target_of_a_pass_rate_is_a_role() -> None:
    checks = {"pass_rate": {"target": OTHER}}
    assert sections_of(recipe_of(checks=checks))["target"].model == "small"


def test_accounts_are_kept_by_client_and_continued(tmp_path: Path) -> None:
    recipe = recipe_of(answerer=OTHER)

    async def ask(roles: Roles) -> tuple[int, int]:
        for number, client in enumerate((roles.evolver, roles.answerer, roles.answerer)):
            turn = {"role": "user", "content": str(number)}
            await client.chat(ChatRequest(messages=(turn,)))
        return roles.evolver.spent.calls, roles.answerer.spent.calls

    assert opened(recipe, ask, tmp_path / "replies.sqlite") == (1, 2)
    assert opened(recipe, ask, tmp_path / "replies.sqlite") == (1, 2), "cached, and still counted"
