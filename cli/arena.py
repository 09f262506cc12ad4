"""`aligner arena`: ratings of models from battles, with intervals, whether their judges can be
trusted, and how ratings follow a reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aligner.methods.catalogue import METHODS

from . import arena_testset
from .arena_battle import NAME as BATTLES
from .arena_battle import BattleCommand, battle
from .arena_diagnose import diagnose
from .arena_select import select
from .arena_tables import show_leaderboard
from .arena_vote import vote
from .console import say, say_json
from .fast_commands import QuickCommand, QuickGroup
from .models import AsJson
from .output import Overwrite
from .recipe_command import ANY_KEY

if TYPE_CHECKING:
    from aligner.arena.covariates import Control
    from aligner.arena.rating import Settings
    from aligner.arena.votes import Votes

app = typer.Typer(
    cls=QuickGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Rate models from battles, check judges, collect votes.",
)
app.command(
    "battle", cls=BattleCommand, short_help=METHODS[BATTLES].about, context_settings=ANY_KEY
)(battle)
app.command("diagnose", cls=QuickCommand)(diagnose)
app.command("vote", cls=QuickCommand)(vote)
app.command("select", cls=QuickCommand)(select)
app.add_typer(arena_testset.app, name="testset")

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
    png: Annotated[
        bool,
        typer.Option("--png", help="With --output, also leaderboard.png; needs matplotlib."),
    ] = False,
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

    _check_output(output, overwrite, png)
    reading = Reading(form, merge, tie_margin, category or "category", baseline)
    read = read_votes(files, reading)
    if category is not None and read.categories == [""]:
        hint = "name one that the files have; in our logs of games and battles it is `category`"
        raise DataError(f"no row has the column {category}", hint)
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

        record["wrote"] = [str(path) for path in write(record, output, png=png)]
    if as_json:
        from aligner.runs.files import dumps

        say_json(dumps(record, indent=2))
    else:
        show_leaderboard(record)


def _controls(names: list[str]) -> tuple[Control, ...]:
    from aligner.arena.covariates import CONTROLS
    from aligner.errors import UsageError

    unknown = [name for name in names if name not in CONTROLS]
    if unknown:
        raise UsageError(f"--control {unknown[0]} is not known", f"give {', '.join(CONTROLS)}")
    return tuple(name for name in CONTROLS if name in names)


def _check_output(output: Path | None, overwrite: bool, png: bool) -> None:
    """Say what is in the way before anything is read."""
    from aligner.arena.leaderboard import FILES, PNG
    from aligner.arena.png import refuse_without_matplotlib
    from aligner.errors import UsageError
    from aligner.runs.places import refuse_unusable

    if output is None:
        if overwrite:
            raise UsageError("--overwrite is about an output, and there is none", "add --output")
        if png:
            raise UsageError("--png is about an output, and there is none", "add --output DIR")
        return
    if png:
        refuse_without_matplotlib()
    refuse_unusable(output, "--output")
    there = [name for name in (*FILES, PNG) if (output / name).exists()]
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
