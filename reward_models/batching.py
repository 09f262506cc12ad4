"""The driver that asks a scorer about many rows, for every command that does: in parts, resumable,
with one verdict a row.

Rows are single answers (`Answers`) or pairs of them (`Pairs`). Each part is one call. The verdicts
of a finished part go into a journal, so a kill costs one part, and nothing is asked twice. A row
without a verdict costs no other row its own: the rest of its part is asked about without it (a
judge keeps its replies, so it is not asked again), and the parts after it too. Kept are the
verdicts that it cannot have changed, which are those on other prompts, since a model that compares
answers scores those of a prompt beside one another. Errors name rows by their origin. Imports no
torch.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from aligner.errors import DataError, Problem, UsageError
from aligner.runs.journal import Journal

from .base import NoVerdict, Preferences, Prompt, Scorer, Scores, placed, preferences
from .verdicts import Verdict, Verdicts

LISTED = 20
"""Rows without a verdict that an error lists."""

Progress = Callable[[int, int], None]
"""Rows done, and all rows."""

Load = Callable[[], Scorer]
"""Returns the scorer; called when there is a row to ask about, and at most once."""


class Rows(Protocol):
    """Rows to ask about, by number from 0 on. `lacking` and `noun` are words for errors."""

    lacking: ClassVar[str]
    noun: ClassVar[str]

    def ask(self, scorer: Scorer, rows: Sequence[int]) -> Scores | Preferences:
        """What the scorer says of these rows, in one call."""

    def group(self, row: int) -> Hashable:
        """Rows of one group may change one another's scores."""

    def origin(self, row: int) -> str:
        """What errors call the row."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to score, as columns of n rows. `origins`: what errors call the rows."""

    lacking: ClassVar[str] = "no score for"
    noun: ClassVar[str] = "answers"

    prompts: Sequence[Prompt]
    texts: Sequence[str]
    references: Sequence[str | None]
    origins: Sequence[str]

    def ask(self, scorer: Scorer, rows: Sequence[int]) -> Scores:
        """Score these rows."""
        found = scorer.score(
            [self.prompts[row] for row in rows],
            [self.texts[row] for row in rows],
            [self.references[row] for row in rows],
        )
        return found if isinstance(found, Scores) else Scores(found)

    def group(self, row: int) -> Hashable:
        """Answers to one prompt may change one another's scores."""
        return prompt_key(self.prompts[row])

    def origin(self, row: int) -> str:
        """What errors call the row."""
        return self.origins[row]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of answers to compare, as columns of n rows. `origins`: what errors call the rows."""

    lacking: ClassVar[str] = "no verdict on"
    noun: ClassVar[str] = "pairs"

    prompts: Sequence[Prompt]
    first: Sequence[str]
    second: Sequence[str]
    references: Sequence[str | None]
    origins: Sequence[str]

    def ask(self, scorer: Scorer, rows: Sequence[int]) -> Preferences:
        """Compare the two answers of each of these rows."""
        return preferences(
            scorer,
            [self.prompts[row] for row in rows],
            [self.first[row] for row in rows],
            [self.second[row] for row in rows],
            [self.references[row] for row in rows],
        )

    def group(self, row: int) -> Hashable:
        """Each pair is compared by itself."""
        return row

    def origin(self, row: int) -> str:
        """What errors call the row."""
        return self.origins[row]


def prompt_key(prompt: Prompt) -> str:
    """A prompt as text that is equal for equal prompts."""
    return json.dumps(prompt, sort_keys=True, default=str)


def different_answers(pairs: Pairs) -> tuple[Answers, list[int], list[int]]:
    """Return the different answers of pairs in the order of their first appearance, and the row
    among them of each pair's first and second answer."""
    rows: dict[tuple[str, str, str | None], int] = {}
    asked: list[tuple[Prompt, str, str | None, str]] = []
    sides: tuple[list[int], list[int]] = ([], [])
    for index, prompt in enumerate(pairs.prompts):
        key, reference = prompt_key(prompt), pairs.references[index]
        for side, text in zip(sides, (pairs.first[index], pairs.second[index])):
            row = rows.setdefault((key, text, reference), len(asked))
            if row == len(asked):
                asked.append((prompt, text, reference, pairs.origins[index]))
            side.append(row)
    prompts, texts, references, origins = map(list, zip(*asked)) if asked else ([], [], [], [])
    return Answers(prompts, texts, references, origins), *sides


def chunks(count: int, size: int | None) -> list[list[int]]:
    """Rows 0 to `count` - 1 in parts of `size`; in one part where it is None."""
    size = size or max(1, count)
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def by_prompt(prompts: Sequence[Prompt], size: int | None) -> list[Sequence[int]]:
    """Rows in parts of at least `size`, each as short as it can be with all rows of a prompt in one
    part; in one part where `size` is None."""
    numbers: dict[str, int] = {}
    keys = map(prompt_key, prompts)
    return by_group([numbers.setdefault(key, len(numbers)) for key in keys], size)


def by_group(groups: Sequence[int], size: int | None) -> list[Sequence[int]]:
    """The same for rows whose prompts have numbers that grow in the order of their first
    appearance."""
    order = array("Q", sorted(range(len(groups)), key=groups.__getitem__))
    parts: list[Sequence[int]] = []
    start = 0
    for end in range(1, len(order) + 1):
        is_whole = end == len(order) or groups[order[end]] != groups[order[end - 1]]
        if end == len(order) or (is_whole and size is not None and end - start >= size):
            parts.append(order[start:end])
            start = end
    return parts


def ask(
    load: Load,
    rows: Rows,
    parts: Sequence[Sequence[int]],
    *,
    journal: Journal | None = None,
    together: bool = False,
    keep_silent: bool = False,
    on_progress: Progress | None = None,
    sizes: Sequence[int] | None = None,
) -> Verdicts:
    """Return the verdicts on the rows of all parts, which are rows 0 to n - 1.

    `on_progress` is called after each part that was asked about; `sizes` says what each part counts
    for in it, where that is not its rows. The rest is as in `ask_parts`.
    """
    sizes = list(map(len, parts)) if sizes is None else sizes
    found = Verdicts(sum(map(len, parts)))
    done, total = 0, sum(sizes)
    asked = ask_parts(
        load, rows, parts, journal=journal, together=together, keep_silent=keep_silent
    )
    for size, (verdicts, is_new) in zip(sizes, asked, strict=True):
        for row, verdict in verdicts.items():
            found.put(row, verdict)
        done += size
        if is_new and on_progress is not None:
            on_progress(done, total)
    return found


def ask_parts(
    load: Load,
    rows: Rows,
    parts: Sequence[Sequence[int]],
    *,
    journal: Journal | None = None,
    together: bool = False,
    keep_silent: bool = False,
) -> Iterator[tuple[dict[int, Verdict], bool]]:
    """Yield for each part the verdicts by row, and whether any of them is new.

    `journal`: keeps the verdicts. `together`: a row without a verdict may have changed all others
    of its call, not only those on its prompt. `keep_silent`: that a row has no verdict is kept too,
    and not asked again.

    Raises: DataError that names rows by their origin when they cannot be judged, or get a value
    that is not finite; UsageError for a journal that holds something else.
    """
    journal = journal or Journal(None)
    scorer: Scorer | None = None
    for number, part in enumerate(parts):
        verdicts = _known(journal, number, part)
        left = [row for row in part if row not in verdicts]
        if left:
            scorer = load() if scorer is None else scorer
            verdicts |= _ask(scorer, rows, left)
            kept = part if keep_silent else _unaffected(rows, verdicts, together)
            if kept:
                journal.add(number, {str(row): _as_json(verdicts[row]) for row in kept})
        yield {row: verdicts[row] for row in part}, bool(left)


def _known(journal: Journal, number: int, part: Sequence[int]) -> dict[int, Verdict]:
    if number not in journal:
        return {}
    known = journal[number]
    if not isinstance(known, dict) or not known.keys() <= {str(row) for row in part}:
        raise UsageError(
            f"{journal.path} was written by another version of aligner",
            "delete it, or start again with --overwrite",
        )
    return {int(row): Verdict(**said) for row, said in known.items()}


def _as_json(verdict: Verdict) -> dict[str, Any]:
    said = {name: getattr(verdict, name) for name in Verdict.__slots__}
    return {name: value for name, value in said.items() if value or name == "value"}


def _unaffected(rows: Rows, verdicts: Mapping[int, Verdict], together: bool) -> list[int]:
    """The rows whose verdicts no missing one could have changed."""
    silent = {rows.group(row) for row, verdict in verdicts.items() if verdict.value is None}
    if together and silent:
        return []
    return [row for row in verdicts if not silent or rows.group(row) not in silent]


def _ask(scorer: Scorer, rows: Rows, left: list[int]) -> dict[int, Verdict]:
    """Ask about these rows in one call, and again without those that there is no verdict on."""
    verdicts: dict[int, Verdict] = {}
    while left:
        try:
            return verdicts | _verdicts(scorer, rows.ask(scorer, left), left, rows)
        except NoVerdict as error:
            if not error.rows:
                raise
            for index, reason in error.rows.items():  # second answers are counted after the first
                verdicts[left[index % len(left)]] = Verdict(None, error=reason)
            left = [row for row in left if row not in verdicts]
        except DataError as error:
            raise placed(error, [rows.origin(row) for row in left]) from error
    return verdicts


def _verdicts(
    scorer: Scorer, found: Scores | Preferences, asked: Sequence[int], rows: Rows
) -> dict[int, Verdict]:
    assert len(found) == len(asked), f"{scorer.name} gave {len(found)} values for {len(asked)} rows"
    compared = isinstance(found, Preferences)
    flips = set(found.flips) if isinstance(found, Preferences) else set()
    columns = {} if isinstance(found, Preferences) else found.attributes
    verdicts = {}
    for index, (row, value) in enumerate(zip(asked, found)):
        if not math.isfinite(value):
            raise DataError(
                f"{rows.origin(row)}: {scorer.name} gave {value}, which is not a finite number",
                "check the model, its data type and the length of the answers",
            )
        assert not compared or 0.0 <= value <= 1.0, f"{scorer.name} gave a preference of {value}"
        attributes = {name: values[index] for name, values in columns.items()}
        remark = found.remarks.get(index, "")
        verdicts[row] = Verdict(value, attributes, remark, flipped=index in flips)
    return verdicts


def refuse_silent(
    name: str,
    rows: Rows,
    silent: Mapping[int, str],
    asked: int,
    rest: str = "those on the others are kept",
    hint: str = "",
) -> None:
    """Raise DataError that lists the rows without a verdict, if there are any. `asked`: how many
    rows there were; `rest`: what became of the others."""
    if not silent:
        return
    more = f" (the first {LISTED} are listed)" if len(silent) > LISTED else ""
    raise DataError(
        f"{name} gave {rows.lacking} {len(silent):,} of {asked:,} {rows.noun}{more}; {rest}",
        hint or f"the same command asks about these {rows.noun} again; or leave their rows out",
        [Problem(silent[row], where=rows.origin(row)) for row in sorted(silent)[:LISTED]],
    )
