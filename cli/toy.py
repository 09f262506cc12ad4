"""`aligner toy DIR`: write the offline world, a model and its data in which alignment can be
measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import say


def toy(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write: model, data, recipes.")
    ],
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Another seed makes another world.")
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier toy world.")
    ] = False,
) -> None:
    """Write a small world to practise in: model, data, recipes.

    Offline and on CPU, in about a minute.
    """
    write(directory, seed=seed, overwrite=overwrite)
    say(f"wrote {directory}: model/, data and recipes/")
    say(f"next: cd {directory} && aligner sft recipes/sft.yaml && aligner dpo recipes/dpo.yaml")


def write(directory: Path, *, seed: int, overwrite: bool) -> None:
    """Write the world, with progress."""
    from aligner.toy.world import write_world

    from .render import Screen

    with Screen() as screen:
        write_world(
            directory,
            seed=seed,
            overwrite=overwrite,
            on_progress=screen.share("writing the toy world"),
        )
