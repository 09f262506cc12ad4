"""The stage between a battle and a training: what is learned from it.

train.jsonl, dropped.jsonl, decontamination.json, selection.json    (`aligner.arena.selection`)
prompts.jsonl    for `rl`: the prompts of the battle, to be answered again
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from aligner.arena.battle.judges import check_items
from aligner.arena.battle.sheets import Item
from aligner.arena.selection.contests import Contest
from aligner.arena.selection.rows import Origins
from aligner.arena.selection.rules import For, Limits, Rules
from aligner.arena.selection.select import DECONTAMINATION, ROWS, Selection, write_selection
from aligner.arena.selection.verified import accepts_of
from aligner.arena.testset.frozen import TestSet
from aligner.config.battles import Contestant
from aligner.data.rows import as_turns
from aligner.errors import AlignerError, DataError
from aligner.methods.flywheel.battles import Fought
from aligner.methods.flywheel.recipe import (
    Chosen,
    ChosenPairs,
    ChosenSft,
    Flywheel,
    FlywheelRecipe,
    Strategy,
)
from aligner.reward_models.catalogue import load_scorer, read_spec
from aligner.reward_models.named_inputs import scorer_parts
from aligner.runs.files import dumps, file_sha256, json_line, parse_json, write_parts_atomically
from aligner.runs.stages import Stage, Stages

PROMPTS = "prompts.jsonl"
FOR: Mapping[Strategy, For] = {"sft": "sft", "dpo": "dpo", "rl": "reward"}
CURE = "delete the folder of the stage: it is made again"


def limits_of(settings: Chosen, number: int, opponents: Sequence[Contestant]) -> Limits:
    """Return what rows of a round must pass. `k`: that of the round, or the last one that is
    given."""
    ks = settings.k
    return Limits(
        k=ks[min(number, len(ks)) - 1],
        min_winner_score=settings.min_winner_score,
        consistent_only=settings.consistent_only,
        scope=settings.scope if isinstance(settings, ChosenPairs) else "any",
        max_length_ratio=settings.max_length_ratio,
        barred=frozenset(one.name for one in opponents if not one.may_be_trained_on),
        majority_only=settings.majority_only,
    )


def shard_of(number: int, strategy: Strategy) -> str:
    """What the prompts of a strategy of a round are called."""
    return f"{number}-{strategy}"


def check_verifiers(
    flywheel: Flywheel, parts: Mapping[tuple[int, Strategy], Sequence[Item]]
) -> None:
    """Refuse verifiers that are none, or cannot judge the prompts of their battles, before anybody
    answers. `parts`: the prompts of each strategy of each round.

    Raises: RecipeError, UsageError or DataError that names the key.
    """
    for strategy in flywheel.strategies:
        settings: Chosen = getattr(flywheel, strategy)
        if settings.verifier is None:
            continue
        key = f"flywheel.{strategy}.verifier"
        items = [item for place, part in parts.items() if place[1] == strategy for item in part]
        try:
            card = read_spec(settings.verifier)
            if card.model is None and not card.members:  # the others load weights
                check_items(load_scorer(settings.verifier), key, items)
        except AlignerError as error:
            if error.message.startswith(key):
                raise
            raise type(error)(f"{key}: {error.message}", error.hint, error.problems) from error


def select(
    stages: Stages,
    recipe: FlywheelRecipe,
    place: tuple[int, Strategy],
    fought: Fought,
    contests: Sequence[Contest],
    target: str,
    opponents: Sequence[Contestant],
    tests: TestSet,
) -> Stage:
    """Return the finished stage of a selection, from a battle and its contests."""
    number, strategy = place
    settings: Chosen = getattr(recipe.flywheel, strategy)
    limits = limits_of(settings, number, opponents)
    rule = settings.rule if isinstance(settings, ChosenSft) else "losses"
    licenses = {one.name: one.license for one in opponents if one.license}
    verifier = settings.verifier
    made_of: dict[str, Any] = {
        "battle": fought.digest,
        "answers": dict(fought.answered),
        "difficulties": _digest([one.difficulty for one in contests]),
        "target": target,
        "limits": {**vars(limits), "barred": sorted(limits.barred), "rivals": None},
        "rule": rule,
        "licenses": licenses,
        "test set": tests.sha256,
        "seed": recipe.seed,
        "verifier": {} if verifier is None else scorer_parts(verifier),
    }
    stage = stages.open(f"rounds/{number:02d}/{strategy}/select", made_of)
    if not stage.is_done:
        rules = Rules(target, limits, accepts_of(verifier))
        more = {"round": number, "strategy": strategy, "shard": shard_of(number, strategy)}
        origins = Origins(licenses, fought.revs, more=more)
        selection = Selection(FOR[strategy], rules, rule, recipe.seed + number, origins)
        summary = write_selection(stage.folder, selection, contests, tests)
        if strategy == "rl":
            items = [contest.item for contest in contests]
            write_parts_atomically(prompts_file(stage), (json_line(_asked(one)) for one in items))
        stage.finish(summary)
    return stage


def _digest(values: Sequence[float | None]) -> str:
    return sha256(dumps(values).encode()).hexdigest()


def _asked(item: Item) -> dict[str, Any]:
    """A prompt as a row, with the right answer where there is one."""
    answer = {} if item.reference is None else {"answer": item.reference}
    return {"prompt": as_turns(item.prompt, "user"), **answer, "prompt_id": item.id}


def rows_file(stage: Stage, tests: TestSet) -> Path:
    """Return the rows of a selection, once their report says that none is in the test set.

    Raises: DataError for rows without a passing report.
    """
    path, report = stage.folder / ROWS, stage.folder / DECONTAMINATION
    if not report.exists():
        raise DataError(f"{path} was not held against {tests.folder}", CURE)
    said = parse_json(report, CURE, dict, ("passes", "testset_sha256", "data_sha256"))
    wanted = (True, tests.sha256, file_sha256(path))
    if (said["passes"], said["testset_sha256"], said["data_sha256"]) != wanted:
        raise DataError(f"{report} is no passing report on {path} and {tests.folder}", CURE)
    return path


def prompts_file(stage: Stage) -> Path:
    """Return the prompts that `rl` samples from."""
    return stage.folder / PROMPTS
