"""`aligner data`: what is done to data by itself. `check` looks for what is wrong with it, `show`
draws its tokens, `convert` writes it in another form, `select` chooses the pairs that are worth an
expert's label, `rules` draws rules from pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from aligner.methods.catalogue import METHODS

from . import data_check, data_convert, data_show, rules
from .console import say_json
from .endings import resumable
from .fast_commands import QuickCommand, QuickGroup
from .output import kept_isolation
from .recipe_command import (
    ANY_KEY,
    Debug,
    DryRun,
    OverwriteRun,
    RecipeCommand,
    ResultAsJson,
    Resume,
    carry_out,
)
from .resolve import resolve

app = typer.Typer(
    cls=QuickGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Check, show, convert; choose pairs worth a label; draw rules.",
)

NAME = "select"

app.command("check", cls=QuickCommand)(data_check.check)
app.command("show", cls=QuickCommand, context_settings=ANY_KEY)(data_show.show)
app.command("convert", cls=QuickCommand)(data_convert.convert)
app.command("rules", cls=QuickCommand)(rules.rules)


@app.command(NAME, cls=RecipeCommand, short_help=METHODS[NAME].about, context_settings=ANY_KEY)
def select(
    context: typer.Context,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FILE", help="Read labels back from this file."),
    ] = None,
    oracle: Annotated[
        str | None,
        typer.Option("--oracle", metavar="CARD", help="Let a scorer label what has no label."),
    ] = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    overwrite: OverwriteRun = False,
    as_json: ResultAsJson = False,
    debug: Debug = False,
) -> None:
    """Choose, or read back, with progress on stderr and the result on stdout."""
    context.meta["debug"] = debug or context.meta.get("debug", False)
    if labels is not None or oracle is not None:
        _read_back(context.args, labels, oracle, as_json, unfit=resume or overwrite or dry_run)
        return
    carry_out(
        NAME, context.args, resume=resume, overwrite=overwrite, dry_run=dry_run, as_json=as_json
    )


def _read_back(
    arguments: list[str], labels: Path | None, oracle: str | None, as_json: bool, *, unfit: bool
) -> None:
    """Take labels over, from a file or from a scorer."""
    from aligner.builders.select.labels import LABELLED, ask_oracle, read_labels
    from aligner.errors import UsageError

    from .render import Screen, result_table

    if labels is not None and oracle is not None:
        raise UsageError(
            "--labels and --oracle exclude each other",
            "read the file first, and ask for the rest then",
        )
    if unfit:
        raise UsageError(
            "labels are read into a selection that is there",
            "drop --resume, --overwrite and --dry-run",
        )
    if len(arguments) == 1 and (Path(arguments[0]) / "resolved.json").is_file():
        run_dir = Path(arguments[0])
    else:
        run_dir = Path(resolve(NAME, arguments)[0].recipe.output_dir)
    with Screen() as screen, resumable("is not needed: the same command continues"):
        if labels is not None:
            outcome = read_labels(run_dir, labels, screen.on_event)
        else:
            assert oracle is not None
            outcome = ask_oracle(run_dir, oracle, screen.on_event)
    if as_json:
        facts = {"run_dir": str(run_dir), "results": outcome.results, **kept_isolation(run_dir)}
        say_json(json.dumps(facts, indent=2))
        return
    train = f"aligner reward RECIPE data.train={run_dir / LABELLED}"
    paths = {"labelled": run_dir / LABELLED, "report": outcome.report, "train": train}
    result_table(outcome.results, paths)
