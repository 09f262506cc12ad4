"""The client without a server: scripts, cache, coalescing, limits, budgets, accounts, recordings, a
local model."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import sqlite3
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from aligner.config.recipe import Budget, Endpoint
from aligner.endpoints.budget import Spent
from aligner.endpoints.client import Client, open_client
from aligner.endpoints.local import LocalBackend
from aligner.endpoints.rate_limit import RateLimit, Throttle
from aligner.endpoints.recording import RecordBackend, ReplayBackend
from aligner.endpoints.request import Backend, ChatRequest, Completion, LLMError, request_key
from aligner.endpoints.scripted import ScriptedBackend
from aligner.endpoints.store import Store
from aligner.errors import DataError, EndpointError, RecipeError, UsageError

T = TypeVar("T")


def ask(content: str = "hi", **settings: Any) -> ChatRequest:
    return ChatRequest(messages=({"role": "user", "content": content},), **settings)


def scripted(**settings: Any) -> Endpoint:
    return Endpoint(backend="scripted", script="not-read", model="toy", **settings)


def within(section: Endpoint, work: Callable[[Client], Awaitable[T]], **options: Any) -> T:
    async def go() -> T:
        async with open_client(section, **options) as client:
            return await work(client)

    return asyncio.run(go())


def ask_all(*requests: ChatRequest) -> Callable[[Client], Coroutine[Any, Any, list[Any]]]:
    async def go(client: Client) -> list[Any]:
        return await asyncio.gather(
            *(client.chat(request) for request in requests), return_exceptions=True
        )

    return go


def ask_in_turn(*requests: ChatRequest) -> Callable[[Client], Coroutine[Any, Any, list[Any]]]:
    async def go(client: Client) -> list[Any]:
        return [(await ask_all(request)(client))[0] for request in requests]

    return go


class FakeTime:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


# --- requests, scripts ----------------------------------------------------------------------------


def test_the_key_of_a_request_knows_all_that_decides_the_reply_and_nothing_else() -> None:
    base = ask("a", model="m", temperature=1.0, top_p=1.0, max_tokens=5)
    changes: list[dict[str, Any]] = [
        {"messages": ({"role": "system", "content": "a"},)},
        {"model": "n"},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"max_tokens": 6},
        {"stop": ("x",)},
        {"seed": 1},
        {"sample_index": 1},
        {"extra": {"top_k": 5}},
    ]
    others = [replace(base, **change) for change in changes]
    others.append(replace(base, messages=(), prompt="a"))
    assert len({request_key(request) for request in [base, *others]}) == len(others) + 1
    assert request_key(replace(base, purpose="judge")) == request_key(base)
    assert request_key(base, "other weights") != request_key(base)


def test_what_a_request_leaves_open_comes_from_the_section() -> None:
    backend = ScriptedBackend(lambda request: "so")
    section = scripted(temperature=0.3, top_p=0.8, max_tokens=9, extra={"top_k": 4, "min_p": 0.1})
    within(
        section,
        ask_in_turn(ask(), ask(model="n", temperature=0.0, extra={"top_k": 7})),
        backend=backend,
    )
    first, second = backend.requests
    assert (first.model, first.temperature, first.top_p, first.max_tokens) == ("toy", 0.3, 0.8, 9)
    assert (second.model, second.temperature, second.extra) == (
        "n",
        0.0,
        {"top_k": 7, "min_p": 0.1},
    )


def test_a_mapping_answers_by_the_last_message_or_the_text() -> None:
    async def go(client: Client) -> tuple[str, str]:
        return (await client.chat(ask("a"))).text, (await client.complete("b")).text

    assert within(scripted(), go, backend=ScriptedBackend({"a": "A", "b": "B"})) == ("A", "B")


def test_a_function_may_be_asynchronous_and_may_raise() -> None:
    async def reply(request: ChatRequest) -> Completion | Exception:
        if request.sample_index:
            return LLMError("no", kind="content_filter")
        return Completion("yes", finish_reason="length")

    first, second = within(
        scripted(), ask_in_turn(ask(), ask(sample_index=1)), backend=ScriptedBackend(reply)
    )
    assert first.truncated
    assert second.data_failure


@pytest.mark.parametrize("script", [{"other": "x"}, lambda request: None, []])
def test_a_request_that_the_script_does_not_know_is_named(script: Any) -> None:
    with pytest.raises(EndpointError, match="what is this") as caught:
        asyncio.run(ScriptedBackend(script).chat(ask("what is this", purpose="judge")))
    assert "judge" in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_script_file_is_answered_in_order_and_goes_on_after_a_resume(tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text("".join(json.dumps({"reply": f"r{number}"}) + "\n" for number in range(4)))
    section = Endpoint(backend="scripted", script=str(script))
    cache = tmp_path / "cache.sqlite"
    first = within(section, ask_in_turn(ask("0"), ask("1")), cache=cache, run="x")
    again = within(
        section, ask_in_turn(ask("0"), ask("1"), ask("2"), ask("3")), cache=cache, run="x"
    )
    assert [reply.text for reply in first] == ["r0", "r1"]
    assert [reply.text for reply in again] == ["r0", "r1", "r2", "r3"]
    assert [reply.cached for reply in again] == [True, True, False, False]


def test_rules_of_a_script_answer_by_what_is_asked_in_whatever_order(tmp_path: Path) -> None:
    rules = [
        {"match": "^harder: (?P<what>.+)$", "reply": "twice \\g<what>"},
        {"match": "long", "reply": "so lo", "finish_reason": "length"},
        {"match": "", "reply": "else"},
    ]
    script = tmp_path / "script.jsonl"
    script.write_text("".join(json.dumps(rule) + "\n" for rule in rules))
    asked = [ask("a"), ask("harder: {x}\nmore"), ask("how long"), ask("harder: b")]
    wanted = ["else", "twice {x}", "so lo", "twice b"]
    section = Endpoint(backend="scripted", script=str(script))
    replies = within(section, ask_in_turn(*asked))
    assert [reply.text for reply in replies] == wanted
    assert [reply.truncated for reply in replies] == [False, False, True, False]
    backwards = within(section, ask_in_turn(*reversed(asked)))
    assert [reply.text for reply in backwards] == wanted[::-1]


def test_a_request_that_no_rule_matches_is_named(tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text(json.dumps({"match": "b", "reply": "B"}) + "\n")
    section = Endpoint(backend="scripted", script=str(script))
    error = within(section, ask_in_turn(ask("what is it?")))[0]
    assert isinstance(error, EndpointError)
    assert "what is it?" in str(error)


@pytest.mark.parametrize(
    "line",
    [
        '{"match": "(", "reply": "x"}',
        '{"match": "x", "reply": "\\\\1"}',
        '{"match": "x", "reply": "\\\\g<no>"}',
        '{"match": "x"}',
        '{"match": 3, "reply": "x"}',
        '{"reply": "x"}',
    ],
)
def test_a_line_among_rules_that_is_no_rule_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "script.jsonl"
    path.write_text('{"match": "a", "reply": "b"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"script\.jsonl:2"):
        open_client(Endpoint(backend="scripted", script=str(path)))


@pytest.mark.parametrize("line", ["{", '{"answer": "x"}', '{"reply": 3}', "[]"])
def test_a_line_of_a_script_that_is_no_reply_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "script.jsonl"
    path.write_text('{"reply": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"script\.jsonl:2"):
        open_client(Endpoint(backend="scripted", script=str(path)))


@pytest.mark.parametrize(
    ("section", "word"),
    [
        (Endpoint(), "model"),
        (Endpoint(backend="local"), "model"),
        (Endpoint(backend="scripted"), "script"),
        (Endpoint(backend="scripted", script="no-such-file"), "no-such-file"),
        (scripted(budget=Budget(usd=1.0)), "prices"),
    ],
)
def test_a_section_that_cannot_work_is_refused(section: Endpoint, word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        open_client(section)


def test_errors_survive_the_way_to_another_process() -> None:
    error = pickle.loads(
        pickle.dumps(LLMError("a", "b", kind="content_filter", status=400, attempts=3))
    )
    assert (error.message, error.hint, error.kind, error.status, error.attempts) == (
        "a",
        "b",
        "content_filter",
        400,
        3,
    )


def test_nothing_heavy_is_imported_with_the_package() -> None:
    code = (
        "import sys, aligner.endpoints; print([m for m in ('torch', 'transformers', 'openai') if "
        "m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- cache and coalescing -------------------------------------------------------------------------


def test_a_cached_reply_is_the_same_but_for_the_mark_and_asks_nobody(tmp_path: Path) -> None:
    reply = Completion("so", "because", "stop", 3, 4, latency_s=0.5, attempts=2)
    backend = ScriptedBackend([reply])
    requests = [ask("a", purpose="one"), ask("a", purpose="two")]
    first, second = within(
        scripted(), ask_in_turn(*requests), cache=tmp_path / "c", backend=backend
    )
    assert first == reply
    assert second == replace(reply, cached=True)
    (third,) = within(
        scripted(), ask_in_turn(requests[0]), cache=tmp_path / "c", backend=ScriptedBackend([])
    )
    assert third == second


def test_samples_are_asked_for_one_by_one(tmp_path: Path) -> None:
    backend = ScriptedBackend([f"r{number}" for number in range(3)])
    requests = [ask("a", sample_index=index) for index in range(3)]
    replies = within(scripted(), ask_in_turn(*requests), cache=tmp_path / "c", backend=backend)
    assert [reply.text for reply in replies] == ["r0", "r1", "r2"]


def test_failures_and_truncated_replies_are_not_kept(tmp_path: Path) -> None:
    script = [
        LLMError("no", kind="unavailable"),
        Completion("cut", finish_reason="length"),
        "whole",
    ]
    backend = ScriptedBackend(script)
    replies = within(
        scripted(), ask_in_turn(*[ask("a")] * 4), cache=tmp_path / "c", backend=backend
    )
    assert isinstance(replies[0], LLMError)
    assert [(reply.text, reply.cached) for reply in replies[1:]] == [
        ("cut", False),
        ("whole", False),
        ("whole", True),
    ]


def test_the_cache_holds_no_prompt_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "c"
    within(
        scripted(),
        ask_in_turn(ask("my private question")),
        cache=path,
        backend=ScriptedBackend(["answer"]),
    )
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"answer" in content
    assert b"private" not in content
    assert path.stat().st_mode & 0o077 == 0


def test_a_file_that_is_no_cache_is_left_alone(tmp_path: Path) -> None:
    text, other = tmp_path / "text", tmp_path / "other"
    text.write_text(
        "these are notes of mine, longer than a header of SQLite would be, and no database" * 20
    )
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE mine (x)")
    for path in (text, other):
        before = path.read_bytes()
        with pytest.raises(UsageError, match=str(path)):
            Store(path)
        assert path == other or path.read_bytes() == before
    with sqlite3.connect(other) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]


FILL = """
import pathlib, sys
from aligner.endpoints.request import Completion
from aligner.endpoints.store import Store
store = Store(pathlib.Path(sys.argv[1]), "shared")
for number in range(100):
    store.write(calls=1)
    reply = Completion(str(number), prompt_tokens=2)
    store.write(replies=[(f"{sys.argv[2]}{number}", "m", reply)])
"""


def test_two_processes_share_one_cache(tmp_path: Path) -> None:
    path = tmp_path / "c"
    processes = [subprocess.Popen([sys.executable, "-c", FILL, str(path), name]) for name in "ab"]
    assert [process.wait(300) for process in processes] == [0, 0]
    store = Store(path, "shared")
    assert all(store.get(f"{name}{number}") is not None for name in "ab" for number in range(100))
    assert store.spent() == Spent(calls=200, replies=200, prompt_tokens=400)
    store.close()


KILLED = """
import asyncio, os, pathlib, signal, sys
from aligner.config.recipe import Endpoint
from aligner.endpoints.client import open_client
from aligner.endpoints.request import Backend, ChatRequest, Completion
from aligner.endpoints.scripted import ScriptedBackend

section = Endpoint(backend="scripted", script="none", model="toy", max_in_flight=8)
handed_out = 0

async def reply(request):
    os.write(1, b"sent -1\\n")
    await asyncio.sleep(0.001 * (int(request.messages[0]["content"]) % 5))
    return Completion("so", completion_tokens=1)

async def one(client, number):
    global handed_out
    await client.chat(ChatRequest(messages=({"role": "user", "content": str(number)},)))
    os.write(1, b"reply %d\\n" % number)
    handed_out += 1
    if handed_out == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

async def go():
    cache = pathlib.Path(sys.argv[1])
    async with open_client(section, cache=cache, run="x", backend=ScriptedBackend(reply)) as client:
        await asyncio.gather(*(one(client, number) for number in range(100)))

asyncio.run(go())
"""


@pytest.mark.parametrize("replies", [1, 40])
def test_a_kill_loses_no_reply_that_was_handed_out_and_no_call_that_was_sent(
    tmp_path: Path, replies: int
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "c"), str(replies)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode < 0
    said = [line.split() for line in done.stdout.splitlines()]
    handed_out = [number for word, number in said if word == "reply"]
    assert len(handed_out) == replies
    store = Store(tmp_path / "c", "x")
    spent = store.spent()
    assert spent.calls >= len(said) - replies
    assert spent.replies == spent.completion_tokens >= replies
    store.close()
    again = within(
        scripted(),
        ask_in_turn(*map(ask, handed_out)),
        cache=tmp_path / "c",
        backend=ScriptedBackend([]),
    )
    assert all(reply.cached for reply in again)


def test_replies_of_one_moment_are_written_in_few_commits_and_before_they_are_handed_out(
    tmp_path: Path,
) -> None:
    writes: list[int] = []
    write = Store.write

    def counted(store: Store, calls: int = 0, replies: Any = ()) -> None:
        writes.append(len(replies))
        write(store, calls, replies)

    async def go(client: Client) -> None:
        async def one(number: int) -> None:
            await client.chat(ask(str(number)))
            kept = seen.get(client.defaults.fill(ask(str(number))).key)
            assert kept is not None

        await asyncio.gather(*(one(number) for number in range(200)))

    seen = Store(tmp_path / "c")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write", counted)
        patch.setattr("aligner.endpoints.cache.PAUSE_S", 0.1)  # a moment, on a busy machine too
        backend = ScriptedBackend(lambda request: "so")
        within(scripted(max_in_flight=100), go, cache=tmp_path / "c", backend=backend)
    seen.close()
    assert sum(writes) == 200
    assert len(writes) <= 20


def test_a_reply_that_was_paid_for_is_kept_when_nobody_waits_for_it_any_more(
    tmp_path: Path,
) -> None:
    async def go(client: Client) -> None:
        task = asyncio.create_task(client.chat(ask("a")))
        await arrived.wait()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    async def reply(request: ChatRequest) -> str:
        arrived.set()
        return "so"

    arrived = asyncio.Event()
    within(scripted(), go, cache=tmp_path / "c", backend=ScriptedBackend(reply))
    (again,) = within(
        scripted(), ask_in_turn(ask("a")), cache=tmp_path / "c", backend=ScriptedBackend([])
    )
    assert (again.text, again.cached) == ("so", True)


def test_a_truncated_reply_is_kept_for_who_asks_for_it_and_for_nobody_else(tmp_path: Path) -> None:
    def ask_once(backend: ScriptedBackend, **options: Any) -> Any:
        return within(
            scripted(), ask_in_turn(ask("a")), cache=tmp_path / "c", backend=backend, **options
        )[0]

    cut = Completion("cu", finish_reason="length", completion_tokens=1)
    first = ask_once(ScriptedBackend([cut]), keep_truncated=True)
    again = ask_once(ScriptedBackend([]), keep_truncated=True)
    assert (first, again) == (cut, replace(cut, cached=True))
    whole = ask_once(ScriptedBackend(["whole"]))
    assert (whole.text, whole.cached) == ("whole", False)
    assert ask_once(ScriptedBackend([])).text == "whole"
    assert ask_once(ScriptedBackend([]), keep_truncated=True).text == "whole"


def test_a_full_disk_reaches_everyone_whose_reply_could_not_be_kept(tmp_path: Path) -> None:
    def full(store: Store, calls: int = 0, replies: Any = ()) -> None:
        raise UsageError("the cache cannot be used: disk full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write", full)
        backend = ScriptedBackend(lambda request: "so")
        replies = within(
            scripted(), ask_all(ask("a"), ask("b")), cache=tmp_path / "c", backend=backend
        )
    assert [type(reply) for reply in replies] == [UsageError] * 2
    assert backend.requests == []


def test_identical_requests_in_flight_are_one() -> None:
    backend = ScriptedBackend(["only"])
    replies = within(scripted(), ask_all(*[ask("a")] * 5), backend=backend)
    assert [reply.text for reply in replies] == ["only"] * 5
    assert sorted(reply.cached for reply in replies) == [False, True, True, True, True]


def test_an_error_reaches_all_who_wait() -> None:
    backend = ScriptedBackend([LLMError("no", kind="bad_reply"), "later"])
    replies = within(scripted(), ask_all(*[ask("a")] * 3), backend=backend)
    assert [reply.kind for reply in replies] == ["bad_reply"] * 3
    assert len(backend.requests) == 1


def test_a_cancelled_waiter_does_not_take_the_reply_from_the_others() -> None:
    async def go(client: Client) -> tuple[bool, str, str]:
        first, second = (asyncio.create_task(client.chat(ask("a"))) for _ in range(2))
        await arrived.wait()
        first.cancel()
        await asyncio.sleep(0)
        third = asyncio.create_task(client.chat(ask("a")))
        await asyncio.sleep(0)
        gate.set()
        return (
            (await asyncio.wait([first]))[0].pop().cancelled(),
            (await second).text,
            (await third).text,
        )

    async def slow(request: ChatRequest) -> str:
        arrived.set()
        await gate.wait()
        return "so"

    arrived, gate = asyncio.Event(), asyncio.Event()
    backend = ScriptedBackend(slow)
    assert within(scripted(), go, backend=backend) == (True, "so", "so")
    assert len(backend.requests) == 1


def test_when_nobody_waits_any_more_the_request_is_cancelled_and_can_be_asked_again() -> None:
    cancelled: list[str] = []

    async def slow(request: ChatRequest) -> str:
        if len(backend.requests) > 1:
            return "again"
        arrived.set()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            cancelled.append("yes")
            raise
        return "late"

    async def go(client: Client) -> str:
        task = asyncio.create_task(client.chat(ask("a")))
        await arrived.wait()
        task.cancel()
        await asyncio.sleep(0)
        return (await client.chat(ask("a"))).text

    arrived = asyncio.Event()
    backend = ScriptedBackend(slow)
    assert within(scripted(), go, backend=backend) == "again"
    assert cancelled == ["yes"]


def test_nothing_of_a_request_remains_after_its_reply(tmp_path: Path) -> None:
    class Answers(Backend):
        async def chat(self, request: ChatRequest) -> Completion:
            await asyncio.sleep(0)
            return Completion("so " * 200)

    async def go(client: Client) -> list[int]:
        sizes = []
        for start in (0, 1000, 2000):
            await ask_all(*(ask(str(start + number)) for number in range(1000)))(client)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
        return sizes

    tracemalloc.start()
    try:
        section = scripted(max_in_flight=64)
        _, before, after = within(section, go, cache=tmp_path / "c", run="r", backend=Answers())
    finally:
        tracemalloc.stop()
    assert after - before < 100_000  # a kept request and reply would be a kilobyte each


# --- limits and budgets ---------------------------------------------------------------------------


def sent_at(
    time: FakeTime, count: int, reply: Completion, content: str = "x", **limits: Any
) -> list[float]:
    """At which second of a fake clock each of `count` requests is sent."""
    moments: list[float] = []

    def note(request: ChatRequest) -> Completion:
        moments.append(time.now)
        return reply

    async def go() -> None:
        limits.setdefault("max_in_flight", 4)
        limit = RateLimit(ScriptedBackend(note), clock=time.clock, sleep=time.sleep, **limits)
        await asyncio.gather(
            *(limit.chat(ask(content, max_tokens=100, sample_index=i)) for i in range(count))
        )

    asyncio.run(go())
    return moments


def test_requests_per_minute_are_kept_without_a_burst() -> None:
    moments = sent_at(FakeTime(), 61, Completion("x"), requests_per_minute=30)
    assert moments == pytest.approx([2.0 * number for number in range(61)])


def test_tokens_per_minute_are_kept_by_what_was_really_used() -> None:
    reply = Completion("x", prompt_tokens=1, completion_tokens=19)
    moments = sent_at(FakeTime(), 31, reply, tokens_per_minute=600, max_in_flight=1)
    # 600 a minute at 20 a request: 30 a minute, whatever max_tokens promised; the first second's
    # worth is there at once
    assert moments[-1] == pytest.approx(60.0, abs=2.0)


def test_a_request_larger_than_the_limit_is_sent_and_paid_off() -> None:
    reply = Completion("x", prompt_tokens=1, completion_tokens=100)
    moments = sent_at(FakeTime(), 3, reply, tokens_per_minute=60)
    assert moments == pytest.approx([0.0, 101.0, 202.0], abs=1.5)


def test_requests_are_sent_in_the_order_in_which_they_came() -> None:
    backend = ScriptedBackend(lambda request: "so")
    requests = [ask(str(number)) for number in range(20)]
    within(scripted(max_in_flight=3), ask_all(*requests), backend=backend)
    assert [request.messages[0]["content"] for request in backend.requests] == [
        str(number) for number in range(20)
    ]


def test_a_429_halves_the_rate_once_and_it_comes_back_evenly() -> None:
    time = FakeTime()
    throttle = Throttle(time.clock)
    for _ in range(10):
        throttle.slow_down()
    assert throttle.share() == 0.5
    time.now = 60.0
    assert throttle.share() == pytest.approx(0.75)
    throttle.slow_down()
    assert throttle.share() == pytest.approx(0.375)
    time.now = 1000.0
    assert throttle.share() == 1.0
    for _ in range(20):
        time.now += 6.0
        throttle.slow_down()
    assert 0.0 < throttle.share() < 0.06


def test_after_a_429_fewer_are_in_flight_and_further_apart() -> None:
    time = FakeTime()
    throttle = Throttle(time.clock)
    throttle.slow_down()
    moments = sent_at(time, 3, Completion("x"), requests_per_minute=60, throttle=throttle)
    assert 1.9 < moments[1] - moments[0] < 2.1


def test_a_throttled_client_lowers_what_is_in_flight() -> None:
    peaks: list[int] = []

    async def go() -> None:
        flying = 0

        async def fly(request: ChatRequest) -> str:
            nonlocal flying
            flying += 1
            peaks.append(flying)
            await asyncio.sleep(0)
            flying -= 1
            return "so"

        time = FakeTime()
        throttle = Throttle(time.clock)
        throttle.slow_down()
        limit = RateLimit(
            ScriptedBackend(fly),
            max_in_flight=8,
            throttle=throttle,
            clock=time.clock,
            sleep=time.sleep,
        )
        await asyncio.gather(*(limit.chat(ask(str(number))) for number in range(32)))

    asyncio.run(go())
    assert max(peaks) == 4


def test_a_request_cancelled_in_line_or_in_flight_gives_its_place_back() -> None:
    async def hang(request: ChatRequest) -> str:
        if request.messages[0]["content"] == "hang":
            arrived.set()
            await asyncio.sleep(600)
        return "so"

    arrived = asyncio.Event()

    async def go() -> str:
        limit = RateLimit(ScriptedBackend(hang), max_in_flight=1)
        tasks = [
            asyncio.create_task(limit.chat(ask("hang", sample_index=index))) for index in range(3)
        ]
        await arrived.wait()
        for task in tasks:
            task.cancel()
        return (await asyncio.wait_for(limit.chat(ask("go")), 120.0)).text

    assert asyncio.run(go()) == "so"


@pytest.mark.parametrize(
    ("budget", "sent"),
    [
        (Budget(calls=0), 0),
        (Budget(calls=3), 3),
        (Budget(tokens=25), 3),
        (Budget(usd=25e-6), 3),
        (Budget(), 6),
    ],
)
def test_a_budget_stops_before_the_request_that_would_pass_it(budget: Budget, sent: int) -> None:
    backend = ScriptedBackend(
        lambda request: Completion("so", prompt_tokens=4, completion_tokens=6)
    )
    section = scripted(
        budget=budget, usd_per_million_prompt_tokens=1.0, usd_per_million_completion_tokens=1.0
    )
    replies = within(
        section, ask_in_turn(*(ask(str(number)) for number in range(6))), backend=backend
    )
    assert len(backend.requests) == sent
    assert [reply.kind for reply in replies[sent:]] == ["budget"] * (6 - sent)


def test_the_budget_of_calls_is_exact_among_many_in_flight() -> None:
    backend = ScriptedBackend(lambda request: "so")
    section = scripted(budget=Budget(calls=5), max_in_flight=16)
    replies = within(section, ask_all(*(ask(str(number)) for number in range(20))), backend=backend)
    assert len(backend.requests) == 5
    assert sum(isinstance(reply, Completion) for reply in replies) == 5


def test_minutes_run_by_the_clock_and_a_spent_budget_does_not_wait_for_the_rate() -> None:
    time = FakeTime()
    backend = ScriptedBackend(lambda request: "so")
    section = scripted(budget=Budget(minutes=2.5), requests_per_minute=1, max_in_flight=1)
    requests = [ask(str(number)) for number in range(50)]
    replies = within(
        section, ask_all(*requests), backend=backend, clock=time.clock, sleep=time.sleep
    )
    assert [isinstance(reply, Completion) for reply in replies] == [True] * 3 + [False] * 47
    assert time.now <= 180.0


def test_what_was_spent_survives_a_resume_and_the_cache_is_free(tmp_path: Path) -> None:
    section, cache = scripted(budget=Budget(calls=3)), tmp_path / "c"
    backend = ScriptedBackend(lambda request: "so")
    within(section, ask_in_turn(ask("0"), ask("1")), cache=cache, run="a", backend=backend)
    again = within(section, ask_in_turn(*map(ask, "0123")), cache=cache, run="a", backend=backend)
    assert [getattr(reply, "kind", "reply") for reply in again] == [
        "reply",
        "reply",
        "reply",
        "budget",
    ]
    assert len(backend.requests) == 3
    after = within(
        section, ask_in_turn(*map(ask, "012")), cache=cache, run="a", backend=ScriptedBackend([])
    )
    assert [reply.cached for reply in after] == [True] * 3
    other = within(section, ask_in_turn(ask("3")), cache=cache, run="b", backend=backend)
    assert isinstance(other[0], Completion)


def test_what_was_spent_can_be_given() -> None:
    section = scripted(budget=Budget(calls=3))
    replies = within(
        section,
        ask_in_turn(ask("0"), ask("1")),
        spent=Spent(calls=2),
        backend=ScriptedBackend(["a", "b"]),
    )
    assert [getattr(reply, "kind", "reply") for reply in replies] == ["reply", "budget"]


def test_a_success_or_a_data_failure_between_refusals_keeps_the_circuit_closed() -> None:
    fatal, data = LLMError("no", kind="fatal"), LLMError("no", kind="context_length")
    script = [fatal, fatal, "so", fatal, fatal, data, fatal, fatal, fatal, "never"]
    backend = ScriptedBackend(script)
    replies = within(
        scripted(), ask_in_turn(*(ask(str(number)) for number in range(11))), backend=backend
    )
    assert len(backend.requests) == 9
    assert [type(reply) for reply in replies[-2:]] == [EndpointError, EndpointError]


@pytest.mark.parametrize("status", [400, 422])
def test_refused_response_formats_do_not_open_the_circuit_and_other_refusals_do(
    status: int,
) -> None:
    structured = {"response_format": {"type": "json_object"}}

    def reply(request: ChatRequest) -> LLMError | str:
        if "response_format" in request.extra:
            return LLMError("unknown parameter response_format", kind="fatal", status=status)
        return "so" if request.model == "toy" else LLMError("no", kind="fatal", status=status)

    requests = [ask(str(number), extra=structured) for number in range(4)]
    wrong = [ask(str(number), model="other") for number in range(4)]
    replies = within(
        scripted(),
        ask_in_turn(*requests, ask("a"), wrong[0], requests[0], *wrong[1:]),
        backend=ScriptedBackend(reply),
    )
    assert [(reply.kind, reply.status) for reply in replies[:4]] == [("fatal", status)] * 4
    assert replies[4].text == "so"
    kinds = [type(reply) for reply in replies[5:]]
    assert kinds == [LLMError, LLMError, LLMError, LLMError, EndpointError]


# --- accounts and recordings ----------------------------------------------------------------------


def test_the_accounts_say_what_was_asked_what_it_cost_and_what_failed(tmp_path: Path) -> None:
    script = [
        Completion("so", prompt_tokens=10, completion_tokens=5, attempts=3, latency_s=2.0),
        Completion("cut", finish_reason="length", prompt_tokens=10, completion_tokens=5),
        LLMError("no", kind="content_filter"),
        Completion(" ", prompt_tokens=1, completion_tokens=1),
    ]
    purposes = [("a", "evolve"), ("a", "judge"), ("b", "evolve"), ("c", "judge"), ("d", "")]

    async def go(client: Client) -> dict[str, Any]:
        await ask_in_turn(*(ask(content, purpose=purpose) for content, purpose in purposes))(client)
        return client.usage.to_json()

    section = scripted(usd_per_million_prompt_tokens=2.0, usd_per_million_completion_tokens=10.0)
    usage = within(section, go, cache=tmp_path / "c", backend=ScriptedBackend(script))
    assert json.loads(json.dumps(usage)) == usage
    purposes_told = usage.pop("purposes")
    assert usage == {
        "calls": 3,
        "cached": 1,
        "retries": 2,
        "prompt_tokens": 21,
        "completion_tokens": 11,
        "usd": pytest.approx(152e-6),
        "truncated": 1,
        "empty": 1,
        "mean_latency_s": pytest.approx(0.667),
        "errors": {"content_filter": 1},
    }
    assert set(purposes_told) == {"evolve", "judge", "other"}
    assert (purposes_told["evolve"]["calls"], purposes_told["judge"]["cached"]) == (2, 1)
    assert purposes_told["judge"]["errors"] == {"content_filter": 1}


def test_without_prices_money_is_unknown() -> None:
    async def go(client: Client) -> dict[str, Any]:
        await client.chat(ask())
        return client.usage.to_json()

    assert within(scripted(), go, backend=ScriptedBackend(["so"]))["usd"] is None


def test_a_recording_is_answered_from_in_any_order_and_from_nowhere_else(tmp_path: Path) -> None:
    folder = tmp_path / "record"
    script = {"a": "A", "b": "B", "c": LLMError("too long", kind="context_length", status=400)}
    recorded = scripted(record=str(folder))
    within(
        recorded,
        ask_in_turn(*map(ask, "abc")),
        cache=tmp_path / "c",
        backend=ScriptedBackend(script),
    )
    replay = Endpoint(model="toy", replay=str(folder))
    replies = within(replay, ask_in_turn(*map(ask, "cbad")), cache=tmp_path / "d")
    assert [getattr(reply, "text", None) for reply in replies] == [None, "B", "A", None]
    assert (replies[0].kind, replies[0].status) == ("context_length", 400)
    assert type(replies[3]) is EndpointError
    assert "'d'" in str(replies[3])
    assert not (tmp_path / "d").exists()


def test_a_recording_holds_also_what_came_from_the_cache(tmp_path: Path) -> None:
    cache = tmp_path / "c"
    within(scripted(), ask_in_turn(ask("a")), cache=cache, backend=ScriptedBackend(["A"]))
    recorded = scripted(record=str(tmp_path / "record"))
    within(
        recorded, ask_in_turn(ask("a", purpose="judge")), cache=cache, backend=ScriptedBackend([])
    )
    (file,) = (tmp_path / "record").iterdir()
    content = json.loads(file.read_text())
    assert content["request"]["messages"] == [{"role": "user", "content": "a"}]
    assert (content["request"]["purpose"], content["completion"]["text"]) == ("judge", "A")


def test_a_passing_failure_is_not_recorded(tmp_path: Path) -> None:
    backend = RecordBackend(
        ScriptedBackend([LLMError("no", kind="unavailable")]), tmp_path / "record"
    )
    with pytest.raises(LLMError):
        asyncio.run(backend.chat(ask()))
    assert list((tmp_path / "record").iterdir()) == []


def test_a_damaged_or_absent_recording_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        ReplayBackend(tmp_path / "nowhere")
    asyncio.run(RecordBackend(ScriptedBackend(["so"]), tmp_path).chat(ask()))
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:40])
    with pytest.raises(DataError, match=file.name):
        asyncio.run(ReplayBackend(tmp_path).chat(ask()))


# --- a local model --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    from fakes import byte_tokenizer, tiny_llama

    tokenizer = byte_tokenizer()
    return tiny_llama(tokenizer), tokenizer


def local_replies(
    tiny: tuple[Any, Any], requests: list[ChatRequest], batch_size: int = 8
) -> list[Any]:
    async def go() -> list[Any]:
        backend = LocalBackend(*tiny, batch_size=batch_size)
        replies = await asyncio.gather(*map(backend.chat, requests), return_exceptions=True)
        await backend.aclose()
        return replies

    return asyncio.run(go())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_local_reply_does_not_depend_on_its_neighbours(
    tiny: tuple[Any, Any], temperature: float
) -> None:
    words = ["a", "a longer question", "b", "the longest question of them all"]
    requests = [ask(word, temperature=temperature, max_tokens=8) for word in words]
    together = local_replies(tiny, requests)
    alone = [local_replies(tiny, [request], batch_size=1)[0] for request in reversed(requests)][
        ::-1
    ]
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    assert all(reply.completion_tokens <= 8 and reply.prompt_tokens > 0 for reply in together)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_requests_that_are_alike_are_decoded_together(
    tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    from aligner.generation import decode

    sizes: list[int] = []
    continue_ids = decode.continue_ids

    def counted(model: Any, tokenizer: Any, prompts: list[Any], *rest: Any, **named: Any) -> Any:
        sizes.append(len(prompts))
        return continue_ids(model, tokenizer, prompts, *rest, **named)

    monkeypatch.setattr(decode, "continue_ids", counted)
    requests = [ask(str(number), temperature=temperature, max_tokens=2) for number in range(10)]
    local_replies(tiny, requests, batch_size=4)
    assert sizes == [4, 4, 2]


def test_local_samples_and_seeds_give_different_replies_and_the_same_again(
    tiny: tuple[Any, Any],
) -> None:
    requests = [
        ask("a", seed=seed, sample_index=index, max_tokens=16)
        for seed in (1, 2)
        for index in (0, 1)
    ]
    first, second = local_replies(tiny, requests), local_replies(tiny, requests)
    assert len({reply.text for reply in first}) == 4
    assert [reply.text for reply in first] == [reply.text for reply in second]


def test_a_raw_text_is_continued_as_it_stands(tiny: tuple[Any, Any]) -> None:
    (chat,) = local_replies(tiny, [ask("abc", temperature=0.0, max_tokens=2)])
    (raw,) = local_replies(tiny, [ChatRequest(prompt="abc", temperature=0.0, max_tokens=2)])
    assert raw.prompt_tokens == 4  # the start token and three letters
    assert chat.prompt_tokens > raw.prompt_tokens


def test_a_stop_string_ends_a_local_reply(tiny: tuple[Any, Any]) -> None:
    (whole,) = local_replies(tiny, [ask("a", seed=1, max_tokens=24)])
    stop = whole.text[2]
    requests = [ask("a", seed=1, max_tokens=24, stop=(stop,))]
    (cut,) = local_replies(tiny, requests)
    assert stop not in cut.text


def test_a_prompt_too_long_for_the_model_fails_alone(tiny: tuple[Any, Any]) -> None:
    long, short = local_replies(
        tiny, [ask("x" * 600, temperature=0.0), ask("x", temperature=0.0, max_tokens=2)]
    )
    assert long.kind == "context_length"
    assert isinstance(short, Completion)


def test_a_local_model_refuses_what_it_does_not_know() -> None:
    from fakes import byte_tokenizer, tiny_llama

    base = byte_tokenizer(chat_template=None)
    tiny = (tiny_llama(base), base)
    unknown, chat = local_replies(tiny, [ChatRequest(prompt="a", extra={"best_of": 2}), ask("a")])
    assert isinstance(unknown, RecipeError)
    assert "best_of" in str(unknown)
    assert "chat template" in str(chat)
    assert LocalBackend(*tiny).capabilities() == {"complete", "seed"}


def test_a_local_model_is_loaded_by_its_folder_and_other_weights_are_another_question(
    tmp_path: Path,
) -> None:
    from fakes import save_model

    section = Endpoint(
        backend="local", model=str(tmp_path / "model"), temperature=0.0, max_tokens=4
    )
    anything = tuple(
        map(chr, (*range(256), 0xFFFD))
    )  # a random model never stops by itself, and is not cached then
    cached = []
    for seed in (0, 0, 1):
        save_model(tmp_path / "model", seed=seed)
        (reply,) = within(section, ask_in_turn(ask("a", stop=anything)), cache=tmp_path / "c")
        assert not reply.truncated
        cached.append(reply.cached)
    assert cached == [False, True, False]


# --- the manual -----------------------------------------------------------------------------------


def test_the_manual_names_every_key_and_its_recipe_is_one() -> None:
    import yaml

    text = (Path(__file__).parents[3] / "docs" / "endpoints.md").read_text(encoding="utf-8")
    keys = [*Endpoint.model_fields, *Budget.model_fields]
    assert [
        key
        for key in keys
        if f"{key}:" not in text and f"`{key}`" not in text and f"`{key}: " not in text
    ] == []
    recipe = text.split("```yaml\n")[1].split("```")[0]
    assert Endpoint(**yaml.safe_load(recipe)["endpoint"]).budget.calls == 5000
