"""`aligner generate MODEL` and `aligner eval MODEL`: use a model, and measure one."""

from __future__ import annotations

import typer


def generate() -> None:
    """Answer prompts with a model, in batches."""
    raise typer.Exit(2)


def evaluate() -> None:
    """Measure a model: loss, answers, preferences."""
    raise typer.Exit(2)
