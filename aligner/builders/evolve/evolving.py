"""The two calls that everything is made of: evolve an instruction once, and answer once.

A reply that holds no usable instruction is a result with a typed failure, never an exception. What
a server did is one: `LLMError`, whose `data_failure` says that this row alone is at fault. Failed
evolutions are not answered, and not asked for again, here; who calls decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from aligner.builders.evolve.contract import (
    INSTRUCTION_SCHEMA,
    EvolvingMethod,
    messages,
    read_evolved,
    takes_structure,
)
from aligner.builders.evolve.failures import Failure, failure_of_answer, failure_of_evolution
from aligner.builders.evolve.recipe import Evolve
from aligner.builders.evolve.structured import response_format, takes_schemas
from aligner.endpoints.request import ChatRequest, Completion, LLMClient

T = TypeVar("T")

RETRY_TEMPERATURE = 0.7
"""Of the second try at an evolution that failed."""


class Clients(Protocol):
    """Who is asked what. Several of them may be one client."""

    @property
    def evolver(self) -> LLMClient:
        """Writes harder instructions."""

    @property
    def answerer(self) -> LLMClient:
        """Answers them."""

    @property
    def optimizer(self) -> LLMClient:
        """Analyses evolutions and rewrites methods."""

    @property
    def judge(self) -> LLMClient:
        """Judges evolutions."""


@dataclass(frozen=True)
class Evolution:
    """What became of an instruction. `text` is what the reply gave for the evolved one, of a failed
    evolution too where there is any; use it only where `failure` is None. `facts`: what the row's
    provenance says of it."""

    text: str
    failure: Failure | None
    completion: Completion
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """An answer, as the model gave it, and how the evolution has failed by it, if it has."""

    text: str
    failure: Failure | None
    completion: Completion

    @property
    def finish_reason(self) -> str:
        """Why the model stopped."""
        return self.completion.finish_reason


async def evolve_once(
    roles: Clients,
    settings: Evolve,
    method: EvolvingMethod,
    instruction: str,
    *,
    history: Sequence[Mapping[str, str]] = (),
    temperature: float | None = None,
    sample_index: int = 0,
) -> Evolution:
    """Have one instruction evolved, as the next turn of a conversation where `history` holds one.
    Raises: LLMError where there is no reply."""
    structured = takes_structure(method) and await takes_schemas(roles.evolver, settings)
    completion = await roles.evolver.chat(
        ChatRequest(
            messages=messages(method, instruction, structured, history),
            temperature=settings.temperature if temperature is None else temperature,
            max_tokens=settings.max_tokens,
            sample_index=sample_index,
            purpose="evolve",
            extra=response_format(INSTRUCTION_SCHEMA) if structured else {},
        )
    )
    text = read_evolved(method, completion.text, instruction, structured)
    reason, rules = completion.finish_reason, settings.failures
    if text is None:
        is_cut = reason == "length" and rules.rules == "robust"
        return Evolution("", "truncated" if is_cut else "parse", completion)
    return Evolution(text, failure_of_evolution(instruction, text, rules, reason), completion)


async def answer_once(
    roles: Clients,
    settings: Evolve,
    turns: Iterable[Mapping[str, str]],
    *,
    temperature: float | None = None,
    sample_index: int = 0,
) -> Answer:
    """Have a conversation, or one instruction as its only turn, answered; a system turn of its own
    stands in the place of `answer_system`. Raises: LLMError where there is no reply."""
    turns, system = tuple(turns), settings.answer_system
    needs_system = system is not None and turns[0]["role"] == "user"
    head = ({"role": "system", "content": str(system)},) if needs_system else ()
    completion = await roles.answerer.chat(
        ChatRequest(
            messages=(*head, *turns),
            temperature=settings.answer_temperature if temperature is None else temperature,
            max_tokens=settings.answer_max_tokens,
            sample_index=sample_index,
            purpose="answer",
        )
    )
    failure = failure_of_answer(completion.text, settings.failures, completion.finish_reason)
    return Answer(completion.text, failure, completion)


def user_turn(instruction: str) -> tuple[Mapping[str, str], ...]:
    """Return the conversation that an instruction alone is."""
    return ({"role": "user", "content": instruction},)


async def side_by_side(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Return the results of all, in their order; with the first error the others are cancelled and
    waited for, so that nothing runs on behind it."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
