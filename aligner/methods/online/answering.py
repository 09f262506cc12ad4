"""The responses to the prompts of a round, scored: who writes them, and which stages they are.

A scorer that does not need the device (a verifier, a judge on a server) works on finished shards
while others are sampled; models score once all are there, one after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from aligner.config.recipe import Generation, Model
from aligner.data.rows import PromptRow
from aligner.generation.shard_ranks import sample
from aligner.generation.shards import (
    RESPONSES,
    Asking,
    finish_sampling,
    responses_in,
    shards,
)
from aligner.methods.online.pair_stage import Shard
from aligner.methods.online.pairing import FUTURE, POLICY, START, STRONGER, WEAKER, Scored
from aligner.methods.online.policies import Policies, name_of
from aligner.methods.online.preflight import digest_of_prompts
from aligner.methods.online.proxies import Proxies
from aligner.methods.online.recipe import OnlineRecipe
from aligner.methods.online.scoring import (
    Scoring,
    finish_scoring,
    journals_of,
    scored_by,
    scores_in,
)
from aligner.methods.online.self_judge import SELF, scorers_of, self_judge
from aligner.models.fingerprint import model_fingerprint
from aligner.reward_models.base import Scorer
from aligner.reward_models.card import Card
from aligner.reward_models.catalogue import load_scorer, read_spec
from aligner.runs.stages import Stage

BESIDE = ("verifier", "judge", "rating", "rules", "rubric", "toy")
"""Kinds of scorers that do not need the device, but for judges that are loaded here."""

Written = dict[str, tuple[Stage, Stage | None]]
"""Who wrote -> the stages of responses and, where there are scorers, of scores."""


@dataclass
class Answering:
    """Has the prompts of rounds answered and scored."""

    recipe: OnlineRecipe
    policies: Policies
    proxies: Proxies | None = None
    """With `online.oracle`, the proxies that score."""

    def __post_init__(self) -> None:
        self.scorers = scored_by(self.recipe.online.reward_models)

    def asking(self, section: Model, stream: str, policy: int | None = None) -> Asking:
        """Return how a model is asked; `policy`: its number, where it is one of ours, which the
        engine of the recipe serves."""
        recipe, online = self.recipe, self.recipe.online
        found = Asking(
            section=section,
            generation=Generation(),
            temperatures=online.temperatures,
            num_samples=online.num_samples,
            max_new_tokens=online.max_new_tokens,
            max_length=recipe.data.max_length,
            seed=recipe.seed,
            shard_size=online.shard_size,
            batch_size=online.generation_batch_size,
            processes=recipe.launch.num_processes,
            stream=stream,
            on_event=self.policies.on_event,
        )
        if policy is None:
            return found
        before = partial(self.policies.serve, policy)
        return replace(found, generation=recipe.generation, before=before)

    def answer(self, number: int, rows: Sequence[PromptRow]) -> Written:
        """Have all who answer in a round write and be scored."""
        found = {}
        for source, (asking, model) in self._sources(number).items():
            found[source] = self._written(number, source, asking, model, rows, number - 1)
        return found

    def rescored(self, number: int, written: Written, rows: Sequence[PromptRow]) -> Written:
        """Have the responses of a round scored again, by the proxy that was refreshed in it."""
        specs, parts = scorers_of(self.recipe.online), shards(rows, self.recipe.online.shard_size)
        found: Written = {}
        for source, (sampled, _) in written.items():
            made_of = {"responses": sampled.digest, "scorers": self._scorers(number, number)}
            place = f"{name_of(number)}/rescore{_suffix(source)}"
            stage = self.policies.stages.open(place, made_of)
            if not stage.is_done:
                heard, load = self.policies.on_event, partial(self._loaded, number, number)
                journal = sampled.journal(RESPONSES)
                scoring = Scoring(stage, specs, rows, journal, parts, heard, load)
                scoring.run()
                finish_scoring(stage, scoring.journals, specs, len(parts))
            found[source] = (sampled, stage)
        return found

    def answer_ahead(
        self, number: int, temporary: Stage, rows: Sequence[PromptRow]
    ) -> tuple[Stage, Stage | None]:
        """Have the temporary policy of a round answer its prompts, and be scored."""
        policies = self.policies
        asking = replace(
            self.asking(policies.section_of(temporary), f"{name_of(number)} {FUTURE}"),
            generation=self.recipe.generation,
            before=partial(policies.serve_temporary, temporary, number),
        )
        return self._written(number, FUTURE, asking, temporary.digest, rows, number)

    def _scorers(self, number: int, proxy: int) -> dict[str, str]:
        """What scores in a round, and what tells it from others."""
        if self.recipe.online.self_rewarding is not None:
            return {SELF: self_judge(self.recipe, self.policies, number - 1).fingerprint()}
        if self.proxies is not None:
            return {self.proxies.original: self.proxies.key(proxy)}
        return self.scorers

    def _loaded(self, number: int, proxy: int, spec: str) -> Scorer:
        """A scorer of a round, ready to be asked; `proxy`: the number of the round behind which it
        was refreshed."""
        if self.proxies is not None:
            return self.proxies.load(proxy)
        if spec != SELF:
            return load_scorer(spec)
        self.policies.serve(number - 1)
        return self_judge(self.recipe, self.policies, number - 1)

    def _sources(self, number: int) -> dict[str, tuple[Asking, str]]:
        """Who answers the prompts of a round, and what tells that model from others."""
        online, name = self.recipe.online, name_of(number)
        if online.pairing.rule == "two_models":
            found = {}
            for source, section in ((STRONGER, online.stronger), (WEAKER, online.weaker)):
                assert section is not None, "a rule asks for it"
                asking = self.asking(section, f"{name} {source}")
                found[source] = (asking, model_fingerprint(section))
            return found
        policies, before = self.policies, number - 1
        own = self.asking(policies.section(before), name, before)
        found = {POLICY: (own, policies.key(before))}
        if online.pairing.rule == "anchored" and number > 1:
            found[START] = (self.asking(policies.start, f"{name} start"), policies.key(0))
        return found

    def _written(
        self,
        number: int,
        source: str,
        asking: Asking,
        model: str,
        rows: Sequence[PromptRow],
        proxy: int,
    ) -> tuple[Stage, Stage | None]:
        stages, place = self.policies.stages, name_of(number)
        made_of = {"model": model, "prompts": digest_of_prompts(rows), **asking.made_of()}
        sampled = stages.open(f"{place}/sample{_suffix(source)}", made_of)
        scored = None
        if scorers_of(self.recipe.online):
            # Of the key of the responses: while these are written, they have no digest yet.
            made_of = {"responses": sampled.key, "scorers": self._scorers(number, proxy)}
            scored = stages.open(f"{place}/score{_suffix(source)}", made_of)
        self._carry_out(sampled, scored, asking, rows, partial(self._loaded, number, proxy))
        return sampled, scored

    def _carry_out(
        self,
        sampled: Stage,
        scored: Stage | None,
        asking: Asking,
        rows: Sequence[PromptRow],
        load: Callable[[str], Scorer],
    ) -> None:
        specs, parts = scorers_of(self.recipe.online), shards(rows, asking.shard_size)
        if sampled.is_done and (scored is None or scored.is_done):
            return
        if scored is not None:
            scored.reopen()  # responses that are sampled again may be others
        responses = sampled.journal(RESPONSES)
        scoring = None
        if scored is not None:
            scoring = Scoring(scored, specs, rows, responses, parts, asking.on_event, load)
        if not sampled.is_done:
            _sample_and_score(sampled, scoring, asking, rows, responses)
            finish_sampling(sampled, rows, asking)
        if scoring is not None and scored is not None:
            scoring.run()
            finish_scoring(scored, scoring.journals, specs, len(parts))

    def scored(self, written: Written, rows: Sequence[PromptRow]) -> Iterator[tuple[range, Shard]]:
        """Yield the shards with the scored responses of all who answered."""
        online = self.recipe.online
        opened: list[tuple[str, Any, Any]] = []
        for source, (sampled, stage) in written.items():
            scores = [] if stage is None else journals_of(stage, scorers_of(online))
            opened.append((source, sampled.journal(RESPONSES), scores))
        for number, part in enumerate(shards(rows, online.shard_size)):
            found: list[list[Scored]] = [[] for _ in part]
            for source, journal, journals in opened:
                samples = responses_in(journal, number)
                values: Any = [[None] * len(row) for row in samples]
                if journals:
                    values = scores_in(journals, online.reward_weights, number)
                for place, (row, scores) in enumerate(zip(samples, values, strict=True)):
                    for index, (one, score) in enumerate(zip(row, scores, strict=True)):
                        of_one = (one.text, one.token_ids, one.is_finished, score, source, index)
                        found[place].append(Scored(*of_one))
            yield part, found


def _suffix(source: str) -> str:
    return "" if source == POLICY else f"-{source}"


def _works_beside(card: Card) -> bool:
    is_loaded_here = card.endpoint is not None and card.endpoint.backend == "local"
    return card.kind in BESIDE and not is_loaded_here


def _sample_and_score(
    sampled: Stage,
    scoring: Scoring | None,
    asking: Asking,
    rows: Sequence[PromptRow],
    responses: Any,
) -> None:
    """Sample all shards; scorers that do not need the device judge those that are there."""
    beside = {}
    for number, spec in enumerate(scoring.specs if scoring is not None else []):
        if spec != SELF and _works_beside(read_spec(spec)):
            beside[number] = load_scorer(spec)
    pool, jobs = ThreadPoolExecutor(1), deque[Future[None]]()
    try:
        for part in sample(sampled, rows, asking, responses):
            for number, scorer in beside.items():
                assert scoring is not None, "it has the scorers"
                jobs.append(pool.submit(_score_where_missing, scoring, number, scorer, part))
            while jobs and jobs[0].done():
                jobs.popleft().result()  # a scorer that fails ends the sampling
        for job in jobs:
            job.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _score_where_missing(scoring: Scoring, number: int, scorer: Scorer, part: int) -> None:
    if scoring.is_missing(number, part):
        scoring.score(number, scorer, part)
