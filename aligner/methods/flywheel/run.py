"""`aligner flywheel`: rounds of battles, selection and training (Arena Learning, arXiv 2407.10627).

    rounds/00/train                     the initial SFT, where there are rows for it
    rounds/00/eval/                     the start and its opponents on the test set
    rounds/01/sft/answers/NAME          everybody's answers to the part of this strategy
    rounds/01/sft/{battle,noise}        who won, and how often the target lost to itself
    rounds/01/sft/select                what is trained on, and why not the rest
    rounds/01/sft/train                 an ordinary run of `aligner sft`
    rounds/01/sft/eval/                 the new model on the test set
    rounds/01/dpo/..., rounds/01/rl/... the same; `rl` has `reward` before `train`
    flywheel.json                       what each model is worth, and what each stage gave
    final/                              the best model by the development part of the test set

Each is a stage (`aligner.runs.stages`): killed anywhere, a run resumes with what was stopped, and a
changed setting makes again what depends on it. Nobody is asked twice for what is known.

Where the paper is silent: the target of a round after the first is the best model so far; one row a
prompt, of the winner with the best mean score; selections are carried forward as they were. Where
it differs: the models that are compared are chosen on other prompts than those that report, and
training refuses rows without a passing report against the test set.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligner.arena.battle.build import opened
from aligner.arena.battle.contestants import check_contestants
from aligner.arena.battle.judges import check_judges, names_of
from aligner.arena.battle.log import GAMES, GameLog
from aligner.arena.battle.spend import Spend
from aligner.arena.testset.frozen import TestSet
from aligner.arena.testset.layers import Hit, Layer, SharedWords
from aligner.arena.testset.training_rows import texts_of
from aligner.config.load import Resolved
from aligner.config.recipe import Generation
from aligner.data.loading import load_rows
from aligner.errors import DataError, EndpointError, Problem
from aligner.events import OnEvent, Warned, tell
from aligner.methods.flywheel.battles import Battlefield, file_of
from aligner.methods.flywheel.policies import final_section
from aligner.methods.flywheel.pool import Pool, read_pool
from aligner.methods.flywheel.recipe import FlywheelRecipe
from aligner.methods.flywheel.rounds import Rounds
from aligner.methods.flywheel.selecting import check_verifiers
from aligner.methods.flywheel.status import RESULT
from aligner.methods.flywheel.trainings import check_trainings
from aligner.models.files import as_trained, check_model_path
from aligner.reward_models.catalogue import read_spec
from aligner.reward_models.isolation import announce_walls
from aligner.reward_models.named_inputs import inputs_changed, named_inputs
from aligner.runs.result import RunResult
from aligner.runs.session import Session
from aligner.runs.stages import Stages

REPLIES = "replies.sqlite"
LISTED = 20
"""Rows of the initial training that an error lists."""


def run_flywheel(
    resolved: Resolved,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    on_event: OnEvent | None = None,
) -> RunResult:
    """Carry out the rounds of a recipe.

    Raises: RecipeError, DataError and UsageError before anybody answers; EndpointError where a
    server cannot be asked any more, TrainingError where a training fails.
    """
    recipe = resolved.recipe
    assert isinstance(recipe, FlywheelRecipe)
    check_model_path(recipe.model)
    recipe = recipe.model_copy(update={"model": as_trained(recipe.model)})
    resolved = Resolved(recipe, resolved.origins, resolved.text, resolved.path)
    session = Session(
        resolved=resolved,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        on_event=on_event,
        has_other_inputs=lambda: inputs_changed(Path(recipe.output_dir), recipe),
    )
    check_trainings(resolved)
    check_contestants(recipe.flywheel.opponents, Generation(), "flywheel.opponents")
    names_of(recipe.flywheel.judges, "flywheel.judges")
    session.check_place()
    if (done := session.done()) is not None:
        return done
    pool = read_pool(recipe, on_event)
    initial = _initial_digest(recipe, pool.tests)
    check_judges(recipe.flywheel.judges, pool.items, "flywheel.judges")
    for section in recipe.flywheel.opponents:
        file_of(section, pool.items)
    check_verifiers(recipe.flywheel, pool.parts)
    if dry_run:
        return session.plan(plan_rows(recipe, pool))
    run = session.open()
    run.write_json(
        "inputs.json",
        {"fingerprint": pool.fingerprint, "sources": pool.files, "named": named_inputs(recipe)},
    )
    run.write_json("data.json", pool.ledger)
    cards = [read_spec(one.scorer) for one in recipe.flywheel.judges if one.scorer is not None]
    run.record_isolation(announce_walls(cards, None))
    try:
        with opened(recipe.flywheel.judges, run.dir, on_event) as judges:
            stages, spend = Stages(run.dir, on_event), Spend(run.dir)
            log, cache = GameLog(run.dir / GAMES), run.dir / REPLIES
            ground = Battlefield(recipe, stages, judges, log, spend, cache, on_event)
            rounds = Rounds(resolved, run, pool, ground, initial, on_event)
            reason = rounds.carry_out()
    except EndpointError as stopped:
        run.close()
        hint = f"{stopped.hint}; --resume continues" if stopped.hint else "continue with --resume"
        raise EndpointError(stopped.message, hint) from stopped
    return _finish(session, rounds, reason)


def _initial_digest(recipe: FlywheelRecipe, tests: TestSet) -> list[str]:
    """What stands for the rows of the initial training; they are read once, so that a broken one is
    known before the first battle.

    Raises: DataError for rows that overlap with the test set.
    """
    if recipe.flywheel.initial is None:
        return []
    data = recipe.data.model_copy(update={"train": recipe.flywheel.initial, "eval": None})
    loaded, words = load_rows(data, "sft", recipe.seed), SharedWords(tests.items)
    found = [
        Problem(_overlap(hits), row.origin)
        for row in loaded.train
        if (hits := words.hits(texts_of(row)))
    ]
    if found:
        many = "row overlaps" if len(found) == 1 else "rows overlap"
        raise DataError(
            f"flywheel.initial: {len(found):,} {many} with the test set {tests.folder}",
            f"`aligner arena testset verify {tests.folder} --against DATA --drop-to clean.jsonl` "
            "writes a copy without them",
            found[:LISTED],
        )
    return [loaded.fingerprint]


def _overlap(hits: Mapping[Layer, Hit]) -> str:
    layer, hit = next(iter(hits.items()))
    return f"overlaps with {hit.item} ({layer}: {hit.what})"


def plan_rows(recipe: FlywheelRecipe, pool: Pool) -> list[tuple[str, str, str]]:
    """Return what would be done: rows of what, how much, and why."""
    flywheel = recipe.flywheel
    count, judges = len(flywheel.opponents), len(flywheel.judges)
    each = min(flywheel.opponents_per_round or count, count)
    pairs = each if flywheel.mode == "target" else (each + 1) * each // 2
    prompts = sum(len(part) for part in pool.parts.values())
    tested = len(pool.dev) + len(pool.test)
    models = len(pool.parts)
    again = sum(min(flywheel.noise_prompts, len(part)) for part in pool.parts.values())
    again = again if flywheel.temperature else 0
    measured = tested * (count * (count + 1) // 2 + models * count)
    games = 2 * judges * (prompts * pairs + measured + again)
    asked = sum(one.answers is None for one in flywheel.opponents)
    ours = prompts + again + tested * (models + 1)
    theirs = prompts * min(each, asked) + tested * asked
    lost = ", ".join(f"{number:,} {why}" for why, number in sorted(pool.lost.items()) if number)
    return [
        ("prompts", f"{prompts:,} in {models} parts", f"left out: {lost or 'none'}"),
        (
            "test set",
            f"{len(pool.dev):,} choose, {len(pool.test):,} report",
            str(pool.tests.folder),
        ),
        ("answers", f"{ours + theirs:,} at most", f"{ours:,} of the models that are trained"),
        ("opponents", f"{each:,} a round", f"{count - asked:,} answer from files"),
        ("games", f"{games:,} at most", f"{judges} judge{'s' * (judges > 1)}, both orders"),
        ("trainings", f"{models} at most", ", ".join(flywheel.strategies)),
    ]


def _finish(session: Session, rounds: Rounds, reason: str) -> RunResult:
    """Copy the best model to `final/`, and write report and manifest."""
    from aligner.methods.flywheel.report import write_flywheel_report

    run, best = rounds.run, rounds.policies.named(rounds.best())
    found = rounds.to_json(reason)
    run.write_json(RESULT, found)
    results = {"models": float(len(rounds.measured))}
    test = found["models"][best.name]["test"]
    start = found["models"][rounds.measured[0]]["test"]
    results |= {"rating of the best": test["rating"], "rating of the start": start["rating"]}
    if best.stage is None:
        text = "no model is better than the start on the development prompts; there is no final/"
        tell(rounds.on_event, Warned(text))
    else:
        unfinished = run.dir / "final.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(final_section(best), unfinished)
        shutil.rmtree(run.final_dir, ignore_errors=True)
        unfinished.rename(run.final_dir)
    write_flywheel_report(run.dir)
    files = None if best.stage is None else run.final_dir
    return session.finish(run, results, _parents(rounds), files)


def _parents(rounds: Rounds) -> list[dict[str, Any]]:
    """Where the run came from."""
    recipe, pool = rounds.recipe, rounds.pool
    base = rounds.policies.base
    found = [{"kind": "model", "path": recipe.model.name_or_path, "fingerprint": base.key}]
    found += [
        {"kind": "data", "path": path, "fingerprint": digest} for path, digest in pool.files.items()
    ]
    tests = pool.tests
    return [*found, {"kind": "data", "path": str(tests.folder), "fingerprint": tests.sha256}]
