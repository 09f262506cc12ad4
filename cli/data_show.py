"""`aligner data show`: rows as a training reads them, token by token, with their loss mask."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .any_recipe import is_recipe, resolve_any
from .console import say, say_json
from .models import AsJson, Column, Split, TrustRemoteCode, model_section, source_section
from .output import Overwrite

if TYPE_CHECKING:
    from aligner.events import OnEvent
    from aligner.methods.show import RowsToShow
    from aligner.tokenization.row_view import ShownRow, ShownSequence, ShownToken

READ_AT_LEAST = 10_000
"""Rows of a file that are read, or more where a later one is asked for: so many, and what is said
of them, are known at once."""

FOLDED = 120
"""Tokens from which a stretch is folded."""
KEPT = (60, 20)
"""Tokens of it that stay, at its beginning and its end."""

COLOURS = {"trained": "green", "cut": "red", "read": "bright_black"}


def show(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(metavar="RECIPE|DATA", help="A recipe, a run, or rows: file, folder, hub."),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="Whose tokenizer; a recipe has its own."),
    ] = None,
    row: Annotated[
        int | None, typer.Option("--row", metavar="N", min=1, help="Begin with the N-th row.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many rows.")] = 1,
    at_random: Annotated[bool, typer.Option("--random", help="Draw the rows at random.")] = False,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Rows that the recipe holds out.")
    ] = False,
    packed: Annotated[
        bool, typer.Option("--packed", help="Sequences of several rows, as sft packs them.")
    ] = False,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=2, help="Show what is cut at this length.")
    ] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="One token a line: place, id, text, trained.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Do not fold long stretches.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page instead.")
    ] = None,
    overwrite: Overwrite = False,
    column: Column = None,
    split: Split = "train",
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Show rows as a training reads them: tokens, loss mask, turns, cuts.

    Of a recipe, its training rows, encoded by its method; settings follow as key=value. Of a file,
    with --model, what its columns allow: answers, pairs or prompts. Lines that are trained begin
    with `+`, those that are cut with `x`; on a terminal they are in colour, too.

    Example: aligner data show recipe.yaml --row 17 --html row.html
    """
    from .render import Screen

    if at_random and row is not None:
        _refuse("--random and --row exclude each other", "drop one")
    if html is not None:
        _check_place(html, overwrite=overwrite)
    with Screen(silent=as_json) as screen:
        if is_recipe(what):
            _refuse_of_data(column, split)
            settings = [*context.args]
            settings += [] if model is None else [f"model.name_or_path={model}"]
            settings += [] if max_length is None else [f"data.max_length={max_length}"]
            found = _of_recipe(what, settings, held_out=held_out, on_event=screen.on_event)
        else:
            source = source_section(what, column, split, None)
            _refuse_of_recipes(context.args, model, held_out=held_out)
            assert model is not None
            screen.start("loading the tokenizer")
            last = (row or 1) + rows - 1
            found = _of_source(
                source,
                model,
                max_length,
                trust_remote_code,
                screen.on_event,
                most=None if packed else max(READ_AT_LEAST, last),
                draw=rows if at_random and not packed else None,
            )
        numbers, total, looked = _looked_at(
            found, row, rows, at_random=at_random, packed=packed, on_event=screen.on_event
        )
    noun = "packed sequence" if packed else "held-out row" if held_out else "row"
    of_all = f" of {'more than ' if found.has_more else ''}{total:,}"
    named = [
        _named(one, noun if number is None else f"{noun} {number:,}{of_all}")
        for number, one in zip(numbers, looked)
    ]
    if html is not None:
        _write_page(html, what, named, found)
        say(f"wrote {html}")
    elif as_json:
        from aligner.runs.files import dumps

        rows_there = None if found.has_more else total
        facts = {"rows": rows_there, "max_length": found.viewer.max_length}
        say_json(dumps({**facts, "shown": list(map(_as_json, numbers, named))}, indent=2))
    else:
        for place, one in enumerate(named):
            if place:
                say()
            _say_row(one, one_a_line=tokens, full=full)


# --- what is asked for ----------------------------------------------------------------------------


def _refuse(message: str, hint: str) -> None:
    from aligner.errors import UsageError

    raise UsageError(message, hint)


def _check_place(html: Path, *, overwrite: bool) -> None:
    from aligner.runs.places import refuse_unusable

    refuse_unusable(html, "--html")
    if html.exists() and not overwrite:
        _refuse(f"{html} exists", "name another file, or add --overwrite")


def _refuse_of_data(column: list[str] | None, split: str) -> None:
    if column or split != "train":
        _refuse("--column and --split are for DATA", "write them into the recipe")


def _refuse_of_recipes(settings: Sequence[str], model: str | None, *, held_out: bool) -> None:
    if settings:
        _refuse(f"`{settings[0]}` is a setting of a recipe, and DATA has none", "drop it")
    if held_out:
        _refuse("--held-out is for a recipe", "name the file of held-out rows itself")
    if model is None:
        _refuse("rows become tokens by a model's tokenizer, and none is named", "add --model")


def _of_recipe(ref: str, settings: list[str], *, held_out: bool, on_event: OnEvent) -> RowsToShow:
    resolved, _ = resolve_any(ref, settings)
    from aligner.methods.show import rows_of_recipe

    return rows_of_recipe(resolved, held_out=held_out, on_event=on_event)


def _of_source(
    source: Any,
    model: str,
    max_length: int | None,
    trust_remote_code: bool,
    on_event: OnEvent,
    *,
    most: int | None,
    draw: int | None,
) -> RowsToShow:
    from aligner.models.tokenizers import load_tokenizer

    section = model_section(model, "auto", "none", trust_remote_code)
    tokenizer = load_tokenizer(section, needs_model=False)
    from aligner.methods.show import rows_of_source

    return rows_of_source(source, tokenizer, max_length, on_event, most=most, draw=draw)


def _looked_at(
    found: RowsToShow,
    row: int | None,
    count: int,
    *,
    at_random: bool,
    packed: bool,
    on_event: OnEvent,
) -> tuple[Sequence[int | None], int, list[ShownRow]]:
    """The numbers of the rows that are shown, of how many, and the rows."""
    from aligner.methods.show import chosen, packed_rows

    if found.drawn:
        return [None] * len(found.rows), 0, list(map(found.viewer.show, found.rows))
    if not packed:
        total = len(found.rows)
        places = chosen(total, row, count, at_random=at_random)
        looked = [found.viewer.show(found.rows[place]) for place in places]
        return [place + 1 for place in places], total, looked
    total, sequences = packed_rows(found, on_event)
    places = chosen(total, row, count, at_random=at_random)
    wanted = set(places)
    looked = [one for place, one in enumerate(sequences) if place in wanted]
    return [place + 1 for place in places], total, looked


def _named(one: ShownRow, name: str) -> ShownRow:
    from dataclasses import replace

    return replace(one, origin=f"{name}: {one.origin}" if one.origin else name)


# --- how it is shown ------------------------------------------------------------------------------


def _as_json(number: int | None, one: ShownRow) -> dict[str, Any]:
    return {"row": number, **asdict(one)}


def _write_page(html: Path, what: str, rows: list[ShownRow], found: RowsToShow) -> None:
    from aligner.reports.tokens import tokens_page
    from aligner.runs.files import write_atomically

    limit = found.viewer.max_length
    recipe = found.recipe
    facts = [] if found.drawn else [("rows", f"{len(found.rows):,}")]
    if found.has_more and not found.drawn:
        facts = [("rows", f"more than {len(found.rows):,}")]
    if recipe is not None:
        facts += [("method", recipe.method), ("model", recipe.model.name_or_path)]
    if limit is not None:
        facts.append(("longest row", f"{limit:,} tokens"))
    write_atomically(html, tokens_page(what, facts, rows))


def _say_row(one: ShownRow, *, one_a_line: bool, full: bool) -> None:
    from .render import columns

    live = sys.stdout.isatty()
    say(one.origin, bold=live or None)
    if one.problem:
        say(f"not trained: {one.problem}", fg="red" if live else None)
    if one.turns:
        has_cut = any(turn.cut for turn in one.turns)
        head = ("turn", "tokens", "trained", *(["cut off"] if has_cut else []))
        lines = [
            (
                turn.role,
                f"{turn.tokens:,}",
                f"{turn.trained:,}",
                *([f"{turn.cut:,}"] if has_cut else []),
            )
            for turn in one.turns
        ]
        columns(head, lines)
    for note in one.notes:
        say(note)
    for sequence in one.sequences:
        say()
        say(f"{sequence.name}: {len(sequence.tokens):,} tokens", bold=live or None)
        if one_a_line:
            _say_tokens(sequence)
        else:
            _say_text(sequence, full=full, live=live)


def _say_tokens(sequence: ShownSequence) -> None:
    from .render import columns

    def line(place: int, token: ShownToken) -> tuple[object, ...]:
        return place, token.id, _state(token), repr(token.text), sequence.marks.get(place, "")

    rows = [line(place, token) for place, token in enumerate(sequence.tokens)]
    columns(("place", "id", "", "text", ""), rows)


def _state(token: ShownToken) -> str:
    return "cut" if token.cut else "trained" if token.trained else "read"


SIGNS = {"trained": "+ ", "cut": "x ", "read": "  "}
"""What a line begins with."""


def _say_text(sequence: ShownSequence, *, full: bool, live: bool) -> None:
    """The text of a sequence, each stretch of one state on lines of its own."""
    placed = list(enumerate(sequence.tokens))

    def stretch_of(item: tuple[int, ShownToken]) -> tuple[int, str]:
        return sum(mark <= item[0] for mark in sequence.marks), _state(item[1])

    for (_, state), group in groupby(placed, key=stretch_of):
        stretch = list(group)
        if mark := sequence.marks.get(stretch[0][0]):
            say(f"-- {mark} --", fg="blue" if live else None)
        for line in _lines([token for _, token in stretch], full=full):
            say(f"{SIGNS[state]}{line}", fg=COLOURS[state] if live else None)


def _lines(tokens: Sequence[ShownToken], *, full: bool) -> Iterator[str]:
    """The text of a stretch by lines, a line end written out, the middle of a long one folded."""
    parts = [tokens]
    if not full and len(tokens) > FOLDED:
        parts = [tokens[: KEPT[0]], tokens[-KEPT[1] :]]
    for number, part in enumerate(parts):
        if number:
            yield f"... {len(tokens) - sum(KEPT):,} tokens ..."
        text = "".join(token.text for token in part)
        *ended, rest = text.split("\n")
        yield from (f"{line}\\n" for line in ended)
        if rest:
            yield rest
