"""`aligner doctor`: what this machine can do."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

MARKS = {"ok": "ok", "note": "-", "problem": "NO"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this machine can do, and what not and why."""
    from aligner.doctor import examine

    from .render import columns

    checks = examine()
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
        return
    columns(("check", "", "what was found"), [(c.name, MARKS[c.status], c.detail) for c in checks])
    for check in checks:
        if check.cure:
            typer.echo(f"{check.name}: {check.cure}")
