"""`aligner eval --reward-model CARD`: what a reward model's choices are worth, from the command
line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import say
from .models import OnBadRow, dropped_rows, warn_of
from .output import Output, rows_fingerprint

if TYPE_CHECKING:
    from aligner.config.recipe import Source
    from aligner.data.ledger import Ledger
    from aligner.evaluation.pair_scores import DifferentAnswers, Judged, Pair
    from aligner.reward_models.base import Scorer
    from aligner.reward_models.card import Card
    from aligner.runs.journal import Journal
    from aligner.runs.partial_output import PartialOutput

    from .render import Screen

Record = dict[str, Any]
Cells = list[tuple[str, ...]]

MOST_SHOWN = 40
"""Categories on the screen; all of them are in the JSON."""


def evaluate_rewards(
    specs: Sequence[str],
    source: Source,
    *,
    category: str | None,
    on_bad_row: OnBadRow,
    resamples: int,
    seed: int,
    plot: Path | None,
    output: Output,
    trust_remote_code: bool,
) -> Record:
    """Judge the pairs of a source with one reward model or two, and measure. The record goes into
    `output`, a picture into `plot`."""
    from aligner.errors import UsageError
    from aligner.events import Warned
    from aligner.reward_models.catalogue import read_spec
    from aligner.reward_models.isolation import announce_walls

    if len(specs) > 2:
        raise UsageError(
            f"--reward-model is given {len(specs)} times", "name one, or two to compare"
        )
    cards = {spec: read_spec(spec, trust_remote_code=trust_remote_code) for spec in specs}
    if plot is not None:
        from aligner.runs.places import make_room

        make_room(plot, "--plot")
    pairs, column, ledger = _read(source, category, on_bad_row, seed)

    from aligner.evaluation.contamination import trained_on
    from aligner.evaluation.pair_scores import answers_of
    from aligner.evaluation.reward_accuracy import agreement, measure
    from aligner.runs.files import dumps

    from .render import Screen

    answers = answers_of(pairs)
    draws: dict[str, int] = {"resamples": resamples, "seed": seed}
    read = {file.sha256 for entry in ledger.sources for file in entry.files}
    seen = {spec: trained_on(card, read) for spec, card in cards.items()}

    data = rows_fingerprint(pairs)

    def header() -> dict[str, Any]:
        return {"the data": data, "the reward models": list(specs)}

    with (
        Screen() as screen,
        output.resumable(),
        output.parts(header) as part,
    ):
        for spec, files in seen.items():
            if files:
                screen.on_event(
                    Warned(
                        f"{spec} was trained on {' and '.join(files)}: what follows is no "
                        "held-out result"
                    )
                )
        isolation = announce_walls(list(cards.values()), screen.on_event)
        judged = [
            _judge(spec, cards[spec], pairs, answers, screen, part, f"judged-{number}", data)
            for number, spec in enumerate(specs)
        ]
        screen.start("computing the numbers and their intervals")
        found = [measure(one, pairs, answers, column, **draws) for one, _ in judged]
        both = agreement(judged[0][0], judged[1][0], pairs, **draws) if len(judged) == 2 else None
        record = {
            "reward_models": list(specs),
            "data": source.path,
            "rows_dropped": dropped_rows(ledger),
            "category_column": column,
            "bootstrap": {**draws, "interval": 0.95},
            "results": [
                {"reward_model": spec, "fingerprint": print_, "trained_on": seen[spec], **numbers}
                for spec, (_, print_), numbers in zip(specs, judged, found)
            ],
            "agreement": both,
            **({"isolation": isolation} if isolation else {}),
        }
        if plot is not None:
            _draw(record, [one for one, _ in judged], pairs, answers, plot)
        part.finish([dumps(record, indent=2) + "\n"])
    return record


def _draw(
    record: Record,
    judged: Sequence[Judged],
    pairs: list[Pair],
    answers: DifferentAnswers,
    path: Path,
) -> None:
    """Write the picture."""
    from aligner.evaluation.reward_report import Shown, write_picture

    shown = [
        Shown(result["reward_model"], result, one) for result, one in zip(record["results"], judged)
    ]
    write_picture(shown, pairs, answers, record, path)


def _read(
    source: Source, category: str | None, on_bad_row: OnBadRow, seed: int
) -> tuple[list[Pair], str | None, Ledger]:
    """The pairs, the column that divides them, and where they came from."""
    from aligner.config.recipe import Data
    from aligner.data.loading import load_rows
    from aligner.data.rows import refuse_tools
    from aligner.errors import DataError
    from aligner.evaluation.groups import CATEGORY_COLUMNS, category_column
    from aligner.evaluation.pair_scores import as_pairs

    keep = dict.fromkeys([*CATEGORY_COLUMNS, "answer", *([category] if category else [])])
    loaded = load_rows(
        Data(train=[source], on_bad_row=on_bad_row), "preference", seed, keep=list(keep)
    )
    warn_of(loaded.ledger.remarks())
    refuse_tools(loaded.train, "a reward model")
    pairs = as_pairs(loaded.train)
    if category is not None and not any(category in pair.extra for pair in pairs):
        unused = sorted({name for entry in loaded.ledger.sources for name in entry.unused_columns})
        further = (
            f"further columns are {', '.join(unused)}" if unused else "there are no further columns"
        )
        raise DataError(
            f"no row of {source.path} has the column `{category}` that --category names", further
        )
    return pairs, category or category_column(pairs), loaded.ledger


def _judge(
    spec: str,
    card: Card,
    pairs: list[Pair],
    answers: DifferentAnswers,
    screen: Screen,
    part: PartialOutput,
    name: str,
    data: str,
) -> tuple[Judged, str]:
    """What one reward model says, and its fingerprint; it is gone from memory before the next is
    loaded.

    What it says is kept under `name`, if anything is.
    """
    from aligner.evaluation.pair_scores import judge

    what = f"judging with {spec}"
    scorer, journal, at_once = opened(spec, card, screen, part, name, data)
    judged = judge(
        scorer, pairs, answers, on_progress=screen.counter(what), at_once=at_once, journal=journal
    )
    return judged, scorer.fingerprint()


def opened(
    spec: str, card: Card, screen: Screen, part: PartialOutput, name: str, data: str
) -> tuple[Scorer, Journal, int | None]:
    """Load a scorer. With it come the journal of what it said, in which a judge continues the
    account of its budget for these `data`, and how many answers it is asked about at once."""
    from aligner.evaluation.pair_scores import AT_ONCE
    from aligner.reward_models.catalogue import load_scorer
    from aligner.reward_models.ensemble import restore_budget, scored_together

    screen.start(f"loading {spec}")
    scorer = load_scorer(spec, trust_remote_code=card.trust_remote_code)
    journal = part.journal(name, scorer.fingerprint())
    journal.check(f"judging with {spec}")
    if journal.path is not None:
        restore_budget(scorer, journal.path, data)
    return scorer, journal, None if scored_together(card) else AT_ONCE


def show(record: Record) -> None:
    """Everything as tables on stdout."""
    from .render import columns

    for result in record["results"]:
        say(f"{result['reward_model']}  ({result['kind']})", bold=True)
        say(f"{result['pairs']:,} pairs of {result['prompts']:,} prompts")
        say()
        columns(("", "value", "95% interval", "pairs"), [*_measures(result), *_lengths(result)])
        if result["categories"]:
            say()
            head = (record["category_column"], "accuracy", "95% interval", "pairs", "ties")
            cells = [
                _figure(row["name"], row["accuracy"], f"{row['pairs']:,}", f"{row['ties']:,}")
                for row in result["categories"][:MOST_SHOWN]
            ]
            columns(head, cells)
            hidden = len(result["categories"]) - MOST_SHOWN
            if hidden > 0:
                say(f"and {hidden:,} more, which --json and --output list")
        say()
        curve = [
            (f"{row['from']:.2f} to {row['to']:.2f}", _value(row["accuracy"]), f"{row['pairs']:,}")
            for row in result["calibration"]["curve"]
        ]
        columns(("sure", "right", "pairs"), curve)
        for lines in _notes(result):
            say()
            for line in lines:
                say(line)
        say()
    if record["agreement"] is not None:
        columns(("agreement", "value", "95% interval"), _agreement(record["agreement"]))
        say(_tested(record["agreement"], record["reward_models"]))


def _figure(name: str, figure: Record, *more: object) -> tuple[str, ...]:
    from .render import number

    ends = "" if figure["low"] is None else f"{number(figure['low'])} to {number(figure['high'])}"
    error = f" (+/- {number(figure['stderr'])})" if "stderr" in figure else ""
    return (name, _value(figure["value"]), ends + error, *(str(item) for item in more))


def _value(value: float | None) -> str:
    from .render import number

    return "-" if value is None else number(value)


def _measures(result: Record) -> Cells:
    total, ties = result["pairs"], result["ties"]
    rows = [_figure("accuracy", result["accuracy"], f"{total:,}")]
    if ties:
        rows.append(
            _figure("accuracy without ties", result["accuracy_without_ties"], f"{total - ties:,}")
        )
    rows.append(_figure("calibration error (ECE)", result["calibration"]["ece"], f"{total:,}"))
    flips = result["order_flips"]
    if flips is not None:
        rows.append(("changes its mind with the order", _value(flips["share"]), "", f"{total:,}"))
    bench = result["rewardbench"]
    if bench is not None:
        rows.append(_figure("RewardBench", bench["overall"], f"{total:,}"))
        rows += [
            _figure(f"RewardBench, {name}", figure, "")
            for name, figure in bench["sections"].items()
        ]
    return rows


def _lengths(result: Record) -> Cells:
    from aligner.evaluation.segment_accuracy import spans

    length = result["length"]
    rows = [
        _figure(f"accuracy, chosen answer {row['name']}", row["accuracy"], f"{row['pairs']:,}")
        for row in length["chosen_is"]
    ]
    for row in length["buckets"]:
        # How much longer the chosen answer is than the rejected one: `-13 to -6`.
        low, high = (f"{row[end]:+,}" if row[end] else "0" for end in ("from", "to"))
        span = low if low == high else f"{low} to {high}"
        label = f"accuracy, {span} characters"
        rows.append(_figure(label, row["accuracy"], f"{row['pairs']:,}"))
    if result["segments"] is not None:
        rows += [
            _figure(f"accuracy, {name}", figure, "" if pairs is None else f"{pairs:,}")
            for name, figure, pairs in spans(result["segments"])
        ]
    for kind, found in (length["correlation"] or {}).items():
        for name in ("pearson", "spearman") if found.get("prompts", 1) else ():
            label = f"score and length, {kind.replace('_', ' ')} ({name.capitalize()})"
            rows.append((label, _value(found[name]), "", ""))
    return rows


def _notes(result: Record) -> list[list[str]]:
    """Each note as its lines."""
    notes = [[f"Left out. {text}"] for text in result["left_out"]]
    remarks = result["remarks"]
    if remarks["count"]:
        first = [f"  {one['row']}: {one['said']}" for one in remarks["first"]]
        notes.append([f"{remarks['count']:,} remarks of the scorer, the first:", *first])
    return notes


def _tested(found: Record, names: Sequence[str]) -> str:
    """Whether the two differ by more than chance would, in words."""
    from aligner.evaluation.comparing import in_words

    difference = found["accuracy_difference"]["value"]
    compared = {**found["tested"], "difference": difference, "better": 1}
    return in_words("accuracy", compared, *names)


def _agreement(found: Record) -> Cells:
    rows = [
        _figure("same choice", found["same_choice"]),
        _figure("Cohen's kappa", found["kappa"]),
        _figure("accuracy, first less second", found["accuracy_difference"]),
        ("score differences (Spearman)", _value(found["spearman"]), ""),
    ]
    for who in ("both", "only_first", "only_second", "neither"):
        rows.append((f"{who.replace('_', ' ')} right", f"{found[f'{who}_right']:,}", ""))
    return rows
