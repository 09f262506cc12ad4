"""`aligner doctor`: what this machine can do, and whether it computes what it should."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import say, say_json

if TYPE_CHECKING:
    from aligner.doctor.numerics import Measured

MARKS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


def doctor(
    numerics: Annotated[
        bool,
        typer.Option("--numerics", help="Prove the arithmetic alone, with short trainings too."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine can do, and what not and why.

    With --numerics, its arithmetic is proved in less than a minute, each claim with its number:
    packed rows, shared prompts, accumulation, the stop token, the reference, 4 and 8 bits, resuming
    and merging. Exit code 6 where one does not hold.

    Example: aligner doctor --numerics
    """
    if numerics:
        _prove(as_json)
        return
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


def _prove(as_json: bool) -> None:
    from aligner.doctor.checks import CURE_OF_NUMERICS
    from aligner.doctor.proofs import prove
    from aligner.errors import GateError
    from aligner.launch.devices import best_device

    device = best_device()
    found = []
    for one in prove(device):
        found.append(one)
        if not as_json:
            say(_line(one))
    if as_json:
        record = {"device": device, "tests": [_record(one) for one in found]}
        say_json(json.dumps(record, indent=2))
    else:
        seconds = sum(one.seconds for one in found)
        say()
        say(f"{len(found)} self-tests on {device} in {seconds:.0f} s")
    failed = [one.name for one in found if not one.holds]
    if failed:
        raise GateError(f"{', '.join(failed)}: the numbers here are wrong", CURE_OF_NUMERICS)


def _line(one: Measured) -> str:
    mark = "ok" if one.holds else "PROBLEM"
    numbers = f"{one.difference:.1e} of {one.tolerance:.0e}"
    said = f"{one.claim}: {one.error}" if one.error else one.claim
    return f"{mark:<7}  {one.name:<13}  {numbers:<16}  {one.seconds:4.1f} s  {said}"


def _record(one: Measured) -> dict[str, Any]:
    """What was found, as JSON holds it: the difference is null where a test could not be carried
    out."""
    difference = None if one.error else one.difference
    return {**asdict(one), "difference": difference, "holds": one.holds}
