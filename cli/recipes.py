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
    help="List, show and copy shipped recipes, migrate those of other tools.",
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


@app.command("schema", cls=QuickCommand)
def schema(
    method: Annotated[
        str | None, typer.Argument(help="Of one method's recipes: sft, dpo, ... Default: of all.")
    ] = None,
) -> None:
    """Print the JSON Schema of a recipe, for editors.

    An editor that reads it completes keys, shows what they mean and marks mistakes. Name it in the
    first line of a recipe: # yaml-language-server: $schema=recipe.schema.json

    Example: aligner recipes schema > recipe.schema.json
    """
    from aligner.config.json_schema import recipe_schema

    say_content(json.dumps(recipe_schema(method), indent=2, ensure_ascii=False))


@app.command("migrate", cls=QuickCommand)
def migrate(
    file: Annotated[Path, typer.Argument(help="A recipe of another tool.")],
    tool: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="TOOL",
            help="alignment-handbook, trl, axolotl, llama-factory, torchtune, or auto: by keys.",
        ),
    ] = "auto",
    kind: Annotated[
        str,
        typer.Option(
            "--method", help="sft, dpo, orpo, simpo, reward or rlhf, where nothing tells."
        ),
    ] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: print it.")
    ] = None,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Write what has no counterpart as comments.")
    ] = False,
) -> None:
    """Make a recipe of another tool into one of ours.

    Comments at its top say what was renamed, what changed in meaning, which defaults differ and
    what is left out. A key without a counterpart is an error unless --lossy. The result can be
    loaded: look at it with --dry-run.

    Example: aligner recipes migrate old.yaml -o mine.yaml && aligner sft mine.yaml --dry-run
    """
    from aligner.config.migrate.migrate import migrate as make_ours
    from aligner.config.migrate.text import comments
    from aligner.methods.catalogue import command_of

    made = make_ours(file, tool=tool, kind=kind, lossy=lossy, output=output)
    if output is None:
        say_content(made.text.rstrip("\n"))
        return
    texts = {output: made.text} | {Path(name): text for name, text in made.files.items()}
    _write_new(texts)
    for path in texts:
        say(f"wrote {path}")
    for line in comments(made.notes):
        say(line)
    say()
    say(f"next: aligner {command_of(made.method)} {output} --dry-run")


def _write_new(texts: dict[Path, str]) -> None:
    """Write files that must not exist, all or none."""
    from aligner.errors import UsageError
    from aligner.runs.places import refuse_unusable

    for path in texts:
        refuse_unusable(path, "--output")
        if path.exists():
            raise UsageError(f"{path} exists", "name another output, or remove the file first")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
