"""A candidate of an optimization step: instructions are evolved, the evolutions are analysed, and
the method is rewritten in the same conversation (arXiv 2406.00770, section 3.2).

A reply that holds no method is a candidate too, with what is wrong with it: nothing a model says
ends an optimization. Cases are shown as plain text and long ones are cut, so that ten of them do
not outgrow the context; the authors' code sends escaped JSON of any length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aligner.builders.evolve.contract import LONGEST_METHOD, EvolvingMethod, Message
from aligner.builders.evolve.evolving import Clients, Evolution, evolve_once, side_by_side
from aligner.builders.evolve.failures import Failure
from aligner.builders.evolve.history import Candidate
from aligner.builders.evolve.prompts import (
    ANALYSE,
    CASE,
    CUT,
    FINAL_LABEL,
    FREE_SCOPE,
    METHOD_LABEL,
    NO_TEXT,
    OWNED_SCOPE,
    REWRITE,
    SECTION_REPLY,
    STAGE,
    STRUCTURED_REPLY,
)
from aligner.builders.evolve.recipe import Evolve
from aligner.builders.evolve.sections import enclosed, free_label, last_section
from aligner.builders.evolve.structured import TEXT, read_object, response_format, takes_schemas
from aligner.data.reasoning import without_reasoning
from aligner.endpoints.request import ChatRequest, Completion, LLMError

METHOD_SCHEMA = {"note": TEXT, "method": TEXT}
LONGEST_STAGE = 3_000
"""Characters of a stage that the optimizer is shown."""
LONGEST_NOTE = 300


@dataclass(frozen=True)
class Case:
    """An instruction and what became of it, round by round; the last one may have failed."""

    instruction: str
    evolutions: tuple[Evolution, ...]

    @property
    def stages(self) -> tuple[str, ...]:
        """The instruction, and each text that it became."""
        return (self.instruction, *(one.text for one in self.evolutions))

    @property
    def failure(self) -> Failure | None:
        """How its last evolution has failed by itself."""
        return self.evolutions[-1].failure if self.evolutions else None


async def trajectory(
    roles: Clients, settings: Evolve, method: EvolvingMethod, instructions: Sequence[str]
) -> list[Case]:
    """Evolve each instruction for as many rounds as a step looks at; those that the server has no
    reply for are left out.

    Raises: LLMError where that is all of them, or asking on makes no sense.
    """
    errors: list[LLMError] = []

    async def one(instruction: str) -> Case | None:
        found: list[Evolution] = []
        text = instruction
        for _ in range(settings.optimization.trajectory_rounds):
            try:
                found.append(await evolve_once(roles, settings, method, text))
            except LLMError as error:
                errors.append(spared(error))
                return None
            if found[-1].failure is not None:
                break
            text = found[-1].text
        return Case(instruction, tuple(found))

    cases = [case for case in await side_by_side(map(one, instructions)) if case is not None]
    if not cases:
        raise errors[-1]
    return cases


async def write_candidate(
    roles: Clients,
    settings: Evolve,
    method: EvolvingMethod,
    cases: Sequence[Case],
    *,
    step: int,
    sample_index: int,
) -> Candidate:
    """Have the cases analysed and the method rewritten. Raises: LLMError where asking on makes no
    sense."""
    try:
        question: Message = {"role": "user", "content": analysis_prompt(cases)}
        analysis = await _ask(roles, settings, (question,), "analyse", sample_index)
        if not without_reasoning(analysis.text):
            return Candidate(outcome="empty", why="the analysis is empty")
        structured = await takes_schemas(roles.optimizer, settings)
        conversation = (
            question,
            {"role": "assistant", "content": without_reasoning(analysis.text)},
            {"role": "user", "content": rewrite_prompt(method, structured)},
        )
        reply = await _ask(roles, settings, conversation, "rewrite", sample_index, structured)
    except LLMError as error:
        return Candidate(outcome="no_reply", why=spared(error).message)
    return read_candidate(method, reply, structured, step)


async def _ask(
    roles: Clients,
    settings: Evolve,
    conversation: tuple[Message, ...],
    purpose: str,
    sample_index: int,
    structured: bool = False,
) -> Completion:
    sampling = settings.optimization
    return await roles.optimizer.chat(
        ChatRequest(
            messages=conversation,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            sample_index=sample_index if sampling.temperature else 0,
            purpose=purpose,
            extra=response_format(METHOD_SCHEMA) if structured else {},
        )
    )


def analysis_prompt(cases: Sequence[Case]) -> str:
    """Return what the optimizer reads first."""
    return ANALYSE.format(count=len(cases), cases=cases_text([case.stages for case in cases]))


def cases_text(cases: Sequence[Sequence[str]]) -> str:
    """Return cases, each with its stages, as they are shown."""
    lines = []
    for number, stages in enumerate(cases, 1):
        lines += ["", CASE.format(number=number)]
        for stage, text in enumerate(stages):
            lines += [STAGE.format(number=stage), _shortened(text) or NO_TEXT]
    return "\n".join(lines).strip()


def _shortened(text: str) -> str:
    more = len(text) - LONGEST_STAGE
    return text if more <= 0 else f"{text[:LONGEST_STAGE]}\n{CUT.format(count=more)}"


def rewrite_prompt(method: EvolvingMethod, structured: bool) -> str:
    """Return what the optimizer reads after its analysis."""
    begin, end = enclosed(method.steps, "method")
    scope = FREE_SCOPE.format(label=FINAL_LABEL) if method.contract == "free" else OWNED_SCOPE
    request = REWRITE.format(open=begin, close=end, method=method.steps, scope=scope)
    label = free_label(METHOD_LABEL, method.steps)
    reply = STRUCTURED_REPLY if structured else SECTION_REPLY.format(label=label)
    return f"{request}\n\n{reply}"


def read_candidate(
    method: EvolvingMethod, reply: Completion, structured: bool, step: int
) -> Candidate:
    """Return the rewritten method in a reply, or what is wrong with it."""
    if reply.truncated:
        return Candidate(outcome="truncated", why="the reply was cut at optimization.max_tokens")
    text = without_reasoning(reply.text)
    if structured:
        values = read_object(text, METHOD_SCHEMA)
        note, steps = (values["note"], values["method"]) if values else ("", None)
    else:
        label = free_label(METHOD_LABEL, method.steps)
        steps = last_section(text, [label])
        note = text.partition(label)[0].strip(" \n\t#*")
    if steps is None:
        return Candidate(outcome="malformed", why=f"no method in {text[:80]!r}")
    steps = _unfenced(steps.strip())
    if not steps:
        return Candidate(outcome="empty", why="the rewritten method is empty")
    if len(steps) > LONGEST_METHOD:
        why = f"{len(steps):,} characters, and {LONGEST_METHOD:,} are the most"
        return Candidate(outcome="too_long", why=why)
    found = replace(method, steps=steps, parent=method.id, step=step, note=note[:LONGEST_NOTE])
    return Candidate(outcome="same" if found.id == method.id else "measured", method=found)


def _unfenced(steps: str) -> str:
    """Take away a fence around the whole; one that is inside is part of the method."""
    if not (steps.startswith("```") and steps.endswith("\n```")):
        return steps
    return steps[:-3].partition("\n")[2].strip()


def spared(error: LLMError) -> LLMError:
    """Return an error that costs one instruction or candidate alone; raise any other."""
    if not (error.data_failure or error.retryable):
        raise error
    return error
