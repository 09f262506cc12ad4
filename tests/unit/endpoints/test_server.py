"""The client against a server on loopback that answers well, badly, late, or not at all; with the
real `openai` package."""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import Answer, FakeEndpoint, closed_port

from aligner.config.recipe import Endpoint
from aligner.endpoints.api_keys import read_secret
from aligner.endpoints.client import open_client
from aligner.endpoints.openai_backend import OpenAIBackend
from aligner.endpoints.request import ChatRequest, Completion, LLMError
from aligner.errors import EndpointError, RecipeError, UsageError

pytest.importorskip("openai")

KEY = "sk-test-0123456789abcdef"
SOON = {"retry-after-ms": "1"}


def ask(content: str = "hi", **settings: Any) -> ChatRequest:
    return ChatRequest(messages=({"role": "user", "content": content},), **settings)


def section_of(server: FakeEndpoint | str, **settings: Any) -> Endpoint:
    base_url = server if isinstance(server, str) else server.base_url
    return Endpoint(
        model="toy", base_url=base_url, **{"max_retries": 2, "timeout_s": 120.0, **settings}
    )


def one(section: Endpoint, request: ChatRequest | None = None, **options: Any) -> Completion:
    async def go() -> Completion:
        async with open_client(section, **options) as client:
            return await client.chat(request or ask())

    return asyncio.run(go())


def failure(section: Endpoint, request: ChatRequest | None = None) -> LLMError:
    with pytest.raises(LLMError) as caught:
        one(section, request)
    return caught.value


def test_a_reply_has_text_tokens_and_reason_and_every_sampling_parameter_was_sent() -> None:
    with FakeEndpoint([Answer(text="so")]) as server:
        section = section_of(server, temperature=0.7, top_p=0.9, max_tokens=5, extra={"top_k": -1})
        reply = one(section, ask(stop=("\n",), seed=4))
    assert (reply.text, reply.finish_reason, reply.prompt_tokens, reply.completion_tokens) == (
        "so",
        "stop",
        7,
        3,
    )
    assert (reply.cached, reply.attempts) == (False, 1)
    assert server.bodies == [
        {
            "model": "toy",
            "messages": [{"role": "user", "content": "hi"}],
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 5,
            "stop": ["\n"],
            "seed": 4,
            "top_k": -1,
        }
    ]


def test_a_raw_text_goes_to_completions() -> None:
    async def go(section: Endpoint) -> Completion:
        async with open_client(section) as client:
            return await client.complete("once upon", max_tokens=3)

    with FakeEndpoint([Answer(text=" a time")]) as server:
        assert asyncio.run(go(section_of(server))).text == " a time"
    assert server.paths == ["/v1/completions"]
    assert server.bodies[0]["prompt"] == "once upon"
    assert "messages" not in server.bodies[0]


def test_max_completion_tokens_takes_the_place_of_max_tokens() -> None:
    with FakeEndpoint() as server:
        one(section_of(server, extra={"max_completion_tokens": 9}))
    assert server.bodies[0]["max_completion_tokens"] == 9
    assert "max_tokens" not in server.bodies[0]


def test_samples_of_one_seed_are_sent_with_different_seeds() -> None:
    with FakeEndpoint() as server:
        for index in range(3):
            one(section_of(server), ask(seed=5, sample_index=index))
    seeds = [body["seed"] for body in server.bodies]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_a_passing_trouble_is_retried(status: int) -> None:
    with FakeEndpoint(
        [Answer(status, headers=SOON), Answer(status, headers=SOON), Answer(text="at last")]
    ) as server:
        reply = one(section_of(server))
    assert (reply.text, reply.attempts, len(server.bodies)) == ("at last", 3, 3)


def test_every_attempt_has_the_headers_and_the_body_that_the_package_sends() -> None:
    import httpx2
    import openai

    with FakeEndpoint([Answer(500, headers=SOON), Answer(500, headers=SOON), Answer()]) as server:
        one(section_of(server, extra={"list": ["ä", 1.5]}))
        package = openai.AsyncOpenAI(api_key="no-key", base_url=server.base_url)
        asyncio.run(
            package.post("/chat/completions", cast_to=httpx2.Response, body=server.bodies[0])
        )
    assert [body == server.bodies[0] for body in server.bodies] == [True] * 4
    assert server.paths == ["/v1/chat/completions"] * 4
    sent = [{name.lower(): value for name, value in each.items()} for each in server.headers]
    names = [name for name in sent[3] if name.startswith("x-stainless-") and "re" not in name]
    names += ["authorization", "content-type", "user-agent", "accept"]
    assert len(names) > 8
    for headers in sent[:3]:
        assert [headers[name] for name in names] == [sent[3][name] for name in names]


def test_a_proxy_of_the_environment_is_used_for_a_server_elsewhere_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "no such host")

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeEndpoint([Answer(text="through")]) as proxy, FakeEndpoint() as server:
        address = proxy.base_url.removesuffix("/v1").replace("//", "//me:word@")
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, address)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "b.example.org")
        assert one(section_of("http://a.example.org/v1")).text == "through"
        one(section_of(server))
        monkeypatch.setattr(socket, "getaddrinfo", nowhere)
        error = failure(section_of("http://b.example.org/v1", max_retries=0))
    assert proxy.paths == ["http://a.example.org/v1/chat/completions"]
    assert proxy.headers[0]["Proxy-Authorization"].startswith("Basic ")
    assert error.kind == "unavailable"
    assert len(server.bodies) == 1


def test_a_proxy_of_an_unknown_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "socks5://me:secret-word@127.0.0.1:1080")
    for name in ("no_proxy", "NO_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="socks5") as caught:
        open_client(section_of("https://api.example.org/v1"))
    assert "secret-word" not in str(caught.value)


def test_more_requests_in_flight_than_the_system_has_files_for_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import resource

    limits = [(400, 5000)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, pair: limits.append(pair))
    asyncio.run(open_client(section_of("http://127.0.0.1:1/v1", max_in_flight=2000)).aclose())
    assert limits[1:] == [(2256, 5000)]
    with pytest.raises(UsageError, match="may have 5000") as caught:
        open_client(section_of("http://127.0.0.1:1/v1", max_in_flight=6000))
    assert "max_in_flight" in caught.value.hint


def test_retries_end_and_the_error_says_so() -> None:
    with FakeEndpoint([Answer(500, headers=SOON)]) as server:
        error = failure(section_of(server))
    assert (error.kind, error.status, error.retryable, error.attempts) == (
        "unavailable",
        500,
        True,
        3,
    )
    assert len(server.bodies) == 3


def test_retry_after_is_waited_for() -> None:
    began = time.monotonic()
    with FakeEndpoint([Answer(429, headers={"retry-after": "0.2"}), Answer()]) as server:
        one(section_of(server))
    assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_not_repeated(status: int) -> None:
    with FakeEndpoint([Answer(status)]) as server:
        error = failure(section_of(server))
    assert (error.kind, error.status, error.retryable, error.data_failure) == (
        "fatal",
        status,
        False,
        False,
    )
    assert len(server.bodies) == 1
    assert server.base_url in str(error)
    assert error.hint


def test_a_wrong_key_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with FakeEndpoint([Answer(401)]) as server:
        error = failure(section_of(server, api_key_env="MY_KEY"))
    assert "MY_KEY" in error.hint


def test_no_credit_left_is_not_waited_for() -> None:
    body = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    with FakeEndpoint([Answer(429, body=body)]) as server:
        error = failure(section_of(server))
    assert (error.kind, len(server.bodies)) == ("fatal", 1)


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "the request exceeds the available context size, try increasing it",
        "The decoder prompt (length 9000) is longer than the maximum model length of 8192",
    ],
)
def test_a_prompt_that_is_too_long_is_a_data_failure(message: str) -> None:
    with FakeEndpoint([Answer(400, body={"error": {"message": message}})]) as server:
        error = failure(section_of(server))
    assert (error.kind, error.data_failure) == ("context_length", True)


def test_max_tokens_that_no_prompt_would_leave_room_for_is_the_recipes_fault() -> None:
    message = (
        "This model's maximum context length is 4096 tokens. However, you requested 5010 tokens"
    )
    with FakeEndpoint([Answer(400, body={"error": {"message": message}})]) as server:
        error = failure(section_of(server, max_tokens=5000))
    assert (error.kind, error.data_failure) == ("fatal", False)
    assert "max_tokens is 5000" in error.hint


@pytest.mark.parametrize(
    "answer",
    [
        Answer(400, body={"error": {"message": "no", "code": "content_filter"}}),
        Answer(text="par", finish_reason="content_filter"),
        Answer(
            body={
                "choices": [
                    {"message": {"content": None, "refusal": "I cannot"}, "finish_reason": "stop"}
                ]
            }
        ),
    ],
)
def test_a_filtered_request_is_a_data_failure(answer: Answer) -> None:
    with FakeEndpoint([answer]) as server:
        error = failure(section_of(server))
    assert (error.kind, error.data_failure) == ("content_filter", True)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "body", [b'{"choices": [{"mess', b"<html>proxy</html>", b"[]", b'{"choices": []}']
)
def test_a_malformed_reply_is_retried_and_then_named(body: bytes) -> None:
    with FakeEndpoint([Answer(body=body, headers=SOON), Answer(text="whole")]) as server:
        assert one(section_of(server)).text == "whole"
    with FakeEndpoint([Answer(body=body)]) as server:
        error = failure(section_of(server, max_retries=0))
    assert (error.kind, error.retryable) == ("bad_reply", True)
    assert server.base_url in error.message


@pytest.mark.parametrize("text", [None, ""])
def test_an_empty_reply_is_an_empty_text(text: str | None) -> None:
    with FakeEndpoint([Answer(text=text)]) as server:
        assert one(section_of(server)).text == ""


def test_a_server_that_counts_no_tokens_is_counted_for() -> None:
    body = {"choices": [{"message": {"content": "12345678"}, "finish_reason": "stop"}]}
    with FakeEndpoint([Answer(body=body)]) as server:
        reply = one(section_of(server), ask("1234"))
    assert (reply.prompt_tokens, reply.completion_tokens) == (1, 2)


def test_thoughts_are_kept_apart_from_the_answer() -> None:
    message = {"content": "4", "reasoning_content": "2 + 2"}
    with FakeEndpoint(
        [Answer(body={"choices": [{"message": message, "finish_reason": "stop"}]})]
    ) as server:
        reply = one(section_of(server))
    assert (reply.text, reply.reasoning) == ("4", "2 + 2")


def test_half_a_letter_in_a_reply_does_no_harm(tmp_path: Path) -> None:
    body = b'{"choices": [{"message": {"content": "a\\ud83d b"}, "finish_reason": "stop"}]}'
    with FakeEndpoint([Answer(body=body)]) as server:
        reply = one(
            section_of(server, record=str(tmp_path / "record")), cache=tmp_path / "cache.sqlite"
        )
    reply.text.encode()
    assert reply.text.startswith("a")


@pytest.mark.parametrize("hung", [Answer(delay_s=600.0), Answer(drip_s=0.05)])
def test_a_server_that_hangs_or_drips_is_given_up(hung: Answer) -> None:
    with FakeEndpoint([hung, Answer(text="awake")]) as server:
        # on a busy machine the server may be too slow again, once it is awake
        reply = one(section_of(server, timeout_s=0.4, max_retries=50))
        assert (reply.text, reply.attempts > 1) == ("awake", True)
        server.answers = [hung]
        error = failure(section_of(server, timeout_s=0.4, max_retries=0))
    assert error.kind == "unavailable"
    assert "timeout_s" in error.hint


def test_a_server_that_is_not_there_is_named_with_what_to_do() -> None:
    address = f"http://127.0.0.1:{closed_port()}/v1"
    error = failure(section_of(address, max_retries=0))
    assert (error.kind, error.status) == ("unavailable", None)
    assert address in error.message
    assert "base_url" in error.hint


def test_a_client_of_ones_own_is_used_as_it_is() -> None:
    import httpx2
    import openai

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"choices": [{"message": {"content": str(request.url)}}]})

    async def go() -> Completion:
        client = openai.DefaultAsyncHttpxClient(transport=httpx2.MockTransport(answer))
        secret = read_secret("https://api.example.org/v1", "MY_KEY", {"MY_KEY": KEY})
        backend = OpenAIBackend("https://api.example.org/v1", secret, http_client=client)
        reply = await backend.chat(ask(model="toy", temperature=1.0, top_p=1.0, max_tokens=5))
        await backend.aclose()
        return reply

    assert asyncio.run(go()).text == "https://api.example.org/v1/chat/completions"


def test_three_refusals_in_a_row_stop_everything_that_follows() -> None:
    async def go(section: Endpoint) -> list[BaseException | Completion]:
        async with open_client(section) as client:
            return [
                (await asyncio.gather(client.chat(ask(str(i))), return_exceptions=True))[0]
                for i in range(6)
            ]

    with FakeEndpoint([Answer(401)]) as server:
        errors = asyncio.run(go(section_of(server)))
    assert len(server.bodies) == 3
    assert all(isinstance(error, LLMError) for error in errors[:3])
    assert all(type(error) is EndpointError for error in errors[3:])
    assert "401" in str(errors[5])


def test_never_more_in_flight_than_the_limit_and_nothing_lost_or_doubled() -> None:
    async def go(section: Endpoint) -> list[Completion]:
        async with open_client(section) as client:
            return await asyncio.gather(*(client.chat(ask(str(number))) for number in range(64)))

    def echo(body: dict[str, Any]) -> Answer:
        return Answer(text=body["messages"][0]["content"], beside=2)

    with FakeEndpoint(echo) as server:
        replies = asyncio.run(go(section_of(server, max_in_flight=8)))
    assert [reply.text for reply in replies] == [str(number) for number in range(64)]
    assert len(server.bodies) == 64
    assert 1 < server.peak <= 8


def test_faults_among_many_requests_lose_and_double_nothing() -> None:
    numbers = iter(range(10_000))

    def sometimes(body: dict[str, Any]) -> Answer:
        number = next(numbers)
        if number % 3 == 1:
            return Answer(429, headers=SOON)
        if number % 7 == 2:
            return Answer(500, headers=SOON)
        return Answer(text=body["messages"][0]["content"])

    async def go(section: Endpoint) -> tuple[list[Completion], dict[str, Any]]:
        async with open_client(section) as client:
            replies = await asyncio.gather(*(client.chat(ask(str(number))) for number in range(40)))
            return replies, client.usage.to_json()

    with FakeEndpoint(sometimes) as server:
        replies, usage = asyncio.run(go(section_of(server, max_retries=30)))
    assert [reply.text for reply in replies] == [str(number) for number in range(40)]
    assert (usage["calls"], usage["retries"], usage["errors"]) == (40, len(server.bodies) - 40, {})


def test_the_key_is_sent_and_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    echo = {"error": {"message": f"{'x' * 390} bad key {KEY}", "key": KEY}}
    raw = f"Authorization: Bearer {KEY} ".encode() * 40
    answers = [
        Answer(401, body=echo),
        Answer(400, body=raw),
        Answer(body=raw),
        Answer(text=f"you sent {KEY}"),
    ]
    shown: list[str] = []
    with FakeEndpoint(answers) as server:
        section = section_of(
            server, api_key_env="MY_KEY", max_retries=0, record=str(tmp_path / "record")
        )
        for number in range(3):
            with pytest.raises(LLMError) as caught:
                one(section, ask(str(number)), cache=tmp_path / "cache.sqlite", run="r")
            error = caught.value
            shown += [
                str(error),
                repr(error),
                repr(pickle.loads(pickle.dumps(error))),
                repr(vars(error)),
            ]
            shown.append(
                "".join(traceback.format_exception(type(error), error, error.__traceback__))
            )
            assert error.__context__ is None
        reply = one(section, ask("3"), cache=tmp_path / "cache.sqlite", run="r")
        secret = read_secret(server.base_url, "MY_KEY")
        backend = OpenAIBackend(server.base_url, secret)
        shown += [repr(reply), repr(backend), repr(vars(backend)), repr(secret), caplog.text]
    assert all(f"Bearer {KEY}" in headers.values() for headers in server.headers)
    shown += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert len(shown) > 20
    assert not [text for text in shown if KEY in text or KEY[:16] in text]


def test_a_key_cannot_be_pickled() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(read_secret("http://127.0.0.1:1/v1", "MY_KEY", {"MY_KEY": KEY}))


def test_a_server_on_this_machine_needs_no_key_and_another_does() -> None:
    with FakeEndpoint() as server:
        one(section_of(server))
    with pytest.raises(UsageError, match="OPENAI_API_KEY"):
        open_client(section_of("https://api.example.org/v1"))


@pytest.mark.parametrize(
    "base_url",
    [
        "127.0.0.1:8000/v1",
        "http://",
        "ftp://x/v1",
        f"http://me:{KEY}@127.0.0.1/v1",
        f"http://127.0.0.1/v1?key={KEY}",
    ],
)
def test_an_address_that_is_none_or_holds_a_password_is_refused(base_url: str) -> None:
    with pytest.raises(RecipeError, match="base_url") as caught:
        open_client(section_of(base_url))
    assert KEY not in str(caught.value)


def test_a_key_in_place_of_the_variables_name_is_refused_and_not_shown() -> None:
    with pytest.raises(RecipeError, match="api_key_env") as caught:
        open_client(section_of("http://127.0.0.1:1/v1", api_key_env=KEY))
    assert KEY not in str(caught.value)


def test_extra_may_not_hold_what_the_endpoint_has_a_key_for() -> None:
    with FakeEndpoint() as server, pytest.raises(RecipeError, match="stream"):
        one(section_of(server, extra={"stream": True}))
    assert server.bodies == []


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(UsageError, match="openai") as caught:
        open_client(section_of("http://127.0.0.1:1/v1"))
    assert "pip install" in caught.value.hint
