"""`aligner data`: what is done to data by itself. `select` chooses the pairs that are worth an
expert's label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import resumable
from .fast_commands import QuickGroup
from .recipe_command import (
    ANY_KEY,
    Debug,
    DryRun,
    OverwriteRun,
    RecipeCommand,
    ResultAsJson,
    carry_out,
)

if TYPE_CHECKING:
    from aligner.config.load import Resolved

app = typer.Typer(
    cls=QuickGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Choose the pairs that are worth a label.",
)

HELP = (
    "Active labelling (arXiv 2407.02119): the policy answers prompts, reward models say where "
    "they are unsure, and a budget of pairs "
    "is written to a file to be labelled. With --labels or --oracle, labels are read back for the "
    "recipe or its run directory. "
    "Common flags: --data, --model, --candidates, --reward_models, --labelled, --output, --seed."
)
SHORT = "Choose pairs for an expert to label, and read the labels back."


@app.command("select", cls=RecipeCommand, help=HELP, short_help=SHORT, context_settings=ANY_KEY)
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue where the selection was stopped.")
    ] = False,
    overwrite: OverwriteRun = False,
    as_json: ResultAsJson = False,
    debug: Debug = False,
) -> None:
    """Choose, or read back, with progress on stderr and the result on stdout."""
    if labels is not None or oracle is not None:
        context.meta["debug"] = debug or context.meta.get("debug", False)
        _read_back(context.args, labels, oracle, as_json, unfit=resume or overwrite or dry_run)
        return
    carry_out(
        context,
        "select",
        headline,
        _choose,
        goes_on="continues",
        untouched="nothing was asked and nothing was chosen",
        paths=_paths,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=as_json,
        debug=debug,
    )


def _choose(resolved: Resolved, **options: Any) -> Any:
    from aligner.builders.select.build import run_select

    return run_select(resolved, **options)


def _paths(outcome: Any) -> dict[str, object]:
    run = outcome.run_dir
    read = f"aligner data select {run} --labels FILE"
    return {"label": run / "to_label.jsonl", "report": outcome.report, "then": read}


def headline(resolved: Resolved) -> list[tuple[str, str, str]]:
    """What is chosen from what, by whom, and where the result goes."""
    from .summary import settings_rows, source_text

    recipe, origins = resolved.recipe, resolved.origins
    settings = recipe.select
    if settings.candidates is not None:
        answers = settings.candidates
    else:
        sources = ", ".join(source_text(source) for source in recipe.data.train)
        answers = (
            f"{settings.num_samples} of {settings.policy.name_or_path} to each prompt of {sources}"
        )
    return [
        ("method", f"select ({settings.strategy})", ""),
        ("answers", answers, ""),
        (
            "judged by",
            ", ".join(settings.reward_models) or "nobody",
            origins.get("select.reward_models", ""),
        ),
        ("budget", f"{settings.budget:,} pairs", origins.get("select.budget", "")),
        ("output", recipe.output_dir, origins.get("output_dir", "")),
        *settings_rows(resolved),
    ]


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
    run_dir = _run_dir(arguments)
    with Screen() as screen, resumable("is not needed: the same command continues"):
        if labels is not None:
            outcome = read_labels(run_dir, labels, screen.on_event)
        else:
            assert oracle is not None
            outcome = ask_oracle(run_dir, oracle, screen.on_event)
    if as_json:
        typer.echo(json.dumps({"run_dir": str(run_dir), "results": outcome.results}, indent=2))
        return
    train = f"aligner reward RECIPE data.train={run_dir / LABELLED}"
    paths = {"labelled": run_dir / LABELLED, "report": outcome.report, "train": train}
    result_table(outcome.results, paths)


def _run_dir(arguments: list[str]) -> Path:
    """The run directory that was named, or that of the recipe."""
    from .resolve import resolve

    if len(arguments) == 1 and (Path(arguments[0]) / "resolved.json").is_file():
        return Path(arguments[0])
    resolved, _, _ = resolve("select", arguments)
    return Path(resolved.recipe.output_dir)
