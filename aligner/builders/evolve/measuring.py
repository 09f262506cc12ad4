"""What a method is worth: its failures on the development instructions (arXiv 2406.00770, equation
2), each evolved once and answered.

A server that has no reply for an instruction makes the measurement smaller, not worse. An evolution
that has failed by itself (no final section, unchanged) is not answered. With `secondary:
issue_rate` a judge looks at the evolutions as well, in one order, ten at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aligner.builders.evolve.contract import EvolvingMethod
from aligner.builders.evolve.evolving import (
    Answer,
    Clients,
    Evolution,
    answer_once,
    evolve_once,
    side_by_side,
    user_turn,
)
from aligner.builders.evolve.failures import Failure, asks_back
from aligner.builders.evolve.history import Measured, class_counts
from aligner.builders.evolve.prompts import (
    JUDGE,
    SECTION_VERDICT,
    STRUCTURED_VERDICT,
    VERDICT_LABEL,
)
from aligner.builders.evolve.recipe import Evolve
from aligner.builders.evolve.rewriting import cases_text, spared
from aligner.builders.evolve.sections import last_section
from aligner.builders.evolve.structured import (
    NUMBERS,
    TEXT,
    read_object,
    response_format,
    takes_schemas,
)
from aligner.data.reasoning import without_reasoning
from aligner.endpoints.request import ChatRequest, LLMError

JUDGED_AT_ONCE = 10
VERDICT_SCHEMA = {"thoughts": TEXT, "at_fault": NUMBERS}

PROBED, MOST_PROBES_FAILED = 3, 1
"""Instructions that a `free` method is tried on first, and how many of their replies may lack a
final section."""


@dataclass(frozen=True)
class Tried:
    """One development instruction under a method; `answer` only where the text was answered."""

    instruction: str
    evolution: Evolution
    answer: Answer | None = None

    @property
    def failure(self) -> Failure | None:
        """How it has failed, if it has."""
        if self.evolution.failure is not None:
            return self.evolution.failure
        return self.answer.failure if self.answer is not None else None


async def measure(
    roles: Clients, settings: Evolve, method: EvolvingMethod, development: Sequence[str]
) -> Measured:
    """Measure a method. Raises: LLMError where asking on makes no sense, or no instruction got a
    reply from a server that may have one later."""
    tried, errors = await try_method(roles, settings, method, development)
    if not tried and errors and errors[-1].retryable:
        raise errors[-1]
    answered = [(one.evolution.text, one.answer) for one in tried if one.answer is not None]
    found = Measured(
        asked=len(development),
        covered=len(tried),
        classes=class_counts([one.failure for one in tried]),
        evolved=len(answered),
        questions=sum(asks_back(answer.text) for _, answer in answered),
        added_words=sum(
            len(one.evolution.text.split()) - len(one.instruction.split())
            for one in tried
            if one.answer is not None
        ),
        instruction_characters=sum(len(text) for text, _ in answered),
        answer_characters=sum(len(answer.text) for _, answer in answered),
    )
    if settings.optimization.secondary == "none":
        return found
    judged, flagged = await _judge(roles, settings, tried)
    return found.model_copy(update={"judged": judged, "flagged": flagged})


async def try_method(
    roles: Clients, settings: Evolve, method: EvolvingMethod, instructions: Sequence[str]
) -> tuple[list[Tried], list[LLMError]]:
    """Evolve and answer each instruction; return those that got replies, and the errors of the
    others."""
    errors: list[LLMError] = []

    async def one(instruction: str) -> Tried | None:
        try:
            evolution = await evolve_once(roles, settings, method, instruction)
            found = Tried(instruction, evolution)
            if evolution.failure is None:
                answer = await answer_once(roles, settings, user_turn(evolution.text))
                found = replace(found, answer=answer)
            return found
        except LLMError as error:
            errors.append(spared(error))
            return None

    tried = await side_by_side(map(one, instructions))
    return [one for one in tried if one is not None], errors


async def keeps_contract(
    roles: Clients, settings: Evolve, method: EvolvingMethod, development: Sequence[str]
) -> bool:
    """Say whether replies to a method have a final section, by the first development
    instructions."""

    async def breaks(instruction: str) -> bool:
        try:
            return (await evolve_once(roles, settings, method, instruction)).failure == "parse"
        except LLMError as error:
            spared(error)
            return False

    broken = await side_by_side(map(breaks, development[:PROBED]))
    return sum(broken) <= MOST_PROBES_FAILED


async def _judge(roles: Clients, settings: Evolve, tried: Sequence[Tried]) -> tuple[int, int]:
    """Have evolutions judged; return how many were, and how many of them were found at fault. A
    batch without a verdict counts for nothing."""
    pairs = [(one.instruction, one.evolution.text) for one in tried if one.answer is not None]
    starts = range(0, len(pairs), JUDGED_AT_ONCE)
    batches = [pairs[start : start + JUDGED_AT_ONCE] for start in starts]
    found = await side_by_side(_flagged(roles, settings, batch) for batch in batches)
    judged = [
        (len(batch), flagged) for batch, flagged in zip(batches, found) if flagged is not None
    ]
    return sum(size for size, _ in judged), sum(flagged for _, flagged in judged)


async def _flagged(
    roles: Clients, settings: Evolve, pairs: Sequence[tuple[str, str]]
) -> int | None:
    structured = await takes_schemas(roles.judge, settings)
    form = STRUCTURED_VERDICT if structured else SECTION_VERDICT.format(label=VERDICT_LABEL)
    request = ChatRequest(
        messages=user_turn(JUDGE.format(count=len(pairs), cases=cases_text(pairs), verdict=form)),
        temperature=0.0,
        max_tokens=settings.optimization.max_tokens,
        purpose="judge",
        extra=response_format(VERDICT_SCHEMA) if structured else {},
    )
    try:
        reply = await roles.judge.chat(request)
    except LLMError as error:
        spared(error)
        return None
    numbers = read_verdict(reply.text, structured)
    return None if numbers is None else len({one for one in numbers if 1 <= one <= len(pairs)})


def read_verdict(reply: str, structured: bool = False) -> list[int] | None:
    """Return the numbers of the cases at fault; None for a reply without a verdict."""
    text = without_reasoning(reply)
    if structured:
        values = read_object(text, VERDICT_SCHEMA)
        return None if values is None else list(values["at_fault"])
    said = last_section(text, [VERDICT_LABEL])
    if said is None:
        return None
    words = said.replace(",", " ").strip(" .*`").split()
    if [word.casefold() for word in words] == ["none"]:
        return []
    return [int(word) for word in words] if words and all(map(str.isdecimal, words)) else None
