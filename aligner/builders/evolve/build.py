"""`aligner evolve`: from seeds, or from nothing, to instructions and answers, in a run directory.

    stages/optimize/    the evolving method, step by step
    stages/rows/        what came of each row, as it finishes
    stages/checks/      what was found in all rows together
    replies.sqlite      every reply that was paid for
    method.json         the method that the rows were evolved by
    data/train.jsonl and others, as `output.py` says
    report.html         the report

Each stage is made of the settings that it reads and of the stages before it (`runs/stages.py`), so
a changed setting makes again what depends on it, and what was asked before is not asked again. A
budget that is spent ends a run with what is finished, in files that can be trained on; `--resume`
continues.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligner.builders.evolve.accounts import Accounts, ticking
from aligner.builders.evolve.authors import author_of, given_method
from aligner.builders.evolve.checks import RowChecks, check_references
from aligner.builders.evolve.contract import EvolvingMethod
from aligner.builders.evolve.estimate import estimate, shown_dollars, shown_range
from aligner.builders.evolve.magpie import tokenizer_of
from aligner.builders.evolve.optimization import HISTORY, METHOD, optimization_calls, optimize
from aligner.builders.evolve.output import SUMMARY, Output, poor_evolver
from aligner.builders.evolve.output_checks import (
    AllVerdicts,
    check_all,
)
from aligner.builders.evolve.recipe import TARGET, EvolveRecipe
from aligner.builders.evolve.roles import (
    PREVIEW,
    REPLIES,
    Roles,
    open_roles,
    sections_of,
)
from aligner.builders.evolve.row import Author
from aligner.builders.evolve.rows_stage import RowsStage
from aligner.builders.evolve.seeds import Inputs, inputs_are_other, read_inputs
from aligner.builders.evolve.skillmix import Skills, list_skills
from aligner.builders.evolve.split import split_seeds
from aligner.config.load import Resolved
from aligner.endpoints.client import check_endpoint
from aligner.endpoints.identity import identity_of
from aligner.endpoints.store import take_over
from aligner.errors import AlignerError, DataError, EndpointError
from aligner.events import OnEvent, StageStarted, Warned, tell
from aligner.models.files import check_tokenizer_path
from aligner.reward_models.catalogue import read_spec
from aligner.reward_models.isolation import announce_walls
from aligner.reward_models.named_inputs import named_inputs
from aligner.runs.files import parse_json
from aligner.runs.result import RunResult, finished
from aligner.runs.run import Run
from aligner.runs.session import Session
from aligner.runs.stages import Stages

STAGES = "stages"

SECTIONS = {
    "evolver": "endpoint",
    "optimizer": "evolve.optimizer",
    "answerer": "evolve.answerer",
    "judge": "evolve.judge",
    "target": TARGET,
}
"""Role -> the section of the recipe that names its model."""

OF_EVOLUTION = frozenset(
    [
        *("failures", "temperature", "max_tokens", "structured"),
        *("answer_system", "answer_temperature", "answer_max_tokens"),
    ]
)
"""Keys of `evolve` that every evolution and answer depends on."""

OF_ALL_ROWS = frozenset(["duplicates", "near_duplicates", "test_sets", "ngram", "drop_overlaps"])
"""Keys of `evolve.checks` that are looked at once all rows are there."""


def run_evolve(
    resolved: Resolved,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    on_event: OnEvent | None = None,
) -> RunResult:
    """Write the rows of a recipe.

    Raises: RecipeError, DataError and UsageError before anything is asked; EndpointError when the
    language models cannot be asked any more, with what is there kept.
    """
    recipe = resolved.recipe
    assert isinstance(recipe, EvolveRecipe)
    session = Session(
        resolved=resolved,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        on_event=on_event,
        has_other_inputs=lambda: inputs_are_other(Path(recipe.output_dir), recipe, models),
    )
    checks = check(recipe)
    session.check_place()
    models = {role: identity_of(section) for role, section in sections_of(recipe).items()}
    if (done := session.done()) is not None:
        return done
    inputs = read_inputs(recipe, on_event)
    check_references(checks.scorer, [(seed.origin, seed.reference) for seed in inputs.seeds])
    if recipe.evolve.mode == "auto" and given_method(recipe) is None:
        split_seeds(inputs.instructions, recipe.evolve.optimization, recipe.seed)
    if dry_run:
        return session.plan(plan_rows(recipe, inputs))
    run = session.open()
    preview = Path(f"{session.folder}{PREVIEW}")
    if preview.exists() and not (run.dir / REPLIES).exists():
        take_over(preview, run.dir / REPLIES)
    inputs.record(run, recipe, models)
    if recipe.evolve.checks.verifier is not None:
        card = read_spec(recipe.evolve.checks.verifier)
        run.record_isolation(announce_walls([card], on_event))
    build = Build(recipe, run, inputs, checks, models, on_event)
    return build.finish(session, asyncio.run(build.carry_out()))


def check(recipe: EvolveRecipe) -> RowChecks:
    """Look at endpoints, files and verifiers before any data are read, and return the checks of
    rows.

    Raises: RecipeError, UsageError or DataError.
    """
    for role, section in sections_of(recipe).items():
        try:
            check_endpoint(section)
        except AlignerError as error:
            if not error.message.startswith("endpoint"):  # it names a file
                raise
            said = f"{SECTIONS[role]}{error.message.removeprefix('endpoint')}"
            raise type(error)(said, error.hint, error.problems) from error
    given_method(recipe)
    if recipe.evolve.mode == "magpie":
        check_tokenizer_path(
            tokenizer_of(recipe.endpoint, recipe.evolve), "evolve.magpie.tokenizer"
        )
    return RowChecks(recipe.evolve)


def plan_rows(recipe: EvolveRecipe, inputs: Inputs) -> list[tuple[str, str, str]]:
    """Return what a dry run says."""
    found = estimate(recipe, inputs.seeds)
    rows = [("rows", f"{len(inputs.seeds):,}", f"evolve.rounds: {recipe.evolve.rounds}")]
    rows.append(("requests", shown_range(found.calls), "`--estimate` says for what"))
    if found.usd is not None:
        rows.append(("US dollars", shown_dollars(found.usd), "by the prices of the recipe"))
    return rows


@dataclass
class Build:
    """The stages of a run. `identities`: each role with what decides its replies."""

    recipe: EvolveRecipe
    run: Run
    inputs: Inputs
    checks: RowChecks
    identities: Mapping[str, Any]
    on_event: OnEvent | None
    method: EvolvingMethod | None = None
    skills: Skills | None = None
    stages: Stages = field(init=False)

    def __post_init__(self) -> None:
        self.stages = Stages(self.run.dir / STAGES, self.on_event)

    def settings(self, keys: frozenset[str]) -> dict[str, Any]:
        """Return some keys of `evolve`."""
        found: dict[str, Any] = self.recipe.evolve.model_dump(mode="json", include=set(keys))
        return found

    async def carry_out(self) -> EndpointError | None:
        """Carry out all stages but the last; return what ended the rows early, with some finished.

        Raises: EndpointError where nothing more can be asked.
        """
        async with open_roles(self.recipe, self.run.dir / REPLIES) as roles:
            accounts = Accounts(self.run, roles, estimate(self.recipe, self.inputs.seeds).usd)
            try:
                author = await self._author(roles, accounts)
                return await self.rows().carry_out(author, roles, accounts)
            finally:
                accounts.write()

    # --- the method -------------------------------------------------------------------------------

    async def _author(self, roles: Roles, accounts: Accounts) -> Author:
        """Return who writes instructions, whose method may have to be optimized first."""
        evolve = self.recipe.evolve
        self.method = given_method(self.recipe)
        if evolve.mode == "auto" and self.method is None:
            self.method = await self._optimized(roles, accounts)
        if self.method is not None:
            self.run.write_json(METHOD, self.method.to_json())
        if evolve.mode == "skillmix":
            self.skills = await self._listed_skills(roles, accounts)
        return author_of(self.recipe, roles, self.method, self.skills)

    async def _optimized(self, roles: Roles, accounts: Accounts) -> EvolvingMethod:
        evolve = self.recipe.evolve
        made_of = {
            "seeds": self.inputs.digest(),
            "seed": self.recipe.seed,
            "models": {role: self.identities[role] for role in self.identities if role != "target"},
            **self.settings(OF_EVOLUTION | {"optimization"}),
        }
        stage = self.stages.open("optimize", made_of)
        texts = self.inputs.instructions
        most = sum(optimization_calls(evolve).values())
        if not stage.is_done:
            tell(self.on_event, StageStarted("optimizing the method"))
        async with ticking(lambda: accounts.say("optimizing the method", most, self.on_event)):
            found = await optimize(evolve, texts, roles, stage, self.on_event, self.recipe.seed)
        if not stage.is_done:
            stage.finish({"method": found.best.id, "steps": len(found.history.steps)})
        return found.best

    async def _listed_skills(self, roles: Roles, accounts: Accounts) -> Skills:
        made_of = {
            "model": self.identities["evolver"],
            **self.settings(frozenset(["skillmix", "temperature", "max_tokens"])),
        }
        stage = self.stages.open("skills", made_of)
        if not stage.is_done:
            tell(self.on_event, StageStarted("listing skills"))
            async with ticking(accounts.write_now_and_then):
                found = await list_skills(roles, self.recipe.evolve, self.on_event)
            stage.finish(found.to_json())
        assert stage.facts is not None, "it is finished"
        return Skills.from_json(stage.facts)

    # --- the rows ---------------------------------------------------------------------------------

    def rows(self) -> RowsStage:
        """Open the stage of the rows; the method must be known."""
        evolve = self.recipe.evolve
        roles = ("evolver", "answerer", "target")
        named = named_inputs(self.recipe)
        made_of = {
            "seeds": self.inputs.digest(),
            "seed": self.recipe.seed,
            "method": None if self.method is None else self.method.id,
            "skills": None if self.skills is None else self.skills.to_json(),
            "tokenizer": named.get("evolve.magpie.tokenizer", {}),
            "models": {role: self.identities[role] for role in roles if role in self.identities},
            "checks": evolve.checks.model_dump(mode="json", exclude={*OF_ALL_ROWS, "pass_rate"}),
            "verifier": named.get("evolve.checks.verifier", {}),
            **self.settings(OF_EVOLUTION | {"mode", "rounds", "multiturn", "magpie"}),
        }
        if (limits := evolve.checks.pass_rate) is not None:
            made_of["pass_rate"] = [limits.samples, limits.low, limits.high]
        stage = self.stages.open("rows", made_of)
        return RowsStage(stage, self.recipe, self.inputs.seeds, self.checks, self.on_event)

    # --- all rows together, and the end -----------------------------------------------------------

    def _checked(self, rows: RowsStage) -> AllVerdicts:
        """Look at all rows together; of a part of them, without keeping what was found."""
        checks = self.recipe.evolve.checks
        if not rows.stage.is_done:
            return self._verdicts(rows)
        made_of = {
            "rows": rows.stage.digest,
            "seeds": self.inputs.digest(),
            "checks": checks.model_dump(mode="json", include=set(OF_ALL_ROWS)),
            "test sets": list(self.inputs.test_files().values()),
        }
        stage = self.stages.open("checks", made_of)
        if not stage.is_done:
            tell(self.on_event, StageStarted("checking all rows together"))
            found = self._verdicts(rows)
            stage.finish({"dropped": found.dropped, "counts": dict(found.counts)})
        facts = stage.facts or {}
        verdicts = AllVerdicts({key: tuple(value) for key, value in facts["dropped"].items()})
        verdicts.counts.update(facts["counts"])
        return verdicts

    def _verdicts(self, rows: RowsStage) -> AllVerdicts:
        seeds = []
        if self.recipe.data is not None:
            seeds = [(seed.id, "\n".join(seed.users)) for seed in self.inputs.seeds]
        texts = None if self.inputs.tests is None else self.inputs.tests.texts
        return check_all(rows.outcomes().made(), seeds, self.recipe.evolve, texts)

    def finish(self, session: Session, stopped: EndpointError | None) -> RunResult:
        """Check all rows together, and write everything that comes out. Raises: DataError when no
        row is left."""
        from aligner.builders.evolve.report import write_evolve_report

        rows = self.rows()
        is_multiturn = self.recipe.evolve.multiturn == "sequential"
        output = Output(rows.outcomes(), self.inputs.seeds, self._checked(rows), is_multiturn)
        tell(self.on_event, StageStarted("writing the files"))
        summary = output.write(self.run.dir)
        finished_rows = sum(1 for _ in output.outcomes.lines())
        summary["unfinished"] = len(self.inputs.seeds) - finished_rows
        summary["ended"] = "" if stopped is None else stopped.message
        summary["method"] = None if self.method is None else self.method.to_json()
        if (history := self.run.dir / STAGES / "optimize" / HISTORY).exists():
            summary["optimization"] = parse_json(history, "resume: it is made again")
        self.run.write_json(SUMMARY, summary)
        write_evolve_report(self.run.dir)
        for said in poor_evolver(summary):
            tell(self.on_event, Warned(said))
        if not summary["rows"]:
            raise DataError(
                f"no row is left of {finished_rows:,}",
                f"see {self.run.dir / 'report.html'}; --resume takes changed settings",
            )
        results = results_of(summary)
        if stopped is None:
            return session.finish(self.run, results, self.inputs.parents(), self.run.dir / "data")
        text = f"{summary['unfinished']:,} of {len(self.inputs.seeds):,} rows are not finished"
        tell(self.on_event, Warned(f"{text}: {stopped.message}; {stopped.hint}"))
        self.run.close()
        return finished(self.run, results, self.on_event)


def results_of(summary: dict[str, Any]) -> dict[str, float]:
    """Return the few numbers that a screen shows."""
    lost = {f"dropped: {reason}": float(count) for reason, count in summary["dropped"].items()}
    found = {"seeds": float(summary["seeds"]), "rows": float(summary["rows"]), **lost}
    if summary["unfinished"]:
        found["not finished"] = float(summary["unfinished"])
    return found
