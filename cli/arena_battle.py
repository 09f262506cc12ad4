"""`aligner arena battle`: contestants answer prompts, judges compare their answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aligner.errors import UsageError

from .console import say
from .recipe_command import (
    Debug,
    DryRun,
    OverwriteRun,
    RecipeCommand,
    ResultAsJson,
    Resume,
    carry_out,
    show_ahead,
    show_status,
)
from .resolve import resolve

if TYPE_CHECKING:
    from aligner.arena.battle.recipe import Arena

NAME = "arena"
CONFIDENCE = 0.95


class BattleCommand(RecipeCommand):
    """The command of the method `arena`."""

    @property
    def method_name(self) -> str:
        """The method's name in the catalogue."""
        return NAME


def battle(
    context: typer.Context,
    contestant: Annotated[
        list[str] | None,
        typer.Option(
            "--contestant",
            metavar="NAME=WHAT",
            help="A file of answers, a model's folder or hub id; repeatable.",
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option("--judge", metavar="SCORER", help="A card or kind:argument; repeatable."),
    ] = None,
    fail_below: Annotated[
        float | None,
        typer.Option(
            "--fail-below",
            metavar="RATE",
            min=0.0,
            max=1.0,
            help="Exit with 6 if arena.target is shown to win less. What passes is not shown to be "
            "worse, nor to be better.",
        ),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option("--confidence", min=0.5, max=0.9999, help="Of --fail-below, one-sided; 0.95."),
    ] = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    overwrite: OverwriteRun = False,
    as_json: ResultAsJson = False,
    debug: Debug = False,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Say what requests it will take and cost, and stop."),
    ] = False,
) -> None:
    """Answer, judge and rate, with progress on stderr and the result on stdout."""
    context.meta["debug"] = debug or context.meta.get("debug", False)
    given = {"--dry-run": dry_run, "--resume": resume, "--overwrite": overwrite}
    gates = {"--fail-below": fail_below is not None, "--confidence": confidence is not None}
    if context.args[:1] == ["status"]:
        others = {**given, **gates, "--estimate": estimate}
        others |= {"--contestant": bool(contestant), "--judge": bool(judge)}
        for option in (option for option, is_given in others.items() if is_given):
            raise UsageError(f"{option} has no effect on `arena battle status`", "drop it")
        show_status(NAME, context.args[1:], as_json=as_json)
        return
    arguments = [*context.args, *_overrides(contestant or [], judge or [])]
    if estimate:
        show_ahead(NAME, arguments, None, {**given, **gates}, as_json=as_json)
        return
    target = _target(arguments, fail_below, confidence)
    carry_out(
        NAME,
        arguments,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=as_json,
        further=lambda run_dir: _facts(run_dir, target, fail_below, confidence),
        show=_show,
    )
    if target is not None and not dry_run:
        found = _facts(_run_dir(arguments), target, fail_below, confidence)["gate"]
        _close(found, as_json=as_json)


def _show(run_dir: Path) -> None:
    from .arena_tables import show_leaderboard

    show_leaderboard(_read(run_dir, "leaderboard.json"))
    say()


def _read(run_dir: Path, name: str) -> Any:
    from aligner.runs.files import parse_json

    return parse_json(run_dir / name, "run it again with --overwrite")


def _facts(
    run_dir: Path, target: str | None, fail_below: float | None, confidence: float | None
) -> dict[str, Any]:
    """What `--json` has beside the results: the summary, and the numbers of a gate."""
    found: dict[str, Any] = {"summary": _read(run_dir, "summary.json")}
    if target is not None and fail_below is not None:
        found["gate"] = _gate(run_dir, target, fail_below, confidence or CONFIDENCE)
    return found


def _overrides(contestants: list[str], judges: list[str]) -> list[str]:
    """The options as keys of a recipe."""
    found = []
    if contestants:
        sections = [_contestant(text) for text in contestants]
        found.append(f"arena.contestants={json.dumps(sections)}")
    if judges:
        found.append(f"arena.judges={json.dumps([{'scorer': spec} for spec in judges])}")
    return found


def _contestant(text: str) -> dict[str, str]:
    from aligner.data.files import kind_of_file

    name, equals, what = text.partition("=")
    if not (name and equals and what):
        raise UsageError(
            f"--contestant {text}: it has no name", "write --contestant NAME=FILE, or NAME=MODEL"
        )
    path = Path(what).expanduser()
    is_file = path.is_file() or (kind_of_file(path) is not None and not path.is_dir())
    return {"name": name, "answers" if is_file else "model": what}


def _target(arguments: list[str], fail_below: float | None, confidence: float | None) -> str | None:
    """The contestant that a gate is about."""
    if fail_below is None:
        if confidence is not None:
            raise UsageError("--confidence has no effect without --fail-below", "drop it")
        return None
    arena: Arena = resolve(NAME, arguments)[0].recipe.arena
    if arena.target is None:
        raise UsageError(
            "--fail-below is about a contestant, and none is named", "add arena.target=NAME"
        )
    if arena.plan == "adaptive":
        raise UsageError(
            "--fail-below needs battles on a number of prompts that was fixed before, and `plan: "
            "adaptive` stops where it has seen enough",
            "use round_robin or target",
        )
    return arena.target


def _run_dir(arguments: list[str]) -> Path:
    return Path(resolve(NAME, arguments)[0].recipe.output_dir)


def _gate(run_dir: Path, target: str, fail_below: float, confidence: float) -> dict[str, Any]:
    """The numbers of the gate, from a run's battles."""
    from aligner.arena.battle.merged import read_battles
    from aligner.arena.battle.win_rate import gate
    from aligner.runs.recipes import recipe_of

    seed = recipe_of(run_dir, NAME)["seed"]
    return gate(read_battles(run_dir), target, fail_below, confidence, seed)


def _close(found: dict[str, Any], *, as_json: bool) -> None:
    """Say how the gate stands; a closed one is an error."""
    from aligner.arena.battle.win_rate import refuse_closed

    refuse_closed(found)
    if not as_json:
        say()
        say(
            f"passed: {found['target']} wins {found['win_rate']:.1%}, and it is not shown at "
            f"{found['confidence']:.0%} confidence to win less than {found['fail_below']:.1%} "
            f"(upper end {found['upper']:.1%}, {found['prompts']:,} prompts)"
        )
