"""What is looked at in a finished row by itself, as soon as it is answered.

In this order, and the first that finds something drops the row: an answer that is empty, asks back,
refuses or was cut; a verifier; with `majority`, further answers, each looked at in the same way, of
which one with the most frequent result is kept; the pass rate of a model that is to be trained.
What is asked of all rows together stands in `output_checks.py`. Nothing here is asked twice or
retried; that is the endpoints' affair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from aligner.builders.evolve.evolving import Clients, answer_once, side_by_side
from aligner.builders.evolve.failures import failure_of_answer
from aligner.builders.evolve.made import Made, Turn
from aligner.builders.evolve.majority import final_result, majority
from aligner.builders.evolve.recipe import Evolve, PassRate
from aligner.data.refusals import refuses
from aligner.endpoints.request import ChatRequest, LLMClient, LLMError
from aligner.errors import DataError, RecipeError
from aligner.reward_models.base import Scorer, placed
from aligner.reward_models.catalogue import load_scorer, read_spec
from aligner.reward_models.verifier import JsonVerifier, NumberVerifier

VOTING_TEMPERATURE = 1.0

REASONS = {
    "stagnant": "the answer asks back",
    "unqualified": "the answer asks for what is missing",
    "lost_information": "the answer asks for an input that is gone",
    "empty": "the answer is empty",
    "refusal": "the answer refuses",
    "truncated": "the answer was cut at its longest length",
    "verifier": "the verifier does not accept the answer",
    "no_majority": "no result has most of the answers",
    "too_hard": "the target model solves it too seldom",
    "too_easy": "the target model solves it too often",
    "duplicate": "the same prompt as a seed or an earlier row",
    "near_duplicate": "nearly the same prompt as a seed or an earlier row",
    "overlap": "words of a test set",
}
"""Reason for dropping a row -> what reports say."""


class Targets(Clients, Protocol):
    """Who is asked, and the model that is to be trained, where its pass rate is measured."""

    @property
    def target(self) -> LLMClient | None:
        """The model that is to be trained."""


@dataclass(frozen=True)
class Verdict:
    """What became of a row. `made` may have another answer than before, and what was found out in
    its provenance under `checks`. `reason`, one of `REASONS`, where it is to be dropped."""

    made: Made
    reason: str | None = None


class RowChecks:
    """The checks of a row by itself. Loads the verifier, and so says what is wrong with it before
    anything is asked.

    Raises: RecipeError.
    """

    def __init__(self, settings: Evolve) -> None:
        self.settings = settings
        spec = settings.checks.verifier
        self.scorer = None if spec is None else load_verifier(spec, settings)

    async def check(self, made: Made, roles: Targets) -> Verdict:
        """Look at a row. Raises: LLMError of a request that got no reply and is not the row's
        fault; DataError where the verifier cannot judge it."""
        answers = [made, *await self._further(made, roles)]
        faults = [await self._fault(answer) for answer in answers]
        usable = [answer for answer, fault in zip(answers, faults) if fault is None]
        if not usable:
            return Verdict(made, faults[0])
        facts: dict[str, Any] = {}
        chosen, result = usable[0], None
        if self.settings.checks.majority > 1:
            found = majority([answer.completion for answer in usable])
            if found is None:
                return Verdict(made, "no_majority")
            chosen, result = usable[found.first], found.result
            facts["majority"] = {
                "result": result,
                "votes": found.votes,
                "voters": found.voters,
                "answers": len(answers),
            }
        reason = None
        if (limits := self.settings.checks.pass_rate) is not None:
            rate = await self._pass_rate(chosen, roles, limits, result)
            facts["pass_rate"] = rate
            reason = "too_hard" if rate <= limits.low else None
            reason = reason or ("too_easy" if rate >= limits.high else None)
        return Verdict(_with(chosen, facts), reason)

    async def _further(self, made: Made, roles: Targets) -> list[Made]:
        """Return the row with each further answer that votes."""
        votes = (
            self._vote(made, roles, number) for number in range(1, self.settings.checks.majority)
        )
        return [vote for vote in await side_by_side(votes) if vote is not None]

    async def _vote(self, made: Made, roles: Targets, number: int) -> Made | None:
        try:
            answer = await answer_once(
                roles,
                self.settings,
                made.prompt,
                temperature=VOTING_TEMPERATURE,
                sample_index=number,
            )
        except LLMError as error:
            if not error.data_failure:
                raise
            return None
        return replace(made, completion=answer.text, finish_reason=answer.finish_reason)

    async def _fault(self, made: Made) -> str | None:
        """Return what is wrong with a row's answer, or None."""
        checks, rules = self.settings.checks, self.settings.failures
        if not made.completion.strip():
            return "truncated" if made.truncated else "empty"
        failure = failure_of_answer(made.completion, rules, made.finish_reason)
        if checks.failures and failure not in (None, "truncated", "refusal"):
            return failure
        if checks.refusals and refuses(made.completion):
            return "refusal"
        if checks.truncated and made.truncated:
            return "truncated"
        if self.scorer is None or await self._passes(made.prompt, made.completion, made):
            return None
        return "verifier"

    async def _passes(self, prompt: Sequence[Turn], answer: str, made: Made) -> bool:
        """Ask the verifier, in a thread: some wait for a process."""
        assert self.scorer is not None
        turns = [dict(turn) for turn in prompt]
        try:
            scores = await asyncio.to_thread(self.scorer.score, [turns], [answer], [made.reference])
        except DataError as error:
            raise placed(error, [f"row {made.id} (of seed {made.seed_id})"]) from error
        return scores[0] >= 1.0

    async def _pass_rate(
        self, made: Made, roles: Targets, limits: PassRate, result: str | None
    ) -> float:
        """Return the share of the target's answers that pass; one that it cannot give does not."""
        assert roles.target is not None, "open_roles opens it"
        asked = [
            self._solves(made, roles.target, number, result) for number in range(limits.samples)
        ]
        return sum(await side_by_side(asked)) / limits.samples

    async def _solves(self, made: Made, target: LLMClient, number: int, result: str | None) -> bool:
        request = ChatRequest(
            messages=made.prompt,
            temperature=VOTING_TEMPERATURE,
            max_tokens=self.settings.answer_max_tokens,
            sample_index=number,
            purpose="target",
        )
        try:
            completion = await target.chat(request)
        except LLMError as error:
            if not error.data_failure:
                raise
            return False
        if self.scorer is not None:
            return await self._passes(made.prompt, completion.text, made)
        return result is not None and final_result(completion.text) == result


def _with(made: Made, facts: Mapping[str, Any]) -> Made:
    if not facts:
        return made
    return replace(made, provenance={**made.provenance, "checks": dict(facts)})


def load_verifier(spec: str, settings: Evolve) -> Scorer:
    """Load the verifier of a recipe.

    Raises: RecipeError for a scorer of another kind, and for one that compares with right answers
    where there can be none.
    """
    key = "evolve.checks.verifier"
    kind = read_spec(spec).kind
    if kind != "verifier":
        raise RecipeError(
            f"{key}: {spec!r} is a scorer of the kind `{kind}`",
            "name a rule: verifier:json, verifier:FILE.py:FUNCTION, ...",
        )
    scorer = load_scorer(spec)
    if settings.mode in ("skillmix", "magpie") and getattr(scorer, "needs_references", False):
        raise RecipeError(
            f"{key}: {spec} compares with a right answer, and the rows of `mode: {settings.mode}` "
            "come from no seeds that could have one",
            "use a verifier that reads the answer alone (verifier:json, verifier:FILE.py:FUNCTION),"
            " or evolve.checks.majority",
        )
    return scorer


def check_references(scorer: Scorer | None, seeds: Sequence[tuple[str, str | None]]) -> None:
    """Refuse seeds of (where they stand, right answer) whose right answers the verifier cannot
    compare with, before anything is asked. Raises: DataError that names them."""
    if scorer is None:
        return
    missing = [where for where, answer in seeds if answer is None]
    if missing and getattr(scorer, "needs_references", False):
        raise DataError(
            f"evolve.checks.verifier: {scorer.name} compares with a right answer, and "
            f"{len(missing):,} seeds have none: {', '.join(missing[:5])}",
            "give them an `answer` (`columns: {answer: your_column}`), or use a verifier that "
            "reads the answer alone",
        )
    if isinstance(scorer, NumberVerifier | JsonVerifier):  # those that look at it for themselves
        given = [(where, answer) for where, answer in seeds if answer is not None]
        nothing = [""] * len(given)
        try:
            scorer.score(nothing, nothing, [answer for _, answer in given])
        except DataError as error:
            raise placed(error, [where for where, _ in given]) from error
