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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from aligner.config.recipe import Data, Source
from aligner.data.checks import BadRow, text
from aligner.data.files import BLANK
from aligner.data.formats import FORMS_OF_TASK, REQUIRED
from aligner.data.loading import load_rows
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
from aligner.reward_models.base import Prompt
from aligner.reward_models.batching import Verdict

Form = Literal["completion", "pair", "list"]

LISTS = ("completions", "responses")
"""Columns that may hold several answers to one prompt."""

TASKS: dict[Form, Task] = {"completion": "sft", "pair": "preference", "list": "prompts"}

SIDES = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a prompt, the right answer where it is known, and the row that it comes from,
    counted from 0."""

    prompt: Prompt
    text: str
    reference: str | None
    row: int


@dataclass(frozen=True, slots=True)
class AnswerRows:
    """The answers of a source, row by row, and the digest of all that decided which they are."""

    form: Form
    answers: list[Answer]
    origins: list[str]
    fingerprint: str
    remarks: list[str] = field(default_factory=list)
    """What to warn of: columns that are not used and look as if they should be."""

    def place(self, answer: int) -> str:
        """Where an answer comes from: `rows.jsonl:17`, with `(chosen)` or `(answer 3)` where a row
        has several."""
        row = self.answers[answer].row
        if self.form == "completion":
            return self.origins[row]
        first = answer
        while first > 0 and self.answers[first - 1].row == row:
            first -= 1
        what = SIDES[answer - first] if self.form == "pair" else f"answer {answer - first + 1}"
        return f"{self.origins[row]} ({what})"


def read_answers(source: Source, seed: int) -> AnswerRows:
    """Read a source. Raises: DataError naming the rows that hold no answer to a prompt."""
    form = form_of(source)
    loaded = load_rows(Data(train=[source]), TASKS[form], seed, keep=("answer",))
    refuse_tools(loaded.train, "a scorer")
    answers = [
        answer for number, row in enumerate(loaded.train) for answer in _answers(row, number)
    ]
    origins = [row.origin for row in loaded.train]
    return AnswerRows(form, answers, origins, loaded.fingerprint, loaded.ledger.remarks())


def form_of(source: Source) -> Form:
    """What the columns of the first row allow: pairs before single answers before lists."""
    first = next((row for _, row in open_source(source, []) if isinstance(row, dict)), {})
    names = {*source.columns, *(name for name, value in first.items() if value is not None)}
    if names.issuperset(REQUIRED["preference"]):
        return "pair"
    single = any(
        names.issuperset(REQUIRED[form]) for form in FORMS_OF_TASK["sft"] if form != "text"
    )
    return (
        "list" if not single and "prompt" in names and names.intersection(LISTS) else "completion"
    )


def _answers(row: Row, number: int) -> list[Answer]:
    if isinstance(row, PreferenceRow):
        reference = _reference(row.extra.get("answer"), row.origin)
        return [
            _last_turn(row.prompt, side, reference, number, row.origin)
            for side in (row.chosen, row.rejected)
        ]
    if isinstance(row, CompletionRow):
        reference = _reference(row.extra.get("answer"), row.origin)
        return [_last_turn(row.prompt, row.completion, reference, number, row.origin)]
    if isinstance(row, ConversationRow):
        reference = _reference(row.extra.get("answer"), row.origin)
        return [_last_turn(row.messages[:-1], row.messages[-1:], reference, number, row.origin)]
    if isinstance(row, PromptRow):
        return [Answer(row.prompt, text, row.answer, number) for text in _texts(row)]
    assert isinstance(row, TextRow), row
    raise DataError(
        f"{row.origin}: plain text answers no prompt",
        "name the columns: --column prompt=... --column completion=...",
    )


def _last_turn(
    prompt: Prompt, answer: str | Messages, reference: str | None, number: int, origin: str
) -> Answer:
    if isinstance(answer, str):
        return Answer(prompt, answer, reference, number)
    if answer[-1].get("tool_calls") and not answer[-1]["content"]:
        raise DataError(
            f"{origin}: the answer is a call of a tool, without text to score", "leave the row out"
        )
    before = answer[:-1]
    asked = [*as_turns(prompt, "user"), *before] if before else prompt
    return Answer(asked, str(answer[-1]["content"]), reference, number)


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
    for origin, row in open_source(source, []):
        taken = sorted(added.intersection(row)) if isinstance(row, dict) else []
        if taken:
            raise DataError(
                f"{origin} has a column `{taken[0]}` already, and nothing is overwritten",
                "name the new ones otherwise: --prefix new_ adds "
                f"`new_{taken[0].removeprefix(prefix)}`",
            )


def with_scores(
    source: Source, rows: AnswerRows, scored: Sequence[Verdict], prefix: str
) -> Iterator[dict[str, Any]]:
    """The rows as they were read, each with what was said of its answers."""
    by_row: list[list[Verdict]] = [[] for _ in rows.origins]
    for answer, found in zip(rows.answers, scored, strict=True):
        by_row[answer.row].append(found)
    place = {origin: number for number, origin in enumerate(rows.origins)}
    for origin, raw in open_source(source, []):
        if raw is not BLANK and origin in place:
            assert isinstance(raw, dict), f"{origin} was a row when it was read first"
            columns = _columns(rows.form, by_row[place[origin]])
            yield {**raw, **{f"{prefix}{name}": value for name, value in columns.items()}}


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
