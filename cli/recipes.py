"""`aligner recipes`: the recipes that ship with the package, to be read and copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .console import say, say_content, say_json
from .fast_commands import QuickCommand, QuickGroup

app = typer.Typer(
    cls=QuickGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="List, show and copy the shipped recipes.",
)


@app.command("list", cls=QuickCommand)
def list_recipes(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the shipped recipes."""
    from aligner.config.shipped import shipped_recipes

    from .render import columns

    recipes = shipped_recipes()
    if as_json:
        say_json(
            json.dumps(
                [
                    {"name": item.name, "method": item.method, "summary": item.summary}
                    for item in recipes
                ]
            )
        )
        return
    columns(("recipe", "what it is"), [(item.name, item.summary) for item in recipes])
    say()
    say("aligner recipes show NAME prints one; aligner recipes copy NAME makes it yours.")


@app.command("show", cls=QuickCommand)
def show(name: Annotated[str, typer.Argument(help="Name of a shipped recipe: tiny/dpo.")]) -> None:
    """Print a recipe with its comments."""
    from aligner.config.shipped import recipe_text

    say_content(recipe_text(name).rstrip("\n"))


@app.command("copy", cls=QuickCommand)
def copy(
    name: Annotated[str, typer.Argument(help="Name of a shipped recipe.")],
    destination: Annotated[
        Path | None, typer.Argument(help="File or folder. Default: here, under its name.")
    ] = None,
) -> None:
    """Copy a recipe to a file of yours."""
    from aligner.config.shipped import recipe_text
    from aligner.errors import UsageError
    from aligner.runs.places import refuse_unusable

    text = recipe_text(name)
    filename = f"{Path(name).name.removesuffix('.yaml')}.yaml"
    path = destination or Path(filename)
    refuse_unusable(path, "DESTINATION")
    if path.is_dir():
        path = path / filename
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(
            f"{path} exists", "name another destination, or remove the file first"
        ) from error
    say(f"wrote {path}")
