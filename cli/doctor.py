"""`aligner doctor`: what this machine can do."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this machine can do, and what not and why."""
    from aligner.doctor import examine

    from .render import columns

    checks = examine()
    if as_json:
        typer.echo(json.dumps([{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks], indent=2))
        return
    columns(("check", "", "what was found"), [(c.name, "yes" if c.ok else "no", c.detail) for c in checks])
