"""`aligner arena vote`: a person's votes on blind pairs of answers, on a local page or in a CSV
file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import say, say_json
from .endings import code_of, undisturbed
from .models import AsJson
from .output import Overwrite

if TYPE_CHECKING:
    from aligner.arena.voting.ballot import Ballot
    from aligner.arena.voting.plan import Plan

Record = dict[str, Any]


def vote(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILES...", help="Answers of models: FILE, NAME=FILE, or the run of a battle."
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FILE", help="Their prompts, where answers have only ids."),
    ] = None,
    category: Annotated[
        str | None,
        typer.Option("--category", metavar="COLUMN", help="Of the prompts; kept with each vote."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Who votes; otherwise the user of the system."),
    ] = None,
    log: Annotated[
        Path, typer.Option("--log", metavar="FILE", help="Votes are added to this log of games.")
    ] = Path("votes.jsonl"),
    pairs: Annotated[
        int | None,
        typer.Option("--pairs", metavar="N", min=1, help="At most so many pairs, drawn by chance."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Which pairs come when; the same for all people.")
    ] = 0,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Of the page; 0 for a free one.")
    ] = 0,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Print the address, and open no browser.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FILE", help="Write the pairs as CSV in place of a page."),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE", help="Take the verdicts of such a file."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Vote on pairs of answers without seeing which model wrote them.

    Opens a page on this machine that nobody else can reach, and adds each vote to a log of games,
    which rate and diagnose read. What was voted on before is not shown again.
    """
    from aligner.arena.voting.ballot import Ballot

    _check(log, export, import_, overwrite)
    plan, notes = _planned(files, data, category, name := name or _user(), pairs, seed)
    for text in notes:
        say(f"warning: {text}", err=True)
    ballot = Ballot(plan.sheets, name, log)
    if export is not None:
        record = _export(ballot, export)
    elif import_ is not None:
        record = _import(ballot, import_)
    else:
        record = _serve(ballot, port, no_open)
    record = {**_counts(ballot, plan), **record}
    if as_json:
        from aligner.runs.files import dumps

        say_json(dumps(record, indent=2))
    else:
        _show(record)
    if stop := record.get("exit_code"):
        raise typer.Exit(stop)


def _check(log: Path, export: Path | None, import_: Path | None, overwrite: bool) -> None:
    """Say what is in the way before anything is read."""
    from aligner.errors import UsageError
    from aligner.runs.places import refuse_unusable

    if export is not None and import_ is not None:
        raise UsageError("--export and --import are two things to do", "give one of them")
    if export is None:
        if overwrite:
            raise UsageError("--overwrite is about --export, which is not there", "leave it out")
        refuse_unusable(log, "--log")
        return
    refuse_unusable(export, "--export")
    if export.exists() and not overwrite:
        raise UsageError(f"{export} exists", "add --overwrite, or choose another name")


def _user() -> str:
    """The name of who runs the command."""
    import getpass

    from aligner.errors import UsageError

    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError) as error:
        raise UsageError("this system does not say who you are", "add --name") from error


def _planned(
    files: list[str],
    data: str | None,
    category: str | None,
    name: str,
    pairs: int | None,
    seed: int,
) -> tuple[Plan, list[str]]:
    """The sheets, and what is worth saying of the files."""
    from aligner.arena.voting.plan import make_plan
    from aligner.arena.voting.reading import read_answered
    from aligner.errors import UsageError

    found = read_answered(files, data, category)
    if len(found.answers) < 2:
        raise UsageError("one model's answers have nothing to meet", "give the files of two models")
    if name in found.answers:
        raise UsageError(f"--name {name} is one of the models", "choose another name")
    return make_plan(found, name=name, pairs=pairs, seed=seed), found.notes


def _export(ballot: Ballot, path: Path) -> Record:
    from aligner.arena.voting.spreadsheet import as_csv, too_long
    from aligner.runs.files import write_atomically

    sheets = [sheet for number, sheet in enumerate(ballot.sheets) if number not in ballot.cast]
    if cut := too_long(sheets):
        say(
            f"warning: {cut:,} rows hold more than a cell of Excel takes (32,767 characters); "
            "another program is needed for them",
            err=True,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, as_csv(sheets))
    return {"wrote": str(path), "rows": len(sheets)}


def _import(ballot: Ballot, path: Path) -> Record:
    from aligner.arena.voting.spreadsheet import read_votes

    read = read_votes(path, ballot)
    new = []
    for number, verdict in read.votes:
        if number not in ballot.cast or ballot.cast[number].verdict != verdict:
            new.append((number, verdict))
    ballot.write(new)
    return {"known": len(read.votes) - len(new), "without_verdict": read.empty}


def _serve(ballot: Ballot, port: int, no_open: bool) -> Record:
    """Serve the page until the person has had enough."""
    from aligner.arena.voting.server import VoteServer

    ballot.log.parent.mkdir(parents=True, exist_ok=True)
    stop: KeyboardInterrupt | None = None
    with VoteServer(ballot, port) as server:
        try:
            say(f"vote at {server.url}", err=True)
            say("Ctrl-C, or a button of the page, ends it; every vote is kept at once", err=True)
            if not no_open:
                _open(server.url)
            while not server.finished.wait(0.2):
                pass
        except KeyboardInterrupt as stopped:
            stop = stopped
        with undisturbed():
            return {} if stop is None else {"exit_code": code_of(stop)}


def _open(url: str) -> None:
    import webbrowser

    if not webbrowser.open(url):
        say("no browser could be opened: open that address yourself", err=True)


def _counts(ballot: Ballot, plan: Plan) -> Record:
    models = {answer.model for sheet in plan.sheets for answer in (sheet.first, sheet.second)}
    return {
        "name": ballot.name,
        "log": str(ballot.log),
        "models": sorted(models),
        "pairs": plan.pairs,
        "identical": plan.identical,
        "empty": plan.empty,
        "votes": len(ballot.cast),
        "taken": ballot.taken,
        "left": len(plan.sheets) - len(ballot.cast),
    }


def _show(record: Record) -> None:
    if "wrote" in record:
        say(f"wrote {record['rows']:,} rows to {record['wrote']}")
        say("fill in the column verdict (first, second, tie or bothbad), then: --import that file")
        return
    say(f"{record['taken']:,} votes of {record['name']} were added to {record['log']}")
    if record.get("known"):
        say(f"{record['known']:,} were there already")
    if record.get("without_verdict"):
        say(f"{record['without_verdict']:,} rows have no verdict")
    say(
        f"{record['votes']:,} of {record['votes'] + record['left']:,} are there: "
        f"{record['pairs']:,} pairs in both orders"
    )
    for what in ("identical", "empty"):
        if record[what]:
            say(f"{record[what]:,} pairs with {what} answers were not shown")
    if record["votes"]:
        one_by_one = " --merge votes" if record["left"] else ""
        say(f"ratings: aligner arena rate {record['log']}{one_by_one}")
