"""`aligner arena diagnose`: whether the judge of a log of games can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .console import say, say_json
from .models import AsJson

Form = Literal["auto", "games", "arena", "arena_hard"]
Record = dict[str, Any]


def diagnose(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES...", help="Games, or votes with their order.")
    ],
    form: Annotated[Form, typer.Option("--form", help="What the files hold.")] = "auto",
    tie_margin: Annotated[
        float, typer.Option("--tie-margin", min=0, help="Scores so close are a tie.")
    ] = 0.0,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="MODEL", help="Whom Arena-Hard's rows compare with."),
    ] = None,
    family: Annotated[
        list[str] | None,
        typer.Option(
            "--family",
            metavar="NAME=FAMILY",
            help="The family of a judge or model; otherwise its name up to / or -. Repeatable.",
        ),
    ] = None,
    max_flip_rate: Annotated[
        float, typer.Option("--max-flip-rate", min=0, max=1, help="Verdicts that the order turns.")
    ] = 0.4,
    max_parse_failures: Annotated[
        float, typer.Option("--max-parse-failures", min=0, max=1, help="Replies not readable.")
    ] = 0.05,
    max_seat_share: Annotated[
        float, typer.Option("--max-seat-share", min=0.5, max=1, help="What one seat wins.")
    ] = 0.6,
    max_length_lead: Annotated[
        float,
        typer.Option(
            "--max-length-lead", min=0, max=1, help="What longer answers win beyond records."
        ),
    ] = 0.1,
    max_self_preference: Annotated[
        float,
        typer.Option(
            "--max-self-preference", min=0, max=1, help="What its family wins beyond other judges."
        ),
    ] = 0.1,
    resamples: Annotated[
        int, typer.Option("--resamples", min=0, help="For the intervals; 0 for none.")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which resamples.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Say whether a judge can be trusted: order, length, family, failures, agreement.

    Reads our logs of games, rows with model_a (seen first), model_b and winner, and judgments of
    Arena-Hard. Exit code 3 where a judge fails a limit.
    """
    from aligner.arena.diagnosis import Limits, Settings
    from aligner.arena.diagnosis import diagnose as diagnosis
    from aligner.arena.judgments import judgments_of
    from aligner.arena.readers import Reading, read_games

    limits = Limits(
        max_flip_rate, max_parse_failures, max_seat_share, max_length_lead, max_self_preference
    )
    how = Settings(limits, _families(family or []), resamples, seed)
    games, notes = read_games(files, Reading(form, tie_margin=tie_margin, baseline=baseline))
    record = {"files": [str(file) for file in files], "notes": notes}
    record |= diagnosis(judgments_of(games, tie_margin), how)
    if as_json:
        from aligner.runs.files import dumps

        say_json(dumps(record, indent=2))
    else:
        _show(record)
    _fail(record)


def _families(given: list[str]) -> dict[str, str]:
    from aligner.errors import UsageError

    found = {}
    for text in given:
        name, equals, family = text.rpartition("=")
        if not (name and equals and family):
            raise UsageError(f"--family {text} is no NAME=FAMILY", "write gpt-4=openai, say")
        found[name] = family
    return found


def _fail(record: Record) -> None:
    from aligner.errors import DataError, Problem

    problems = []
    for judge, row in record["judges"].items():
        problems += [Problem(text, judge) for text in row["failed"]]
    if problems:
        failed = sum(bool(row["failed"]) for row in record["judges"].values())
        count = "1 judge fails" if failed == 1 else f"{failed} judges fail"
        raise DataError(count, "use another judge or prompt, or move the limits", problems)


NAMES = {
    "flip_rate": "verdict changes with the order",
    "reversed": "the other model wins then",
    "first_seat": "first seat wins, of decisive games",
    "score_shift": "score higher for being first",
    "longer_wins": "longer answer wins",
    "length_lead": "of that beyond the models' records",
    "self_preference": "own family wins beyond other judges",
    "repeat_agreement": "same verdict when judged twice",
}


def _show(record: Record) -> None:
    """A table for each judge, and one of their agreement; remarks on stderr."""
    from .render import columns

    for text in record["notes"]:
        say(f"warning: {text}", err=True)
    for judge, row in record["judges"].items():
        own = record["families"][judge]
        given = "--family" if own["from"] == "option" else "its name"
        columns(
            (f"{judge}, of family {own['family']} (from {given})", "value", "95% interval", ""),
            _rows(row),
        )
        _show_failures(row["parse_failures"])
        _show_fit(row)
        for text in row["findings"]:
            say(f"{judge} {text}")
        if row["is_contestant"]:
            say(f"warning: {judge} is also one of the models that it judges", err=True)
        say()
    _show_agreement(record)


def _rows(row: Record) -> list[tuple[str, ...]]:
    lines = []
    for name, words in NAMES.items():
        if name in row["missing"]:
            lines.append((words, "-", "-", row["missing"][name]))
            continue
        ends = "-"
        if row[name]["low"] is not None:
            ends = " to ".join(_figure(name, row[name][end]) for end in ("low", "high"))
        cases = f"of {row['cases'][name]:,}"
        lines.append((words, _figure(name, row[name]["value"]), ends, cases))
    failures = row["parse_failures"]
    of = f"{failures['failed']:,} of {row['games']:,}"
    return [*lines, ("replies that could not be read", f"{failures['share']:.1%}", "-", of)]


def _figure(name: str, value: float) -> str:
    return f"{value:+.2f}" if name == "score_shift" else f"{value:.1%}"


def _show_failures(failures: Record) -> None:
    """By model and seat, where there are any."""
    from .render import columns

    if not failures["failed"]:
        return
    lines = []
    for model, seats in failures["by_model"].items():
        texts = (f"{seat['failed']:,} of {seat['games']:,}" for seat in seats.values())
        lines.append((model, *texts))
    say()
    columns(("replies that could not be read", "seen first", "seen second"), lines)


def _show_fit(row: Record) -> None:
    say()
    missing, found, fit = row["missing"], row["cycles"], row["fit"]
    if found is None:
        say(f"cycles: {missing['cycles']}")
    else:
        say(
            f"cycles: {found['count']:,} of three models, of {found['significant_edges']:,} "
            f"significant pairs of {found['edges']:,}"
        )
        for names in found["first"]:
            say(f"  {' > '.join([*names, names[0]])}")
    if fit is None:
        say(f"fit of Bradley-Terry: {missing['fit']}")
        return
    worst = fit["pairs"][0]
    say(
        f"fit of Bradley-Terry: {fit['mean_gap']:.1%} between observed and predicted shares on "
        f"average, {fit['misfit']:,} of {len(fit['pairs']):,} pairs misfit; at most "
        f"{' against '.join(worst['models'])}: {worst['observed']:.1%} for {worst['predicted']:.1%}"
    )


def _show_agreement(record: Record) -> None:
    from .render import columns

    found = record["agreement"]
    if found is None:
        say(f"agreement between judges: {record['missing']['agreement']}")
        return
    lines = []
    for row in found["pairs"]:
        kappa = "-" if row["kappa"] is None else f"{row['kappa']:.3f}"
        lines.append(
            (" and ".join(row["judges"]), f"{row['same']:.1%}", kappa, f"{row['battles']:,}")
        )
    columns(("judges", "same verdict", "kappa", "battles"), lines)
    alpha = found["alpha"]
    text = "not defined: all verdicts are the same" if alpha is None else f"{alpha:.3f}"
    say(f"Krippendorff's alpha: {text}")
