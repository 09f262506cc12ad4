"""Votes by way of a CSV file: pairs out, blind and without verdicts; verdicts back.

The file names no model. A cell that a spreadsheet would take for a formula gets an apostrophe in
front, because answers are written by models. When the file comes back, prompt and answers must be
what was written: a spreadsheet cuts cells (Excel after 32,767 characters), and a vote on half an
answer is none.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aligner.arena.battle.sheets import Item, Sheet
from aligner.arena.voting.ballot import Ballot, Verdict
from aligner.arena.voting.plan import sheet_key
from aligner.errors import DataError, Problem

COLUMNS = ("pair_id", "prompt", "answer_first", "answer_second", "verdict")
SHOWN = COLUMNS[1:4]

LARGEST_CELL = 1 << 30
LONGEST_IN_EXCEL = 32_767
MOST_PROBLEMS = 20
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")

WORDS: dict[str, Verdict] = {
    **dict.fromkeys(("first", "a", "1", "left"), "first"),
    **dict.fromkeys(("second", "b", "2", "right"), "second"),
    **dict.fromkeys(("tie", "t", "draw", "="), "tie"),
    **dict.fromkeys(("bothbad", "both bad", "both_bad", "tie (bothbad)", "x"), "bothbad"),
}
"""What may stand in the column `verdict`, in small letters."""


@dataclass
class Votes:
    """What a file says. `votes`: number of a sheet, and its verdict; `empty`: pairs without
    one."""

    votes: list[tuple[int, Verdict]] = field(default_factory=list)
    empty: int = 0


def as_csv(sheets: Sequence[Sheet]) -> str:
    """Pairs to vote on, a row each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for sheet in sheets:
        writer.writerow([sheet_key(sheet), *cells_of(sheet), ""])
    return text.getvalue()


def cells_of(sheet: Sheet) -> tuple[str, str, str]:
    """The prompt and both answers as cells."""
    texts = (_asked(sheet.item), sheet.first.text, sheet.second.text)
    first, second, third = (_safe(text) for text in texts)
    return first, second, third


def too_long(sheets: Sequence[Sheet]) -> int:
    """How many pairs do not fit in the cells of Excel."""
    return sum(max(map(len, cells_of(sheet))) > LONGEST_IN_EXCEL for sheet in sheets)


def _asked(item: Item) -> str:
    if isinstance(item.prompt, str):
        return item.prompt
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in item.prompt)


def _safe(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def read_votes(path: Path, ballot: Ballot) -> Votes:
    """Read verdicts on sheets of this ballot.

    Raises: DataError with up to 20 problems, each with its line: a pair that is not known, an
    answer that is not what was written, a verdict that is none, two verdicts on one pair.
    """
    numbers = {sheet_key(sheet): number for number, sheet in enumerate(ballot.sheets)}
    found: dict[int, Verdict] = {}
    problems: list[Problem] = []
    votes = Votes()
    for line, row in _rows(path):
        try:
            number, verdict = _vote(row, numbers, ballot)
        except ValueError as error:
            problems.append(Problem(str(error), f"{path}:{line}"))
            continue
        if verdict is None:
            votes.empty += 1
        elif found.setdefault(number, verdict) != verdict:
            problems.append(Problem("there is another verdict on this pair", f"{path}:{line}"))
    if problems:
        more = f", the first {MOST_PROBLEMS} of them" if len(problems) > MOST_PROBLEMS else ""
        rows = "1 row" if len(problems) == 1 else f"{len(problems):,} rows"
        raise DataError(
            f"{rows} cannot be used{more}, and no vote was taken",
            "correct or remove them",
            problems[:MOST_PROBLEMS],
        )
    votes.votes = list(found.items())
    return votes


def _vote(
    row: dict[str, str], numbers: dict[str, int], ballot: Ballot
) -> tuple[int, Verdict | None]:
    """The number of the sheet and its verdict, or ValueError."""
    number = numbers.get(row["pair_id"].strip())
    if number is None:
        raise ValueError(f"the pair {row['pair_id']!r} is none of these files and models")
    for name, wanted in zip(SHOWN, cells_of(ballot.sheets[number])):
        if name in row and _plain(row[name]) != _plain(wanted):
            raise ValueError(f"{name} is not what was written ({_difference(row[name], wanted)})")
    said = " ".join(row["verdict"].lower().split())
    if said and said not in WORDS:
        raise ValueError(f"the verdict {row['verdict']!r} is none of first, second, tie, bothbad")
    return number, WORDS.get(said)


def _plain(text: str) -> str:
    """A cell without what a spreadsheet may change: ends of lines, blanks around it, and the
    apostrophe that it takes for its own."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    return lines.removeprefix("'").strip()


def _difference(found: str, wanted: str) -> str:
    if len(found) < len(wanted) and _plain(wanted).startswith(_plain(found)):
        return f"it was cut after {len(found):,} of {len(wanted):,} characters"
    return "the text differs"


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows with the line that each starts on."""
    csv.field_size_limit(LARGEST_CELL)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8", "save it as CSV UTF-8") from error
    mark = ";" if ";" in text.partition("\n")[0] else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    line = 1
    try:
        header = next(reader, [])
        lacking = [name for name in ("pair_id", "verdict") if name not in header]
        if lacking:
            raise DataError(
                f"{path} has no column {lacking[0]}", "give the file that --export wrote, filled in"
            )
        line = reader.line_num + 1
        for fields in reader:
            if any(fields):
                if len(fields) != len(header):
                    found = f"{len(fields)} cells where the header has {len(header)}"
                    raise DataError(f"{path}:{line}: {found}", "correct that row")
                yield line, dict(zip(header, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num}: broken CSV: {error}", "check the quotes on that line"
        ) from error
