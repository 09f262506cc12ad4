"""`aligner plan RECIPE`: what a recipe will do, before it does it."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .any_recipe import resolve_any
from .console import say, say_json
from .models import AsJson

if TYPE_CHECKING:
    from aligner.config.load import Resolved
    from aligner.memory.changes import Change
    from aligner.methods.plan_memory import MemoryPlan
    from aligner.methods.planning import OtherPlan, StepCounts, TrainingPlan
    from aligner.tokenization.length_report import AtLength, LengthReport

BAR = 40
"""Characters of the longest bar of a histogram."""

PLAIN = re.compile(r"[\w@%+=:,./{}-]+")
"""A setting that a shell takes as it stands."""

Lines = Iterable[tuple[str, str, str]]


def plan(
    context: typer.Context,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="MEMORY", help="Say whether it fits in a GPU with 24GB."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every value with its origin, defaults too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a run will do, before it does it.

    Values with their origins, rows, lengths, steps, memory, the launch line: all is checked and
    counted as the run itself would, and nothing is trained or written. The exit code is 3 where the
    training would refuse rows, and with --gpu it is 6 where it does not fit.

    Example: aligner plan recipe.yaml data.max_length=1024 --gpu 24GB
    """
    from aligner.errors import UsageError

    if not context.args or context.args[0].startswith("-") or "=" in context.args[0]:
        raise UsageError("a plan is made of a recipe, and none is named", "aligner plan RECIPE")
    from aligner.memory.estimate import parse_memory

    limit = None if gpu is None else parse_memory(gpu)
    ref, *settings = context.args
    resolved, notes = resolve_any(ref, settings)

    def again(overrides: Sequence[str]) -> Resolved:
        return resolve_any(ref, [*settings, *overrides])[0]

    from aligner.methods.planning import plan_other, plan_training
    from aligner.methods.steps import has_steps

    from .render import Screen

    with Screen(silent=as_json) as screen:
        for note in notes:
            screen.line(note)
        if not has_steps(resolved.recipe.method):
            other = plan_other(resolved, screen.on_event, limit=limit, again=again)
            _show_other(resolved, other, every=every, as_json=as_json)
            _raise_unless_all_fit(other.trainings)
            return
        found = plan_training(resolved, context.args, screen.on_event, limit=limit, again=again)
    if as_json:
        from aligner.runs.files import dumps

        say_json(dumps(_facts(resolved, found), indent=2))
    else:
        _show(resolved, found, every=every)
    if found.refused is not None:
        raise found.refused
    _raise_unless_all_fit([("training", found.memory)])


def _raise_unless_all_fit(trainings: Sequence[tuple[str, MemoryPlan]]) -> None:
    """Raise: GateError where a training does not fit, with the cheapest change of each."""
    from aligner.errors import GateError

    too_large = [(name, memory) for name, memory in trainings if memory.fits is False]
    if not too_large:
        return
    name, memory = max(too_large, key=lambda one: one[1].estimate.peak_bytes)
    assert memory.limit is not None, "there is a limit that it does not fit in"
    assert memory.usable is not None, "which leaves some of it"
    cheapest: list[str] = []
    for _, one in too_large:
        first = one.changes[0].overrides if one.changes else ()
        cheapest += [setting for setting in first if setting not in cheapest]
    hint = "a smaller model, shorter rows, or more devices that share it"
    if all(one.changes for _, one in too_large):
        hint = f"the cheapest change is {_typed(cheapest)}"
    raise GateError(
        f"the {name} takes about {_size(memory.estimate.peak_bytes)}, and can use "
        f"{_size(memory.usable)} of a GPU with {_size(memory.limit)}",
        hint,
    )


def _typed(settings: Sequence[str]) -> str:
    """Settings as they are typed in a shell."""
    return " ".join(one if PLAIN.fullmatch(one) else shlex.quote(one) for one in settings)


# --- JSON -----------------------------------------------------------------------------------------


def _facts(resolved: Resolved, found: TrainingPlan) -> dict[str, Any]:
    refused = found.refused
    return {
        **resolved.as_json(),
        "data": found.books,
        "lengths": asdict(found.lengths),
        "training": asdict(found.counts),
        "memory": _memory_facts(found.memory),
        "facts": _as_records(found.decided),
        "advice": [asdict(one) for one in found.advice],
        "launch": asdict(found.launch),
        "output": found.output,
        "refused": None if refused is None else refused.message,
    }


def _memory_facts(memory: MemoryPlan) -> dict[str, Any]:
    estimate = memory.estimate
    phases = {name: list(map(asdict, parts)) for name, parts in estimate.phases.items()}
    changes = list(map(_as_change, memory.changes))
    return {
        "peak_bytes": estimate.peak_bytes,
        "phase": estimate.phase,
        "phases": phases,
        "notes": list(estimate.notes),
        "limit_bytes": memory.limit,
        "usable_bytes": memory.usable,
        "fits": memory.fits,
        "changes": changes,
        "least": None if memory.least is None else _as_change(memory.least),
    }


def _as_change(one: Change) -> dict[str, Any]:
    peak = one.estimate.peak_bytes
    return {"overrides": list(one.overrides), "price": one.price, "peak_bytes": peak}


def _as_records(rows: Lines) -> list[dict[str, str]]:
    return [{"what": what, "value": value, "why": why} for what, value, why in rows]


# --- the screen -----------------------------------------------------------------------------------


def _head(title: str) -> None:
    say()
    say(title, bold=sys.stdout.isatty() or None)


def _rows(rows: Sequence[tuple[str, str, str]], *, indent: str = "  ") -> None:
    """Rows of what, value, and where it comes from, which is dim on a terminal."""
    width = max((len(what) for what, *_ in rows), default=0)
    middle = min(60, max((len(value) for _, value, why in rows if why), default=0))
    for what, value, why in rows:
        text = f"{indent}{what.ljust(width)}  {value.ljust(middle) if why else value}"
        say(text, after=why, is_dim=sys.stdout.isatty())


def _show(resolved: Resolved, found: TrainingPlan, *, every: bool) -> None:
    _show_recipe(resolved, every=every)
    _head("data")
    _rows([(what, value, "") for what, value in found.table])
    _head("lengths")
    _show_lengths(found.lengths)
    _head("training")
    _rows([*_steps(found.counts), *found.decided])
    _head("memory of a device")
    _show_memory(found.memory)
    _head("start")
    say(f"  {found.launch.line}")
    if found.launch.ranks is not None:
        say(f"  which runs: {found.launch.ranks}")
    if found.launch.problem:
        say(f"  not on this machine: {found.launch.problem}")
    if found.output:
        say(f"  {found.output}")
    if found.advice:
        _head("worth a look")
        _rows([(one.setting, one.why, "") for one in found.advice])


def _show_recipe(resolved: Resolved, *, every: bool) -> None:
    from .summary import all_rows, headline, summary_rows

    rows = [*headline(resolved), *all_rows(resolved)] if every else summary_rows(resolved)
    _rows(rows, indent="")


def _show_lengths(report: LengthReport) -> None:
    """Quantiles, a histogram, and what other longest lengths would do."""
    from aligner.data.ledger import told_lengths

    told = told_lengths(report.quantiles)
    say(f"  {report.rows:,} rows, {report.tokens:,} tokens before anything is cut: {told}")
    largest = max(one.rows for one in report.bins)
    ranges = [f"{one.low:,} to {one.high:,}" for one in report.bins]
    counts = [f"{one.rows:,}" for one in report.bins]
    widths = [max(map(len, column)) for column in (ranges, counts)]
    for name, one, count in zip(ranges, report.bins, counts):
        bar = "#" * max(one.rows > 0, round(BAR * one.rows / largest))
        say(f"  {name.rjust(widths[0])}  {count.rjust(widths[1])}  {bar}")
    say()
    _show_settings(report.settings)


def _show_settings(settings: Sequence[AtLength]) -> None:
    """A line for each longest length, the recipe's first."""
    from .render import columns

    packs = settings[0].packed is not None
    head = ("  max_length", "longer", "lost if cut", "if dropped", "padding", "grouped")
    rows = []
    for number, one in enumerate(settings):
        shares = [f"{share:.1%}" for share in (one.lost, one.dropped, one.padding, one.grouped)]
        cells = [f"  {one.max_length:,}{' (now)' if number == 0 else ''}", f"{one.longer:,} rows"]
        packed = [] if one.packed is None else [f"{one.packed:.1%} full"]
        rows.append([*cells, *shares, *packed])
    columns((*head, *(["packed"] if packs else [])), rows)


def _steps(counts: StepCounts) -> Lines:
    yield (
        "rows a step",
        f"{counts.rows_a_step:,}",
        f"{counts.per_device} per device x {counts.accumulation} accumulated x "
        f"{counts.processes} process{'es' if counts.processes > 1 else ''}",
    )
    yield "sequences", f"{counts.sequences:,}", ""
    yield "steps", f"{counts.steps:,}", f"{counts.steps_an_epoch:,} an epoch"
    a_step = counts.tokens / max(1, counts.steps_an_epoch)
    share = counts.trained_tokens / max(1, counts.tokens)
    yield "tokens an epoch", f"{counts.tokens:,}", f"about {a_step:,.0f} a step, without padding"
    if counts.trained_tokens:
        yield "trained tokens", f"{counts.trained_tokens:,}", f"{share:.0%} of them"
    if counts.responses:
        sampled = counts.rows_a_step * counts.responses
        most = sampled * counts.response_tokens
        yield "responses a step", f"{sampled:,}", f"up to {most:,} tokens"


def _show_memory(memory: MemoryPlan) -> None:
    """What is there at the peak, the peaks of other phases, and whether it fits."""
    estimate = memory.estimate
    peak = estimate.peak_bytes
    rows = [(part.name, _size(part.bytes, peak), part.how) for part in estimate.parts]
    rows.append(("together", _size(peak, peak), f"at the peak: {estimate.phase}"))
    for name, parts in estimate.phases.items():
        if name != estimate.phase:
            size = _size(sum(part.bytes for part in parts), peak)
            rows.append((f"phase: {name}", size, "at its own peak"))
    _rows(rows)
    for note in estimate.notes:
        say(f"  {note}")
    if memory.limit is None or memory.usable is None:
        return
    can = f"{_size(memory.limit)}, of which a training can use about {_size(memory.usable)}"
    say(f"  {'fits' if memory.fits else 'does not fit'} in {can}")
    if memory.changes:
        say("  it fits with")
    for one in memory.changes:
        say(f"    {_typed(one.overrides)}")
        say(f"      {_size(one.estimate.peak_bytes)}: {one.price}")
    if not memory.fits and not memory.changes:
        say(f"  {_why_none(memory)}")


def _why_none(memory: MemoryPlan) -> str:
    """Why no change makes a training fit: what is left, and most of it, after all there are."""
    if memory.least is None:
        return "no key of the recipe makes it smaller"
    left, parts = memory.least.estimate, memory.least.estimate.parts
    most = max(parts, key=lambda part: part.bytes)
    return (
        f"no change of the recipe makes it fit: with {_typed(memory.least.overrides)} it still "
        f"takes {_size(left.peak_bytes)}, of which {most.name} {_size(most.bytes)} ({most.how})"
    )


def _size(count: int, like: int = 2**30) -> str:
    """Bytes in GiB, as memory is sold; in MiB where it is a part of less than one."""
    return f"{count / 2**30:.2f} GiB" if like >= 2**30 else f"{count / 2**20:.1f} MiB"


def _show_other(resolved: Resolved, found: OtherPlan, *, every: bool, as_json: bool) -> None:
    from .render import columns

    estimate = found.estimate
    if as_json:
        from aligner.runs.files import dumps

        facts = {"data": [list(line) for line in found.table], "plan": _as_records(found.rows)}
        facts |= {"notes": found.notes, "output": found.output}
        facts |= {
            "trainings": [
                {"name": name, "memory": _memory_facts(memory)} for name, memory in found.trainings
            ]
        }
        facts |= {"estimate": None if estimate is None else estimate.facts}
        say_json(dumps({**resolved.as_json(), **facts}, indent=2))
        return
    _show_recipe(resolved, every=every)
    for note in found.notes:
        say(note)
    if found.table:
        _head("data")
        _rows([(what, value, "") for what, value in found.table])
    _head("plan")
    _rows(found.rows)
    for name, memory in found.trainings:
        _head(f"memory of a device: {name}")
        _show_memory(memory)
    if estimate is not None:
        _head("requests")
        columns(estimate.columns, estimate.rows)
        say(estimate.remark)
    if found.output:
        say()
        say(found.output)
