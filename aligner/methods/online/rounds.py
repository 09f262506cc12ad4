"""`aligner online`: rounds of sampling, scoring, pairing, training and evaluation (RLHF Workflow,
arXiv 2405.07863).

    rounds/00/eval                             the start, measured
    rounds/01/{sample,score,pair,train,eval}   with `online.future` between pair and train also
                                               {train,sample,score,pair}-future
                                               with `online.oracle` between score and pair also
                                               {query,refresh,rescore}
    rounds/02/...
    rounds.json                                what each round was worth
    final/                                     the policy of the best round

Each is a stage (`aligner.runs.stages`): killed anywhere, a run resumes with the stage that was
stopped, and a changed setting makes again what depends on it and nothing else. Which stage comes
next is read from what is there, not from a counter.

Where it differs from the published code: the reference is the start in each round, as the paper
says, and not the last policy; answers are trained on by the token ids that were sampled; held-out
prompts are none of the training ones, and each policy answers them again; those that choose the
best round do not report it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from aligner.config.load import Resolved
from aligner.data.rows import PromptRow
from aligner.errors import TrainingError, UsageError
from aligner.events import Notice, OnEvent, StageStarted, TableRow, Warned, tell
from aligner.launch.world import world
from aligner.methods.online.answering import Answering, Written
from aligner.methods.online.evaluation import HeldOut, evaluate
from aligner.methods.online.measures import best_round, judged, why_stop
from aligner.methods.online.pair_stage import make_pairs
from aligner.methods.online.pairing import FUTURE, POLICY
from aligner.methods.online.policies import Policies, digests, name_of
from aligner.methods.online.preflight import (
    Inputs,
    check,
    digest_of_prompts,
    plan_rows,
    read_inputs,
    refuse_full_disk,
)
from aligner.methods.online.proxies import Proxies
from aligner.methods.online.recipe import OnlineRecipe
from aligner.methods.online.scoring import scored_by
from aligner.methods.online.words import measured_cells, name_of_round, round_line
from aligner.methods.stage_run import final_of
from aligner.models.files import as_trained, check_model_path
from aligner.reward_models.catalogue import read_spec
from aligner.reward_models.isolation import announce_walls
from aligner.reward_models.named_inputs import inputs_changed
from aligner.runs.result import RunResult, finished
from aligner.runs.run import Run
from aligner.runs.session import Session
from aligner.runs.stages import Stage, Stages


def run_online(
    resolved: Resolved,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    on_event: OnEvent | None = None,
) -> RunResult:
    """Carry out the rounds of a recipe.

    Raises: RecipeError, DataError and UsageError before anything is sampled; TrainingError
    afterwards.
    """
    if world()[1] > 1:
        raise UsageError(
            "the rounds run in one process, which launches the training of each",
            "run `aligner online` itself, with --num-processes",
        )
    recipe = resolved.recipe
    assert isinstance(recipe, OnlineRecipe)
    check_model_path(recipe.model)
    recipe = recipe.model_copy(update={"model": as_trained(recipe.model)})
    resolved = replace(resolved, recipe=recipe)
    session = Session(
        resolved=resolved,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        on_event=on_event,
        has_other_inputs=lambda: inputs_changed(Path(recipe.output_dir), recipe),
    )
    check(recipe)
    session.check_place()
    if (done := session.done()) is not None:
        return done
    inputs = read_inputs(recipe, on_event)
    if dry_run:
        return session.plan(plan_rows(recipe, inputs))
    refuse_full_disk(recipe, inputs, session.folder)
    run = session.open()
    inputs.record(run, recipe)
    rounds = Rounds(recipe, resolved.origins, run, inputs, on_event)
    asked = [] if recipe.online.oracle is None else [recipe.online.oracle.scorer]
    cards = [read_spec(spec) for spec in [*rounds.held_out.specs, *asked]]
    run.record_isolation(announce_walls(cards, partial(tell, on_event)))
    found, reason = rounds.carry_out()
    return _finish(rounds, found, reason)


@dataclass
class Rounds:
    """The rounds of a run."""

    recipe: OnlineRecipe
    origins: dict[str, str]
    run: Run
    inputs: Inputs
    on_event: OnEvent | None
    measured: list[Stage] = field(default_factory=list)
    """The evaluation of the start, and of each round."""

    def __post_init__(self) -> None:
        self.stages = Stages(self.run.dir, self.on_event)
        self.policies = Policies(self.recipe, self.origins, self.stages, self.on_event)
        self.proxies: Proxies | None = None
        if self.recipe.online.oracle is not None:
            since = self.run.read_json("environment.json")["sessions"][0]["started"]
            self.proxies = Proxies(self.recipe, self.policies, since, self.on_event)
        self.answering = Answering(self.recipe, self.policies, self.proxies)
        rows, online = self.inputs.held_out, self.recipe.online
        self.held_out = HeldOut(rows, online, self.recipe.seed, self.on_event)
        self.judges = scored_by(self.held_out.specs)

    def carry_out(self) -> tuple[list[dict[str, Any]], str]:
        """Do all rounds; return what the start and each round measured, and why they ended early,
        if they did."""
        online = self.recipe.online
        found = [self._measure(0)]
        self._tell_of(found)
        for number in range(1, online.rounds + 1):
            tell(self.on_event, StageStarted(f"round {number} of {online.rounds}"))
            self._make_pairs(number)
            self.policies.train(number)
            found.append(self._measure(number))
            self._log(found)
            self._tell_of(found)
            self.policies.prune(best_round(found))
            if self.proxies is not None:
                self.proxies.prune()
            reason = why_stop(found, online.stop) if number < online.rounds else ""
            if reason:
                tell(self.on_event, Warned(f"no further round after {number}: {reason}"))
                return found, reason
        return found, ""

    def _make_pairs(self, number: int) -> None:
        rows = self.inputs.rounds[number - 1]
        written = self.answering.answer(number, rows)
        if self.proxies is not None and self.proxies.share(number):
            own = {POLICY: written[POLICY]}
            self.proxies.ask(number, digests(own[POLICY]), self.answering.scored(own, rows), rows)
            self.proxies.refresh(number)
            written = self.answering.rescored(number, written, rows)
        self.policies.pairs.append(self._paired(number, "pair", written, rows))
        if self.recipe.online.future:
            temporary = self.policies.train_temporary(number)
            written[FUTURE] = self.answering.answer_ahead(number, temporary, rows)
            self.policies.pairs[-1] = self._paired(number, "pair-future", written, rows)

    def _paired(self, number: int, name: str, written: Written, rows: Sequence[PromptRow]) -> Stage:
        recipe, online = self.recipe, self.recipe.online
        made_of = {
            "responses and scores": [digests(pair) for pair in written.values()],
            "pairing": online.pairing.model_dump(mode="json"),
            "reward_weights": list(online.reward_weights),
            "train": online.train,
            "seed": recipe.seed,
        }
        stage = self.stages.open(f"{name_of(number)}/{name}", made_of)
        shards = self.answering.scored(written, rows)
        make_pairs(stage, rows, shards, online, seed=recipe.seed, name=name_of(number))
        facts = stage.facts or {}
        lost = ", ".join(f"{count:,} {what}" for what, count in facts["lost"].items())
        text = f"round {number}: {facts['pairs']:,} pairs of {facts['prompts']:,} prompts"
        if FUTURE in written:
            text += f", {facts['chosen from the future']:.0%} of them chosen from the future"
        tell(self.on_event, Notice(f"{text}; lost: {lost or 'nothing'}"))
        if not facts["pairs"]:
            raise TrainingError(
                f"round {number} has nothing to train on; lost: {lost}",
                "use more responses, a higher temperature, or a scorer that tells them apart; "
                "--resume takes the change",
            )
        return stage

    def _measure(self, number: int) -> dict[str, Any]:
        """Measure a policy; 0 is the start."""
        online, policies = self.recipe.online, self.policies
        asking = replace(
            self.answering.asking(policies.section(number), "held out", number),
            temperatures=[1.0],
            num_samples=online.evaluation.num_samples,
            has_logps=number > 0,
        )
        made_of = {
            "model": policies.key(number),
            "start": policies.key(0),
            "prompts": digest_of_prompts(self.inputs.held_out),
            "scorers": self.judges,
            "reward_weights": list(online.reward_weights),
            "evaluation": online.evaluation.model_dump(mode="json"),
            "earlier": [self.measured[place].digest for place in (0, -1)] if number else [],
            **asking.made_of(),
        }
        stage = self.stages.open(f"{name_of(number)}/eval", made_of)
        if not stage.is_done:
            policies.ensure(number)
        evaluate(stage, self.held_out, asking, policies.start, self.measured)
        self.measured.append(stage)
        assert stage.facts is not None, "it is finished"
        return stage.facts

    def _tell_of(self, found: Sequence[dict[str, Any]]) -> None:
        """Show the latest round, and which is the best so far."""
        number, total = len(found) - 1, self.recipe.online.rounds
        title, best = f"{total} rounds, on the validation prompts", 0
        if number:
            best = best_round(found)
            name = "reward" if self.held_out.online.evaluation.gold is None else "gold"
            title = f"{title}; best so far: {best}, {name} {judged(found[best]):.3f}"
        pairs = f"{(self.policies.pairs[-1].facts or {})['pairs']:,}" if number else ""
        cells = {"round": name_of_round(number), "pairs": pairs}
        cells |= {} if self.proxies is None else self.proxies.cells(number)
        row = TableRow(
            title=title,
            cells={**cells, **measured_cells(found[-1])},
            line=round_line(number, found[-1]),
            is_best=number > 0 and best == number,
        )
        tell(self.on_event, row)

    def _log(self, found: Sequence[dict[str, Any]]) -> None:
        """Write what is known of all rounds so far into `metrics.jsonl`, whole."""
        records = []
        for number, facts in enumerate(found):
            for part, split in (("validation", "eval"), ("test", "test")):
                known = {k: v for k, v in (facts[part] or {}).items() if v is not None}
                if known:
                    records.append({"step": number, "split": split, **known})
        self.run.metrics.replace(records)


def _finish(rounds: Rounds, found: Sequence[dict[str, Any]], reason: str) -> RunResult:
    """Copy the best policy to `final/`, and write report, card and manifest."""
    from aligner.methods.online.report import write_online_report
    from aligner.reports.model_card import write_model_card

    run, policies, best = rounds.run, rounds.policies, best_round(found)
    policies.ensure(best)
    unfinished = run.dir / "final.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(final_of(policies.trained[best - 1]), unfinished)
    shutil.rmtree(run.final_dir, ignore_errors=True)
    unfinished.rename(run.final_dir)
    part = found[best]["test"] or found[best]["validation"]
    results = {"best round": float(best), "rounds": float(len(found) - 1)}
    for key in ("reward", "gold", "kl", "tokens"):
        if part.get(key) is not None:
            results[key] = round(part[key], 4)
    if (wins := found[best]["wins"].get("start")) is not None:
        results["wins against the start"] = round(wins["value"], 4)
    if judged(found[0]) >= judged(found[best]):
        text = "no round is better than the start on the validation prompts"
        tell(rounds.on_event, Warned(f"{text}; final/ is the best of the rounds"))
    run.write_json("rounds.json", {"best": best, "stopped": reason, "rounds": found})
    parents = rounds.inputs.parents(policies.start, rounds.judges)
    run.finish(results, parents, write_card=write_model_card, write_report=write_online_report)
    return finished(run, results, rounds.on_event)
