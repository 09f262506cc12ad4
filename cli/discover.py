"""`aligner discover`: a language model searches for preference objectives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .recipe_command import Debug, DryRun, OverwriteRun, ResultAsJson, carry_out

if TYPE_CHECKING:
    from aligner.config.load import Resolved

HELP = "Let a language model search for preference objectives."


def discover(
    context: typer.Context,
    dry_run: DryRun = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue where the search was stopped.")
    ] = False,
    overwrite: OverwriteRun = False,
    as_json: ResultAsJson = False,
    debug: Debug = False,
) -> None:
    """Run the search with its table on the screen."""
    carry_out(
        context,
        "discover",
        headline,
        _search,
        goes_on="continues the search",
        untouched="nothing was asked and nothing was trained",
        paths=_paths,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=as_json,
        debug=debug,
    )


def _search(resolved: Resolved, **options: Any) -> Any:
    from aligner.endpoints.client import check_endpoint

    check_endpoint(resolved.recipe.endpoint)  # before torch is loaded
    from aligner.methods.discover.search import run_discovery

    return run_discovery(resolved, **options)


def _paths(outcome: Any) -> dict[str, object]:
    from aligner.runs.files import read_json

    found = read_json(outcome.run_dir, "search.json")["found"]
    use = found and f"aligner dpo RECIPE dpo.loss={outcome.run_dir / found}"
    return {"run": outcome.run_dir, "report": outcome.report, "use it": use}


def headline(resolved: Resolved) -> list[tuple[str, str, str]]:
    """What is searched, with what, and where the result goes."""
    recipe = resolved.recipe
    settings, endpoint = recipe.discover, recipe.endpoint
    where = endpoint.base_url or endpoint.script or endpoint.replay or ""
    return [
        (
            "method",
            f"discover ({settings.task}, beta {settings.beta:g}, {settings.seeds} seeds)",
            "",
        ),
        (
            "proposer",
            f"{endpoint.model or endpoint.backend} {f'({where})' if where else ''}".rstrip(),
            "",
        ),
        ("proposals", str(settings.proposals), resolved.origins.get("discover.proposals", "")),
        ("output", recipe.output_dir, resolved.origins.get("output_dir", "")),
    ]
