"""One row on its way: evolved, answered and checked, once for each round.

An evolution that fails, by itself or by its answer, is tried once more at another temperature, or
the instruction stays as it was, or the row is dropped; `evolve.failures.on_fail` says which. A
conversation is evolved turn by turn, each after the evolved and newly answered ones before it, and
ends before the first turn that fails. What comes out is JSON: the rows that were made, and those
that were dropped, each with its reason.

How instructions are written belongs to the modes (`Author`), which rows are kept to `checks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from aligner.builders.evolve.checks import RowChecks
from aligner.builders.evolve.evolving import RETRY_TEMPERATURE, Answer, Evolution, answer_once
from aligner.builders.evolve.made import Made, Turn, row_id
from aligner.builders.evolve.output_checks import KEPT_SEED
from aligner.builders.evolve.recipe import Evolve
from aligner.builders.evolve.roles import Roles
from aligner.builders.evolve.seeds import SYSTEM, Seed
from aligner.endpoints.request import Completion, LLMError

OF_THE_ANSWER = {"truncated": "truncated", "refusal": "refusals"}
"""Class of failure of an answer -> the check that says whether it matters; of others, `failures`
does."""


class Author(Protocol):
    """Who writes the instruction of a row."""

    def method_id(self, seed: Seed, round_: int) -> str | None:
        """Return the id of the evolving method of a row in a round, if it has one."""

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
        """Return the instruction that takes the place of another, after a conversation. Raises:
        LLMError."""


@dataclass
class Tried:
    """A turn of the user that was evolved and answered. `failure`: why it cannot be used.
    `is_seed`: the instruction stayed as it was. `retried_for`: why it was tried once more. `facts`:
    what else its author says of it."""

    text: str
    answer: str = ""
    finish_reason: str = "stop"
    failure: str | None = None
    is_seed: bool = False
    retried_for: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Usage:
    """What the calls of a row took, from the cache or not."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, completion: Completion) -> None:
        """Count a call."""
        self.calls += 1
        self.prompt_tokens += completion.prompt_tokens
        self.completion_tokens += completion.completion_tokens

    def to_json(self) -> dict[str, int]:
        """As it stands in a row's provenance."""
        return {
            "calls": self.calls,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }


@dataclass
class Conversation:
    """A conversation that is being evolved: what stands in it, and what the user asks by now."""

    turns: list[Turn]
    asked: list[str] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    def add(self, tried: Tried) -> None:
        """Go on after a turn that can be used."""
        self.turns.append({"role": "user", "content": tried.text})
        self.turns.append({"role": "assistant", "content": tried.answer})
        self.asked.append(tried.text)


@dataclass(frozen=True)
class RowWork:
    """What carries a row through its rounds. `models`: role -> the name that rows are marked
    with."""

    roles: Roles
    settings: Evolve
    seeds: Sequence[Seed]
    author: Author
    checks: RowChecks
    models: dict[str, str]

    async def __call__(self, number: int) -> dict[str, Any]:
        """Carry a row through. Raises: LLMError of a request that is not the row's own fault."""
        seed = self.seeds[number]
        made: list[Made] = []
        dropped: list[dict[str, Any]] = []
        users, parent_id = seed.users, None
        for round_ in range(1, self.settings.rounds + 1):
            talk = await self._converse(seed, round_, users)
            failed = talk.tried[-1]
            if not talk.asked:
                dropped.append(_dropped(seed, round_, users[0], failed))
                break
            row = self._made(seed, round_, parent_id, talk)
            verdict = await self.checks.check(row, self.roles)
            if verdict.reason is None:
                made.append(verdict.made)
            else:
                tried = replace(failed, text=row.instruction, answer=verdict.made.completion)
                tried.failure = verdict.reason
                dropped.append(_dropped(seed, round_, users[-1], tried))
            if any(tried.is_seed for tried in talk.tried):
                break
            users, parent_id = tuple(talk.asked), row.id
        return {"made": [row.to_json() for row in made], "dropped": dropped}

    async def _converse(self, seed: Seed, round_: int, users: Sequence[str]) -> Conversation:
        talk = Conversation([*seed.system])
        for user in users:
            tried = await self._turn(seed, round_, user, talk)
            talk.tried.append(tried)
            if tried.failure is not None:
                break
            talk.add(tried)
        return talk

    async def _turn(self, seed: Seed, round_: int, user: str, talk: Conversation) -> Tried:
        policy = self.settings.failures.on_fail
        tried = await self._attempt(seed, round_, user, talk, 0)
        failure = tried.failure
        if failure not in (None, "context_length") and policy == "retry":
            tried = await self._attempt(seed, round_, user, talk, 1)
        elif failure is not None and policy == "keep_seed" and round_ == 1:
            tried = await self._answered(Tried(user, is_seed=True), talk)
        else:
            return tried
        return replace(tried, retried_for=failure)

    async def _attempt(
        self, seed: Seed, round_: int, user: str, talk: Conversation, attempt: int
    ) -> Tried:
        history = [turn for turn in talk.turns if turn["role"] not in SYSTEM]
        try:
            evolution = await self.author.write(
                seed,
                round_,
                user,
                history,
                temperature=RETRY_TEMPERATURE if attempt else None,
                sample_index=attempt,
            )
        except LLMError as error:
            return Tried("", failure=_kind(error))
        talk.usage.add(evolution.completion)
        tried = Tried(evolution.text, failure=evolution.failure, facts=evolution.facts)
        return tried if tried.failure is not None else await self._answered(tried, talk)

    async def _answered(self, tried: Tried, talk: Conversation) -> Tried:
        turns = [*talk.turns, {"role": "user", "content": tried.text}]
        try:
            answer = await answer_once(self.roles, self.settings, turns)
        except LLMError as error:
            return replace(tried, failure=_kind(error))
        talk.usage.add(answer.completion)
        return replace(
            tried,
            answer=answer.text,
            finish_reason=answer.finish_reason,
            failure=self._failure(answer),
        )

    def _failure(self, answer: Answer) -> str | None:
        """The class of an answer's failure, where a check says that it matters."""
        if answer.failure is None or answer.failure == "empty":
            return answer.failure
        check = OF_THE_ANSWER.get(answer.failure, "failures")
        return answer.failure if getattr(self.settings.checks, check) else None

    def _made(self, seed: Seed, round_: int, parent_id: str | None, talk: Conversation) -> Made:
        prompt, used = tuple(talk.turns[:-1]), talk.tried[len(talk.asked) - 1]
        provenance: dict[str, Any] = {
            "method_id": self.author.method_id(seed, round_),
            **self.models,
            **used.facts,
            "usage": talk.usage.to_json(),
        }
        if retried := [tried.retried_for for tried in talk.tried if tried.retried_for]:
            provenance["retried_for"] = retried
        if any(tried.is_seed for tried in talk.tried):
            provenance[KEPT_SEED] = True
        if talk.tried[-1].failure is not None:
            provenance["ended_by"] = talk.tried[-1].failure
        return Made(
            id=row_id(seed.id, round_, prompt),
            seed_id=seed.id,
            prompt=prompt,
            completion=used.answer,
            round=round_,
            parent_id=parent_id,
            finish_reason=used.finish_reason,
            reference=seed.reference,
            provenance=provenance,
        )


def failed_row(seed: Seed, error: LLMError) -> dict[str, Any]:
    """What is kept of a row that the server failed at, again and again."""
    tried = Tried("", failure=error.kind)
    return {"made": [], "dropped": [_dropped(seed, 1, seed.users[0], tried)]}


def _kind(error: LLMError) -> str:
    """The kind of a failure that is the row's own; any other is raised again."""
    if not error.data_failure:
        raise error
    return error.kind


def _dropped(seed: Seed, round_: int, instruction: str, tried: Tried) -> dict[str, Any]:
    """A line about a dropped row."""
    return {
        "seed_id": seed.id,
        "round": round_,
        "reason": tried.failure,
        "from": instruction,
        "instruction": tried.text,
        "answer": tried.answer,
        "origin": seed.origin,
    }
