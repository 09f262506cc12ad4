"""The rounds of the flywheel: who fights, what is learned, and whether it paid.

Where the paper is silent: the target of a round after the first is the best model so far; one row a
prompt, of the winner with the best mean score; selections are carried forward as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aligner.arena.battle.log import NOTHING
from aligner.arena.records import Battle, Game
from aligner.config.battles import Contestant
from aligner.config.load import Resolved
from aligner.config.recipe import Source
from aligner.events import Notice, OnEvent, StageStarted, TableRow, Warned, tell
from aligner.methods.flywheel.battles import AGAIN, Battlefield, Fought
from aligner.methods.flywheel.policies import Policies, Policy
from aligner.methods.flywheel.pool import Pool
from aligner.methods.flywheel.ratings import Standing, mean_lengths, standing
from aligner.methods.flywheel.recipe import FlywheelRecipe, Strategy
from aligner.methods.flywheel.selecting import prompts_file, rows_file, select, shard_of
from aligner.methods.flywheel.status import RESULT
from aligner.methods.flywheel.stopping import noise_of, why_no_gain, why_not_train
from aligner.runs.files import dumps, write_atomically
from aligner.runs.run import Run
from aligner.runs.stages import Stage

FIRST_EVAL = "rounds/00/eval"
"""Where the opponents answer the test set, once for all models."""


@dataclass
class Rounds:
    """The rounds of a run. `battles`: those on the test set, so far; `stages_done`: what each stage
    of the rounds gave, for the report; `lengths`: mean length of everybody's answers to the test
    set."""

    resolved: Resolved
    run: Run
    pool: Pool
    ground: Battlefield
    initial: list[str]
    on_event: OnEvent | None
    battles: list[Battle] = field(default_factory=list)
    lengths: dict[str, float] = field(default_factory=dict)
    made: list[dict[str, Any]] = field(default_factory=list)
    gains: list[dict[str, Any]] = field(default_factory=list)
    selected: dict[Strategy, list[Stage]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.recipe: FlywheelRecipe = self.resolved.recipe
        self.policies = Policies(self.resolved, self.ground.stages, self.on_event)
        self._dev = {item.id for item in self.pool.dev}
        self.measured: list[str] = []
        self._standings: dict[tuple[bool, int], Standing] = {}

    # --- the rounds -------------------------------------------------------------------------------

    def carry_out(self) -> str:
        """Do all rounds; return why they ended early, or nothing."""
        flywheel = self.recipe.flywheel
        start = self._start()
        self._measure(start, FIRST_EVAL, only_target=False)
        for number in range(1, flywheel.rounds + 1):
            tell(self.on_event, StageStarted(f"round {number} of {flywheel.rounds}"))
            before = self.best()
            cut = self._round(number)
            gained = self.best() if cut else self._best_of_round(number)
            gain = self.dev().gain(gained, before) if gained != before else {"value": 0.0}
            self.gains.append({"round": number, "best": gained, "before": before, **gain})
            self._keep()
            if cut:
                tell(self.on_event, Warned(f"the rounds end with {number}: {cut}"))
                return cut
            reason = why_no_gain({"low": None, "high": None, **gain}, flywheel.stop)
            if reason and number < flywheel.rounds:
                tell(self.on_event, Warned(f"no further round after {number}: {reason}"))
                return reason
        return ""

    def _start(self) -> Policy:
        """Return what fights first: `model`, trained on the initial rows where there are any."""
        sources = self.recipe.flywheel.initial
        if sources is None:
            return self.policies.base
        return self.policies.initial(sources, self.initial)

    def _round(self, number: int) -> str:
        """Do a round; return why it ended early, or nothing."""
        target = self.policies.named(self.best()) if number > 1 else self.policies.made[-1]
        opponents = self.opponents()
        for strategy in self.recipe.flywheel.strategies:
            fought = self._fight(number, strategy, target, opponents)
            chosen = self._select(number, strategy, target, opponents, fought)
            noise = self._noise(number, strategy, target, fought, opponents)
            rows = int((chosen.facts or {})["rows"])
            self._note(number, strategy, target, chosen, noise, opponents)
            judged = noise if self._learns_losses(strategy) else None
            if reason := why_not_train(rows, judged, self.recipe.flywheel.stop):
                return f"{strategy} of round {number}: {reason}"
            self.selected.setdefault(strategy, []).append(chosen)
            target = self._train(number, strategy, target)
            self._measure(target, f"rounds/{number:02d}/{strategy}/eval", only_target=True)
            self._tell_of(number, strategy, rows)
            self._keep()
        return ""

    def _learns_losses(self, strategy: Strategy) -> bool:
        """Whether the rows of a strategy are what the target lost."""
        settings = getattr(self.recipe.flywheel, strategy)
        return strategy == "sft" or settings.scope == "target_loses"

    def _fight(
        self, number: int, strategy: Strategy, target: Policy, opponents: Sequence[Contestant]
    ) -> Fought:
        return self.ground.fight(
            f"rounds/{number:02d}/{strategy}",
            target.contestant,
            opponents,
            self.pool.parts[number, strategy],
            only_target=self.recipe.flywheel.mode == "target",
            about=_about(number, strategy),
        )

    def _noise(
        self,
        number: int,
        strategy: Strategy,
        target: Policy,
        fought: Fought,
        opponents: Sequence[Contestant],
    ) -> dict[str, Any] | None:
        """Return how often the target loses, and how often it loses to itself."""
        flywheel, place = self.recipe.flywheel, f"rounds/{number:02d}/{strategy}"
        if not (flywheel.noise_prompts and flywheel.temperature):
            return None
        about, count = _about(number, strategy), flywheel.noise_prompts
        again = self.ground.fight_itself(place, target.contestant, fought, count, about)
        contests, itself = (one.contests(self.pool.difficulties) for one in (fought, again))
        settings = getattr(flywheel, strategy)
        k = settings.k[min(number, len(settings.k)) - 1]
        rivals = [one.name for one in opponents]
        return noise_of(contests, itself, target.name, target.name + AGAIN, rivals, k)

    def _select(
        self,
        number: int,
        strategy: Strategy,
        target: Policy,
        opponents: Sequence[Contestant],
        fought: Fought,
    ) -> Stage:
        contests = fought.contests(self.pool.difficulties)
        return select(
            self.ground.stages,
            self.recipe,
            (number, strategy),
            fought,
            contests,
            target.name,
            opponents,
            self.pool.tests,
        )

    def _train(self, number: int, strategy: Strategy, target: Policy) -> Policy:
        """Train a strategy of a round on what was selected for it."""
        flywheel = self.recipe.flywheel
        chosen = self.selected[strategy] if flywheel.cumulative else self.selected[strategy][-1:]
        files = [_source(rows_file(stage, self.pool.tests)) for stage in chosen]
        prompts = [_source(prompts_file(stage)) for stage in chosen] if strategy == "rl" else []
        start = target
        if strategy == "sft" and number > 1:
            start = self.policies.base
            if flywheel.sft.start == "previous":
                start = self.policies.named(f"sft-{number - 1}")
        digests = [stage.digest for stage in chosen]
        return self.policies.train(number, strategy, start, files, digests, prompts)

    # --- what they are worth ----------------------------------------------------------------------

    def _measure(self, policy: Policy, place: str, *, only_target: bool) -> None:
        """Have a model meet all opponents on the test set."""
        opponents = self.recipe.flywheel.opponents
        items = [*self.pool.dev, *self.pool.test]
        fought = self.ground.fight(
            place,
            policy.contestant,
            opponents,
            items,
            only_target=only_target,
            about=NOTHING,
            answered=FIRST_EVAL,
        )
        self.battles += fought.battles
        self.lengths |= mean_lengths(fought.answers)
        self.measured.append(policy.name)

    def standing(self, *, is_dev: bool) -> Standing:
        """Return the ratings on a part of the test set, of everybody so far; fitted once for the
        same battles."""
        key = (is_dev, len(self.battles))
        if key not in self._standings:
            chosen = [one for one in self.battles if (one.prompt_id in self._dev) == is_dev]
            how = self.recipe.flywheel.rating
            self._standings[key] = standing(chosen, how, self.recipe.seed)
        return self._standings[key]

    def dev(self) -> Standing:
        """Return the ratings that choose."""
        return self.standing(is_dev=True)

    def best(self) -> str:
        """Return the best model so far, by the development part."""
        return self.dev().best(self.measured)

    def _best_of_round(self, number: int) -> str:
        names = [name for name in self.measured if name.endswith(f"-{number}")]
        return self.dev().best(names)

    def opponents(self) -> list[Contestant]:
        """Return who fights in the next round: all, or the best by the ratings so far."""
        flywheel = self.recipe.flywheel
        wanted = flywheel.opponents_per_round
        if wanted is None or wanted >= len(flywheel.opponents):
            return list(flywheel.opponents)
        found = self.dev()
        order = sorted(
            flywheel.opponents, key=lambda one: (-found.of(one.name)["rating"], one.name)
        )
        return order[:wanted]

    # --- what is said -----------------------------------------------------------------------------

    def _note(
        self,
        number: int,
        strategy: Strategy,
        target: Policy,
        chosen: Stage,
        noise: dict[str, Any] | None,
        opponents: Sequence[Contestant],
    ) -> None:
        facts = chosen.facts or {}
        names = [one.name for one in opponents]
        self.made.append(
            {
                "round": number,
                "strategy": strategy,
                "target": target.name,
                "opponents": names,
                "selection": facts,
                "noise": noise,
            }
        )
        best = ", ".join(f"{name} {count:,}" for name, count in facts["winners"].items())
        text = (
            f"{strategy} of round {number}: {facts['rows']:,} rows of {facts['prompts']:,} prompts"
        )
        tell(self.on_event, Notice(f"{text}; winners: {best or 'none'}"))

    def _tell_of(self, number: int, strategy: Strategy, rows: int) -> None:
        name, found = f"{strategy}-{number}", self.dev()
        one = found.of(name)
        best = found.best(self.measured)
        title = f"ratings on the development prompts; best so far: {best}"
        cells = {
            "model": name,
            "rows": f"{rows:,}",
            "rating": f"{one['rating']:,.0f}",
            "95%": f"{_end(one['low'])} to {_end(one['high'])}",
            "length": f"{self.lengths[name]:,.0f}",
        }
        line = f"{name}: rating {cells['rating']} ({cells['95%']}), {rows:,} rows"
        tell(self.on_event, TableRow(title=title, cells=cells, line=line, is_best=best == name))

    def _keep(self) -> None:
        """Write what is known so far."""
        found = self.to_json("")
        write_atomically(self.run.dir / RESULT, dumps(found, indent=2) + "\n")
        self.run.metrics.replace(metrics_of(found, self.measured))

    def to_json(self, reason: str) -> dict[str, Any]:
        """Return everything that the report shows."""
        dev, test = self.dev(), self.standing(is_dev=False)
        names = [*self.measured, *(one.name for one in self.recipe.flywheel.opponents)]
        models = {
            name: {
                "dev": dev.of(name),
                "test": test.of(name),
                "mean_length": self.lengths.get(name),
                "is_ours": name in self.measured,
            }
            for name in names
        }
        return {
            "best": self.best(),
            "stopped": reason,
            "models": models,
            "stages": self.made,
            "gains": self.gains,
            "lost_prompts": dict(self.pool.lost),
            "spend": self.ground.spend.to_json(),
        }


def _source(path: Path) -> Source:
    return Source(path=str(path))


def _about(number: int, strategy: Strategy) -> Game:
    """What every game of a battle says of where it belongs."""
    return replace(NOTHING, round=number, stage=strategy, shard=shard_of(number, strategy))


def _end(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"


def metrics_of(found: Mapping[str, Any], measured: Sequence[str]) -> list[dict[str, Any]]:
    """Return lines for `metrics.jsonl`: of each model that was measured its rating, with its
    interval, and the mean length of its answers, on both parts of the test set; its number as the
    step. Every battle moves all ratings, so all lines are written each time."""
    lines = []
    for step, name in enumerate(measured):
        model = found["models"][name]
        for part, split in (("dev", "eval"), ("test", "test")):
            values = {key: model[part][key] for key in ("rating", "low", "high")}
            known = {key: value for key, value in values.items() if value is not None}
            lines.append({"step": step, "split": split, **known})
        lines[-2]["mean_length"] = model["mean_length"]
    return lines
