"""`aligner arena select`: training data from the battles of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .console import say, say_json
from .models import AsJson
from .output import Overwrite

if TYPE_CHECKING:
    from aligner.arena.selection.reading import BattleRun
    from aligner.arena.testset.frozen import TestSet

Purpose = Literal["sft", "dpo", "reward"]
Scope = Literal["any", "involves_target", "target_loses"]
Rule = Literal["losses", "random", "random_opponent", "all"]

Record = dict[str, Any]

MARGINS = {"sft": 3.0, "dpo": 2.0, "reward": 2.0}
"""K of the paper's first round, in points of a judge that gives 1 to 10."""
GOOD = 6.0


def select(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run of `aligner arena battle`.")],
    purpose: Annotated[Purpose, typer.Option("--for", help="What the rows are for.")],
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="NAME", help="Who is trained; arena.target by default."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="RUN/select-PURPOSE by default."),
    ] = None,
    k: Annotated[
        float | None,
        typer.Option("--k", min=0, help="Least margin of the winner; 3 for sft, else 2."),
    ] = None,
    min_winner_score: Annotated[
        float | None,
        typer.Option("--min-winner-score", help="Least score of the winner; 6 of 10."),
    ] = None,
    consistent_only: Annotated[
        bool, typer.Option("--consistent-only", help="Only winners in both orders.")
    ] = False,
    majority_only: Annotated[
        bool, typer.Option("--majority-only", help="Only losers that lost to most of the others.")
    ] = False,
    max_length_ratio: Annotated[
        float | None,
        typer.Option("--max-length-ratio", min=1, help="Winner's length over the other's."),
    ] = None,
    verifier: Annotated[
        str | None,
        typer.Option("--verifier", metavar="SCORER", help="What a winner's answer must pass."),
    ] = None,
    scope: Annotated[Scope, typer.Option("--scope", help="Which pairs, for dpo and reward.")] = (
        "any"
    ),
    rule: Annotated[Rule, typer.Option("--rule", help="For sft: losses, or to compare.")] = (
        "losses"
    ),
    bar: Annotated[
        list[str] | None,
        typer.Option("--bar", metavar="NAME", help="Never learn from this one; repeatable."),
    ] = None,
    self_play: Annotated[
        str | None,
        typer.Option("--self-play", metavar="NAME", help="A second sample of the target."),
    ] = None,
    testset: Annotated[
        Path | None,
        typer.Option("--testset", metavar="DIR", help="Leave out what overlaps with it."),
    ] = None,
    difficulty: Annotated[
        str | None,
        typer.Option("--difficulty", metavar="COLUMN", help="Column of how hard prompts are."),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Also from a run that was stopped.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of --rule random.")] = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Choose training rows from battles: what the target lost, or the best and worst answers.

    Arena Learning's rules (arXiv 2407.10627). Writes train.jsonl, dropped.jsonl with a reason for
    each prompt, selection.json and, with --testset, decontamination.json.
    """
    from aligner.arena.selection.reading import read_run
    from aligner.arena.selection.rows import Origins
    from aligner.arena.selection.rules import Limits, Rules
    from aligner.arena.selection.select import Selection, write_selection
    from aligner.arena.selection.summary import false_loss_rate
    from aligner.arena.selection.verified import accepts_of
    from aligner.arena.testset.frozen import read_testset

    from .render import Screen

    _check(purpose, scope, rule)
    folder = output or run / f"select-{purpose}"
    _check_place(folder, overwrite)
    tests = None if testset is None else read_testset(testset)
    with Screen() as screen:
        found = read_run(run, difficulty, screen.on_event, allow_partial=allow_partial)
    who = _target(found, target)
    others = _known(found, [*(bar or []), *([self_play] if self_play else [])], who)
    least, good = _limits(found, purpose, k, min_winner_score)
    sections = found.recipe.arena.contestants
    barred = {one.name for one in sections if not one.may_be_trained_on} | set(bar or [])
    rivals = frozenset(name for name in others if name != self_play)
    limits = Limits(
        k=least,
        min_winner_score=good,
        consistent_only=consistent_only,
        scope=scope,
        max_length_ratio=max_length_ratio,
        barred=frozenset(barred),
        rivals=rivals,
        majority_only=majority_only,
    )
    licenses = {one.name: one.license for one in sections if one.license}
    rules = Rules(who, limits, accepts_of(verifier))
    selection = Selection(purpose, rules, rule, seed, Origins(licenses, found.revs))
    facts: Record = {}
    if self_play is not None:
        rate, prompts = false_loss_rate(found.contests, who, self_play, least)
        facts["false_loss_rate"] = {"value": rate, "prompts": prompts}
    summary = write_selection(folder, selection, found.contests, tests, facts)
    if tests is not None:
        _file_report(tests, folder)
    if as_json:
        from aligner.runs.files import dumps

        say_json(dumps({"output": str(folder), **summary}, indent=2))
    else:
        _show(summary, folder, purpose, testset)


def _file_report(tests: TestSet, folder: Path) -> None:
    """Put the report on the rows to the test set, where a training with `data.test_set` looks."""
    from aligner.arena.selection.select import DECONTAMINATION
    from aligner.arena.testset.reports import write_report
    from aligner.runs.files import parse_json

    if (report := folder / DECONTAMINATION).is_file():
        write_report(tests, parse_json(report, "select again"))


def _check(purpose: str, scope: str, rule: str) -> None:
    from aligner.errors import UsageError

    if purpose == "sft" and scope != "any":
        raise UsageError("--scope has no effect with --for sft", "drop it: the target always loses")
    if purpose != "sft" and rule != "losses":
        raise UsageError(f"--rule has no effect with --for {purpose}", "drop it")


def _check_place(folder: Path, overwrite: bool) -> None:
    from aligner.arena.selection.select import ROWS
    from aligner.errors import UsageError

    if (folder / ROWS).exists() and not overwrite:
        raise UsageError(f"{folder / ROWS} exists", "choose another --output, or give --overwrite")


def _target(run: BattleRun, target: str | None) -> str:
    from aligner.errors import UsageError

    name = target or run.recipe.arena.target
    names = ", ".join(run.names)
    if name is None:
        raise UsageError("nobody is the target", f"give --target: one of {names}")
    if name not in run.names:
        raise UsageError(f"--target {name} did not fight", f"give one of {names}")
    return name


def _known(run: BattleRun, names: list[str], target: str) -> list[str]:
    """Everybody but the target; the names that options give must be among them."""
    from aligner.errors import UsageError

    others = [name for name in run.names if name != target]
    for name in names:
        if name not in others:
            raise UsageError(f"{name} is none of those who fought {target}", ", ".join(others))
    return others


def _limits(
    run: BattleRun, purpose: str, k: float | None, min_winner_score: float | None
) -> tuple[float, float | None]:
    """K, and the least score of a winner. Points from 1 to 10 have defaults; other scores have a
    unit of their own."""
    from aligner.errors import UsageError

    if run.has_points:
        least = MARGINS[purpose] if k is None else k
        return least, GOOD if min_winner_score is None else min_winner_score
    if k is None:
        judges = ", ".join(one.name or one.scorer or "" for one in run.recipe.arena.judges)
        raise UsageError(
            f"the scores of {judges} are no points from 1 to 10, so --k has no default",
            "give --k in its unit, and --min-winner-score if a winner must be good itself",
        )
    return k, min_winner_score


def _show(summary: Record, folder: Path, purpose: str, testset: Path | None) -> None:
    from .render import columns

    say(f"{summary['rows']:,} rows of {summary['prompts']:,} prompts; target {summary['target']}")
    say()
    lost = summary["lost_to"]
    rows = []
    for name in sorted({*lost, *summary["winners"], *summary["losers"]}):
        fought = lost.get(name, {"battles": 0, "lost": 0})
        share = f"{fought['lost'] / fought['battles']:.0%}" if fought["battles"] else ""
        counts = (summary[side].get(name, 0) for side in ("winners", "losers"))
        rows.append((name, f"{fought['battles']:,}", share, *(f"{count:,}" for count in counts)))
    columns(("model", "battles with the target", "beat it", "rows won", "rows lost"), rows)
    say()
    for reason, count in summary["dropped"].items():
        prompts = "1 prompt" if count == 1 else f"{count:,} prompts"
        say(f"{prompts} gave none: {reason}")
    if (chance := summary.get("false_loss_rate")) and chance["value"] is not None:
        text = f"{chance['value']:.1%} of {chance['prompts']:,} prompts"
        say(f"lost by as much to a second sample of itself, by chance: {text}")
    say()
    held = "" if testset is None else f" data.test_set={testset}"
    say(f"wrote {folder}; next: aligner {purpose} RECIPE data.train={folder / 'train.jsonl'}{held}")
