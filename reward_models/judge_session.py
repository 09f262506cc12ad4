"""Asking a judge many questions at once, from a program that knows nothing of event loops.

A session has one client, and one event loop in a thread of its own, opened with the first question
and kept until the session is closed or forgotten: the budget, the rates, a server's connections and
the weights of a `local` model last as long as the judge does. The caller waits for its answers. A
program that runs an event loop itself (a notebook) may call as well, and its loop waits too; `await
asyncio.to_thread(judge.score, ...)` lets it run meanwhile.

Every reply is in the cache before it is read, so what was paid for is never lost: not with a kill,
a spent budget, a server that goes away, nor with another question that gets no usable answer. What
a reasoning model thought before its reply is no part of it: a verdict that it only thought of is
none.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner.config.recipe import Endpoint, Model
from aligner.data.reasoning import without_reasoning
from aligner.endpoints.client import Client, open_client
from aligner.endpoints.local import load_local
from aligner.endpoints.request import ChatRequest, Completion, Kind, LLMError
from aligner.errors import EndpointError

from .judge_prompts import Messages, Unusable

ATTEMPTS = 2
"""New requests for one question: as it is, and with a reminder of the form. What comes from the
cache does not count."""
FAILURES_IN_A_ROW = 3
"""Questions that the server answers with nothing usable after all retries, before no more are
asked."""
NO_REPLY = "(no reply)"
CLOSING_S = 5.0
"""Longest wait for connections to be closed."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, how the reply is read (`Unusable` where it cannot be), and the reminder that
    follows such a reply."""

    messages: Messages
    read: Callable[[str], Any]
    reminder: str
    sample: int = 0
    """Which of several replies to the same question this is."""
    samples: int = 1
    """How many there are."""
    again: bool = True
    """Ask again where the cache holds nothing but unusable replies."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A value, and how many replies it took; or the reason why there is none."""

    value: Any
    asked: int = 1
    reason: str = ""
    new: int = 0
    """Replies that were not in the cache."""
    last: Completion | None = None
    """The reply that was read, or the last that could not be; None where the request itself cannot
    be answered, and then `failure` is the kind of its error."""
    failure: Kind | None = None
    prompt_tokens: int = 0
    """Of all its replies, those from the cache too; so are the next two."""
    completion_tokens: int = 0
    latency_s: float = 0.0


class Session:
    """A client and its event loop. `run` names the accounts that the budget continues; see
    `aligner.endpoints`. `weights`: the model to load in place of what a `local` endpoint names."""

    def __init__(self, endpoint: Endpoint, cache: Path, weights: Model | None = None) -> None:
        self.endpoint = endpoint
        self.cache = cache
        self.weights = weights
        self.run = ""
        self._opened: tuple[Client, asyncio.AbstractEventLoop] | None = None
        self._process = 0
        self._lock = threading.Lock()
        self._finalizer: weakref.finalize[..., Any] | None = None

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Answer all questions, as many at a time as the endpoint allows; equal ones are asked
        once.

        Raises: EndpointError after everything that could be answered has been, when the budget is
        spent or the server refuses or stays away.
        """
        outcomes = self.outcomes(questions)
        if (error := failure_among(outcomes)) is not None:
            raise error from error.__cause__
        return [outcome for outcome in outcomes if isinstance(outcome, Reply)]

    def outcomes(self, questions: Sequence[Question]) -> list[Reply | EndpointError]:
        """Answer all questions as `ask` does; the error in the place of those that were not."""
        if not questions:
            return []
        different = {_key(question): question for question in questions}
        client, loop = self.open()
        work = _Round(client, self.endpoint).ask(list(different.values()))
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            outcomes = future.result()
        except BaseException:  # Ctrl-C too: nothing is asked any more
            future.cancel()
            raise
        found = dict(zip(different, outcomes))
        return [found[_key(question)] for question in questions]

    def open(self) -> tuple[Client, asyncio.AbstractEventLoop]:
        """The client and its loop, opened now if they are not open. Asks nobody; loads the model of
        a `local` endpoint."""
        with self._lock:
            if (
                self._opened is None or self._process != os.getpid()
            ):  # a forked process has no thread of its parent
                backend = None
                if self.weights is not None:
                    backend = load_local(self.weights, batch_size=self.endpoint.max_in_flight)
                client = open_client(self.endpoint, cache=self.cache, run=self.run, backend=backend)
                loop = asyncio.new_event_loop()
                thread = threading.Thread(
                    target=_serve, args=(loop, client), name="aligner-judge", daemon=True
                )
                thread.start()
                self._finalizer = weakref.finalize(self, _stop, loop, thread, os.getpid())
                self._opened, self._process = (client, loop), os.getpid()
            return self._opened

    def usage(self) -> dict[str, Any]:
        """What was asked and spent since the session was opened (`aligner.endpoints.usage`)."""
        return {} if self._opened is None else self._opened[0].usage.to_json()

    def close(self) -> None:
        """Close the client; a further question opens a new one."""
        with self._lock:
            if self._finalizer is not None:
                self._finalizer()
            self._opened = self._finalizer = None


class _Round:
    """The questions of one call."""

    def __init__(self, client: Client, endpoint: Endpoint) -> None:
        self._client = client
        self._gate = asyncio.Semaphore(endpoint.max_in_flight)
        self._failures = 0
        self._stopped: EndpointError | None = None

    async def ask(self, questions: Sequence[Question]) -> list[Reply | EndpointError]:
        return await asyncio.gather(*(self._one(question) for question in questions))

    async def _one(self, question: Question) -> Reply | EndpointError:
        async with self._gate:
            if self._stopped is not None:
                return self._stopped
            try:
                reply = await self._ask(question)
            except LLMError as error:
                return self._note(error)
            except EndpointError as error:
                return error
            self._failures = 0
            return reply

    def _note(self, error: LLMError) -> Reply | EndpointError:
        """A question that cannot be answered is one row's affair; a server that answers nothing
        ends the round."""
        if error.data_failure:
            return Reply(None, reason=error.message, failure=error.kind)
        if error.retryable:
            self._failures += 1
            if self._failures >= FAILURES_IN_A_ROW:
                self._stopped = error
        return error

    async def _ask(self, question: Question) -> Reply:
        """Ask, and after an unusable reply once more with a reminder; replies that are in the cache
        are gone through first.

        So a question that got no usable answer in an earlier run is asked again, and not read from
        the cache forever.
        """
        said: list[Completion] = []
        messages = question.messages
        for attempt in itertools.count():
            number = question.sample + question.samples * (attempt // ATTEMPTS)
            completion = await self._client.chat(
                ChatRequest(messages=messages, sample_index=number, purpose="judge")
            )
            said.append(completion)
            try:
                if completion.truncated:  # a grade at the place of the cut may be a quotation
                    raise Unusable("the reply was cut at endpoint.max_tokens")
                return _reply(question.read(without_reasoning(completion.text)), said)
            except Unusable as unusable:
                new = sum(not one.cached for one in said)
                if new >= ATTEMPTS or (attempt + 1 == ATTEMPTS and not question.again):
                    return _reply(None, said, str(unusable))
            again = (
                {"role": "assistant", "content": without_reasoning(completion.text) or NO_REPLY},
                {"role": "user", "content": question.reminder},
            )
            messages = (
                (*question.messages, *again) if attempt % ATTEMPTS == 0 else question.messages
            )
        raise AssertionError("the cache holds a finite number of replies")


def _reply(value: Any, said: Sequence[Completion], reason: str = "") -> Reply:
    """What came of the replies to a question."""
    return Reply(
        value,
        asked=len(said),
        reason=reason,
        new=sum(not one.cached for one in said),
        last=said[-1],
        prompt_tokens=sum(one.prompt_tokens for one in said),
        completion_tokens=sum(one.completion_tokens for one in said),
        latency_s=sum(one.latency_s for one in said),
    )


def failure_among(outcomes: Sequence[Reply | EndpointError]) -> EndpointError | None:
    """The failure that says most: a refusal or a spent budget before a server that stayed away;
    None where all were answered."""
    failures = [outcome for outcome in outcomes if isinstance(outcome, EndpointError)]
    if not failures:
        return None
    worst = min(failures, key=lambda error: isinstance(error, LLMError) and error.retryable)
    answered = len(outcomes) - len(failures)
    kept = "; their replies are kept" if answered else ""
    message = f"{worst.message} ({answered} of {len(outcomes)} questions were answered{kept})"
    hint = worst.hint or "try again later: only what is missing is asked"
    error = EndpointError(message, hint)
    if isinstance(worst, LLMError):
        error = LLMError(
            message, hint, kind=worst.kind, status=worst.status, attempts=worst.attempts
        )
    error.__cause__ = worst
    return error


def _key(question: Question) -> Hashable:
    """The same for questions that have the same reply."""
    said = tuple((message["role"], message["content"]) for message in question.messages)
    how = (question.read, question.reminder, question.again)
    return said, how, question.sample, question.samples


def _serve(loop: asyncio.AbstractEventLoop, client: Client) -> None:
    """The thread of a session: run its loop until it is stopped, then close the client."""

    async def end() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.aclose()

    loop.run_forever()
    loop.run_until_complete(end())
    loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, process: int) -> None:
    """End a session's thread; called by `close`, or whenever the session is forgotten, at the
    latest at exit."""
    if process != os.getpid():  # a fork has the loop's pipes, and would stop its parent's
        return
    loop.call_soon_threadsafe(loop.stop)
    if threading.current_thread() is not thread:
        thread.join(CLOSING_S)
