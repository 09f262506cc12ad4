"""`aligner doctor`: what this machine can do."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from .console import say, say_json

MARKS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this machine can do, and what not and why."""
    from aligner.doctor.checks import examine

    checks = examine()
    if as_json:
        say_json(json.dumps([asdict(check) for check in checks], indent=2))
        return
    width = max(len(check.name) for check in checks)
    for check in checks:
        say(f"{MARKS[check.status]:<7}  {check.name.ljust(width)}  {check.detail}")
        if check.cure:
            say(f"{'':<7}  {'':<{width}}  -> {check.cure}")
    problems = sum(check.status == "problem" for check in checks)
    say()
    say(f"{problems or 'no'} problem{'' if problems == 1 else 's'}")
