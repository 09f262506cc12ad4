"""The second stage of a round: a score for every different response, by every scorer.

The shards are those of the responses. Equal texts of a prompt are scored once. Each scorer has a
journal of its own, `scores-N.jsonl`, whose parts are shards: a hash of the texts that were scored,
so that scores of other responses are never taken for theirs, and for each prompt its scores in the
order of its responses, null where the scorer said nothing. Scores are kept as they came, one by
one; what several are worth together is computed when they are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from statistics import fmean
from typing import Any

from aligner.data.rows import PromptRow
from aligner.events import OnEvent, StageProgress, StageStarted, tell
from aligner.generation.shards import Response, responses_in
from aligner.reward_models.base import Scorer
from aligner.reward_models.batching import Answers, ask
from aligner.reward_models.catalogue import load_scorer
from aligner.reward_models.named_inputs import scorer_parts
from aligner.runs.journal import Journal
from aligner.runs.stages import Stage

Scores = list[list[float | None]]
"""Of each prompt of a shard, the scores of its responses."""


def scored_by(specs: Sequence[str]) -> dict[str, str]:
    """Return each scorer and a hash of all that decides its scores."""
    found = {}
    for spec in specs:
        parts = json.dumps(sorted(scorer_parts(spec).values()))
        found[spec] = sha256(parts.encode()).hexdigest()
    return found


@dataclass
class Scoring:
    """Scores the shards of a stage as they are there."""

    stage: Stage
    specs: Sequence[str]
    rows: Sequence[PromptRow]
    responses: Journal
    parts: Sequence[range]
    on_event: OnEvent | None = None
    load: Callable[[str], Scorer] = load_scorer

    def __post_init__(self) -> None:
        self.journals = journals_of(self.stage, self.specs)

    def missing(self, scorer: int) -> list[int]:
        """Return the shards that a scorer has not judged."""
        return [part for part in range(len(self.parts)) if self.is_missing(scorer, part)]

    def is_missing(self, scorer: int, part: int) -> bool:
        """Say whether a scorer has not judged these very responses of a shard."""
        journal = self.journals[scorer]
        if part not in journal:
            return True
        said: str = journal[part][0]
        return said != _digest(responses_in(self.responses, part))

    def run(self) -> None:
        """Score what is not yet, one scorer after the other, so that one at a time is loaded."""
        for number, spec in enumerate(self.specs):
            if left := self.missing(number):
                tell(self.on_event, StageStarted(f"loading {spec}"))
                scorer = self.load(spec)
                for part in left:
                    self.score(number, scorer, part)
                    done = self.parts[part].stop
                    told = StageProgress(f"{self.stage.name}, {spec}", done, len(self.rows))
                    tell(self.on_event, told)

    def score(self, number: int, scorer: Scorer, part: int) -> None:
        """Let a scorer judge a shard."""
        responses = responses_in(self.responses, part)
        found = self._asked(scorer, self.parts[part], responses)
        self.journals[number].add(part, [_digest(responses), found])

    def _asked(self, scorer: Scorer, part: range, samples: Sequence[Sequence[Response]]) -> Scores:
        places: dict[tuple[int, str], int] = {}
        for row, responses in zip(part, samples, strict=True):
            for one in responses:
                places.setdefault((row, one.text), len(places))
        asked = [self.rows[row] for row, _ in places]
        answers = Answers(
            [row.prompt for row in asked],
            [text for _, text in places],
            [row.answer for row in asked],
            [row.origin for row in asked],
        )
        together = [list(range(len(places)))] if places else []
        verdicts = ask(lambda: scorer, answers, together, keep_silent=True)
        values = [
            None if place in verdicts.silent else verdicts.values[place]
            for place in range(len(places))
        ]
        found: Scores = []
        for row, responses in zip(part, samples):
            found.append([values[places[row, one.text]] for one in responses])
        return found


def _digest(responses: Sequence[Sequence[Response]]) -> str:
    digest = sha256()
    for samples in responses:
        digest.update(json.dumps([one.text for one in samples]).encode())
    return digest.hexdigest()[:16]


def journals_of(stage: Stage, specs: Sequence[str]) -> list[Journal]:
    """Open the journal of each scorer."""
    return [stage.journal(f"scores-{number}") for number in range(len(specs))]


def scores_in(journals: Sequence[Journal], weights: Sequence[float], number: int) -> Scores:
    """Return the weighted mean of all scorers for each response of a shard; None where one of them
    said nothing."""
    columns = [journal[number][1] for journal in journals]
    found: Scores = []
    for of_prompt in zip(*columns, strict=True):
        found.append([_mean(of_one, weights) for of_one in zip(*of_prompt, strict=True)])
    return found


def _mean(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    total = 0.0
    for value, weight in zip(values, weights or [1.0] * len(values)):
        if value is None:
            return None
        total += weight * value
    return total / (sum(weights) if weights else len(values))


def finish_scoring(
    stage: Stage, journals: Sequence[Journal], specs: Sequence[str], parts: int
) -> None:
    """Say what the scores of a stage are, and finish it."""
    facts: dict[str, Any] = {}
    for spec, journal in zip(specs, journals):
        count = silent = ties = 0
        total, best, worst = 0.0, [], []
        for number in range(parts):
            for scores in journal[number][1]:
                known = [score for score in scores if score is not None]
                silent += len(scores) - len(known)
                count += len(known)
                total += sum(known)
                ties += len(known) > 1 and max(known) == min(known)
                best += [max(known)] if known else []
                worst += [min(known)] if known else []
        facts[spec] = {
            "scored": count,
            "without a score": silent,
            "mean": total / max(1, count),
            "best of a prompt": fmean(best) if best else None,
            "worst of a prompt": fmean(worst) if worst else None,
            "prompts whose responses all tie": ties,
        }
    stage.finish(facts)
