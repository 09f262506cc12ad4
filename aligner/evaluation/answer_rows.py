"""Rows of a file as answers that a scorer can read, and scores as columns of these rows.

    completion   prompt + completion, messages, ShareGPT, Alpaca    score
    pair         chosen + rejected                                  score_chosen, score_rejected
    list         prompt + completions (or responses), a list of     scores
                 texts or of {"text": ...}, as `aligner generate` writes them

Beside the scores stand `attributes` (whatever else the scorer measures) and `remark`, where there
are any; for pairs with `_chosen` and `_rejected`, for lists as lists. The column `answer` is the
right answer, for scorers that compare with it. An answer of several turns (with results of tools)
is scored by its last one; those before it belong to the prompt. The rows themselves are read once
more when the scores are written, so they need no memory and keep every column as it was.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any, ClassVar, Literal

from aligner.config.recipe import Data, Source
from aligner.data.checks import BadRow, text
from aligner.data.files import BLANK
from aligner.data.formats import FORMS_OF_TASK, REQUIRED
from aligner.data.ledger import FileRecord
from aligner.data.loading import Loaded, load_rows
from aligner.data.row_store import RowStore
from aligner.data.rows import (
    CompletionRow,
    ConversationRow,
    Messages,
    PreferenceRow,
    PromptRow,
    Row,
    Task,
    TextRow,
    as_turns,
    refuse_tools,
)
from aligner.data.sources import open_source
from aligner.errors import DataError
from aligner.reward_models.base import Prompt, Scorer, Scores
from aligner.reward_models.batching import Answers, prompt_key
from aligner.reward_models.verdicts import Verdict, Verdicts

Form = Literal["completion", "pair", "list"]

LISTS = ("completions", "responses")
"""Columns that may hold several answers to one prompt."""

TASKS: dict[Form, Task] = {"completion": "sft", "pair": "preference", "list": "prompts"}

SIDES = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a prompt, and the right answer where it is known."""

    prompt: Prompt
    text: str
    reference: str | None


class AnswerRows:
    """The answers of a source, row by row, and the digest of all that decided which they are.

    They lie on disk, and memory holds some numbers for each: `rows`, by row its number among those
    of the source; `owners`, by answer its row; `prompts`, by answer the first one to its prompt.
    `remarks`: columns that are not used and look as if they should be. `files`: what was read.

    Raises: DataError naming the first row that holds no answer to a prompt.
    """

    lacking: ClassVar[str] = Answers.lacking
    noun: ClassVar[str] = Answers.noun

    def __init__(self, form: Form, loaded: Loaded, store: RowStore) -> None:
        self.form: Form = form
        self.fingerprint = loaded.fingerprint
        self.remarks = loaded.ledger.remarks()
        self.files = loaded.ledger.sources[0].files
        self.rows, self.owners = array("Q", loaded.train), array("Q")
        self._store = store
        self._last: tuple[int, str, list[Answer]] = (-1, "", [])
        keys = array("Q")
        for row in range(len(self.rows)):
            _, answers = self._read(row)
            for answer in answers:
                self.owners.append(row)
                keys.append(_short(prompt_key(answer.prompt)))
        self.prompts = _first_of_equals(keys)

    def __len__(self) -> int:
        return len(self.owners)

    def ask(self, scorer: Scorer, rows: Sequence[int]) -> Scores:
        """Score these answers."""
        few = [self._read(self.owners[number])[1][self._place(number)] for number in rows]
        asked = Answers(
            [answer.prompt for answer in few],
            [answer.text for answer in few],
            [answer.reference for answer in few],
            [],
        )
        return asked.ask(scorer, range(len(few)))

    def group(self, row: int) -> int:
        """Answers to one prompt may change one another's scores."""
        return self.prompts[row]

    def origin(self, row: int) -> str:
        """Where an answer comes from: `rows.jsonl:17`, with `(chosen)` or `(answer 3)` where a row
        has several."""
        place, (origin, _) = self._place(row), self._read(self.owners[row])
        if self.form == "completion":
            return origin
        return f"{origin} ({SIDES[place] if self.form == 'pair' else f'answer {place + 1}'})"

    def _place(self, number: int) -> int:
        """Which answer of its row an answer is."""
        return number - bisect_left(self.owners, self.owners[number])

    def _read(self, row: int) -> tuple[str, list[Answer]]:
        """The origin of a row, and its answers; the last one is at hand."""
        if self._last[0] != row:
            found = self._store[self.rows[row]]
            self._last = row, found.origin, _answers(found)
        return self._last[1:]


def _short(text: str) -> int:
    """A number of 64 bits for a text; should two texts share one, they are scored in one call."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _first_of_equals(keys: Sequence[int]) -> Sequence[int]:
    """For each key the place of the first that equals it."""
    first = array("Q", range(len(keys)))
    order = sorted(first, key=keys.__getitem__)
    for before, place in pairwise(order):
        if keys[place] == keys[before]:
            first[place] = first[before]
    return first


def read_answers(source: Source, seed: int) -> AnswerRows:
    """Read a source. Raises: DataError naming the rows that hold no answer to a prompt."""
    form, store = form_of(source), RowStore()
    loaded = load_rows(Data(train=[source]), TASKS[form], seed, keep=("answer",), store=store)
    return AnswerRows(form, loaded, store)


def form_of(source: Source) -> Form:
    """What the columns of the first row allow: pairs before single answers before lists."""
    first = next((row for _, row in open_source(source) if isinstance(row, dict)), {})
    names = {*source.columns, *(name for name, value in first.items() if value is not None)}
    if names.issuperset(REQUIRED["preference"]):
        return "pair"
    single = any(
        names.issuperset(REQUIRED[form]) for form in FORMS_OF_TASK["sft"] if form != "text"
    )
    return (
        "list" if not single and "prompt" in names and names.intersection(LISTS) else "completion"
    )


def _answers(row: Row) -> list[Answer]:
    refuse_tools([row], "a scorer")
    if isinstance(row, PreferenceRow):
        reference = _reference(row.extra.get("answer"), row.origin)
        return [
            _last_turn(row.prompt, side, reference, row.origin)
            for side in (row.chosen, row.rejected)
        ]
    if isinstance(row, CompletionRow):
        reference = _reference(row.extra.get("answer"), row.origin)
        return [_last_turn(row.prompt, row.completion, reference, row.origin)]
    if isinstance(row, ConversationRow):
        reference = _reference(row.extra.get("answer"), row.origin)
        return [_last_turn(row.messages[:-1], row.messages[-1:], reference, row.origin)]
    if isinstance(row, PromptRow):
        return [Answer(row.prompt, text, row.answer) for text in _texts(row)]
    assert isinstance(row, TextRow), row
    raise DataError(
        f"{row.origin}: plain text answers no prompt",
        "name the columns: --column prompt=... --column completion=...",
    )


def _last_turn(
    prompt: Prompt, answer: str | Messages, reference: str | None, origin: str
) -> Answer:
    if isinstance(answer, str):
        return Answer(prompt, answer, reference)
    if answer[-1].get("tool_calls") and not answer[-1]["content"]:
        raise DataError(
            f"{origin}: the answer is a call of a tool, without text to score", "leave the row out"
        )
    before = answer[:-1]
    asked = [*as_turns(prompt, "user"), *before] if before else prompt
    return Answer(asked, str(answer[-1]["content"]), reference)


def _reference(value: Any, origin: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise DataError(
        f"{origin}: answer is {type(value).__name__}, not text",
        "the column `answer` holds the right answer",
    )


def _texts(row: PromptRow) -> list[str]:
    name = next((name for name in LISTS if row.extra.get(name) is not None), None)
    if name is None:
        raise DataError(
            f"{row.origin}: there is neither `completions` nor `responses`", "leave the row out"
        )
    held = row.extra[name]
    if not isinstance(held, list) or not held:
        raise DataError(
            f"{row.origin}: {name} is not a list of answers, or an empty one", "leave the row out"
        )
    texts = [item.get("text") if isinstance(item, Mapping) else item for item in held]
    try:
        return [
            text(item, f"answer {place} of {name}", allow_empty=True)
            for place, item in enumerate(texts, start=1)
        ]
    except BadRow as bad:
        raise DataError(
            f"{row.origin}: {bad}", 'each answer is a string, or an object with "text"'
        ) from bad


def added_columns(form: Form, prefix: str) -> list[str]:
    """Every column that scores may bring into rows of this form."""
    if form == "pair":
        sides = [f"{name}_{side}" for name in ("score", "attributes", "remark") for side in SIDES]
        return [f"{prefix}{name}" for name in (*sides, "error")]
    several = {
        "list": ("scores", "attributes", "remarks"),
        "completion": ("score", "attributes", "remark"),
    }[form]
    return [f"{prefix}{name}" for name in (*several, "error")]


def refuse_taken_columns(source: Source, form: Form, prefix: str) -> None:
    """Raise DataError where a row already has a column that would be added."""
    added = set(added_columns(form, prefix))
    for origin, row in open_source(source):
        taken = sorted(added.intersection(row)) if isinstance(row, dict) else []
        if taken:
            raise DataError(
                f"{origin} has a column `{taken[0]}` already, and nothing is overwritten",
                "name the new ones otherwise: --prefix new_ adds "
                f"`new_{taken[0].removeprefix(prefix)}`",
            )


def with_scores(
    source: Source, rows: AnswerRows, scored: Verdicts, prefix: str
) -> Iterator[dict[str, Any]]:
    """The rows as they were read, each with what was said of its answers.

    Raises: DataError when a file is no longer what it was then.
    """
    numbered = enumerate(_read_again(source, rows.files))
    first = 0
    for row, wanted in enumerate(rows.rows):
        raw = next(raw for number, raw in numbered if number == wanted)
        assert isinstance(raw, dict), f"row {wanted} was a row when it was read first"
        last = bisect_right(rows.owners, row, first)
        columns = _columns(rows.form, [scored[number] for number in range(first, last)])
        yield {**raw, **{f"{prefix}{name}": value for name, value in columns.items()}}
        first = last


def _read_again(source: Source, files: Sequence[FileRecord]) -> Iterator[Any]:
    """The raw rows of a source whose files are still these."""
    found: list[FileRecord] = []
    checked = 0
    for _, raw in open_source(source, found):
        if found[checked:] != files[checked : len(found)]:
            raise DataError(
                f"{source.path} was changed while its answers were scored",
                "the scores are kept: put the old rows back and add --resume, or start again with "
                "--overwrite",
            )
        checked = len(found)
        if raw is not BLANK:
            yield raw


def _columns(form: Form, said: Sequence[Verdict]) -> dict[str, Any]:
    if form == "list":
        columns: dict[str, Any] = {"scores": [found.value for found in said]}
        if any(found.attributes for found in said):
            columns["attributes"] = [found.attributes for found in said]
        if any(found.remark for found in said):
            columns["remarks"] = [found.remark or None for found in said]
    else:
        endings = [f"_{side}" for side in SIDES] if form == "pair" else [""]
        named = list(zip(endings, said, strict=True))
        columns = {f"score{ending}": found.value for ending, found in named}
        columns |= {
            f"attributes{ending}": found.attributes for ending, found in named if found.attributes
        }
        columns |= {f"remark{ending}": found.remark for ending, found in named if found.remark}
    errors = list(dict.fromkeys(found.error for found in said if found.error))
    return {**columns, **({"error": "; ".join(errors)} if errors else {})}
