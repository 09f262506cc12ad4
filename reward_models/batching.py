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
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from aligner.errors import DataError, Problem, UsageError
from aligner.runs.journal import Journal

from .base import NoVerdict, Preferences, Prompt, Scorer, Scores, placed, preferences

LISTED = 20
"""Rows without a verdict that an error lists."""

Progress = Callable[[int, int], None]
"""Rows done, and all rows."""

Load = Callable[[], Scorer]
"""Returns the scorer; called when there is a row to ask about, and at most once."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a scorer says of one row.

    `value`: the score of an answer, or the probability in [0, 1] that the first answer of a pair is
    better; None without a verdict, and then `error` says why. `flipped`: it named another answer
    when the order changed.
    """

    value: float | None
    attributes: dict[str, float] = field(default_factory=dict)
    remark: str = ""
    flipped: bool = False
    error: str = ""


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
        """Rows of one group may change one another's scores."""
        return prompt_key(self.prompts[row])


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


def by_prompt(prompts: Sequence[Prompt], size: int | None) -> list[list[int]]:
    """Rows in parts of at least `size`, each as short as it can be with all rows of a prompt in one
    part; in one part where `size` is None."""
    groups: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(prompt_key(prompt), []).append(row)
    parts: list[list[int]] = [[]]
    for group in groups.values():
        if size is not None and len(parts[-1]) >= size:
            parts.append([])
        parts[-1] += group
    return [part for part in parts if part]


def ask(
    load: Load,
    rows: Answers | Pairs,
    parts: Sequence[Sequence[int]],
    *,
    journal: Journal | None = None,
    together: bool = False,
    keep_silent: bool = False,
    on_progress: Progress | None = None,
    sizes: Sequence[int] | None = None,
) -> list[Verdict]:
    """Return the verdicts on the rows of all parts, in the order of the rows.

    `on_progress` is called after each part that was asked about; `sizes` says what each part counts
    for in it, where that is not its rows. The rest is as in `ask_parts`.
    """
    sizes = list(map(len, parts)) if sizes is None else sizes
    found: dict[int, Verdict] = {}
    done, total = 0, sum(sizes)
    asked = ask_parts(
        load, rows, parts, journal=journal, together=together, keep_silent=keep_silent
    )
    for size, (verdicts, is_new) in zip(sizes, asked, strict=True):
        found |= verdicts
        done += size
        if is_new and on_progress is not None:
            on_progress(done, total)
    return [found[row] for row in sorted(found)]


def ask_parts(
    load: Load,
    rows: Answers | Pairs,
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
    return {name: value for name, value in asdict(verdict).items() if value or name == "value"}


def _unaffected(
    rows: Answers | Pairs, verdicts: Mapping[int, Verdict], together: bool
) -> list[int]:
    """The rows whose verdicts no missing one could have changed."""
    silent = {rows.group(row) for row, verdict in verdicts.items() if verdict.value is None}
    if together and silent:
        return []
    return [row for row in verdicts if not silent or rows.group(row) not in silent]


def _ask(scorer: Scorer, rows: Answers | Pairs, left: list[int]) -> dict[int, Verdict]:
    """Ask about these rows in one call, and again without those that there is no verdict on."""
    verdicts: dict[int, Verdict] = {}
    while left:
        origins = [rows.origins[row] for row in left]
        try:
            return verdicts | _verdicts(scorer, rows.ask(scorer, left), left, origins)
        except NoVerdict as error:
            if not error.rows:
                raise
            for index, reason in error.rows.items():  # second answers are counted after the first
                verdicts[left[index % len(left)]] = Verdict(None, error=reason)
            left = [row for row in left if row not in verdicts]
        except DataError as error:
            raise placed(error, origins) from error
    return verdicts


def _verdicts(
    scorer: Scorer, found: Scores | Preferences, rows: Sequence[int], origins: Sequence[str]
) -> dict[int, Verdict]:
    assert len(found) == len(rows), f"{scorer.name} gave {len(found)} values for {len(rows)} rows"
    compared = isinstance(found, Preferences)
    flips = set(found.flips) if isinstance(found, Preferences) else set()
    columns = {} if isinstance(found, Preferences) else found.attributes
    verdicts = {}
    for index, (row, value) in enumerate(zip(rows, found)):
        if not math.isfinite(value):
            raise DataError(
                f"{origins[index]}: {scorer.name} gave {value}, which is not a finite number",
                "check the model, its data type and the length of the answers",
            )
        assert not compared or 0.0 <= value <= 1.0, f"{scorer.name} gave a preference of {value}"
        attributes = {name: values[index] for name, values in columns.items()}
        remark = found.remarks.get(index, "")
        verdicts[row] = Verdict(value, attributes, remark, flipped=index in flips)
    return verdicts


def silent_rows(verdicts: Sequence[Verdict]) -> dict[int, str]:
    """Return the rows without a verdict, each with the reason."""
    return {row: verdict.error for row, verdict in enumerate(verdicts) if verdict.value is None}


def refuse_silent(
    name: str,
    rows: Answers | Pairs,
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
        [Problem(silent[row], where=rows.origins[row]) for row in sorted(silent)[:LISTED]],
    )
