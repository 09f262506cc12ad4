"""Answers of a contestant from a file, matched with the prompts of an arena.

Rows may be what `aligner generate` writes (`prompt`, `completions`), rows with `prompt_id` or
`prompt` and `answer`, answers of Arena-Hard (`messages` that end with the answer, or `choices` with
`turns`), and outputs of AlpacaEval (`instruction`, `output`, `generator`). A row belongs to the
prompt of its id, else to that of the same text. What a reasoning model thought before its answer is
taken off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligner.arena.battle.prompts import (
    MOST_PROBLEMS,
    asked,
    digest_of,
    id_in,
    refuse,
)
from aligner.arena.battle.sheets import Answer, Item, Prompt
from aligner.data.checks import BadRow, kind, text
from aligner.data.files import BLANK, Unreadable, kind_of_file, read_file
from aligner.data.messages import messages
from aligner.data.reasoning import without_reasoning
from aligner.errors import DataError, Problem

ANSWER_COLUMNS = ("answer", "output", "response")
PROMPT_COLUMNS = ("prompt", "instruction", "question")
MODEL_COLUMNS = ("model", "generator", "model_id")
NAME_ROWS = "give rows with prompt_id or prompt, and answer"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Written:
    """What a row of such a file says."""

    where: str
    id: str | None
    prompt: Prompt | None
    text: str
    is_cut: bool
    model: str


@dataclass
class AnswerFile:
    """The answers of a file, by the id of their prompt. `others`: rows of prompts that are not
    among those that were asked for. `reasoned`: answers from which thinking was taken off."""

    model: str
    answers: dict[str, Answer] = field(default_factory=dict)
    others: int = 0
    reasoned: int = 0


def read_answers(path: Path, items: Sequence[Item], model: str = "") -> dict[str, Answer]:
    """Return the answer to each prompt. `model`: what the contestant is called; the file's own name
    for it by default, or the file's name.

    Raises: DataError as `read_answer_file` does, and for prompts without an answer.
    """
    found = read_answer_file(path, items, model)
    refuse_missing(path, items, found.answers)
    return found.answers


def read_answer_file(path: Path, items: Sequence[Item], model: str = "") -> AnswerFile:
    """Return the answers that a file has to prompts.

    Raises: DataError with up to twenty problems, each with file and line: rows that hold no answer,
    a second answer to a prompt, an id whose prompt is another's.
    """
    matcher = _Matcher(items)
    problems: list[Problem] = []
    found, models, seen = AnswerFile(model), dict[str, None](), dict[str, str]()
    for row in _rows_of(path, problems):
        models[row.model] = None
        try:
            places = matcher.places(row)
        except BadRow as error:
            problems.append(Problem(str(error), row.where))
            continue
        said = without_reasoning(row.text)
        is_reasoned = said != row.text.strip()
        found.others += not places
        found.reasoned += is_reasoned and bool(places)
        answer = Answer(model, said if is_reasoned else row.text, row.is_cut)
        for place in places:
            if found.answers.setdefault(place, answer) != answer:
                problems.append(Problem(f"answers what {seen[place]} answers too", row.where))
            seen.setdefault(place, row.where)
    refuse(problems, str(path))
    found.model = model or _one_model(path, models)
    found.answers = {
        place: Answer(found.model, answer.text, answer.is_cut)
        for place, answer in found.answers.items()
    }
    return found


def items_in(path: Path) -> list[Item]:
    """Return the prompts that a file of answers names, in its order.

    Raises: DataError for rows that hold no answer, or no prompt.
    """
    problems: list[Problem] = []
    items: dict[str, Item] = {}
    for row in _rows_of(path, problems):
        if row.prompt is None:
            problems.append(Problem("says an id and no prompt", row.where, hint="add its prompt"))
            continue
        name = row.id or digest_of(row.prompt)
        items.setdefault(name, Item(name, row.prompt, origin=row.where))
    refuse(problems, str(path))
    return list(items.values())


def refuse_missing(path: Path, items: Sequence[Item], answers: Mapping[str, Answer]) -> None:
    """Raise DataError for prompts without an answer, up to twenty of them named."""
    missing = [item for item in items if item.id not in answers]
    if not missing:
        return
    listed = [
        Problem(f"no answer to {item.id!r}: {_begin(asked(item.prompt))}", item.origin)
        for item in missing[:MOST_PROBLEMS]
    ]
    more = f", the first {MOST_PROBLEMS} of them" if len(missing) > MOST_PROBLEMS else ""
    raise DataError(
        f"{path} has no answer to {len(missing):,} of {len(items):,} prompts{more}",
        "add them, or take those prompts out",
        listed,
    )


class _Matcher:
    """Finds the prompts that a row answers."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.by_id = {item.id: item for item in items}
        self.by_text: dict[str, list[Item]] = {}
        for item in items:
            self.by_text.setdefault(asked(item.prompt), []).append(item)

    def places(self, row: Written) -> list[str]:
        """Return the ids of the prompts; none where it answers something else.

        Raises: BadRow.
        """
        prompt = None if row.prompt is None else asked(row.prompt)
        if row.id in self.by_id:
            item = self.by_id[str(row.id)]
            if prompt is not None and prompt != asked(item.prompt):
                raise BadRow(
                    f"has the id {row.id!r} and another prompt than it: {_begin(prompt)}, not "
                    f"{_begin(asked(item.prompt))}"
                )
            return [item.id]
        if prompt is None:
            return []
        meant = self.by_text.get(prompt, [])
        if len({digest_of(item.prompt) for item in meant}) > 1:
            raise BadRow("has a prompt that several share, with other system prompts: add its id")
        return [item.id for item in meant]


def _rows_of(path: Path, problems: list[Problem]) -> Iterator[Written]:
    """Read a file; what cannot be used of it is added to the problems."""
    if not path.is_file():
        raise DataError(f"{path} is not a file", "name a file of answers")
    if kind_of_file(path) in (None, ".txt"):
        raise DataError(f"{path} is of no known kind", "give .jsonl, .json, .csv or .parquet")
    is_empty = True
    for number, row in read_file(path):
        if row is BLANK:
            continue
        is_empty = False
        where = f"{path}:{number}"
        try:
            if isinstance(row, Unreadable):
                raise BadRow(row.reason)
            yield _written(row, where)
        except BadRow as error:
            problems.append(Problem(str(error), where))
    if is_empty:
        raise DataError(f"{path} holds no rows", NAME_ROWS)


def _written(row: dict[str, Any], where: str) -> Written:
    """Say what a row holds. Raises: BadRow."""
    answer, is_cut, prompt = _answer(row)
    if prompt is None:
        prompt = next((row[name] for name in PROMPT_COLUMNS if row.get(name) is not None), None)
    if isinstance(prompt, list):
        prompt = messages(prompt, "prompt")
    elif prompt is not None and not isinstance(prompt, str):
        raise BadRow(f"prompt is {kind(prompt)}, not a text or turns")
    name = id_in(row)
    if name is None and prompt is None:
        raise BadRow("says neither an id nor a prompt")
    model = next((row[key] for key in MODEL_COLUMNS if isinstance(row.get(key), str)), "")
    is_cut = is_cut or row.get("finish_reason") == "length" or row.get("is_cut") is True
    return Written(where, name, prompt, answer, is_cut, model)


def _answer(row: Row) -> tuple[str, bool, Prompt | None]:
    """Return the answer of a row, whether it says that it was cut off, and the turns before it
    where they stand with it."""
    if "completions" in row:
        one = _the_one(row["completions"], "completions")
        if one.get("finish_reason") == "error":
            raise BadRow(f"has no answer: {one.get('error') or 'the engine gave up'}")
        return _text(one.get("text"), "completions"), one.get("finish_reason") == "length", None
    if "messages" in row:
        return _last_turn(row["messages"])
    if "choices" in row:
        turns = _the_one(row["choices"], "choices").get("turns")
        if not isinstance(turns, list) or not turns or not isinstance(turns[-1], dict):
            raise BadRow("choices has no turns")
        return _text(turns[-1].get("content"), "choices"), False, None
    for column in ANSWER_COLUMNS:
        if row.get(column) is not None:
            return _text(row[column], column), False, None
    raise BadRow(f"holds no answer (columns: {', '.join(map(str, list(row)[:12]))})")


def _the_one(value: Any, column: str) -> dict[str, Any]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise BadRow(f"{column} is {kind(value)}, not a list of answers")
    if len(value) != 1:
        raise BadRow(f"{column} holds {len(value)} answers, and a contestant has one")
    one: dict[str, Any] = value[0]
    return one


def _last_turn(value: Any) -> tuple[str, bool, Prompt | None]:
    """Return the last turn of messages and what stands before it; the content of Arena-Hard's
    answers is an object."""
    if not isinstance(value, list) or len(value) < 2 or not isinstance(value[-1], dict):
        raise BadRow("messages is not a list of a prompt and its answer")
    last = value[-1]
    if last.get("role") != "assistant":
        raise BadRow("messages does not end with an answer of the assistant")
    content = last.get("content")
    if isinstance(content, dict):
        content = content.get("answer")
    return _text(content, "messages"), False, messages(value[:-1], "messages")


def _text(value: Any, column: str) -> str:
    return text(value, f"the answer in {column}", allow_empty=True)


def _one_model(path: Path, models: Mapping[str, None]) -> str:
    """The name that the rows give, which is one; the file's name where they give none."""
    names = [name for name in models if name]
    if len(names) > 1:
        raise DataError(
            f"{path} holds answers of {len(names)} models: {', '.join(names[:5])}",
            "give each model a file of its own",
        )
    return names[0] if names else path.name.split(".")[0]


def _begin(said: str) -> str:
    """The beginning of a text, in quotes."""
    line = " ".join(said.split())
    return repr(line if len(line) <= 60 else line[:57] + "...")
