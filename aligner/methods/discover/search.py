"""`aligner discover`: a language model proposes preference objectives, each is tried, and it sees
what came of them.

The outer loop of DiscoPOP (arXiv 2406.08414, section 3 and algorithm 1). Read downward: measure the
objectives that the search begins with; then ask, read, check, measure and record, one proposal
after the other. A proposal is text from outside: it is read against an allow-list, tried in an
isolated process, and only then trained with, in a process of its own; what is trained with is the
stored source that was checked.

Different from the authors' code, on purpose: fitness is a mean over seeds with its standard error,
and every objective also has a held-out result that neither the model nor the ranking sees (the best
of many noisy numbers is too good to be true); a proposal that says the same as an earlier one is
not trained again; whatever goes wrong with a proposal is fed back and counts as one. Everything is
on disk as it happens, and `--resume` continues from any moment.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aligner.config.load import Resolved
from aligner.endpoints.client import check_endpoint
from aligner.endpoints.request import LLMError
from aligner.errors import AlignerError, TrainingError, UsageError
from aligner.events import Notice, OnEvent, StageStarted, Warned, tell
from aligner.losses.dsl import sandboxed
from aligner.losses.dsl.parser import SourceError, parse_objective
from aligner.methods.discover import measure
from aligner.methods.discover.archive import (
    Archive,
    Record,
    mean_and_error,
    metrics_of,
    shown,
    table_row,
)
from aligner.methods.discover.prompts import ReplyError, clean, read_reply
from aligner.methods.discover.proposer import Proposer
from aligner.methods.discover.recipe import DiscoverRecipe
from aligner.reward_models.named_inputs import compare_inputs
from aligner.runs.environment import now
from aligner.runs.files import write_atomically
from aligner.runs.result import RunResult
from aligner.runs.run import Run
from aligner.runs.session import Session
from aligner.sandbox.standing import CURE, standing_walls, what_is_open
from aligner.sandbox.worker import StartError

MOST_ERROR_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class Search:
    """What the steps of a search share."""

    recipe: DiscoverRecipe
    run: Run
    archive: Archive
    on_event: OnEvent | None

    def tell(self, event: Any) -> None:
        """Hand an event to the listener."""
        tell(self.on_event, event)

    def keep(self, record: Record) -> None:
        """Add a record to the archive and to `metrics.jsonl`, and tell of it."""
        self.archive.add(record)
        self.run.metrics.replace(metrics_of(self.archive.records))
        self.tell(table_row(record, self.archive))


def run_discovery(
    resolved: Resolved,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    on_event: OnEvent | None = None,
) -> RunResult:
    """Search, and save what was found.

    Raises: RecipeError and UsageError before anything is asked; EndpointError when the language
    model cannot be reached any more, and TrainingError when not even the objectives that the search
    begins with can be measured.
    """
    recipe = resolved.recipe
    assert isinstance(recipe, DiscoverRecipe)
    session = Session(
        resolved=resolved,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        on_event=on_event,
    )
    check_endpoint(recipe.endpoint)
    check_inner_recipe(recipe)
    session.check_place()
    if dry_run:
        return session.plan(plan_rows(recipe))
    if resume and _is_over(session.folder, recipe) and (done := session.done()) is not None:
        return done
    run = _open(session)
    _announce_walls(run, on_event)
    search = Search(recipe, run, Archive(run.dir / "archive"), on_event)
    for record in search.archive.records:
        search.tell(table_row(record, search.archive))
    if search.archive.records:
        run.metrics.replace(metrics_of(search.archive.records))
    _write_world(search)
    _measure_start(search)
    return session.finish(run, _write_findings(search, _propose_all(search)))


def _announce_walls(run: Run, on_event: OnEvent | None) -> None:
    """Warn of the walls that are missing around objectives, and keep which stand; `verifier:tests`
    has the same."""
    try:
        isolation = standing_walls()
    except StartError as error:
        raise UsageError(
            f"no process can be started to try objectives in: {error}",
            "see whether the machine is short of memory or processes",
        ) from error
    if found := what_is_open(isolation):
        tell(on_event, Warned(f"here what runs proposed objectives can {found}: {CURE}"))
    run.record_isolation(isolation)


def _is_over(folder: Path, recipe: DiscoverRecipe) -> bool:
    """Whether every objective that the recipe asks for was tried; a limit may end a search
    earlier."""
    archive = Archive(folder / "archive")
    wanted = range(len(recipe.discover.start) + recipe.discover.proposals)
    return all(archive[index] is not None for index in wanted)


def _open(session: Session) -> Run:
    """Open the run directory; a search that a limit ended, or that shall make more proposals, is
    taken up again."""
    manifest = session.folder / "manifest.json"
    if not (session.resume and manifest.exists()):
        return _compared(session)
    text = manifest.read_text(encoding="utf-8")
    manifest.unlink()
    try:
        return _compared(session)
    except AlignerError:
        write_atomically(manifest, text)
        raise


def _compared(session: Session) -> Run:
    run = session.open()
    compare_inputs(run, session.resolved.recipe, session.on_event)
    return run


def check_inner_recipe(recipe: DiscoverRecipe) -> None:
    """Refuse an inner recipe or prompts that cannot work, before the first request is paid for."""
    if recipe.discover.task != "recipe":
        return
    from aligner.config.load import load_recipe
    from aligner.config.recipe import Data, Source
    from aligner.data.loading import load_rows
    from aligner.data.rows import refuse_tools
    from aligner.reward_models.catalogue import load_scorer

    inner, prompts, scorer = (
        recipe.discover.recipe,
        recipe.discover.prompts,
        recipe.discover.reward_model,
    )
    assert inner, "a rule asks for it"
    assert prompts, "a rule asks for it"
    assert scorer, "a rule asks for it"
    load_recipe("dpo", inner, recipe.discover.overrides)
    refuse_tools(
        load_rows(Data(train=[Source(path=prompts)]), "prompts", 0).train, "the reward model"
    )
    load_scorer(scorer)


def plan_rows(recipe: DiscoverRecipe) -> list[tuple[str, str, str]]:
    """What would happen, for the screen."""
    settings, budget = recipe.discover, recipe.endpoint.budget
    limits = {
        "calls": budget.calls,
        "tokens": budget.tokens,
        "usd": budget.usd,
        "minutes": settings.minutes,
    }
    said = ", ".join(
        f"at most {value:g} {name}" for name, value in limits.items() if value is not None
    )
    objectives = len(settings.start) + settings.proposals
    proposer = recipe.endpoint.model or recipe.endpoint.backend
    trained = f"{objectives} objectives x {settings.seeds} seeds"
    return [
        ("task", f"{settings.task}, beta {settings.beta:g}", ""),
        ("begins with", ", ".join(settings.start), ""),
        ("proposals", f"{settings.proposals} from {proposer}", said),
        ("trainings", f"at most {objectives * settings.seeds}", trained),
    ]


# --- the objectives that the search begins with ---------------------------------------------------


def _write_world(search: Search) -> None:
    """Write the toy world that a search in it trains in; one that was cut short is written
    again."""
    if search.recipe.discover.task != "toy" or (search.run.dir / "world.json").exists():
        return
    from aligner.toy.world import write_world

    search.tell(StageStarted("writing the toy world"))
    write_world(search.run.dir / "world", seed=search.recipe.seed, overwrite=True)
    search.run.write_json("world.json", {"seed": search.recipe.seed})


def _measure_start(search: Search) -> None:
    from aligner.methods.discover.seed_objectives import WRITTEN_SOURCES

    for index, name in enumerate(search.recipe.discover.start):
        if search.archive[index] is not None:
            continue
        source = (
            Path(name).expanduser().read_text(encoding="utf-8")
            if name.endswith(".py")
            else WRITTEN_SOURCES[name]
        )
        record = Record(
            index, Path(name).stem if name.endswith(".py") else name, "start", source=source
        )
        record = _try(search, record)
        search.keep(record)
    if search.archive.best("start") is None and search.recipe.discover.start:
        errors = "; ".join(record.error for record in search.archive.records)
        raise TrainingError(
            f"none of the objectives that the search starts with could be measured: {errors}",
            f"see the logs below {search.archive.folder}, fix the inner recipe and use --overwrite",
        )


# --- proposals ------------------------------------------------------------------------------------


def _propose_all(search: Search) -> str:
    """Ask, try and record until the search is over; return why it ended."""
    settings = search.recipe.discover
    deadline = None if settings.minutes is None else time.monotonic() + 60 * settings.minutes
    first = len(settings.start)
    proposer = Proposer(search.recipe, search.run, search.archive)
    try:
        for index in range(first, first + settings.proposals):
            if search.archive[index] is not None:
                continue
            if deadline is not None and time.monotonic() > deadline:
                return f"{settings.minutes:g} minutes are over"
            search.tell(StageStarted(f"asking for proposal {index - first + 1}"))
            try:
                record = _read(index, proposer.ask(index))
            except LLMError as error:
                if error.kind == "budget":
                    return error.message
                raise
            record = _try(search, record) if not record.error else record
            search.keep(record)
    finally:
        proposer.close()
    return f"all {settings.proposals} proposals were made"


def _read(index: int, reply: dict[str, Any]) -> Record:
    """Return a record of what the model answered, not yet tried; with an error where the answer
    holds no objective."""
    record = Record(index, f"proposal_{index}", "proposal", parents=reply["parents"])
    if reply["error"]:
        return _refused(record, reply["error"])
    try:
        proposal = read_reply(reply["text"])
    except ReplyError as error:
        return _refused(record, str(error))
    return replace(record, name=proposal.name, thought=proposal.thought, source=proposal.code)


def _refused(record: Record, error: str) -> Record:
    """The record with what is wrong with it, in letters that a terminal and a file can take."""
    return replace(record, error=clean(error)[:MOST_ERROR_CHARACTERS], finished=now())


# --- one objective --------------------------------------------------------------------------------


def _try(search: Search, record: Record) -> Record:
    """Return the record with its hash, facts and fitness, or with the error that stopped it."""
    started = time.monotonic()
    try:
        source = parse_objective(record.source, "the code")
    except SourceError as error:
        return _refused(record, str(error))
    record = replace(record, hash=source.hash)
    if record.origin == "proposal" and (same := search.archive.same_as(source.hash)) is not None:
        return _refused(
            record, f"this says the same as {same.name}, apart from its name and comments"
        )
    file = search.archive.place(record.index) / "objective.py"
    write_atomically(file, record.source)
    search.tell(StageStarted(f"checking {record.name}"))
    problem, facts = sandboxed.check(record.source, "the code", search.recipe.discover.beta)
    record = replace(_refused(record, problem), facts=facts)
    if not problem:
        search.tell(StageStarted(f"measuring {record.name}"))
        try:
            scores, held_out = _measure(search, record, file)
            record = replace(record, fitness=scores, held_out=held_out)
        except measure.MeasuringError as failure:
            record = _refused(record, str(failure))
    return replace(record, seconds=round(time.monotonic() - started, 3), finished=now())


def _measure(search: Search, record: Record, file: Path) -> tuple[list[float], list[float]]:
    settings = search.recipe.discover
    seeds = [search.recipe.seed + number for number in range(settings.seeds)]
    if settings.task == "bandit":
        return _bandit(record.source, settings.beta, seeds, 60 * settings.timeout_minutes)
    world = search.run.dir / "world"
    in_toy = settings.task == "toy"
    job = measure.Job(
        recipe="tiny/dpo" if in_toy else str(settings.recipe),
        overrides=[
            *(_toy_overrides(world) if in_toy else []),
            *settings.overrides,
            f"dpo.beta={settings.beta!r}",
            "dpo.alarm_steps=0",
        ],
        loss=str(file.resolve()),
        seeds=seeds,
        prompts=str(world / "heldout.jsonl") if in_toy else str(settings.prompts),
        reward_model="toy" if in_toy else str(settings.reward_model),
        max_new_tokens=settings.max_new_tokens,
        folder=str(file.parent),
    )
    return measure.measure(job, 60 * settings.timeout_minutes)


def _toy_overrides(world: Path) -> list[str]:
    """`tiny/dpo` in this world, for the objective alone: from the base model, without the
    next-token term, in small steps.

    At the recipe's own learning rate a comparison alone teaches nothing: both answers lose
    probability.
    """
    return [
        f"model.name_or_path={world / 'model'}",
        f"data.train={world / 'preferences.jsonl'}",
        "dpo.nll_weight=0",
        "trainer.num_train_epochs=2",
        "trainer.learning_rate=1e-4",
    ]


def _bandit(
    text: str, beta: float, seeds: Sequence[int], timeout_s: float
) -> tuple[list[float], list[float]]:
    """Reward gains in the world of the search and in another one."""
    gains = []
    for world in ("search", "held_out"):
        payload = {"text": text, "beta": beta, "seeds": list(seeds), "world": world}
        limits = {**sandboxed.CHECK_LIMITS, "timeout_s": timeout_s, "cpu_s": timeout_s}
        found = sandboxed.run_isolated("bandit", payload, **limits)
        if found["error"]:
            raise measure.MeasuringError(found["error"])
        gains.append([result["reward_gain"] for result in found["result"]["seeds"]])
    return gains[0], gains[1]


# --- the end --------------------------------------------------------------------------------------


def _write_findings(search: Search, why: str) -> dict[str, float]:
    """Save the best objective and the report; return the results."""
    from aligner.methods.discover.report import write_discovery_report

    archive, run = search.archive, search.run
    search.tell(Notice(f"the search ended: {why}"))
    results = results_of(archive)
    best = archive.best()
    if best is not None:
        if best.origin == "start":
            search.tell(
                Notice(f"no proposal was better than {best.name}, which the search started with")
            )
        shutil.rmtree(
            run.dir / "found", ignore_errors=True
        )  # what an earlier end of this search found
        run.write_text(f"found/{best.name}.py", _as_file(best))
    found = None if best is None else f"found/{best.name}.py"
    run.write_json("search.json", {"ended": why, "results": results, "found": found})
    write_discovery_report(run.dir)
    return results


def _as_file(best: Record) -> str:
    """The source that was checked and measured, with a line about it."""
    head = (
        f"# Found by `aligner discover`: {best.name}, fitness {shown(best.fitness)}, held out "
        f"{shown(best.held_out)}.\n"
    )
    text = head + best.source.rstrip() + "\n"
    assert parse_objective(text).hash == best.hash, "the file says what was measured"
    return text


def results_of(archive: Archive) -> dict[str, float]:
    """The numbers of a search, for the manifest and the screen."""
    proposals = [record for record in archive.records if record.origin == "proposal"]
    results: dict[str, float] = {
        "proposals": float(len(proposals)),
        "measured": float(sum(record.valid for record in proposals)),
    }
    for label, record in (("best", archive.best()), ("best_at_start", archive.best("start"))):
        if record is not None:
            results[f"{label}/index"] = float(record.index)
            for name, values in (("fitness", record.fitness), ("held_out", record.held_out)):
                mean, error = mean_and_error(values)
                results[f"{label}/{name}"] = mean
                if len(values) > 1:
                    results[f"{label}/{name}_stderr"] = error
    return results
