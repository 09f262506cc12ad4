"""The two calls: what is asked with which settings, and what a reply becomes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aligner.builders.evolve.contract import first_method
from aligner.builders.evolve.evolving import answer_once, evolve_once, side_by_side, user_turn
from aligner.builders.evolve.recipe import Evolve
from aligner.config.recipe import Endpoint
from aligner.endpoints.client import open_client
from aligner.endpoints.recording import RecordBackend, ReplayBackend
from aligner.endpoints.request import ChatRequest, Completion, LLMClient, LLMError
from aligner.endpoints.scripted import ScriptedBackend
from aligner.errors import EndpointError
from tests.fake_endpoint import Answer, FakeEndpoint
from tests.simulated_evolver import Roles

METHOD = first_method("full", "owned")
SEED = "List three uses of salt."
GOOD = "### Finished instruction\nList three uses of salt in a tannery."


class Server(ScriptedBackend):
    """A script that is asked whether it takes schemas."""

    def capabilities(self) -> frozenset[str]:
        return super().capabilities() | {"schema"}


def evolve(client: LLMClient, settings: Evolve | None = None, **options: Any) -> Any:
    return asyncio.run(evolve_once(Roles(client), settings or Evolve(), METHOD, SEED, **options))


def answer(client: LLMClient, settings: Evolve | None = None, **options: Any) -> Any:
    given = settings or Evolve()
    return asyncio.run(answer_once(Roles(client), given, user_turn(SEED), **options))


@pytest.mark.parametrize(
    ("reply", "text", "failure"),
    [
        (GOOD, "List three uses of salt in a tannery.", None),
        (f"### Finished instruction\n{SEED}", SEED, "unchanged"),
        ("### Finished instruction\n", "", "empty"),
        ("I will not.", "", "parse"),
        (Completion(GOOD, finish_reason="length"), "List three uses of salt in a tannery.", "cut"),
        (Completion("Step 1. I th", finish_reason="length"), "", "cut"),
    ],
)
def test_a_reply_becomes_a_text_or_a_class_of_failure(
    reply: Any, text: str, failure: str | None
) -> None:
    found = evolve(ScriptedBackend([reply]))
    assert (found.text, found.failure) == (text, "truncated" if failure == "cut" else failure)


def test_evolutions_and_answers_are_asked_for_with_their_own_settings() -> None:
    backend = ScriptedBackend([GOOD, "Sure, which?"])
    settings = Evolve(
        temperature=0.2,
        max_tokens=11,
        answer_temperature=0.3,
        answer_max_tokens=12,
        answer_system="Be brief.",
    )
    evolve(backend, settings, temperature=0.7, sample_index=1)
    found = answer(backend, settings)
    assert (found.text, found.failure, found.finish_reason) == (
        "Sure, which?",
        "unqualified",
        "stop",
    )
    first, second = backend.requests
    assert (first.temperature, first.max_tokens, first.sample_index) == (0.7, 11, 1)
    assert (second.temperature, second.max_tokens, second.purpose) == (0.3, 12, "answer")
    assert [turn["role"] for turn in second.messages] == ["system", "user"]
    assert "response_format" not in first.extra


def test_what_a_server_refuses_is_no_failure_of_the_evolution() -> None:
    with pytest.raises(LLMError, match="filtered"):
        evolve(ScriptedBackend([LLMError("filtered", kind="content_filter")]))


# --- replies by a schema --------------------------------------------------------------------------


def takes_schemas(request: ChatRequest) -> str:
    assert request.extra["response_format"]["type"] == "json_schema"
    if request.purpose == "probe":
        return '{"colour": "blue"}'
    return json.dumps({"work": "", "instruction": "Harder."})


def test_a_server_that_takes_schemas_is_asked_once_and_then_used() -> None:
    backend = Server(takes_schemas)

    async def go() -> list[Any]:
        roles = Roles(backend)
        seeds = [f"{SEED} {number}" for number in range(4)]
        return await side_by_side(evolve_once(roles, Evolve(), METHOD, seed) for seed in seeds)

    assert [found.text for found in asyncio.run(go())] == ["Harder."] * 4
    assert [request.purpose for request in backend.requests] == ["probe"] + ["evolve"] * 4


@pytest.mark.parametrize(
    "probed", ["Blue.", "{}", LLMError("unknown field", status=400), LLMError("no", status=422)]
)
def test_a_server_that_does_not_take_them_gets_sections(probed: Any) -> None:
    backend = Server(lambda request: probed if request.purpose == "probe" else GOOD)
    assert evolve(backend).failure is None
    assert "### Finished instruction" in backend.requests[1].messages[0]["content"]


def test_with_never_nobody_is_asked() -> None:
    backend = Server([GOOD])
    assert evolve(backend, Evolve(structured="never")).failure is None


def test_an_error_that_any_request_would_get_is_not_taken_for_a_refusal_of_schemas() -> None:
    replies = iter([LLMError("wrong key", status=401), *[takes_schemas] * 3])

    def reply(request: ChatRequest) -> Any:
        found = next(replies)
        return found(request) if callable(found) else found

    backend = Server(reply)
    with pytest.raises(LLMError, match="wrong key"):
        evolve(backend)
    assert evolve(backend).text == "Harder."


def test_a_real_connection_finds_out_what_the_server_takes() -> None:
    def strict(body: dict[str, Any]) -> Answer:
        if "response_format" in body:
            return Answer(400, body={"error": {"message": "Unexpected field response_format"}})
        return Answer(text=GOOD)

    def obedient(body: dict[str, Any]) -> Answer:
        probed = "colour" in json.dumps(body["response_format"])
        reply = {"colour": "blue"} if probed else {"work": "", "instruction": "Harder."}
        return Answer(text=json.dumps(reply))

    def asked(answers: Callable[[dict[str, Any]], Answer]) -> str:
        with FakeEndpoint(answers) as server:

            async def go() -> str:
                async with open_client(Endpoint(model="m", base_url=server.base_url)) as client:
                    return (await evolve_once(Roles(client), Evolve(), METHOD, SEED)).text

            return asyncio.run(go())

    assert asked(strict) == "List three uses of salt in a tannery."
    assert asked(obedient) == "Harder."


@pytest.mark.parametrize("probed", ['{"colour": "blue"}', LLMError("unknown", status=400)])
def test_a_recording_answers_as_the_server_did(probed: Any, tmp_path: Path) -> None:
    def reply(request: ChatRequest) -> Any:
        if request.purpose == "probe":
            return probed
        return takes_schemas(request) if request.extra else GOOD

    first = evolve(RecordBackend(Server(reply), tmp_path))
    assert evolve(ReplayBackend(tmp_path)) == first


def test_with_the_first_error_nothing_runs_on() -> None:
    ended = []

    async def fails() -> None:
        raise EndpointError("gone")

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(EndpointError):
        asyncio.run(side_by_side([waits(), fails(), waits()]))
    assert ended == [True, True]


def test_a_system_prompt_of_the_conversation_stands_in_the_place_of_ours() -> None:
    client = ScriptedBackend(lambda request: request.messages[0]["content"])
    settings = Evolve(answer_system="Be brief.")
    own = ({"role": "system", "content": "Be rude."}, *user_turn(SEED))

    async def both() -> list[str]:
        roles = Roles(client)
        return [(await answer_once(roles, settings, turns)).text for turns in (own, own[1:])]

    assert asyncio.run(both()) == ["Be rude.", "Be brief."]
