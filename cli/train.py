"""`aligner sft`, `dpo`, `sapo` and `reward`: one command, written once.

    aligner dpo [RECIPE] [key=value ...] [--flags]

The options that belong to the command are declared here and few; every other flag
(`--learning_rate`, `--use_peft`) is a key of the recipe under the name the field uses, and goes to
`aligner.config.flags`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import resumable
from .recipe_command import ANY_KEY, Debug, DryRun, OverwriteRun, RecipeCommand, ResultAsJson
from .resolve import resolve

if TYPE_CHECKING:
    from aligner.config.load import Resolved

METHODS = {
    "sft": "Supervised fine-tuning on conversations, completions or text.",
    "dpo": "Direct preference optimization, on pairs of answers.",
    "sapo": "Self-Augmented Preference Optimization, on single good answers.",
    "reward": "Train a reward model, on pairs of answers or on ratings.",
}

LONGER = {
    "sapo": "Self-Augmented Preference Optimization (arXiv 2405.20830): a moving average of the "
    "policy rewrites a window of each "
    "good answer, and the policy is trained to prefer the answer. Not to be confused with the "
    "GRPO loss `sapo` (Soft Adaptive "
    "Policy Optimization) of other tools.",
    "reward": "Train a reward model: Bradley-Terry on pairs (plain, with a margin, or scaled by "
    "the "
    "strength of a preference), a "
    "regression on ratings, a pairwise model that is asked A or B, values at the ends of "
    "segments, or ODIN, which keeps length "
    "out of the score. The result holds a card that `aligner score` and `aligner eval "
    "--reward-model` load.",
}
"""What the help of a method says beyond its one line."""


class TrainCommand(RecipeCommand):
    """Help with examples first and the flags that recipes accept last, by group."""

    def __init__(self, name: str | None, *, params: list[Any], **settings: Any) -> None:
        if name != "dpo":  # the others have no objectives to show
            params = [param for param in params if param.name not in ("loss_table", "loss_plot")]
        super().__init__(name, params=params, **settings)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Flags that stand for keys of the recipe, from the table that parses them."""
        from aligner.config.flag_table import flag_groups

        with formatter.section("Flags for keys of the recipe, with _ or -"):
            lines = []
            for group, flags in flag_groups(self.name).items():
                lines.append((group, ", ".join(flag.name for flag in flags)))
            formatter.write_dl(lines)
        formatter.write_text(
            "Any other key is KEY=VALUE: model.lora.r=8, data.on_too_long=drop, "
            "trainer.adam_beta2=0.95"
        )


def add_commands(app: typer.Typer) -> None:
    """One command per method."""
    for method, text in METHODS.items():
        longer = LONGER.get(method, text)
        app.command(
            method, cls=TrainCommand, help=longer, short_help=text, context_settings=ANY_KEY
        )(_command(method))


def _command(method: str) -> Any:
    def command(
        context: typer.Context,
        dry_run: DryRun = False,
        resume: Annotated[
            bool, typer.Option("--resume", help="Continue from the last checkpoint.")
        ] = False,
        overwrite: OverwriteRun = False,
        num_processes: Annotated[
            int | None,
            typer.Option(
                "--num-processes", "--num_processes", min=1, help="Processes, one per GPU."
            ),
        ] = None,
        as_json: ResultAsJson = False,
        debug: Debug = False,
        loss_table: Annotated[
            bool, typer.Option("--loss-table", help="Show the objectives, and stop.")
        ] = False,
        loss_plot: Annotated[
            Path | None,
            typer.Option("--loss-plot", metavar="FILE.html", help="Draw the objectives, and stop."),
        ] = None,
    ) -> None:
        context.meta["debug"] = debug or context.meta.get("debug", False)
        if loss_table or loss_plot is not None:
            from .losses import show_losses

            show_losses(context.args, loss_plot)
            return
        resolved, notes, said = resolve(method, context.args, num_processes)
        train(
            resolved,
            notes,
            resume=resume or said.get("resume", False),
            overwrite=overwrite,
            dry_run=dry_run,
            as_json=as_json,
        )

    return command


def train(
    resolved: Resolved,
    notes: list[str],
    *,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run a resolved recipe with progress on stderr and the result on stdout."""
    from aligner.launch.command import is_our_rank
    from aligner.launch.world import world

    from .render import Screen, result_table
    from .summary import summary_rows

    rank, _ = world()
    launched = (
        is_our_rank()
    )  # then the launching process shows recipe and result, and this one only its progress
    with Screen(silent=rank != 0) as screen:
        if not launched:
            screen.summary(summary_rows(resolved))
        for note in notes:
            screen.line(note)
        outcome = run(resolved, screen, resume=resume, overwrite=overwrite, dry_run=dry_run)
    if rank != 0 or launched:
        return
    if as_json:
        typer.echo(json.dumps(_as_json(resolved, outcome, dry_run), indent=2))
    elif dry_run:
        typer.echo("dry run: everything checks out; nothing was trained")
    else:
        paths: dict[str, Any] = {"run": outcome.run_dir, "report": outcome.report}
        if resolved.recipe.method == "reward":
            paths["measure"] = f"aligner eval --reward-model {outcome.run_dir} --data PAIRS"
        result_table(outcome.results, paths)


def run(resolved: Resolved, screen: Any, **options: Any) -> Any:
    """`run_recipe` with its events on the screen; Ctrl-C says how to continue."""
    from aligner.methods.pipeline import run_recipe

    with resumable("continues from the last checkpoint"):
        return run_recipe(resolved, on_event=screen.on_event, **options)


def _as_json(resolved: Resolved, outcome: Any, dry_run: bool) -> dict[str, Any]:
    if dry_run:
        return {"dry_run": True, "recipe": resolved.as_json()}
    return {
        "run_dir": str(outcome.run_dir),
        "results": outcome.results,
        "report": str(outcome.report) if outcome.report else None,
    }
