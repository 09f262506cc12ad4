"""The oracle of a run and its proxies: which pairs of a round are asked about, what is trained on
the answers, and which proxy scores (cost-limited oracle, arXiv 2407.02119).

    rounds/01/score     by the proxy as it is
    rounds/01/query     few pairs, chosen and asked about
    rounds/01/refresh   the proxy, trained on the labels of all rounds
    rounds/01/rescore   by the new proxy; pairs are made of these scores

Proxy 0 is that of `online.reward_models`, which stays the one that held-out prompts are measured
by. A round that the budget does not reach has none of these stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from aligner.config.oracle import queries_of
from aligner.data.rows import PromptRow
from aligner.events import Notice, OnEvent, tell
from aligner.methods.online.pair_stage import Shard
from aligner.methods.online.policies import OF_MACHINES, Policies, is_weights, name_of
from aligner.methods.online.query_stage import Choice, Desk, Pool, labels_of, query
from aligner.methods.online.recipe import OnlineRecipe
from aligner.methods.online.refresh_stage import OF_POLICY, Compared, refresh
from aligner.methods.online.scoring import scored_by
from aligner.methods.online.words import oracle_cells, oracle_line
from aligner.methods.stage_run import RUN
from aligner.reward_models.base import Scorer
from aligner.reward_models.catalogue import load_scorer
from aligner.runs.changes import untracked
from aligner.runs.stages import Stage


@dataclass
class Proxies:
    """The oracle and the proxies of the rounds so far. `since`: when the run was started."""

    recipe: OnlineRecipe
    policies: Policies
    since: str
    on_event: OnEvent | None
    queries: list[Stage] = field(default_factory=list)
    refreshed: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.recipe.online.oracle is not None, "the recipe asks for it"
        self.settings = self.recipe.online.oracle
        (self.original,) = self.recipe.online.reward_models
        self._key = scored_by([self.original])[self.original]
        self._made_of = scored_by([self.settings.scorer])[self.settings.scorer]
        account = self.policies.stages.root / "oracle"
        self._desk = Desk(self.settings.scorer, self._made_of, account, self.since, self.on_event)

    def share(self, number: int) -> int:
        """Return the queries of a round."""
        return queries_of(self.settings, self.recipe.online.rounds, number)

    def key(self, number: int) -> str:
        """Return what tells the proxy behind a round from all others."""
        stage = self._last(number)
        return self._key if stage is None else stage.digest

    def load(self, number: int) -> Scorer:
        """Return the proxy behind a round, ready to be asked."""
        return load_scorer(self._spec(number))

    def _last(self, number: int) -> Stage | None:
        """The last refresh up to a round that trained something."""
        trained = [one for one in self.refreshed[:number] if (one.facts or {})["trained on"]]
        return trained[-1] if trained else None

    def _spec(self, number: int) -> str:
        stage = self._last(number)
        if stage is None:
            return self.original
        if stage.is_pruned:
            tell(self.on_event, Notice(f"{stage.name} is done again: its weights were not kept"))
            stage.reset()
            self._carry_out(stage, self.refreshed.index(stage) + 1)
        return str(stage.folder / RUN)

    # --- the stages -------------------------------------------------------------------------------

    def ask(
        self,
        number: int,
        made_of: Any,
        shards: Iterator[tuple[range, Shard]],
        rows: Sequence[PromptRow],
    ) -> None:
        """Ask the oracle about pairs of a round. `made_of`: what the scored responses are."""
        settings, before = self.settings, number - 1
        by_policy = settings.embedding == "policy" and settings.selector.startswith("coreset")
        stage = self.policies.stages.open(
            f"{name_of(number)}/query",
            {
                "responses and scores": made_of,
                "oracle": self._made_of,
                "queries": self.share(number),
                "selector": settings.selector,
                "pair": settings.pair,
                "embedding": self.policies.key(before) if by_policy else "ngrams",
                "earlier": [one.digest for one in self.queries],
                "seed": self.recipe.seed,
            },
        )
        if by_policy and not stage.is_done:
            self.policies.ensure(before)
        earlier = [row for one in self.queries for row in labels_of(one)]
        policy = self.policies.section(before)
        choice = Choice(self.share(number), settings, earlier, policy, self.recipe.seed)
        query(stage, self._desk, choice, lambda: Pool.of(rows, shards))
        self.queries.append(stage)

    def refresh(self, number: int) -> None:
        """Train the proxy on the labels that are there by then."""
        recipe, settings = self.recipe, self.settings.refresh
        start = 0 if settings.start == "initial" else number - 1
        stage = self.policies.stages.open(
            f"{name_of(number)}/refresh",
            {
                "labels": [one.digest for one in self.queries],
                "start": self.key(start),
                "before": self.key(number - 1),
                "settings": settings.model_dump(mode="json"),
                "trainer": {
                    k: v for k, v in untracked(recipe.trainer).items() if k not in OF_POLICY
                },
                "preference": recipe.preference.model_dump(mode="json"),
                "dtype": recipe.model.dtype,
                "max_length": recipe.data.max_length,
                "launch": recipe.launch.model_dump(mode="json", exclude=OF_MACHINES),
                "seed": recipe.seed,
            },
        )
        if not stage.is_done:
            self._carry_out(stage, number)
        self.refreshed.append(stage)
        said = oracle_line(self._of(self.queries, number), stage.facts or {})
        tell(self.on_event, Notice(f"round {number}: {said}"))

    def _carry_out(self, stage: Stage, number: int) -> None:
        start = 0 if self.settings.refresh.start == "initial" else number - 1
        compared = Compared(self._spec(start), self._spec(number - 1), self.original)
        rounds = [labels_of(one) for one in self.queries[:number]]
        origins = self.policies.origins
        refresh(stage, self.recipe, origins, rounds, compared, self.on_event)

    def cells(self, number: int) -> dict[str, str]:
        """Return what a table shows of a round."""
        return oracle_cells(self._of(self.queries, number), self._of(self.refreshed, number))

    def _of(self, stages: Sequence[Stage], number: int) -> dict[str, Any]:
        """What the stage of a round said of itself; nothing where it has none."""
        return (stages[number - 1].facts or {}) if 0 < number <= len(stages) else {}

    def prune(self) -> None:
        """Remove the weights of proxies but for the last one, where rounds do not keep all."""
        last = self._last(len(self.refreshed))
        for stage in self.refreshed if self.recipe.online.keep != "all" else []:
            if stage is not last:
                stage.prune(is_weights)
