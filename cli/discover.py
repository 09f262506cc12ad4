"""`aligner discover`: a language model searches for preference objectives."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from aligner.config.load import Resolved

HELP = "Let a language model search for preference objectives."


def discover(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, stop.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the search was stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run directory.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Run the search with its table on the screen."""
    from aligner.record import read_json

    from .render import Screen, result_table
    from .train import resolve

    context.meta["debug"] = debug or context.meta.get("debug", False)
    resolved, notes, said = resolve("discover", context.args)
    with Screen() as screen:
        screen.summary(headline(resolved))
        for note in notes:
            screen.line(note)
        outcome = _run(
            resolved, screen, resume=resume or said.get("resume", False), overwrite=overwrite, dry_run=dry_run
        )
    if as_json:
        result = {"run_dir": str(outcome.run_dir), "results": outcome.results, "dry_run": dry_run}
        typer.echo(json.dumps(result, indent=2))
    elif dry_run:
        typer.echo("dry run: everything checks out; nothing was asked and nothing was trained")
    else:
        found = read_json(outcome.run_dir, "search.json")["found"]
        use = found and f"aligner dpo RECIPE dpo.loss={outcome.run_dir / found}"
        result_table(outcome.results, {"run": outcome.run_dir, "report": outcome.report, "use it": use})


def _run(resolved: Resolved, screen: Any, **options: bool) -> Any:
    from aligner.endpoints import check_endpoint

    check_endpoint(resolved.recipe.endpoint)  # before torch is loaded
    from aligner.methods.discover import run_discovery

    try:
        return run_discovery(resolved, on_event=screen.on_event, **options)
    except KeyboardInterrupt as error:
        from .boundary import INTERRUPTED_EXIT_CODE

        typer.echo("interrupted: the same command with --resume goes on with the search", err=True)
        raise typer.Exit(INTERRUPTED_EXIT_CODE) from error


def headline(resolved: Resolved) -> list[tuple[str, str, str]]:
    """What is searched, with what, and where the result goes."""
    recipe = resolved.recipe
    settings, endpoint = recipe.discover, recipe.endpoint
    where = endpoint.base_url or endpoint.script or endpoint.replay or ""
    return [
        ("method", f"discover ({settings.task}, beta {settings.beta:g}, {settings.seeds} seeds)", ""),
        ("proposer", f"{endpoint.model or endpoint.backend} {f'({where})' if where else ''}".rstrip(), ""),
        ("proposals", str(settings.proposals), resolved.origins.get("discover.proposals", "")),
        ("output", recipe.output_dir, resolved.origins.get("output_dir", "")),
    ]
