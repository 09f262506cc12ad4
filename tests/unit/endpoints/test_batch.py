"""Requests through a batch API: collected, submitted once whatever happens, and answered as if they
were sent one by one; against a server on loopback, with the real `openai` package."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_batches import FakeBatches, Outcome, reply_body

from aligner.config.recipe import Budget, Endpoint
from aligner.endpoints import batch as batch_module
from aligner.endpoints.batch import BatchBackend, Batching
from aligner.endpoints.client import Client, open_client
from aligner.endpoints.request import ChatRequest, Completion
from aligner.endpoints.store import Store
from aligner.errors import DataError, RecipeError

pytest.importorskip("openai")


def ask(content: str = "hi", **settings: Any) -> ChatRequest:
    return ChatRequest(messages=({"role": "user", "content": content},), **settings)


def asked(line: dict[str, Any]) -> str:
    return str(line["body"]["messages"][0]["content"])


async def no_pause(seconds: float) -> None:
    await asyncio.sleep(0)


def within(
    server: FakeBatches, folder: Path, work: Callable[[Client], Awaitable[Any]], **settings: Any
) -> Any:
    async def go() -> Any:
        section = Endpoint(model="toy", base_url=server.base_url, max_retries=2, **settings)
        batching = Batching(folder / "batches", quiet_s=0.05, on_progress=PROGRESS.append_pair)
        cache = folder / "replies.sqlite"
        async with open_client(
            section, cache=cache, run="x", batch=batching, sleep=no_pause
        ) as client:
            return await work(client)

    return asyncio.run(go())


class Progress(list[tuple[int, int]]):
    def append_pair(self, done: int, total: int) -> None:
        self.append((done, total))


PROGRESS = Progress()


def ask_all(*requests: ChatRequest) -> Callable[[Client], Awaitable[list[Any]]]:
    async def go(client: Client) -> list[Any]:
        return await asyncio.gather(
            *(client.chat(request) for request in requests), return_exceptions=True
        )

    return go


def words(number: int) -> list[ChatRequest]:
    return [ask(str(index)) for index in range(number)]


def test_all_who_ask_at_once_are_one_file_and_each_gets_its_reply(tmp_path: Path) -> None:
    PROGRESS.clear()
    with FakeBatches(lambda line: f"to {asked(line)}", looks=(3,)) as server:
        replies = within(
            server, tmp_path, ask_all(*words(20), ask("x", seed=3, extra={"top_k": 5}))
        )
    assert [reply.text for reply in replies] == [*(f"to {index}" for index in range(20)), "to x"]
    assert (replies[0].prompt_tokens, replies[0].completion_tokens, replies[0].cached) == (
        7,
        3,
        False,
    )
    assert len(server.batches) == 1
    assert len(server.submitted()) == len(set(server.submitted())) == 21
    assert server.batches[0]["endpoint"] == "/v1/chat/completions"
    assert server.batches[0]["completion_window"] == "24h"
    line = server.lines(server.batches[0])[-1]
    assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
    assert line["body"] == {
        "model": "toy",
        "messages": [{"role": "user", "content": "x"}],
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 2048,
        "seed": 3,
        "top_k": 5,
    }
    assert (PROGRESS[0], PROGRESS[-1]) == ((0, 21), (21, 21))


def test_files_are_no_larger_than_the_server_takes_and_of_one_model_and_path_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "MOST_REQUESTS", 3)
    monkeypatch.setattr(batch_module, "MOST_BYTES", 1000)
    requests = [*words(7), ask("y" * 600), ask("z" * 600), ask("a", model="other")]
    requests.append(ChatRequest(prompt="once"))
    with FakeBatches() as server:
        replies = within(server, tmp_path, ask_all(*requests))
    assert [type(reply) for reply in replies[:10]] == [Completion] * 10
    assert len(server.submitted()) == 11
    for batch in server.batches:
        lines = server.lines(batch)
        assert len(lines) <= 3
        assert len({(line["body"]["model"], line["url"]) for line in lines}) == 1
        assert {line["url"] for line in lines} == {batch["endpoint"]}


def test_prices_are_halved_and_a_budget_counts_before_it_submits(tmp_path: Path) -> None:
    async def go(client: Client) -> Any:
        return await ask_all(*words(10))(client), client.usage.to_json()

    prices = {"usd_per_million_prompt_tokens": 2.0, "usd_per_million_completion_tokens": 10.0}
    with FakeBatches() as server:
        replies, usage = within(server, tmp_path, go, budget=Budget(calls=6), **prices)
        assert len(server.submitted()) == 6
        kinds = [getattr(reply, "kind", "reply") for reply in replies]
        assert (kinds.count("reply"), kinds.count("budget")) == (6, 4)
        assert usage["usd"] == pytest.approx(6 * (7 * 1.0 + 3 * 5.0) / 1e6)
        again = within(server, tmp_path, ask_all(*words(10)), budget=Budget(calls=6), **prices)
        assert [getattr(reply, "kind", "reply") for reply in again] == kinds
    assert len(server.submitted()) == 6


@pytest.mark.parametrize("ending", ["expired", "cancelled"])
def test_partial_results_are_kept_and_the_rest_is_submitted_once_more(
    tmp_path: Path, ending: str
) -> None:
    def answer(line: dict[str, Any]) -> Outcome:
        late = int(asked(line)) >= 6
        return f"batch_{ending}" if late and len(server.batches) == 1 else "so"

    with FakeBatches(answer, endings=(ending, "completed")) as server:
        replies = within(server, tmp_path, ask_all(*words(10)))
    assert [reply.text for reply in replies] == ["so"] * 10
    assert [len(server.lines(batch)) for batch in server.batches] == [10, 4]
    assert [reply.attempts for reply in replies] == [1] * 6 + [2] * 4
    store = Store(tmp_path / "replies.sqlite", "x")
    assert (store.spent().calls, store.spent().replies) == (10, 10)
    store.close()


def test_what_has_no_result_twice_is_reported_and_may_be_asked_again_later(tmp_path: Path) -> None:
    with FakeBatches(lambda line: None if asked(line) == "1" else "so") as server:
        first = within(server, tmp_path, ask_all(*words(3)))
        assert (first[1].kind, first[1].retryable, first[1].status) == ("unavailable", True, None)
        assert len(server.batches) == 2
        server.answer = lambda line: "at last"
        again = within(server, tmp_path, ask_all(*words(3)))
    assert [reply.text for reply in again] == ["so", "at last", "so"]
    assert len(server.submitted()) == 5


@pytest.mark.parametrize(
    ("outcome", "kind", "batches"),
    [
        ((400, {"error": {"message": "unknown field"}}), "fatal", 1),
        ((401, {"error": {"message": "wrong key"}}), "fatal", 1),
        ((400, {"error": {"message": "maximum context length is 4096"}}), "context_length", 1),
        ((400, {"error": {"message": "no", "code": "content_filter"}}), "content_filter", 1),
        ((429, {"error": {"message": "no", "code": "insufficient_quota"}}), "fatal", 1),
        ((200, reply_body("par", "content_filter")), "content_filter", 1),
        ((500, {"error": {"message": "broken"}}), "unavailable", 2),
        ((429, {"error": {"message": "slower"}}), "unavailable", 2),
        ((200, {"choices": []}), "bad_reply", 2),
        ("batch_expired", "unavailable", 2),
    ],
)
def test_a_failed_line_means_what_it_means_at_once(
    tmp_path: Path, outcome: Outcome, kind: str, batches: int
) -> None:
    with FakeBatches(lambda line: outcome if asked(line) == "0" else "so") as server:
        failed, good = within(server, tmp_path, ask_all(*words(2)))
    assert (failed.kind, good.text) == (kind, "so")
    assert failed.attempts == len(server.batches) == batches


def test_a_truncated_reply_says_so(tmp_path: Path) -> None:
    with FakeBatches(lambda line: (200, reply_body("par", "length"))) as server:
        (reply,) = within(server, tmp_path, ask_all(ask()))
    assert reply.truncated


def test_a_refused_batch_fails_with_the_servers_words(tmp_path: Path) -> None:
    with FakeBatches(endings=("invalid_model", "completed")) as server:
        replies = within(server, tmp_path, ask_all(*words(2)))
        assert [reply.kind for reply in replies] == ["fatal", "fatal"]
        assert "invalid_model" in str(replies[0])
        assert [reply.text for reply in within(server, tmp_path, ask_all(*words(2)))] == ["so"] * 2


def test_a_server_without_room_gets_smaller_files_one_after_the_other(tmp_path: Path) -> None:
    with FakeBatches() as server:
        room = 4

        def fits(batch: dict[str, Any], ending: str) -> None:
            too_large = len(server.lines(batch)) > room
            end(batch, "token_limit_exceeded" if too_large else ending)

        end = server._end
        server._end = fits  # type: ignore[method-assign]
        replies = within(server, tmp_path, ask_all(*words(10)))
    assert [reply.text for reply in replies] == ["so"] * 10
    done = [batch for batch in server.batches if batch["status"] == "completed"]
    assert sum(len(server.lines(batch)) for batch in done) == 10


def test_what_does_not_fit_waits_until_another_batch_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "MOST_REQUESTS", 5)
    endings = ("completed", "token_limit_exceeded", "completed")
    refused = BatchBackend._refused

    def then_the_first_ends(self: BatchBackend, *given: Any) -> None:
        refused(self, *given)
        server.looks = (1,)

    monkeypatch.setattr(BatchBackend, "_refused", then_the_first_ends)
    with FakeBatches(endings=endings, looks=(10**9, 1)) as server:
        replies = within(server, tmp_path, ask_all(*words(10)))
    assert [reply.text for reply in replies] == ["so"] * 10
    assert [batch["status"] for batch in server.batches] == ["completed", "failed", "completed"]


def test_a_batch_that_was_made_though_the_reply_was_lost_is_found_and_not_made_again(
    tmp_path: Path,
) -> None:
    with FakeBatches() as server:
        server.faults["POST /batches"] = [500]
        server.faults["GET /batches/batch-0"] = [503, 0]
        replies = within(server, tmp_path, ask_all(*words(3)))
    assert [reply.text for reply in replies] == ["so"] * 3
    assert len(server.batches) == 1


def test_a_server_without_a_batch_api_is_named(tmp_path: Path) -> None:
    with FakeBatches() as server:
        server.faults["POST /files"] = [404]
        (reply,) = within(server, tmp_path, ask_all(ask()))
    assert (reply.kind, reply.status) == ("fatal", 404)
    assert "batch API" in reply.hint


def test_only_a_server_has_a_batch_api(tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text('{"reply": "a"}\n')
    section = Endpoint(backend="scripted", script=str(script))
    with pytest.raises(RecipeError, match="batch API"):
        open_client(section, batch=Batching(tmp_path / "batches"))


def test_what_is_urgent_is_sent_at_once(tmp_path: Path) -> None:
    with FakeBatches() as server:
        replies = within(server, tmp_path, ask_all(ask("a", urgent=True), ask("b")))
    assert [reply.text for reply in replies] == ["direct", "so"]
    assert len(server.submitted()) == 1


def test_who_no_longer_waits_before_the_file_is_written_is_not_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit_soon, waiting = BatchBackend._submit_soon, []
    monkeypatch.setattr(BatchBackend, "_submit_soon", lambda self: waiting.append(self))

    async def go(client: Client) -> Any:
        tasks = [asyncio.create_task(client.chat(request)) for request in words(3)]
        while len(waiting) < 3:
            assert not any(task.done() for task in tasks)
            await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        submit_soon(waiting[0])
        return await asyncio.gather(*tasks, return_exceptions=True)

    with FakeBatches() as server:
        replies = within(server, tmp_path, go)
    assert [getattr(reply, "text", None) for reply in replies] == ["so", None, "so"]
    assert len(server.submitted()) == 2


def test_replies_that_came_after_their_run_had_ended_are_handed_out_by_the_next(
    tmp_path: Path,
) -> None:
    async def leave_early(client: Client) -> None:
        tasks = [asyncio.create_task(client.chat(request)) for request in words(3)]
        while not server.batches:
            await asyncio.sleep(0.01)
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with FakeBatches(looks=(20,)) as server:
        within(server, tmp_path, leave_early)
        replies = within(server, tmp_path, ask_all(*words(3)), budget=Budget(calls=3))
    assert [(reply.text, reply.cached) for reply in replies] == [
        ("so", True),
        ("so", False),
        ("so", False),
    ]
    assert len(server.batches) == 1


def test_a_failure_is_not_remembered_by_the_next_run(tmp_path: Path) -> None:
    with FakeBatches(lambda line: (403, {"error": {"message": "not yet"}})) as server:
        (failed,) = within(server, tmp_path, ask_all(ask()))
        server.answer = lambda line: "now"
        (reply,) = within(server, tmp_path, ask_all(ask()))
    assert (failed.kind, reply.text) == ("fatal", "now")


def test_the_key_is_in_no_file_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-test-0123456789abcdef"
    monkeypatch.setenv("MY_KEY", key)

    def answer(line: dict[str, Any]) -> Outcome:
        bad = (400, {"error": {"message": f"no {key}"}})
        return f"you sent {key}" if asked(line) == "0" else bad

    with FakeBatches(answer) as server:
        replies = within(server, tmp_path, ask_all(*words(2)), api_key_env="MY_KEY")
        server.faults["POST /files"] = [401]
        replies += within(server, tmp_path, ask_all(ask("2")), api_key_env="MY_KEY")
    shown = [repr(replies), *map(str, replies), *(repr(vars(error)) for error in replies[1:])]
    assert all(error.__context__ is None for error in replies[1:])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 4
    shown += [path.read_bytes().decode("latin-1") for path in files]
    assert not [text for text in shown if key in text]
    assert (tmp_path / "batches").stat().st_mode & 0o077 == 0


def test_a_batch_that_the_server_no_longer_knows_is_named_and_not_paid_again(
    tmp_path: Path,
) -> None:
    async def leave_early(client: Client) -> None:
        task = asyncio.create_task(client.chat(ask()))
        while not list(tmp_path.glob("batches/*.json")) or "batch-0" not in next(
            tmp_path.glob("batches/*.json")
        ).read_text(encoding="utf-8"):
            await asyncio.sleep(0.01)
        task.cancel()

    with FakeBatches(looks=(1000,)) as server:
        within(server, tmp_path, leave_early)
        server.faults["GET /batches/batch-0"] = [404] * 2
        (error,) = within(server, tmp_path, ask_all(ask()))
    assert (error.kind, error.status) == ("fatal", 404)
    assert "batch-0" in error.message
    assert "another key" in error.hint
    assert len(server.batches) == 1


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    with FakeBatches() as server:
        within(server, tmp_path, ask_all(ask()))
        (tmp_path / "batches" / "000001.json").write_text("{")
        with pytest.raises(DataError, match=r"000001\.json"):
            within(server, tmp_path, ask_all(ask()))


RUN = """
import asyncio, os, pathlib, signal, sys
from aligner.config.recipe import Endpoint
from aligner.endpoints import batch_folder, batch_server
from aligner.endpoints.batch import BatchBackend, Batching
from aligner.endpoints.client import open_client
from aligner.endpoints.request import ChatRequest
from aligner.endpoints.store import Store

folder, base_url, kill_at = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
steps = 0

def step():
    global steps
    steps += 1
    if steps == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

def wrapped(owner, name):
    inner = getattr(owner, name)
    if asyncio.iscoroutinefunction(inner):
        async def outer(*values, **named):
            step()
            found = await inner(*values, **named)
            step()
            return found
    else:
        def outer(*values, **named):
            step()
            found = inner(*values, **named)
            step()
            return found
    setattr(owner, name, outer)

for name in ("upload", "submit", "look", "results"):
    wrapped(batch_server.BatchServer, name)
for name in ("prepare", "save", "end"):
    wrapped(batch_folder.BatchFolder, name)
wrapped(Store, "write")

async def two_turns(client, number):
    for turn in ("first", "second"):
        message = {"role": "user", "content": f"{turn} {number}"}
        await client.chat(ChatRequest(messages=(message,)))

async def no_pause(seconds):
    await asyncio.sleep(0)

async def go():
    section = Endpoint(model="toy", base_url=base_url)
    batching = Batching(folder / "batches", quiet_s=0.05)
    cache = folder / "replies.sqlite"
    async with open_client(section, cache=cache, run="x", batch=batching, sleep=no_pause) as client:
        await asyncio.gather(*(two_turns(client, number) for number in range(4)))

asyncio.run(go())
print(steps)
"""


async def two_turns(client: Client, number: int) -> str:
    for turn in ("first", "second"):
        reply = await client.chat(ask(f"{turn} {number}"))
    return reply.text


async def all_turns(client: Client) -> list[str]:
    return await asyncio.gather(*(two_turns(client, number) for number in range(4)))


def killed_at(kill_at: int, folder: Path) -> int:
    """Kill a run and run to the end; return the steps that an unkilled one has. A step is the
    beginning or the end of whatever asks the server or writes a file."""
    folder.mkdir()
    with FakeBatches(lambda line: f"to {asked(line)}") as server:
        command = [sys.executable, "-c", RUN, str(folder), server.base_url, str(kill_at)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == (-signal.SIGKILL if kill_at else 0), done.stderr
        texts = within(server, folder, all_turns)
        assert texts == [f"to second {number}" for number in range(4)]
        submitted = server.submitted()
    assert len(submitted) == len(set(submitted)) == 8, f"submitted twice after step {kill_at}"
    store = Store(folder / "replies.sqlite", "x")
    spent = store.spent()
    store.close()
    # counted, and killed before the batch was remembered: too many in the accounts, never too few
    assert spent.calls in (8, 12)
    assert spent.replies == 8
    return int(done.stdout or 0)


def test_a_run_killed_while_a_batch_is_under_way_continues_with_the_same_batch(
    tmp_path: Path,
) -> None:
    for kill_at in (9, 15):
        killed_at(kill_at, tmp_path / str(kill_at))


@pytest.mark.slow
def test_a_run_killed_anywhere_submits_nothing_twice(tmp_path: Path) -> None:
    steps = killed_at(0, tmp_path / "whole")
    assert steps > 20
    for kill_at in range(1, steps + 1):
        killed_at(kill_at, tmp_path / str(kill_at))
