"""`aligner arena battle`: from prompts and contestants to judged battles and ratings, in a run
directory.

    stages/answers/NAME/    each contestant's answers, as `contestants.py` says
    games.jsonl             every game, as it is judged (`log.py`)
    replies.sqlite          every reply and score that was paid for
    usage.json              what was asked and spent
    battles.jsonl, leaderboard.*, summary.json    as `outcome.py` says
    report.html             the report

Answers are stages, made again where model, prompts or sampling changed. The log is known by its
contents, so a changed plan, another contestant or a judge more keeps every battle that is still
meant. What a kill costs is the calls that were in flight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aligner.arena.battle import adaptive, bracket
from aligner.arena.battle.contestants import (
    Answered,
    Answering,
    answers_of,
    check_contestants,
    find_models,
)
from aligner.arena.battle.estimate import estimate, shown_rows
from aligner.arena.battle.inputs import Inputs, parents_of, read_inputs, record_of
from aligner.arena.battle.judges import check_judges, names_of, open_judges
from aligner.arena.battle.log import GAMES, SUMMARY, GameLog
from aligner.arena.battle.outcome import Played, partial_note, write_outcome
from aligner.arena.battle.plan import Answers, matches, pairs_of
from aligner.arena.battle.play import Table, play
from aligner.arena.battle.recipe import ArenaRecipe
from aligner.arena.battle.sheets import BattleJudge, Item
from aligner.arena.battle.spend import Spend
from aligner.config.battles import Judge
from aligner.config.load import Resolved
from aligner.errors import EndpointError
from aligner.events import OnEvent, StageStarted, Warned, tell
from aligner.reward_models.catalogue import read_spec
from aligner.reward_models.isolation import announce_walls
from aligner.reward_models.named_inputs import inputs_changed
from aligner.runs.result import RunResult
from aligner.runs.run import Run
from aligner.runs.session import Session
from aligner.runs.stages import Stages

STAGES, REPLIES = "stages", "replies.sqlite"


def run_arena(
    resolved: Resolved,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    on_event: OnEvent | None = None,
) -> RunResult:
    """Have a recipe's contestants battle.

    Raises: RecipeError, DataError and UsageError before anything is asked; EndpointError when a
    server cannot be asked any more, with what was judged until then rated.
    """
    recipe = resolved.recipe
    assert isinstance(recipe, ArenaRecipe)
    session = Session(
        resolved=resolved,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        on_event=on_event,
        has_other_inputs=lambda: inputs_changed(Path(recipe.output_dir), recipe),
    )
    check_contestants(recipe.arena.contestants, recipe.generation)
    names_of(recipe.arena.judges)
    session.check_place()
    if (done := session.done()) is not None:
        return done
    inputs = read_inputs(recipe, on_event)
    check_judges(recipe.arena.judges, inputs.items)
    if dry_run:
        return session.plan(shown_rows(estimate(recipe, inputs.items, inputs.files)))
    find_models(recipe.arena.contestants)
    run = session.open()
    run.write_json("inputs.json", record_of(recipe, inputs))
    run.write_json("data.json", {**inputs.prompts.ledger, "prompts": len(inputs.items)})
    cards = [read_spec(judge.scorer) for judge in recipe.arena.judges if judge.scorer is not None]
    run.record_isolation(announce_walls(cards, None))
    return _carry_out(session, run, recipe, inputs)


def _carry_out(session: Session, run: Run, recipe: ArenaRecipe, inputs: Inputs) -> RunResult:
    """Answer, judge and rate; the end of a run that is stopped is an error, behind its report."""
    from aligner.arena.battle.report import write_arena_report

    spend = Spend(run.dir)
    answered = answer_all(recipe, inputs, run.dir, spend, session.on_event)
    answers = {name: one.answers for name, one in answered.items()}
    with opened(recipe.arena.judges, run.dir, session.on_event) as judges:
        table = Table(judges, GameLog(run.dir / GAMES), spend, session.on_event)
        played, stopped = play_plan(recipe, inputs.items, answers, table)
    if not played.battles and stopped is not None:
        run.close()
        raise stopped
    tell(session.on_event, StageStarted("rating"))
    facts = {name: dict(one.facts) for name, one in answered.items()}
    summary = write_outcome(run.dir, recipe, played, facts, spend)
    run.write_json(SUMMARY, summary)
    write_arena_report(run.dir)
    for name, row in summary["health"].get("judges", {}).items():
        for text in row["failed"]:
            tell(session.on_event, Warned(f"the judge {name} fails: {text}"))
        if row["liking"]:
            tell(session.on_event, Warned(row["liking"]))
    if stopped is not None:
        tell(session.on_event, Warned(partial_note(played)))
        run.close()
        hint = f"{stopped.hint}; --resume continues" if stopped.hint else "continue with --resume"
        raise EndpointError(stopped.message, hint) from stopped
    return session.finish(run, results_of(summary), parents_of(recipe, inputs))


def answer_all(
    recipe: ArenaRecipe,
    inputs: Inputs,
    folder: Path,
    spend: Spend | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Answered]:
    """Have every contestant answer, in stages below a folder."""
    stages = Stages(folder / STAGES, on_event)
    cache, arena = folder / REPLIES, recipe.arena
    how = Answering(arena, recipe.seed, cache, recipe.generation, spend, on_event)
    found = {}
    for section in arena.contestants:
        given = inputs.files.get(section.name)
        found[section.name] = answers_of(section, inputs.items, how, stages, given)
    return found


@contextmanager
def opened(
    sections: Sequence[Judge], folder: Path, on_event: OnEvent | None = None
) -> Iterator[list[BattleJudge]]:
    """Lend the judges of a recipe, whose replies are kept in a folder."""
    judges = open_judges(sections, folder / REPLIES, on_event)
    try:
        yield judges
    finally:
        for judge in judges:
            judge.close()


def play_plan(
    recipe: ArenaRecipe, items: Sequence[Item], answers: Answers, table: Table
) -> tuple[Played, EndpointError | None]:
    """Play the plan of a recipe; return what was played, and what ended it early."""
    arena = recipe.arena
    if arena.plan == "adaptive":
        return adaptive.play_adaptively(recipe, items, answers, table)
    if arena.plan == "bracket":
        return bracket.play_bracket(recipe, items, answers, table)
    target = arena.target if arena.plan == "target" else None
    wanted = matches(items, answers, pairs_of(answers, target), recipe.seed)
    stopped = play(wanted, table)
    battles = [games for match in wanted for games in table.games(match)]
    said = "" if stopped is None else stopped.message
    return Played(battles, len(wanted) * len(table.judges), {}, said), stopped


def results_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the few numbers that a screen shows."""
    found = {f"rating of {row['model']}": row["rating"] for row in summary["models"]}
    found["battles"] = float(summary["battles"]["played"])
    lost = sum(summary["left_out"].values())
    return {**found, **({"battles left out": float(lost)} if lost else {})}
