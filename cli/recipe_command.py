"""The commands that take a recipe, written once for every method of the catalogue.

    aligner dpo [RECIPE] [key=value ...] [--flags]

The options that belong to a command are declared here and few; every other flag
(`--learning_rate`, `--use_peft`) is a key of the recipe under the name the field uses, and goes to
`aligner.config.flags`. What is said of a method stands in its folder (`recipe.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aligner.errors import UsageError
from aligner.methods.catalogue import METHODS, command_of, function_of, method_of, training_of

from .console import say, say_json
from .endings import kept_in_run, resumable
from .fast_commands import QuickCommand
from .output import kept_isolation
from .resolve import resolve

if TYPE_CHECKING:
    from aligner.config.load import Resolved

DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, stop.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")]
OverwriteRun = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing run directory.")
]
ResultAsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]

ANY_KEY = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of a command whose other arguments are keys of a recipe."""

OF_TRAININGS = ("num_processes",)
OF_LOSSES = ("loss_table", "loss_plot")
"""Options that only methods have that train, or that take a loss."""
AHEAD = ("estimate", "preview")
"""Options that only methods have whose field of the same name says how."""


class RecipeCommand(QuickCommand):
    """A command for recipes; its help is that of the method of its name. Examples come first, the
    flags that recipes accept last, by group."""

    @property
    def method_name(self) -> str:
        """The method's name in the catalogue."""
        return str(self.name)

    def get_params(self, ctx: Any) -> list[Any]:
        """Parameters, without those that the method has no use for."""
        method = training_of(self.method_name)
        own = method_of(self.method_name)
        unused = () if method else OF_TRAININGS
        unused = (*unused, *(option for option in AHEAD if not getattr(own, option)))
        if method is None or not method.objective_key:
            unused = (*unused, *OF_LOSSES)
        return [param for param in super().get_params(ctx) if param.name not in unused]

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Usage and examples."""
        formatter.write_usage(ctx.command_path, "[RECIPE] [KEY=VALUE ...] [OPTIONS]")
        if method_of(self.method_name).status:
            formatter.write_usage(ctx.command_path, "status RUN [--json]", prefix="       ")
        with formatter.section("Examples"):
            for example in method_of(self.method_name).examples:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """What the method says of itself."""
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(method_of(self.method_name).help)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Flags that stand for keys of the recipe, from the table that parses them."""
        if training_of(self.method_name) is None:
            return
        from aligner.config.flag_table import flag_groups

        with formatter.section("Flags for keys of the recipe, with _ or -"):
            lines = []
            for group, flags in flag_groups(self.method_name).items():
                lines.append((group, ", ".join(flag.name for flag in flags)))
            formatter.write_dl(lines)
        formatter.write_text(
            "Any other key is KEY=VALUE: model.lora.r=8, data.on_too_long=drop, "
            "trainer.adam_beta2=0.95"
        )


def add_commands(app: typer.Typer, group: str) -> None:
    """Add the commands of a group of the catalogue; those of a sub-command have a module of their
    own."""
    for name, entry in METHODS.items():
        if entry.group == group and not entry.command:
            app.command(name, cls=RecipeCommand, short_help=entry.about, context_settings=ANY_KEY)(
                _command(name)
            )


def _command(name: str) -> Any:
    def command(
        context: typer.Context,
        dry_run: DryRun = False,
        resume: Resume = False,
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
        estimate: Annotated[
            bool,
            typer.Option("--estimate", help="Say what requests it will take and cost, and stop."),
        ] = False,
        preview: Annotated[
            int | None,
            typer.Option("--preview", metavar="N", min=1, help="Make N rows, show them, and stop."),
        ] = None,
    ) -> None:
        context.meta["debug"] = debug or context.meta.get("debug", False)
        if method_of(name).status and context.args[:1] == ["status"]:
            given = {"--dry-run": dry_run, "--resume": resume, "--overwrite": overwrite}
            for option in (option for option, is_given in given.items() if is_given):
                raise UsageError(f"{option} has no effect on `{name} status`", "drop it")
            show_status(name, context.args[1:], as_json=as_json)
            return
        if estimate or preview is not None:
            others = {"--dry-run": dry_run, "--resume": resume, "--overwrite": overwrite}
            others["--estimate"] = estimate and preview is not None
            show_ahead(name, context.args, preview, others, as_json=as_json)
            return
        if loss_table or loss_plot is not None:
            from .losses import show_losses

            if as_json:
                raise UsageError("--json has no effect on --loss-table and --loss-plot", "drop it")
            show_losses(context.args, loss_plot)
            return
        carry_out(
            name,
            context.args,
            num_processes,
            resume=resume,
            overwrite=overwrite,
            dry_run=dry_run,
            as_json=as_json,
        )

    return command


def show_status(name: str, arguments: list[str], *, as_json: bool) -> None:
    """Say how far a run is: `aligner NAME status RUN`."""
    if len(arguments) != 1:
        given = f"{len(arguments)} were given"
        hint = f"aligner {command_of(name)} status RUN; a recipe that is called so is ./status"
        raise UsageError(f"one run directory is wanted, and {given}", hint)
    from .render import columns

    status = function_of(method_of(name).status)(Path(arguments[0]))
    if as_json:
        say_json(json.dumps(status.facts, indent=2))
        return
    columns(status.columns, status.rows)
    say()
    say(status.remark)


def show_ahead(
    name: str,
    arguments: list[str],
    preview: int | None,
    others: Mapping[str, bool],
    *,
    as_json: bool,
) -> None:
    """Say what a recipe will take, or make a few rows of it; no run is begun."""
    option = "--estimate" if preview is None else "--preview"
    for other in (other for other, is_given in others.items() if is_given):
        raise UsageError(f"{other} has no effect with {option}, which begins no run", "drop it")
    from .render import Screen, columns

    resolved, _, _ = resolve(name, arguments)
    method = method_of(name)
    with Screen() as screen:
        if preview is None:
            ahead = function_of(method.estimate)(resolved, screen.on_event)
        else:
            ahead = function_of(method.preview)(resolved, preview, screen.on_event)
    if as_json:
        say_json(json.dumps(ahead.facts, indent=2))
        return
    if preview is None:
        columns(ahead.columns, ahead.rows)
        say()
    for line in [ahead.remark] if preview is None else ahead.lines:
        say(line)


def carry_out(
    name: str,
    arguments: list[str],
    num_processes: int | None = None,
    *,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    further: Callable[[Path], dict[str, Any]] = lambda run_dir: {},
    show: Callable[[Path], None] | None = None,
) -> None:
    """Run the recipe that the arguments describe, with progress on stderr and the result on stdout.
    `further`: facts about a run that is done, which are added to `--json`. `show`: shows a run that
    is done, in place of a table of its results."""
    resolved, notes, said = resolve(name, arguments, num_processes)
    from aligner.launch.command import is_our_rank
    from aligner.launch.world import world

    from .render import Screen, result_table
    from .summary import summary_rows

    rank, _ = world()
    # Then the launching process shows recipe and result, and this one only its progress.
    launched = is_our_rank()
    with Screen(silent=rank != 0) as screen:
        if not launched:
            screen.summary(summary_rows(resolved))
        for note in notes:
            screen.line(note)
        outcome = run(
            resolved,
            screen,
            resume=resume or said.get("resume", False),
            overwrite=overwrite,
            dry_run=dry_run,
        )
    if rank != 0 or launched:
        return
    method = method_of(resolved.recipe.method)
    if as_json:
        facts: dict[str, Any] = {
            "run_dir": str(outcome.run_dir),
            "results": outcome.results,
            "dry_run": dry_run,
        }
        if dry_run:
            facts["recipe"] = resolved.as_json()
        else:
            facts["report"] = str(outcome.report) if outcome.report else None
            facts |= kept_isolation(outcome.run_dir) | further(outcome.run_dir)
        say_json(json.dumps(facts, indent=2))
    elif dry_run:
        say(f"dry run: everything checks out; {method.untouched}")
    else:
        if show is not None:
            show(outcome.run_dir)
        results = {} if show is not None else outcome.results
        result_table(results, method.paths(outcome.run_dir))


def run(resolved: Resolved, screen: Any, *, dry_run: bool = False, **options: Any) -> Any:
    """Let the method do it, with its events on the screen; when it is stopped, say what was kept
    and how to continue."""
    method = method_of(resolved.recipe.method)
    folder = Path(resolved.recipe.output_dir)
    told = resumable(method.continues, lambda: kept_in_run(folder))
    with nullcontext() if dry_run else told:
        work = function_of(method.run)
        return work(resolved, on_event=screen.on_event, dry_run=dry_run, **options)
