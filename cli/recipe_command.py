"""What the commands that take a recipe share: help with examples, and how those run that train
nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import resumable
from .fast_commands import QuickCommand

if TYPE_CHECKING:
    from aligner.config.load import Resolved

DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, stop.")]
OverwriteRun = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing run directory.")
]
ResultAsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]

EXAMPLES = {
    "sft": (
        "aligner sft tiny/sft",
        "aligner sft recipe.yaml trainer.learning_rate=1e-5 data.max_length=4096",
        "aligner sft --model Qwen/Qwen3-0.6B --data talks.jsonl --output runs/sft --use_peft",
        "aligner sft recipe.yaml 'data.mosaic={}'",
        "aligner sft recipe.yaml --num-processes 8 --resume",
    ),
    "dpo": (
        "aligner dpo tiny/dpo",
        "aligner dpo recipe.yaml dpo.beta=0.05 model.lora.r=32",
        "aligner dpo --model runs/sft/final --data pairs.jsonl --output runs/dpo --beta 0.1",
        "aligner dpo recipe.yaml --dry-run",
        "aligner dpo --loss-table dpo.tau=0.2",
    ),
    "sapo": (
        "aligner sapo tiny/sapo",
        "aligner sapo recipe.yaml sapo.window=128 sapo.suffix=drop",
        "aligner sapo --model runs/sft/final --data talks.jsonl --output runs/sapo --use_peft",
        "aligner sapo recipe.yaml sapo.loss=orpo sapo.beta=0.05",
    ),
    "reward": (
        "aligner reward tiny/reward",
        "aligner reward --model runs/sft/final --data pairs.jsonl --output runs/reward",
        "aligner reward recipe.yaml reward.loss=scaled reward.center_rewards_coefficient=0.01",
        "aligner reward recipe.yaml reward.kind=regression 'reward.attributes=[helpfulness, "
        "correctness]'",
        "aligner eval --reward-model runs/reward --data pairs.jsonl",
    ),
    "mosaic": (
        "aligner mosaic tiny/mosaic",
        "aligner mosaic --data rows.jsonl --output data/mosaic --tokenizer Qwen/Qwen3-0.6B",
        "aligner mosaic recipe.yaml mosaic.max_members=6 mosaic.passes=3 mosaic.workers=8",
        "aligner mosaic recipe.yaml --resume",
    ),
    "select": (
        "aligner data select tiny/select",
        "aligner data select --model runs/sft/final --data prompts.jsonl --reward_models "
        "runs/reward --output runs/select",
        "aligner data select recipe.yaml select.budget=500 select.strategy=uncertainty",
        "aligner data select runs/select --labels to_label.jsonl",
        "aligner data select runs/select --oracle judge.yaml",
    ),
    "discover": (
        "aligner discover tiny/discover",
        "aligner discover discover/bandit endpoint.base_url=http://127.0.0.1:8000/v1 "
        "endpoint.model=NAME",
        "aligner discover recipe.yaml discover.proposals=50 endpoint.budget.usd=5",
        "aligner discover recipe.yaml --resume",
    ),
}

ANY_KEY = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of a command whose other arguments are keys of a recipe."""


class RecipeCommand(QuickCommand):
    """Help with examples first."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Usage and examples."""
        formatter.write_usage(ctx.command_path, "[RECIPE] [KEY=VALUE ...] [OPTIONS]")
        with formatter.section("Examples"):
            for example in EXAMPLES[self.name or ""]:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


def carry_out(
    context: typer.Context,
    method: str,
    headline: Callable[[Resolved], list[tuple[str, str, str]]],
    work: Callable[..., Any],
    *,
    goes_on: str,
    untouched: str,
    paths: Callable[[Any], dict[str, object]],
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Resolve the recipe and let `work` do it, with progress on stderr and the result on stdout.

    `goes_on` ends the sentence after Ctrl-C, `untouched` the one after a dry run; `paths` says
    where to look at an outcome.
    """
    from .render import Screen, result_table
    from .resolve import resolve

    context.meta["debug"] = debug or context.meta.get("debug", False)
    resolved, notes, said = resolve(method, context.args)
    with Screen() as screen:
        screen.summary(headline(resolved))
        for note in notes:
            screen.line(note)
        options = {
            "resume": resume or said.get("resume", False),
            "overwrite": overwrite,
            "dry_run": dry_run,
        }
        with resumable(goes_on):
            outcome = work(resolved, on_event=screen.on_event, **options)
    if as_json:
        result = {"run_dir": str(outcome.run_dir), "results": outcome.results, "dry_run": dry_run}
        typer.echo(json.dumps(result, indent=2))
    elif dry_run:
        typer.echo(f"dry run: everything checks out; {untouched}")
    else:
        result_table(outcome.results, paths(outcome))
