"""`aligner toy DIR`: write the offline world, a model and its data in which alignment can be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def toy(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write: model, data, recipes.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed makes another world.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing toy world.")] = False,
) -> None:
    """Write a small world to practise in: model, data, recipes.

    Offline and on CPU, in about a minute.
    """
    write(directory, seed=seed, overwrite=overwrite)
    typer.echo(f"wrote {directory}: model/, data and recipes/")
    typer.echo(f"next: cd {directory} && aligner sft recipes/sft.yaml && aligner dpo recipes/dpo.yaml")


def write(directory: Path, *, seed: int, overwrite: bool) -> None:
    """Write the world with progress; an existing directory is refused unless it is a world and `overwrite` is given."""
    _make_room(directory, overwrite)
    from aligner.toy import write_world

    from .render import Screen

    with Screen() as screen:
        write_world(directory, seed=seed, on_progress=screen.share("writing the toy world"))


def _make_room(directory: Path, overwrite: bool) -> None:
    from aligner.errors import UsageError

    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not overwrite:
        raise UsageError(f"{directory} exists", "choose another folder, or give --overwrite to replace a toy world")
    if not (directory / "manifest.json").is_file() or not (directory / "preferences.jsonl").is_file():
        raise UsageError(f"{directory} is not a toy world, so it is not replaced", "choose another folder")
    import shutil

    shutil.rmtree(directory)
