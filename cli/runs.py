"""`aligner runs`: what was run and what came out, read from the run directories alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import say, say_json
from .fast_commands import QuickCommand, QuickGroup
from .runs_compare import compare
from .runs_reproduce import reproduce, tree

app = typer.Typer(
    cls=QuickGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="List, show, compare and reproduce runs, and write their reports.",
)
app.command("compare", cls=QuickCommand)(compare)
app.command("reproduce", cls=QuickCommand)(reproduce)
app.command("tree", cls=QuickCommand)(tree)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LISTED = ("steps", "train_loss", "eval/loss", "eval/rewards/accuracies", "eval/accuracy")
"""Results that stand in the list; `show` has them all."""

RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


@app.command("list", cls=QuickCommand)
def list_runs(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to look, with its subfolders.")
    ] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the runs below a folder."""
    from .render import columns, number

    runs = [_read_or_damaged(path.parent) for path in sorted(directory.rglob("resolved.json"))]
    if as_json:
        say_json(json.dumps(runs, indent=2))
        return
    if not runs:
        say(f"no runs below {directory}")
        return
    rows = []
    for run in runs:
        results = [number(run["results"].get(name, "")) for name in LISTED]
        rows.append((run["dir"], run["method"], run["state"], *results))
    columns(("run", "method", "state", *LISTED), rows)


@app.command("show", cls=QuickCommand)
def show(run: RunDir, as_json: Json = False) -> None:
    """Show the record of one run."""
    from .render import result_table

    record = _read(_checked(run))
    if as_json:
        say_json(json.dumps(record, indent=2))
        return
    say(f"{record['dir']}: {record['method']}, {record['state']}")
    say()
    result_table(record["results"], {name: run / name for name in record["files"]})


@app.command("report", cls=QuickCommand)
def report(run: RunDir) -> None:
    """Write the HTML report of a run again, from its record."""

    from aligner.errors import UsageError
    from aligner.methods.catalogue import METHODS, function_of, method_of
    from aligner.runs.files import read_json

    folder = _checked(run)
    method = ((read_json(folder, "resolved.json") or {}).get("recipe") or {}).get("method")
    if method not in METHODS:
        raise UsageError(
            f"{folder}/resolved.json names no known method: `{method}`",
            f"reports are of {', '.join(METHODS)}",
        )
    say(f"wrote {function_of(method_of(method).report)(folder)}")


def _checked(run: Path) -> Path:
    from aligner.errors import UsageError

    if not (run / "resolved.json").is_file():
        raise UsageError(
            f"{run} is not a run directory: it has no resolved.json",
            "`aligner runs list DIR` finds them",
        )
    return run


def _read_or_damaged(run: Path) -> dict[str, Any]:
    """The same, for one of many: a run whose record is damaged is listed as that, and stderr gets
    the reason."""
    from aligner.errors import DataError

    try:
        return _read(run)
    except DataError as error:
        say(f"warning: {error.message}", err=True)
        return {"dir": str(run), "method": "?", "state": "damaged", "results": {}}


def _read(run: Path) -> dict[str, Any]:
    """State, method and results of a run; the manifest is written last, so its presence means
    done."""
    from aligner.runs.files import read_json

    manifest = read_json(run, "manifest.json") or {}
    resolved = read_json(run, "resolved.json")
    return {
        "dir": str(run),
        "method": manifest.get("method") or resolved.get("recipe", resolved).get("method", "?"),
        "state": "done" if manifest else "unfinished",
        "finished": manifest.get("finished"),
        "seconds": manifest.get("seconds"),
        "results": manifest.get("results", {}),
        "files": sorted(path.name for path in run.iterdir()),
    }
