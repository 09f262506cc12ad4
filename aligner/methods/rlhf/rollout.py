"""Sampling responses to the prompts of a step, and having them scored.

The random numbers of a response follow from the seed, the step, the row, its number in the group
and the attempt alone: a resumed run samples what it would have sampled, and so do two processes
that share the rows of one. Scores do not depend on when, and beside which others, a response is
scored.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from aligner.generation.engines import engine_for
from aligner.generation.requests import Generated, Request
from aligner.generation.sampling import Sampling, number_of
from aligner.methods.rlhf.recipe import Rlhf
from aligner.reward_models.base import BackgroundScorer, Scorer
from aligner.reward_models.batching import Answers, ask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from aligner.reward_models.segment import SegmentScorer


@dataclass(slots=True)
class Response:
    """One sampled response, and all that is known of it.

    `token_ids` hold the stop token, where it `is_finished`. `scores`: by the name of the scorer;
    None where it gave none. `values` (T,) after each token, and the `ends` of segments, by the
    segment model. `engine_logps` (T,) at sampling, `old_logps` (T,) of the policy that sampled, by
    the trainer, and `reference_logps` (T,), in nats; `advantages`, and PPO's `returns` and
    `old_values` (T,).
    `attempt`: how often its group had been sampled before.
    """

    row: int
    sample: int
    prompt_ids: list[int]
    token_ids: list[int]
    is_finished: bool
    text: str
    engine_logps: list[float]
    attempt: int = 0
    scores: dict[str, float | None] = field(default_factory=dict)
    values: list[float] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    old_logps: list[float] | None = None
    reference_logps: list[float] | None = None
    advantages: list[float] | None = None
    returns: list[float] | None = None
    old_values: list[float] | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Response:
        """Return what `to_json` gave."""
        return cls(**content)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


Row = Mapping[str, Any]
Group = list[Response]
"""The responses to one prompt."""


class EarlyScoring:
    """Scores the groups that are complete, in a thread of its own, while others are sampled.

    What waits when the thread is free is scored in one call.
    """

    def __init__(self, score: Callable[[Sequence[Row], Sequence[Group]], None]) -> None:
        self._score = score
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._waiting: deque[tuple[Row, Group]] = deque()
        self._calls: list[Future[None]] = []

    def add(self, row: Row, group: Group) -> None:
        """Have a group scored."""
        self._waiting.append((row, group))
        self._calls.append(self._pool.submit(self._take))

    def finish(self) -> None:
        """Wait until all are scored. Raises what the scorer raised."""
        calls, self._calls = self._calls, []
        with self.dropped_on_error():
            for call in calls:
                call.result()

    @contextmanager
    def dropped_on_error(self) -> Iterator[None]:
        """Forget what waits where something raises."""
        try:
            yield
        except BaseException:
            self._waiting.clear()
            self._calls.clear()
            raise

    def _take(self) -> None:
        rows, groups = [], []
        while self._waiting:
            row, group = self._waiting.popleft()
            rows.append(row)
            groups.append(group)
        if rows:
            self._score(rows, groups)


@dataclass(frozen=True)
class Roller:
    """Samples and scores with whatever weights the model has at the moment."""

    tokenizer: PreTrainedTokenizerBase
    settings: Rlhf
    seed: int
    batch_size: int
    stops: tuple[int, ...]
    scorers: Mapping[str, Scorer]
    segment_scorer: SegmentScorer | None = None
    engine: str = "auto"

    def sample(
        self,
        model: PreTrainedModel,
        rows: Sequence[Row],
        step: int | str,
        *,
        samples: int | None = None,
        attempt: int = 0,
    ) -> list[Group]:
        """Return `group_size` responses to the prompt of each row, to be scored by `score`.

        Scorers that may work in the background begin while others are still sampled.
        """
        sampling = Sampling(
            max_new_tokens=self.settings.max_new_tokens,
            temperature=self.settings.temperature,
            num_samples=samples or self.settings.group_size,
        )
        requests = []
        for row in rows:
            stream = number_of(self.seed, step, row["row"], attempt)
            requests.append(Request(row["prompt_ids"], sampling, self.stops, stream))
        groups: list[Group] = [[] for _ in rows]

        def finished(index: int, sample: int, generated: Generated) -> None:
            group = groups[index]
            group.append(self._response(rows[index], sample, generated, attempt))
            if len(group) == sampling.num_samples:
                group.sort(key=lambda one: one.sample)
                if self._split[0]:
                    self._early.add(rows[index], group)

        engine = engine_for(model, name=self.engine, batch_size=self.batch_size)
        with self._early.dropped_on_error():
            engine.generate(requests, finished)
        return groups

    def _response(self, row: Row, sample: int, generated: Generated, attempt: int) -> Response:
        assert generated.finish_reason != "error", generated.error
        ids, finished = generated.token_ids, generated.finish_reason == "stop"
        text = self.tokenizer.decode(
            ids[:-1] if finished else ids,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        prompt = list(row["prompt_ids"])
        logps = list(generated.logps)
        scores: dict[str, float | None] = dict.fromkeys(self.scorers)
        return Response(row["row"], sample, prompt, ids, finished, text, logps, attempt, scores)

    def score(self, rows: Sequence[Row], groups: Sequence[Group]) -> None:
        """Have every response of `sample` scored, and its segments valued."""
        responses = [one for group in groups for one in group]
        self._score_with(self._split[1], rows, groups)
        self._early.finish()
        if self.segment_scorer is not None:
            answers = [(one.prompt_ids, one.token_ids) for one in responses]
            for response, valued in zip(responses, self.segment_scorer.values_of_ids(answers)):
                response.values, response.ends = valued.values, valued.ends

    @cached_property
    def _split(self) -> tuple[dict[str, Scorer], dict[str, Scorer]]:
        """Scorers that work in the background, and the others."""
        parts: tuple[dict[str, Scorer], dict[str, Scorer]] = ({}, {})
        for name, scorer in self.scorers.items():
            early = isinstance(scorer, BackgroundScorer) and scorer.in_background
            parts[not early][name] = scorer
        return parts

    @cached_property
    def _early(self) -> EarlyScoring:
        scorers = self._split[0]
        return EarlyScoring(lambda rows, groups: self._score_with(scorers, rows, groups))

    def _score_with(
        self, scorers: Mapping[str, Scorer], rows: Sequence[Row], groups: Sequence[Group]
    ) -> None:
        responses = [one for group in groups for one in group]
        asked = _as_answers(rows, groups)
        everything = [list(range(len(responses)))]
        for name, scorer in scorers.items():
            for response, value in zip(responses, _values(scorer, asked, everything)):
                response.scores[name] = value


def _values(scorer: Scorer, asked: Answers, parts: Sequence[Sequence[int]]) -> list[float | None]:
    verdicts = ask(lambda: scorer, asked, parts, keep_silent=True)
    return [verdict.value for verdict in verdicts]


def _as_answers(rows: Sequence[Row], groups: Sequence[Group]) -> Answers:
    columns: tuple[list[Any], ...] = ([], [], [], [])
    for row, group in zip(rows, groups, strict=True):
        prompt = json.loads(row["prompt"])
        for one in group:
            values = (
                prompt,
                one.text,
                row["answer"],
                f"{row['origin']}, response {one.sample + 1}",
            )
            for column, value in zip(columns, values):
                column.append(value)
    return Answers(*columns)


def padded(rows: Sequence[Sequence[float]], width: int) -> torch.Tensor:
    """Return rows of numbers (B, width), float32, 0 behind the end of each."""
    found = torch.zeros(len(rows), width)
    for line, row in zip(found, rows):
        line[: len(row)] = torch.tensor(row, dtype=torch.float32)
    return found
