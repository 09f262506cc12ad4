"""The recipe of `aligner mosaic`, and what the builder says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from aligner.config.method import Flag, Method, OwnRows
from aligner.config.mosaic_rules import mosaic_of, no_mosaics, single_turn_formats
from aligner.config.named import Names
from aligner.config.recipe import BuilderRecipe, Data, Mosaic
from aligner.config.recipe_problem import RecipeProblems, problem_at
from aligner.config.view import RecipeView


class MosaicFiles(Mosaic):
    """`aligner mosaic`: the mosaics, and the files they are written to."""

    epochs: int = Field(4, ge=1, le=10_000)
    """How often every row is used. Each of these epochs has other partners for
    it; train one epoch on the result."""
    tokenizer: Annotated[str | None, Names("tokenizer")] = None
    """Hub id or folder of the model to be trained: lengths are counted with its tokenizer and chat
    template. Absent: lengths are estimated as characters / 3.5, and the report says so."""
    chat_template: Annotated[str | None, Names("template")] = None
    """Another chat template than the tokenizer's own, as in `model.chat_template`."""
    form: Literal["prompt_completion", "messages", "alpaca"] = "prompt_completion"
    """Columns of the samples. The first trains on answers alone everywhere; `alpaca` puts a system
    prompt in `system`."""
    file_type: Literal["jsonl", "parquet", "dataset"] = "jsonl"
    """One JSONL file, one Parquet file, or a folder for `datasets.load_from_disk`."""
    workers: int = Field(1, ge=1, le=256)
    """Processes that build. The result does not depend on it."""
    batch_size: int = Field(128, ge=1, le=1_000_000)
    """Sequences of an optimizer step, for the report's table of costs."""


class MosaicRecipe(BuilderRecipe):
    """`aligner mosaic`: glue rows into mosaics."""

    method: Literal["mosaic"] = "mosaic"
    """What to do."""
    data: Data
    """Where the rows come from; held-out rows are written as they are."""
    mosaic: MosaicFiles = MosaicFiles()
    """What belongs to this method alone."""


def _mosaic_files(view: RecipeView) -> RecipeProblems:
    yield from single_turn_formats(view, "mosaic")
    if view.given("data.on_too_long"):
        yield problem_at("data.on_too_long", "has no effect on mosaics", "set `mosaic.on_overlong`")
    if view.given("data.control_tokens"):
        hint = "set it where they are trained on"
        yield problem_at(
            "data.control_tokens", "has no effect on mosaics, which are written as text", hint
        )
    if view["mosaic.chat_template"] is not None and view["mosaic.tokenizer"] is None:
        yield problem_at(
            "mosaic.chat_template", "has no effect without `mosaic.tokenizer`", "name the tokenizer"
        )


FLAGS = (
    Flag(
        "tokenizer",
        "mosaic.tokenizer",
        "Hub id or folder of the model whose tokenizer counts lengths.",
    ),
)


def _summary(recipe: MosaicRecipe) -> OwnRows:
    settings = recipe.mosaic
    weights = ", ".join(f"{name} {weight:g}" for name, weight in settings.strategies if weight)
    return [
        ("method", f"mosaic ({weights}; plain {settings.plain_fraction:g})", ""),
        ("data", recipe.data.in_short(), ""),
        ("rows in each", f"{settings.k_distribution}, up to {settings.max_examples}", ""),
        ("epochs", str(settings.epochs), "mosaic.epochs"),
        ("tokenizer", settings.tokenizer or "none: lengths are estimated", "mosaic.tokenizer"),
    ]


def _paths(run_dir: Path) -> dict[str, object]:
    data, facts = run_dir / "data", json.loads((run_dir / "mosaic.json").read_text("utf-8"))
    held_out = data / "eval.jsonl"
    words = [
        f"aligner sft RECIPE data.train={data}",
        # Not a share of mosaics: their rows are in others too.
        f"data.eval={held_out if held_out.exists() else 'null'}",
        f"trainer.num_train_epochs=1 data.max_length={facts['max_tokens']}",
        *(["data.on_too_long=drop"] if facts["overlong"].get("alone") else []),
    ]
    return {"data": data, "report": run_dir / "report.html", "train": " ".join(words)}


METHOD = Method(
    recipe=MosaicRecipe,
    help=(
        "Mosaic-IT (arXiv 2405.13326): several instructions become one prompt and their answers "
        "one completion, with rules on form, order and what to leave out. Needs no model; every "
        "sample is checked. Common flags: --data, --output, --tokenizer, --seed."
    ),
    examples=(
        "aligner mosaic tiny/mosaic",
        "aligner mosaic --data rows.jsonl --output data/mosaic --tokenizer Qwen/Qwen3-0.6B",
        "aligner mosaic recipe.yaml mosaic.max_examples=6 mosaic.epochs=3 mosaic.workers=8",
        "aligner mosaic recipe.yaml --resume",
    ),
    rules=(_mosaic_files, mosaic_of("mosaic"), no_mosaics),
    flags=FLAGS,
    run="aligner.builders.mosaic.build:run_mosaic",
    summary=_summary,
    untouched="nothing was built",
    paths=_paths,
    report="aligner.builders.mosaic.report:write_mosaic_report",
)
