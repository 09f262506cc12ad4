"""`aligner mosaic`: glue instruction rows into mosaics."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from aligner.config.load import Resolved

HELP = (
    "Mosaic-IT (arXiv 2405.13326): several instructions become one prompt and their answers one completion, with rules on form, "
    "order and what to leave out. Needs no model; every sample is checked. Common flags: --data, --output, --tokenizer, --seed."
)
SHORT = "Glue instruction rows into samples of several instructions."


def mosaic(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, stop.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the building was stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run directory.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Build with progress on stderr and the result on stdout."""
    from .render import Screen, result_table
    from .train import resolve

    context.meta["debug"] = debug or context.meta.get("debug", False)
    resolved, notes, said = resolve("mosaic", context.args)
    with Screen() as screen:
        screen.summary(headline(resolved))
        for note in notes:
            screen.line(note)
        resume = resume or said.get("resume", False)
        outcome = _run(resolved, screen, resume=resume, overwrite=overwrite, dry_run=dry_run)
    if as_json:
        result = {"run_dir": str(outcome.run_dir), "results": outcome.results, "dry_run": dry_run}
        typer.echo(json.dumps(result, indent=2))
    elif dry_run:
        typer.echo("dry run: everything checks out; nothing was built")
    else:
        data = outcome.run_dir / "data"
        use = f"aligner sft RECIPE data.train={data} trainer.num_train_epochs=1"
        result_table(outcome.results, {"data": data, "report": outcome.report, "train": use})


def _run(resolved: Resolved, screen: Any, **options: bool) -> Any:
    from aligner.builders.mosaic.building import run_mosaic

    try:
        return run_mosaic(resolved, on_event=screen.on_event, **options)
    except KeyboardInterrupt as error:
        from .boundary import INTERRUPTED_EXIT_CODE

        typer.echo("interrupted: the same command with --resume goes on", err=True)
        raise typer.Exit(INTERRUPTED_EXIT_CODE) from error


def headline(resolved: Resolved) -> list[tuple[str, str, str]]:
    """What is built of what, and where the result goes."""
    from .summary import settings_rows, source_text

    recipe = resolved.recipe
    settings = recipe.mosaic
    weights = ", ".join(f"{name} {weight:g}" for name, weight in settings.strategies if weight)
    return [
        ("method", f"mosaic ({weights}; plain {settings.plain_fraction:g})", ""),
        ("data", ", ".join(source_text(source) for source in recipe.data.train), ""),
        ("rows in each", f"{settings.k_distribution}, up to {settings.max_members}", ""),
        ("passes", str(settings.passes), resolved.origins.get("mosaic.passes", "")),
        (
            "tokenizer",
            settings.tokenizer or "none: lengths are estimated",
            resolved.origins.get("mosaic.tokenizer", ""),
        ),
        ("output", recipe.output_dir, resolved.origins.get("output_dir", "")),
        *settings_rows(resolved),
    ]
