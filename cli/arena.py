"""`aligner arena`: ratings of models from battles, with intervals, whether their judges can be
trusted, and how ratings follow a reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .arena_diagnose import diagnose
from .console import say, say_json
from .fast_commands import QuickCommand, QuickGroup
from .models import AsJson
from .output import Overwrite

if TYPE_CHECKING:
    from aligner.arena.covariates import Control
    from aligner.arena.rating import Settings
    from aligner.arena.votes import Votes

app = typer.Typer(
    cls=QuickGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Rate models from battles, check judges, compare ratings.",
)
app.command("diagnose", cls=QuickCommand)(diagnose)

Form = Literal["auto", "games", "battles", "arena", "alpaca_eval", "arena_hard"]
Merge = Literal["mean", "inconsistent_is_tie", "drop_inconsistent", "votes"]
Ties = Literal["half", "davidson", "rao_kupper"]
Unit = Literal["prompt", "battle", "game"]

Record = dict[str, Any]


@app.command("rate", cls=QuickCommand)
def rate(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES...", help="Games, battles or votes.")
    ],
    form: Annotated[Form, typer.Option("--form", help="What the files hold.")] = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write CSV, JSON, SVG and HTML here."),
    ] = None,
    anchor: Annotated[
        str | None,
        typer.Option("--anchor", metavar="MODEL", help="The model whose rating is fixed."),
    ] = None,
    anchor_rating: Annotated[
        float, typer.Option("--anchor-rating", help="The anchor's rating, or the mean of all.")
    ] = 1000.0,
    merge: Annotated[
        Merge, typer.Option("--merge", help="How the two orders of a battle become one.")
    ] = "mean",
    tie_margin: Annotated[
        float, typer.Option("--tie-margin", min=0, help="Scores so close are a tie.")
    ] = 0.0,
    ties: Annotated[Ties, typer.Option("--ties", help="What a tie is in the model.")] = "half",
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control", metavar="WHAT", help="Take seat, length or style out; repeatable."
        ),
    ] = None,
    length_rule: Annotated[
        float | None,
        typer.Option(
            "--length-rule", metavar="K", min=0, help="Slight wins so much longer are ties."
        ),
    ] = None,
    strong: Annotated[
        float, typer.Option("--strong", min=1, help="Weight of a verdict of much better.")
    ] = 1.0,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="MODEL", help="Report win rates against this model."),
    ] = None,
    category: Annotated[
        str | None,
        typer.Option("--category", metavar="COLUMN", help="Rate each value of this column, too."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="MODEL", help="Rate these alone; repeatable."),
    ] = None,
    resample: Annotated[
        Unit, typer.Option("--resample", help="What is drawn again for the intervals.")
    ] = "prompt",
    resamples: Annotated[
        int, typer.Option("--resamples", min=0, help="How often; 0 for no intervals.")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which resamples.")] = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Rate models from battles: Bradley-Terry, with intervals by prompt.

    Reads our logs of games and battles, rows with model_a, model_b and winner (JSON lines, CSV,
    Parquet), annotations of AlpacaEval and judgments of Arena-Hard.
    """
    from aligner.arena.rating import Settings
    from aligner.arena.readers import Reading, read_votes
    from aligner.errors import DataError

    _check_output(output, overwrite)
    reading = Reading(form, merge, tie_margin, category or "category", baseline)
    read = read_votes(files, reading)
    if category is not None and read.categories == [""]:
        raise DataError(f"no row has the column {category}", "name one that the files have")
    votes = _prepared(read, model, length_rule, strong)
    how = Settings(
        ties,
        _controls(control or []),
        resample,
        resamples,
        seed,
        anchor,
        anchor_rating,
    )
    record = {"files": [str(file) for file in files], "merge": merge}
    record |= _rated(votes, how, by_category=category is not None, baseline=baseline)
    if output is not None:
        from aligner.arena.leaderboard import write

        record["wrote"] = [str(path) for path in write(record, output)]
    if as_json:
        from aligner.runs.files import dumps

        say_json(dumps(record, indent=2))
    else:
        _show(record)


def _controls(names: list[str]) -> tuple[Control, ...]:
    from aligner.arena.covariates import CONTROLS
    from aligner.errors import UsageError

    unknown = [name for name in names if name not in CONTROLS]
    if unknown:
        raise UsageError(f"--control {unknown[0]} is not known", f"give {', '.join(CONTROLS)}")
    return tuple(name for name in CONTROLS if name in names)


def _check_output(output: Path | None, overwrite: bool) -> None:
    """Say what is in the way before anything is read."""
    from aligner.arena.leaderboard import FILES
    from aligner.errors import UsageError
    from aligner.runs.places import refuse_unusable

    if output is None:
        if overwrite:
            raise UsageError("--overwrite is about an output, and there is none", "add --output")
        return
    refuse_unusable(output, "--output")
    there = [name for name in FILES if (output / name).exists()]
    if there and not overwrite:
        raise UsageError(
            f"{output} holds {there[0]} already", "add --overwrite, or choose another folder"
        )


def _prepared(
    votes: Votes, models: list[str] | None, length_rule: float | None, strong: float
) -> Votes:
    """The votes that are rated."""
    from dataclasses import replace

    import numpy as np

    from aligner.arena.win_rates import with_length_rule
    from aligner.errors import UsageError

    if models:
        unknown = sorted(set(models) - set(votes.models))
        if unknown:
            raise UsageError(
                f"--model {unknown[0]} has no vote", f"models are {', '.join(votes.models)}"
            )
        votes = votes.among(models)
    if length_rule is not None:
        votes = with_length_rule(votes, length_rule)
    if strong != 1.0:
        if not (np.abs(votes.grade) >= 2.0).any():
            raise UsageError("--strong: no verdict says much better", "leave it out")
        weight = np.where(np.abs(votes.grade) >= 2.0, strong, 1.0)
        votes = replace(votes, weight=votes.weight * weight)
    return votes


def _rated(votes: Votes, how: Settings, *, by_category: bool, baseline: str | None) -> Record:
    """The leaderboard, and what was asked for beside it."""
    from dataclasses import replace

    from aligner.arena import rating, win_rates
    from aligner.arena.leaderboard import category_rows, leaderboard

    ratings = rating.rate(votes, how)
    plain = None
    if {"length", "style"} & set(how.controls):
        kept = tuple(name for name in how.controls if name == "seat")
        plain = rating.rate(votes, replace(how, controls=kept, resamples=0))
    record = leaderboard(votes, ratings, how, uncontrolled=plain)
    record["rewards"] = win_rates.rewards(votes)
    if by_category:
        record["categories"] = category_rows(rating.by_category(votes, how))
    if baseline is not None:
        record["against_baseline"] = win_rates.length_controlled(
            votes, baseline, how.resamples, how.seed
        )
    return record


def _show(record: Record) -> None:
    """Everything as tables on stdout, remarks on stderr."""
    from aligner.arena.leaderboard import interval_text, rating_text

    from .render import columns, number

    for text in _remarks(record):
        say(f"warning: {text}", err=True)
    is_controlled = any(row["uncontrolled"] is not None for row in record["models"])
    head = ("rank", "ranks", "model", "rating", "95% interval", "win rate", "W/T/L", "prompts")
    lines = []
    for row in record["models"]:
        ranks = "-" if row["rank_low"] is None else f"{row['rank_low']}-{row['rank_high']}"
        counts = "/".join(number(row[name]) for name in ("wins", "ties", "losses"))
        before = [f"{row['uncontrolled']:,.0f}"] if is_controlled else []
        length = "-" if row["mean_length"] is None else f"{row['mean_length']:,.0f}"
        figures = (rating_text(row), interval_text(row), f"{row['win_rate']:.1%}", counts)
        last = (f"{row['prompts']:,}", *before, length, "; ".join(row["flags"]))
        lines.append((row["rank"], ranks, row["model"], *figures, *last))
    beside = ("uncontrolled",) if is_controlled else ()
    columns((*head, *beside, "length", ""), lines)
    _show_more(record)
    for path in record.get("wrote", ()):
        say(f"wrote {path}")


def _remarks(record: Record) -> list[str]:
    found = [*record["notes"]]
    found += [f"{count:,} {what}: left out" for what, count in record["left_out"].items()]
    if record["unstable_resamples"]:
        found.append(
            f"in {record['unstable_resamples']:,} of {record['settings']['resamples']:,} resamples "
            "some model never lost, or never won; those were fitted with a small prior"
        )
    for name, row in (record.get("against_baseline") or {}).items():
        if row["is_far"]:
            found.append(
                f"{name}: taking length out moved its win rate from {row['raw']:.1f}% to "
                f"{row['controlled']:.1f}%; look at its answers"
            )
    return found


def _show_more(record: Record) -> None:
    """Coefficients, what is against the baseline, rewards and categories, each as a table."""
    from .render import columns

    tables: list[tuple[tuple[str, ...], list[tuple[str, ...]]]] = []
    if record["coefficients"]:
        rows: list[tuple[str, ...]] = [
            (name, f"{row['value']:.3f}", _ends(row, 3))
            for name, row in record["coefficients"].items()
        ]
        tables.append((("coefficient (logits)", "value", "95% interval"), rows))
    if record.get("against_baseline"):
        rows = [
            (name, f"{row['raw']:.1f}%", f"{row['controlled']:.1f}%", _ends(row, 1))
            for name, row in record["against_baseline"].items()
        ]
        columns_of = ("against the baseline", "win rate", "length-controlled", "95% interval")
        tables.append((columns_of, rows))
    if record["rewards"]:
        rows = [(name, f"{row['mean']:+.1f}") for name, row in record["rewards"].items()]
        tables.append((("reward, -100 to 100", "mean"), rows))
    for category, found in (record.get("categories") or {}).items():
        name = category or "no category"
        if "not_rated" in found:
            tables.append(((name,), [(f"not rated: {found['not_rated']}",)]))
            continue
        ordered = sorted(found.items(), key=lambda item: -item[1]["rating"])
        rows = [(model, f"{row['rating']:,.0f}", _ends(row, 0)) for model, row in ordered]
        tables.append(((name, "rating", "95% interval"), rows))
    for heading, lines in tables:
        say()
        columns(heading, lines)


def _ends(row: Record, digits: int) -> str:
    """The ends of an interval; `...` for one that does not exist."""
    if row["low"] is None and row["high"] is None:
        return "-"
    ends = ("..." if row[end] is None else f"{row[end]:,.{digits}f}" for end in ("low", "high"))
    return " to ".join(ends)


@app.command("consistency", cls=QuickCommand)
def consistency(
    ratings: Annotated[
        Path, typer.Argument(metavar="RATINGS", help="A leaderboard that rate wrote, or a table.")
    ],
    reference: Annotated[
        Path, typer.Option("--reference", help="Ratings with intervals to compare with.")
    ],
    as_json: AsJson = False,
) -> None:
    """Compare ratings with those of a reference arena.

    Both are tables with model, rating, low and high; of a leaderboard.json also a Brier score is
    computed.
    """
    from aligner.arena.consistency import consistency as compare
    from aligner.arena.consistency import read_table

    record = compare(read_table(ratings), read_table(reference))
    if as_json:
        from aligner.runs.files import dumps

        say_json(dumps(record, indent=2))
        return
    from .render import columns

    for where, names in (("the reference", "only_here"), ("the ratings", "only_in_reference")):
        if record[names]:
            say(f"warning: not in {where}: {', '.join(record[names])}", err=True)
    shown = []
    for name in ("spearman", "agreement", "differentiation", "average", "brier"):
        value = record[name]
        shown.append((name, "-" if value is None else f"{value:.4f}"))
    columns(("metric", "value"), shown)
    say()
    say(
        f"{record['models']:,} models, {record['pairs']:,} pairs: {record['separated_here']:,} "
        f"separated here, {record['separated_in_reference']:,} in the reference"
    )
