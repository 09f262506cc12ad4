"""The optimization of an evolving method (arXiv 2406.00770, section 3): look at a few evolutions,
have several rewritten methods proposed, measure each, and take the best.

What differs from the paper and from the authors' code under the preset `robust`:

* A method is only replaced by one with fewer failures, on development instructions that stay the
  same and overlap with none that are looked at. In the paper the best candidate replaces it in any
  case, so the failure rate can rise; in the code, both sets overlap and change.
* Candidates that say the same are measured once, and those that hold no method are counted.
* It ends after some steps without a better method, or when no failure is left; the latter only
  without a second objective, since failures are a crude measure that strong models soon have few
  of.

`paper` takes the best candidate in any case, until the failure rate no longer falls. `released` has
the rule of the authors' code: by their score, the first candidate that is not worse in either
failures or score; it never ends early.

Each step is on disk when it is over, with the method in force; replies are in the cache. So a
resumed optimization repeats no step, and asks nothing twice that was paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aligner.builders.evolve.contract import EvolvingMethod, first_method
from aligner.builders.evolve.evolving import Clients, side_by_side
from aligner.builders.evolve.history import (
    Candidate,
    Ended,
    History,
    Measured,
    Step,
    class_counts,
    step_from_json,
)
from aligner.builders.evolve.measuring import JUDGED_AT_ONCE, keeps_contract, measure
from aligner.builders.evolve.recipe import Evolve, Optimization
from aligner.builders.evolve.rewriting import trajectory, write_candidate
from aligner.builders.evolve.split import Split, split_seeds
from aligner.errors import EndpointError
from aligner.events import OnEvent, TableRow, Warned, tell
from aligner.runs.journal import Journal
from aligner.runs.stages import Stage

METHOD = "method.json"
"""The method in force, in the folder of the stage; written after every step."""
HISTORY = "history.json"
"""All that was tried until now, beside it."""

InForce = tuple[EvolvingMethod, Measured]
COMPARED = ("measured", "same")
"""Outcomes of candidates that can be chosen; to choose the method in force changes nothing."""

Choose = Callable[[InForce, Sequence[InForce]], EvolvingMethod | None]
IsOver = Callable[[History, Optimization], Ended | None]


@dataclass(frozen=True)
class Rule:
    """How a preset proceeds. `choose` gets the method in force and the candidates that may be
    compared, and returns the one that replaces it. `probes`: whether a `free` candidate is tried
    on a few instructions first."""

    choose: Choose
    is_over: IsOver
    probes: bool = False


def choose_better(current: InForce, candidates: Sequence[InForce]) -> EvolvingMethod | None:
    """The best candidate, if it fails less, or as often and has fewer issues. Length decides
    between candidates alone: else methods would shrink."""
    best = min(candidates, key=lambda one: (*_rates(one), len(one[0].steps)), default=None)
    return best[0] if best is not None and _rates(best) < _rates(current) else None


def choose_best(current: InForce, candidates: Sequence[InForce]) -> EvolvingMethod | None:
    """The candidate that fails least, whatever the method in force does."""
    best = min(candidates, key=lambda one: one[1].failure_rate, default=None)
    return best[0] if best is not None else None


def choose_by_score(current: InForce, candidates: Sequence[InForce]) -> EvolvingMethod | None:
    """By the score of the authors' code: the first that neither fails more nor scores less."""
    now = current[1]
    for method, measured in sorted(candidates, key=lambda one: -one[1].score):
        if measured.failure_rate <= now.failure_rate and measured.score >= now.score:
            return method
    return None


def _rates(one: InForce) -> tuple[float, float]:
    return one[1].failure_rate, one[1].issue_rate


def ends_by_patience(history: History, settings: Optimization) -> Ended | None:
    """No failure is left, or no better method was found for a while."""
    _, measured = history.in_force()[-1]
    if measured.failure_rate == 0.0 and settings.secondary == "none":
        return "solved"
    recent = history.steps[-settings.patience :]
    waited = len(recent) == settings.patience and all(step.chosen is None for step in recent)
    return "patience" if waited else None


def ends_by_rise(history: History, settings: Optimization) -> Ended | None:
    """The failure rate did not fall in the last step, or cannot any more."""
    rates = [measured.failure_rate for _, measured in history.in_force()]
    if rates[-1] == 0.0:
        return "solved"
    return "no_fall" if len(rates) > 1 and rates[-1] >= rates[-2] else None


def never_ends(history: History, settings: Optimization) -> Ended | None:
    """All steps are done."""
    return None


RULES = {
    "robust": Rule(choose_better, ends_by_patience, probes=True),
    "paper": Rule(choose_best, ends_by_rise),
    "released": Rule(choose_by_score, never_ends),
}
"""Preset -> its rule."""


@dataclass(frozen=True)
class Optimized:
    """The best method, and how it was found."""

    best: EvolvingMethod
    history: History


def optimization_calls(settings: Evolve) -> dict[str, int]:
    """Return the most calls that an optimization makes, by purpose. Candidates that say the same,
    evolutions that fail before they are answered, and an early end make it fewer.

    The sum is 2D + T(B l + 2m + 2mD) of D development instructions, T steps, batches of B, l rounds
    and m candidates; with a judge, (1 + Tm) D/10 more.
    """
    chosen = settings.optimization
    if chosen.steps == 0:
        return {}
    methods = 1 + chosen.steps * chosen.candidates
    looked_at = chosen.steps * chosen.batch_size * chosen.trajectory_rounds
    calls = {
        "evolve": methods * chosen.development_size + looked_at,
        "answer": methods * chosen.development_size,
        "analyse": chosen.steps * chosen.candidates,
        "rewrite": chosen.steps * chosen.candidates,
    }
    if chosen.secondary == "issue_rate":
        calls["judge"] = methods * -(-chosen.development_size // JUDGED_AT_ONCE)
    return calls


async def optimize(
    settings: Evolve,
    seeds: Sequence[str],
    roles: Clients,
    stage: Stage | None,
    on_event: OnEvent | None,
    seed: int,
    *,
    rule: Rule | None = None,
) -> Optimized:
    """Optimize a method on seeds; resume in `stage` where it was left, and read there what is over.
    Who opened the stage finishes it. `rule`: one of your own in the place of the preset's.

    Raises: DataError for too few seeds; EndpointError where the server cannot be asked any more,
    with what is there kept.
    """
    chosen = settings.optimization
    start = first_method(chosen.start, chosen.contract)
    if chosen.steps == 0:
        history = History(start, ended="steps")
        _write(stage, start, history)
        return Optimized(start, history)
    if chosen.temperature == 0.0 and chosen.candidates > 1:
        text = (
            "evolve.optimization.temperature is 0: all candidates of a step are one; raise it, or "
            "set candidates to 1"
        )
        tell(on_event, Warned(text))
    journal = stage.journal("steps") if stage is not None else Journal(None)
    search = _Search(
        settings,
        roles,
        split_seeds(seeds, chosen, seed),
        seed,
        rule if rule is not None else RULES[chosen.preset],
        stage,
        journal,
        on_event,
    )
    return await search.run(start)


@dataclass
class _Search:
    settings: Evolve
    roles: Clients
    split: Split
    seed: int
    rule: Rule
    stage: Stage | None
    journal: Journal
    on_event: OnEvent | None
    known: dict[str, Measured] = field(default_factory=dict)

    async def run(self, start: EvolvingMethod) -> Optimized:
        """Measure the first method, then step until it is over. Part 0 of the journal is the first
        measurement, part t is step t."""
        if 0 in self.journal:
            first = Measured(**self.journal[0])
        else:
            first = await self._measure_first(start)
            self.journal.add(0, first.model_dump(mode="json"))
        history = History(start, first)
        self.known[start.id] = first
        self._tell(history)
        ended: Ended | None = None
        for number in range(1, self.settings.optimization.steps + 1):
            if (ended := self.rule.is_over(history, self.settings.optimization)) is not None:
                break
            if number in self.journal:
                step = step_from_json(self.journal[number])
            else:
                step = await self._step(number, history.in_force()[-1])
                self.journal.add(number, step.model_dump(mode="json"))
            history = History(start, first, (*history.steps, step))
            self._remember(step)
            self._tell(history)
        history = History(start, first, history.steps, ended or "steps")
        best = history.in_force()[-1][0]
        _write(self.stage, best, history)
        return Optimized(best, history)

    async def _measure_first(self, start: EvolvingMethod) -> Measured:
        found = await measure(self.roles, self.settings, start, self.split.development)
        if not found.is_complete:
            raise EndpointError(
                f"only {found.covered} of {found.asked} development instructions got a reply, so "
                "no method can be compared with the first",
                "look at what the server refuses (long or filtered instructions), or resume later",
            )
        if self.settings.optimization.secondary == "issue_rate" and not found.judged:
            text = "no verdict of the judge could be read, so only failures are compared"
            tell(self.on_event, Warned(text))
        return found

    async def _step(self, number: int, current: InForce) -> Step:
        chosen = self.settings.optimization
        batch = self.split.batch(number, chosen.batch_size, self.seed)
        cases = await trajectory(self.roles, self.settings, current[0], batch)
        written = await side_by_side(
            write_candidate(
                self.roles, self.settings, current[0], cases, step=number, sample_index=index
            )
            for index in range(chosen.candidates)
        )
        if all(one.outcome == "no_reply" for one in written):
            raise EndpointError(
                f"step {number} of the optimization got no reply to any of its "
                f"{len(written)} analyses: {written[-1].why}",
                "lower evolve.optimization.batch_size where they are too long; else resume later",
            )
        candidates = await self._measured(_without_repeats(written))
        comparable = [
            (one.method, one.measured)
            for one in candidates
            if one.method is not None and one.measured is not None and one.outcome in COMPARED
        ]
        best = self.rule.choose(current, comparable)
        places = [place for place, one in enumerate(candidates) if one.method == best]
        stays = best is None or best.id == current[0].id
        return Step(
            number=number,
            candidates=tuple(candidates),
            chosen=None if stays else places[0],
            batch_classes=class_counts([case.failure for case in cases]),
        )

    async def _measured(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        async def one(candidate: Candidate) -> Candidate:
            method = candidate.method
            if method is None or candidate.outcome not in COMPARED:
                return candidate
            if method.id in self.known:
                return candidate.model_copy(update={"measured": self.known[method.id]})
            development = self.split.development
            probes = self.rule.probes and method.contract == "free"
            if probes and not await keeps_contract(self.roles, self.settings, method, development):
                why = "its replies have no final section"
                return candidate.model_copy(update={"outcome": "contract", "why": why})
            found = await measure(self.roles, self.settings, method, development)
            outcome = "measured" if found.is_complete else "incomplete"
            return candidate.model_copy(update={"outcome": outcome, "measured": found})

        return await side_by_side(map(one, candidates))

    def _remember(self, step: Step) -> None:
        for one in step.candidates:
            if one.outcome == "measured" and one.method is not None and one.measured is not None:
                self.known[one.method.id] = one.measured

    def _tell(self, history: History) -> None:
        """Write the method in force, and show the step."""
        method, measured = history.in_force()[-1]
        _write(self.stage, method, history)
        tell(self.on_event, step_row(history, measured))


def _write(stage: Stage | None, method: EvolvingMethod, history: History) -> None:
    """Keep what a reader, or a run that shall evolve by this method, looks for."""
    if stage is not None and not stage.is_done:
        stage.write(METHOD, method.to_json())
        stage.write(HISTORY, history.to_json())


def _without_repeats(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Leave of what several candidates of a step say word for word only the first."""
    seen: set[str] = set()
    found = []
    for one in candidates:
        is_repeat = one.method is not None and one.method.id in seen
        found.append(one.model_copy(update={"outcome": "repeated"}) if is_repeat else one)
        if one.method is not None:
            seen.add(one.method.id)
    return found


def step_row(history: History, measured: Measured) -> TableRow:
    """Return the last step as a row of a table on the screen."""
    step = history.steps[-1] if history.steps else None
    candidates = step.candidates if step is not None else ()
    usable = sum(one.outcome == "measured" for one in candidates)
    is_better = step is not None and step.chosen is not None
    name = str(step.number) if step is not None else "start"
    cells = {
        "step": name,
        "failures": f"{measured.failure_rate:.0%}",
        "of which": ", ".join(f"{key} {count}" for key, count in measured.classes.items()),
        "candidates": f"{usable} of {len(candidates)}" if step is not None else "",
        "method": history.in_force()[-1][0].id[:8] + (" new" if is_better else ""),
    }
    line = f"step {name}: failure rate {measured.failure_rate:.0%}"
    if step is not None:
        line += f", {usable} of {len(candidates)} candidates usable, "
        line += "a new method" if is_better else "the method stays"
    return TableRow("the evolving method", cells, line, is_best=is_better)
