"""`aligner mosaic`: glue instruction rows into mosaics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .recipe_command import Debug, DryRun, OverwriteRun, ResultAsJson, carry_out

if TYPE_CHECKING:
    from aligner.config.load import Resolved

HELP = (
    "Mosaic-IT (arXiv 2405.13326): several instructions become one prompt and their answers one "
    "completion, with rules on form, "
    "order and what to leave out. Needs no model; every sample is checked. Common flags: --data, "
    "--output, --tokenizer, --seed."
)
SHORT = "Glue instruction rows into samples of several instructions."


def mosaic(
    context: typer.Context,
    dry_run: DryRun = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue where the build was stopped.")
    ] = False,
    overwrite: OverwriteRun = False,
    as_json: ResultAsJson = False,
    debug: Debug = False,
) -> None:
    """Build with progress on stderr and the result on stdout."""
    carry_out(
        context,
        "mosaic",
        headline,
        _build,
        goes_on="continues",
        untouched="nothing was built",
        paths=_paths,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=as_json,
        debug=debug,
    )


def _build(resolved: Resolved, **options: Any) -> Any:
    from aligner.builders.mosaic.build import run_mosaic

    return run_mosaic(resolved, **options)


def _paths(outcome: Any) -> dict[str, object]:
    from aligner.runs.files import read_json

    data, told = outcome.run_dir / "data", read_json(outcome.run_dir, "mosaic.json")
    held_out = data / "eval.jsonl"
    words = [
        f"aligner sft RECIPE data.train={data}",
        # Not a share of mosaics: their rows are in others too.
        f"data.eval={held_out if held_out.exists() else 'null'}",
        f"trainer.num_train_epochs=1 data.max_length={told['max_tokens']}",
        *(["data.on_too_long=drop"] if told["overlong"].get("alone") else []),
    ]
    return {"data": data, "report": outcome.report, "train": " ".join(words)}


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
