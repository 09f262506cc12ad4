"""`aligner runs reproduce` and `aligner runs tree`: what a run depended on, whether that is still
there, and the run again."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import say, say_json
from .models import AsJson

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aligner.runs.reproduction import Check, Outcome

MOST_DIFFERENCES = 12


def reproduce(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output-dir",
            "--output_dir",
            metavar="DIR",
            help="Where to run it again; RUN-again where left out.",
        ),
    ] = None,
    run_it: Annotated[
        bool, typer.Option("--run", help="Run it again, and compare what comes out.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a reproduction that was stopped.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier reproduction.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check whether a run can be reproduced here, and with --run do it.

    Code, packages, data and models are compared with what is there now. The exit code is 3 where
    data or models that --run needs are not what they were, and 6 where something else comes out.

    Example: aligner runs reproduce runs/sft --run
    """
    from aligner.runs.api import open_run
    from aligner.runs.reproduction import checks

    folder = open_run(run).dir
    target = output_dir or folder.with_name(f"{folder.resolve().name}-again")
    found = checks(folder)
    if not as_json:
        _show(folder, target, found)
    how = {"resume": resume, "overwrite": overwrite}
    compared = _again(folder, target, found, how, silent=as_json) if run_it else None
    if as_json:
        from aligner.runs.files import dumps

        facts: dict[str, Any] = {
            "run": str(folder),
            "output_dir": str(target),
            "checks": list(map(asdict, found)),
        }
        facts["outcome"] = compared.to_json() if compared is not None else None
        say_json(dumps(facts, indent=2))
    if compared is not None:
        _settle(folder, target, compared, silent=as_json)


def tree(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    as_json: AsJson = False,
) -> None:
    """Show what a run was made of: its model and its data, and the runs that they came out of.

    Example: aligner runs tree runs/dpo
    """
    from aligner.runs.api import open_run
    from aligner.runs.tree import lines_of, tree_of

    found = tree_of(open_run(run).dir)
    if as_json:
        from aligner.runs.files import dumps

        say_json(dumps(found.to_json(), indent=2))
        return
    for line in lines_of(found):
        say(line)


def _show(folder: Path, target: Path, found: Sequence[Check]) -> None:
    from aligner.runs.files import read_json

    from .render import columns

    other = [check for check in found if check.verdict != "same"]
    for what in dict.fromkeys(check.what for check in found):
        same = sum(check.what == what and check.verdict == "same" for check in found)
        every = sum(check.what == what for check in found)
        say(f"{what}: {same} of {every} the same")
    if other:
        say()
        header = ("", "name", "then", "now", "verdict")
        columns(header, [(one.what, one.name, one.then, one.now, one.verdict) for one in other])
    environment = read_json(folder, "environment.json") or {}
    say()
    say(f"it was      {environment.get('command', 'not recorded')}")
    say(f"in          {environment.get('working_directory', 'not recorded')}")
    say(f"run again   aligner runs reproduce {folder} -o {target} --run")


def _again(
    folder: Path, target: Path, found: Sequence[Check], how: dict[str, bool], *, silent: bool
) -> Outcome:
    """Run it again where it was started, without its trackers, and compare."""
    from aligner.methods.catalogue import function_of, method_of
    from aligner.runs.api import open_run
    from aligner.runs.files import read_json
    from aligner.runs.reproduction import outcome

    from .endings import kept_in_run, resumable
    from .render import Screen

    _refuse(folder, found)
    original, again = folder.resolve(), target.resolve()
    resolved = open_run(folder).resolved
    method = method_of(resolved.recipe.method)
    text = (folder / "recipe.yaml").read_text("utf-8") if (folder / "recipe.yaml").exists() else ""
    resolved = replace(resolved, recipe=_moved(resolved.recipe, again), text=text)
    environment = read_json(folder, "environment.json") or {}
    with (
        _in_folder(environment.get("working_directory")),
        Screen(silent=silent) as screen,
        resumable(method.continues, lambda: kept_in_run(again)),
    ):
        function_of(method.run)(resolved, on_event=screen.on_event, **how)
        return outcome(original, again)


def _moved(recipe: Any, output_dir: Path) -> Any:
    """The recipe with another place, and tracked nowhere."""
    changes: dict[str, Any] = {"output_dir": str(output_dir)}
    if hasattr(recipe, "trainer"):
        changes["trainer"] = {**recipe.trainer, "report_to": "none"}
    else:
        changes["report_to"] = []
    return recipe.model_copy(update=changes)


def _refuse(folder: Path, found: Sequence[Check]) -> None:
    """Raise DataError where something that the run read is not there any more."""
    from aligner.errors import DataError, Problem, UsageError

    if not (folder / "manifest.json").exists():
        raise UsageError(
            f"{folder} is not finished, so there is nothing to compare with",
            "finish it with --resume first",
        )
    broken = [one for one in found if one.is_input and one.verdict in ("differs", "missing")]
    if broken:
        raise DataError(
            f"{folder} cannot be reproduced: what it read is not what it was",
            "put the old files back",
            [Problem(f"{one.then} -> {one.now}", where=one.name, key=one.what) for one in broken],
        )


@contextmanager
def _in_folder(folder: str | None) -> Iterator[None]:
    """Work in the folder that the run was started in, whose relative paths its recipe holds."""
    from aligner.errors import UsageError

    before = Path.cwd()
    if folder and not Path(folder).is_dir():
        raise UsageError(
            f"the run was started in {folder}, which is not there",
            "its recipe's relative paths are those of that folder; make it again",
        )
    os.chdir(folder or before)
    try:
        yield
    finally:
        os.chdir(before)


def _settle(folder: Path, target: Path, compared: Outcome, *, silent: bool) -> None:
    """Say whether the same came out, and raise GateError where it did not."""
    from aligner.errors import GateError

    if not silent:
        _compare(compared)
    if not compared.is_equal:
        raise GateError(
            f"{target} did not come out as {folder}",
            f"`aligner runs compare {folder} {target}` shows both",
        )


def _compare(compared: Outcome) -> None:
    from .render import columns, number

    say()
    if compared.is_equal:
        say("the results and every logged number are equal")
    elif compared.first_step is not None:
        say(f"logged numbers differ from step {compared.first_step:g} on")
    if compared.differences:
        items = list(compared.differences.items())[:MOST_DIFFERENCES]
        rows: list[tuple[Any, ...]] = [(name, number(a), number(b)) for name, (a, b) in items]
        columns(("result", "then", "again"), rows)
    if compared.has_same_files and compared.files:
        say(f"the {len(compared.files)} files of the result are the same, byte for byte")
    elif compared.files:
        other = [name for name, found in compared.files.items() if found != "same"]
        say(f"files of the result that differ: {', '.join(other[:MOST_DIFFERENCES])}")
