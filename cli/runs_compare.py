"""`aligner runs compare`: what differs between runs, and what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .console import say, say_json
from .models import AsJson

Record = dict[str, Any]


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Two runs or more.")],
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="A page, with all curves on one plot."),
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="The plots as a picture.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Results that are the same, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare the recipes, data, environments and results of runs.

    Example: aligner runs compare runs/a runs/b --html compared.html
    """
    from aligner.errors import UsageError
    from aligner.runs.api import open_run
    from aligner.runs.comparison import compare, curves

    folders = [open_run(run).dir for run in runs]
    if len(folders) < 2:
        raise UsageError("one run has nothing to be compared with", "name two runs or more")
    found = compare(folders)
    if as_json:
        from aligner.runs.files import dumps

        say_json(dumps({**found, "curves": curves(folders)}, indent=2))
    else:
        _show(found, folders, every=every)
    if html is not None:
        from aligner.reports.comparison import comparison_page
        from aligner.runs.files import write_atomically

        _write(html, lambda: write_atomically(html, comparison_page(found, folders)))
    if png is not None:
        from aligner.reports.comparison import comparison_png
        from aligner.runs.files import write_bytes_atomically

        content = comparison_png(folders)
        _write(png, lambda: write_bytes_atomically(png, content))


def _write(path: Path, write: Any) -> None:
    from aligner.errors import UsageError

    try:
        write()
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "name another") from error
    say(f"wrote {path}", err=True)


def _show(found: Record, folders: list[Path], *, every: bool) -> None:
    from aligner.reports.comparison import short_fingerprint
    from aligner.runs.comparison import names_of

    from .render import columns, number

    names = names_of(folders)
    states = [(name, run["method"], run["state"]) for name, run in zip(names, found["runs"])]
    columns(("run", "method", "state"), states)
    _recipe(found, names)
    differing = [row for row in found["data"] if not row["is_same"]]
    _part("data and models", differing, names, short_fingerprint)
    _part("environment", found["environment"], names, str)
    rows = [row for row in found["results"] if every or not row["is_same"]]
    say()
    if not rows:
        say("no results differ" if found["results"] else "no run has results")
        return
    header, body = ["result", *names], []
    for row in rows:
        body.append([row["name"], *(number(v) if v is not None else "" for v in row["values"])])
    if len(names) == 2:
        header.append("difference")
        for line, row in zip(body, rows):
            line.append(_difference(row["values"]))
    columns(header, body)


def _difference(values: list[Any]) -> str:
    from .render import number

    one, other = values
    if not all(isinstance(value, int | float) for value in values):
        return ""
    return f"{'+' if other > one else ''}{number(float(other - one))}"


def _recipe(found: Record, names: list[str]) -> None:
    from aligner.reports.comparison import exact

    from .render import columns

    say()
    if not found["recipe"]:
        say("the recipes are the same")
    else:
        rows = []
        for row in found["recipe"]:
            cells = [
                f"{exact(value)}  ({origin})" if origin != "absent" else "absent"
                for value, origin in zip(row["values"], row["origins"])
            ]
            rows.append((row["key"], *cells))
        columns(("recipe", *names), rows)
    if hidden := found["hidden_defaults"]:
        say(f"{hidden:,} defaults that only some of the recipes have are left out")


def _part(title: str, rows: list[Record], names: list[str], shown: Any) -> None:
    from .render import columns

    if not rows:
        return
    say()

    def cell(value: Any) -> str:
        return "–" if value is None else str(shown(value))

    columns((title, *names), [(row["name"], *map(cell, row["values"])) for row in rows])
