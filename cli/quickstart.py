"""`aligner quickstart`: the whole path once, offline and on CPU: toy world, SFT, DPO, and what each of them changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer


def quickstart(
    directory: Annotated[Path, typer.Option("--dir", help="Folder to work in.")] = Path("toy"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier quickstart.")] = False,
) -> None:
    """See it work: a tiny model, SFT, DPO, before and after.

    Offline and on CPU, in about three minutes.
    """
    from . import toy

    toy.write(directory, seed=0, overwrite=overwrite)
    with _working_in(directory):
        _train("sft")
        outcome = _train("dpo")
        scores = _measure(outcome.run_dir)
    _show(scores, directory / outcome.run_dir / "report.html")


def _train(method: str) -> Any:
    from .render import Screen
    from .summary import summary_rows
    from .train import resolve, run

    resolved, *_ = resolve(method, [f"recipes/{method}.yaml"])
    with Screen() as screen:
        screen.summary(summary_rows(resolved)[:6])
        return run(resolved, screen)


def _measure(run_dir: Path) -> dict[str, dict[str, float]]:
    """Gold score of the base and of both trained models, on the held-out prompts; written into the DPO run."""
    raise NotImplementedError


def _show(scores: dict[str, dict[str, float]], report: Path) -> None:
    from .render import columns, number

    rows = [(name, number(s["gold_score"]), f"+/- {number(s['standard_error'])}", s["n"]) for name, s in scores.items()]
    typer.echo("")
    columns(("model", "gold score", "standard error", "prompts"), rows)
    typer.echo(f"\nreport: {report}")


@contextmanager
def _working_in(directory: Path) -> Iterator[None]:
    """Relative paths of a recipe are taken from the working directory, so work there for a while."""
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)
