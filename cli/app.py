"""The `aligner` command: its root options and the table of its commands.

Help is plain text on purpose: Rich's help doubles the time to the first line and breaks on pipes in
legacy encodings. Nothing imported here may load torch, transformers, trl, datasets or pyarrow; a
test holds that.
"""

from __future__ import annotations

import os
from typing import Annotated, ClassVar

import typer

from aligner.methods.catalogue import METHODS

from . import (
    arena,
    chat,
    data,
    doctor,
    evaluate,
    export,
    generate,
    launch,
    merge,
    plan,
    push,
    quickstart,
    recipes,
    runs,
    score,
    toy,
)
from .console import guard_libraries, say
from .endings import stop_at_once
from .environment import make_streams_safe, set_environment, silence_warnings
from .errors import Boundary
from .fast_commands import QuickCommand
from .recipe_command import ANY_KEY, add_commands


def _of_group(group: str) -> tuple[str, ...]:
    """The commands of a group of the catalogue; a sub-command stands below its first word."""
    names = (entry.command or name for name, entry in METHODS.items() if entry.group == group)
    return tuple(dict.fromkeys(name.split()[0] for name in names))


class Root(Boundary):
    """The headings of `aligner --help`; every command stands under one of them."""

    sections: ClassVar[dict[str, tuple[str, ...]]] = {
        "Start here": ("quickstart", "toy", "recipes", "plan", "launch", "doctor"),
        "Build data": _of_group("Build data"),
        "Train": _of_group("Train"),
        "Search": _of_group("Search"),
        "Use and measure": ("generate", "chat", "eval", "score", "arena", "runs"),
        "Take away": ("merge", "export", "push"),
    }


app = typer.Typer(
    name="aligner",
    cls=Root,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        from aligner import __version__

        say(f"aligner {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and every warning.")
    ] = False,
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Post-training and alignment of open language models, from YAML recipes.

    A first look, offline and on CPU: aligner quickstart
    """
    set_environment()
    make_streams_safe()
    guard_libraries()
    if "WORLD_SIZE" in os.environ:  # started by accelerate or torchrun
        from aligner.launch.command import enter_rank

        enter_rank()
    if debug:
        context.meta["debug"] = True
    else:
        silence_warnings()


app.command("quickstart", cls=QuickCommand)(quickstart.quickstart)
app.command("toy", cls=QuickCommand)(toy.toy)
app.add_typer(recipes.app, name="recipes")
app.command("plan", cls=QuickCommand, context_settings=ANY_KEY)(plan.plan)
app.command("launch", cls=QuickCommand, context_settings=ANY_KEY)(launch.launch)
app.command("doctor", cls=QuickCommand)(doctor.doctor)
add_commands(app, "Train")
add_commands(app, "Build data")
app.add_typer(data.app, name="data")
add_commands(app, "Search")
app.command("generate", cls=QuickCommand)(generate.generate)
app.command("chat", cls=QuickCommand)(chat.chat)
app.command("eval", cls=QuickCommand)(evaluate.evaluate)
app.command("score", cls=QuickCommand)(score.score)
app.add_typer(arena.app, name="arena")
app.add_typer(runs.app, name="runs")
app.command("merge", cls=QuickCommand)(merge.merge)
app.command("export", cls=QuickCommand)(export.export)
app.command("push", cls=QuickCommand)(push.push)


def main() -> None:
    """Entry point of the `aligner` script and of `python -m aligner`."""
    try:
        app(prog_name="aligner")
    finally:
        stop_at_once()
