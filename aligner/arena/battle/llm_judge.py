"""A language model as a judge: it reads both answers side by side and gives each a score.

A reply that is not of the form is asked for once more, with a reminder; a game whose reply could be
read then is `repaired`. One that has no scores says why: `truncated` (the reply was cut),
`refused` (by the model, or by its server's filter), `error` (the server could not answer this
request, where others were answered; a conversation that does not fit the model, of which nothing is
cut off, is one), or `failed`. Such a game counts for nothing, least of all as a tie.

Every reply is in the run's file of replies before it is read, under all that decides it: model,
sampling, instructions, conversation, both answers, right answer. A resumed run reads it from there,
and a better parser reads it again without a call.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligner.arena.battle.judge_prompt import REMINDER, question, template_sha
from aligner.arena.battle.judge_reply import scores_in
from aligner.arena.battle.sheets import Judged, Judging, Sheet
from aligner.arena.records import ParseStatus
from aligner.config.recipe import Endpoint
from aligner.data.refusals import refuses
from aligner.endpoints.budget import Prices
from aligner.endpoints.request import Completion, LLMError
from aligner.errors import EndpointError
from aligner.reward_models.judge_base import JudgeBase
from aligner.reward_models.judge_session import Question, Reply, Session, failure_among


class LLMJudge(JudgeBase):
    """Judges by asking an endpoint. `cache`: the run's file of replies; `criteria`: what is judged,
    in place of our own words."""

    kind = "battle"

    def __init__(
        self, name: str, endpoint: Endpoint, cache: Path, criteria: str | None = None
    ) -> None:
        super().__init__(name, endpoint)
        self.criteria = criteria
        self._cache = cache
        self.template_sha = template_sha(criteria)
        self.account = f"judge:{name}"

    @property
    def id(self) -> str:
        """Its name."""
        return self.name

    @property
    def rev(self) -> str:
        """A digest of model, sampling and instructions, and of a local model's weights."""
        return self.fingerprint().removeprefix(f"{self.kind}:")

    def judge(self, sheets: Sequence[Sheet]) -> Judging:
        """Ask about games. See `BattleJudge.judge`."""
        questions = [
            Question(question(sheet, self.criteria), scores_in, REMINDER) for sheet in sheets
        ]
        outcomes = self._session.outcomes(questions)
        is_served = any(isinstance(one, Reply) and one.last is not None for one in outcomes)
        judged = [self._judged(one, is_served=is_served) for one in outcomes]
        left = [one for one, said in zip(outcomes, judged) if said is None]
        return Judging(judged, failure_among(left) if left else None)

    def _judged(self, outcome: Reply | EndpointError, *, is_served: bool) -> Judged | None:
        """What came of a game; None where it is to be asked about again."""
        if isinstance(outcome, EndpointError):
            is_its_own = isinstance(outcome, LLMError) and outcome.retryable
            return Judged("error", raw_text=outcome.message) if is_its_own and is_served else None
        first, second = (None, None) if outcome.value is None else outcome.value
        return Judged(
            _status(outcome),
            first,
            second,
            raw_text=outcome.reason if outcome.last is None else outcome.last.text,
            decoding=self._decoding,
            cache_hit=outcome.new == 0 and outcome.last is not None,
            tokens_in=outcome.prompt_tokens,
            tokens_out=outcome.completion_tokens,
            latency_ms=round(1000.0 * outcome.latency_s, 1),
            usd=self._usd(outcome),
            attempt=outcome.asked,
        )

    @functools.cached_property
    def _decoding(self) -> dict[str, Any]:
        sampling = ("temperature", "top_p", "max_tokens", "extra")
        said = {key: getattr(self.endpoint, key) for key in sampling}
        return {key: value for key, value in said.items() if value != {}}

    def _usd(self, reply: Reply) -> float | None:
        """What its replies cost, also when they were paid for by an earlier start of the run."""
        prices = Prices(
            self.endpoint.usd_per_million_prompt_tokens,
            self.endpoint.usd_per_million_completion_tokens,
        )
        if not (prices.prompt or prices.completion):
            return None
        return prices.usd(reply.prompt_tokens, reply.completion_tokens)

    def _made_of(self) -> list[Any]:
        return [self.template_sha]

    @functools.cached_property
    def _session(self) -> Session:
        return Session(self.endpoint, self._cache)


def _status(reply: Reply) -> ParseStatus:
    if reply.value is not None:
        return "ok" if reply.asked == 1 else "repaired"
    if reply.last is None:
        return "refused" if reply.failure == "content_filter" else "error"
    if reply.last.truncated:
        return "truncated"
    return "refused" if _refuses(reply.last) else "failed"


def _refuses(completion: Completion) -> bool:
    return "{" not in completion.text and refuses(completion.text)
