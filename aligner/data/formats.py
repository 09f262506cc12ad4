"""Find the form of a source's rows from their columns; the evidence is shown, and nothing is
guessed.

The first `HEAD_ROWS` rows vote with the columns that they hold. A form is taken when it is the only
one that the task can use and that the rows allow; two such forms, or rows of several kinds in one
source, are an error that names them and the line of the recipe that settles it. Data of the wrong
kind for the task (preference pairs given to `sft`, plain answers to `dpo`) is refused here, before
any row is mapped.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from aligner.config.recipe import Source
from aligner.data.checks import kind
from aligner.data.rows import VARIABLES, Task
from aligner.errors import DataError

HEAD_ROWS = 100

REQUIRED: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "preference": ("chosen", "rejected"),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
    "prompt": ("prompt",),
}
"""Form -> the columns that every row of it has."""

OPTIONAL: dict[str, tuple[str, ...]] = {
    "messages": ("tools", "functions", "system", VARIABLES),
    "sharegpt": ("tools", "functions", "system", VARIABLES),
    "preference": ("prompt", "weight", "tools", "functions", "system", VARIABLES),
    "prompt_completion": ("tools", "functions", "system", VARIABLES),
    "alpaca": ("input", "system", "history", "tools", "functions", VARIABLES),
    "text": (),
    "prompt": ("answer", "tools", "functions", "system"),
}
"""Form -> the columns that are used where they are there."""

FORMS_OF_TASK: dict[Task, tuple[str, ...]] = {
    "sft": ("messages", "prompt_completion", "sharegpt", "alpaca", "text"),
    "preference": ("preference",),
    "prompts": ("messages", "prompt_completion", "sharegpt", "alpaca", "preference", "prompt"),
}

KNOWN_COLUMNS = sorted(
    {name for table in (REQUIRED, OPTIONAL) for names in table.values() for name in names}
)

PROMPT_LIKE = ("question", "query", "problem", "instruction", "input", "user", "request", "source")
ANSWER_LIKE = (
    "answer",
    "response",
    "output",
    "solution",
    "target",
    "assistant",
    "reply",
    "label",
    "chosen",
)
CHOSEN_LIKE = ("accepted", "preferred", "winner", "win", "better", "positive", "response_chosen")
REJECTED_LIKE = (
    "refused",
    "dispreferred",
    "loser",
    "lose",
    "worse",
    "negative",
    "response_rejected",
)

Row = Mapping[str, Any]


def choose_form(head: Sequence[Row], source: Source, task: Task) -> tuple[str, str]:
    """The form of the rows, and the evidence for it."""
    if source.format != "auto":
        _check_given_form(head, source, task)
        return source.format, "as given in the recipe"
    voted = Counter(_allowed(row, source, task) for row in head)
    ballots = [(forms, number) for forms, number in voted.most_common() if forms]
    if not ballots:
        raise _unknown_columns(head, source, task)
    winners, _ = ballots[0]
    if len(winners) > 1:
        columns = "; ".join(f"{form} ({_ticked(REQUIRED[form], ' + ')})" for form in winners)
        raise DataError(
            f"{source.path}: the columns fit more than one form: {columns}",
            f"say which one, for example `format: {winners[0]}`",
        )
    (form,) = winners
    _refuse_mixture(form, ballots, source)
    agreeing = sum(number for forms, number in ballots if form in forms)
    rows = "the only row" if len(head) == 1 else f"the first {len(head)} rows"
    if agreeing < len(head):
        rows = f"{agreeing} of {rows}"
    elif len(head) > 1:
        rows = f"all of {rows}"
    return form, f"found {_ticked(REQUIRED[form])} in {rows}"


def unused_columns(head: Sequence[Row], form: str, task: Task) -> list[str]:
    """Columns that the form takes no notice of."""
    used = {*REQUIRED[form], *OPTIONAL[form]}
    if task == "prompts":
        used.discard(VARIABLES)
        if form == "prompt":
            return [VARIABLES] if any(VARIABLES in row for row in head) else []
    return sorted({str(name) for row in head for name in row if name not in used})


def _forms(row: Row) -> set[str]:
    """The forms whose columns the row has; a null counts as absent."""
    present = {name for name, value in row.items() if value is not None}
    forms = {form for form, needed in REQUIRED.items() if present.issuperset(needed)}
    if forms & {"prompt_completion", "preference"}:
        forms.discard("prompt")
    return forms


def _allowed(row: Row, source: Source, task: Task) -> tuple[str, ...]:
    """The row's forms that the task can use; columns that the user has mapped come first."""
    forms = _forms(row) & set(FORMS_OF_TASK[task])
    mapped = {form for form in forms if set(REQUIRED[form]) & set(source.columns)}
    return tuple(sorted(mapped or forms))


def _check_given_form(head: Sequence[Row], source: Source, task: Task) -> None:
    form = source.format
    if form not in FORMS_OF_TASK[task]:
        raise _wrong_task({form}, head, source, task)
    there = set(chain.from_iterable(head))
    missing = [name for name in REQUIRED[form] if name not in there]
    if missing:
        raise DataError(
            f"{source.path}: form `{form}` needs the columns {_ticked(REQUIRED[form])}; "
            f"{_ticked(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} in no row. Columns: {_columns(head)}",
            _mapping_hint(head, REQUIRED[form]),
        )


def _unknown_columns(head: Sequence[Row], source: Source, task: Task) -> DataError:
    seen = {form for row in head for form in _forms(row)}
    if seen:
        return _wrong_task(seen, head, source, task)
    wanted = {
        "sft": ("prompt", "completion"),
        "preference": ("prompt", "chosen", "rejected"),
        "prompts": ("prompt",),
    }
    known = "; ".join(_ticked(REQUIRED[form], " + ") for form in FORMS_OF_TASK[task])
    return DataError(
        f"{source.path}: no known form has these columns: {_columns(head)}. Known for this task: "
        f"{known}",
        _mapping_hint(head, wanted[task]),
    )


def _wrong_task(forms: Iterable[str], head: Sequence[Row], source: Source, task: Task) -> DataError:
    held = " or ".join(sorted(forms))
    if task == "sft" and "preference" in forms:
        mapping = "`columns: {prompt: prompt, completion: chosen}`"
        are_turns = any(isinstance(row.get("chosen"), list) for row in head)
        if are_turns and not any("prompt" in row for row in head):
            mapping = "`columns: {messages: chosen}`"
        return DataError(
            f"{source.path} holds preference pairs (columns: {_columns(head)}); "
            "training on single answers needs one answer a row",
            f"train on the chosen answers with {mapping}, or use the pairs with "
            "`aligner dpo` or `aligner reward`",
        )
    if task == "preference":
        return DataError(
            f"{source.path} holds {held} rows (columns: {_columns(head)}); preference training "
            "needs "
            "`chosen` and `rejected`, with `prompt` or a shared beginning",
            f"{_mapping_hint(head, ('prompt', 'chosen', 'rejected'))}; single answers train with "
            "`aligner sft`, "
            "rated ones with `aligner reward reward.kind=regression`",
        )
    allowed = ", ".join(FORMS_OF_TASK[task])
    return DataError(
        f"{source.path} holds {held} rows (columns: {_columns(head)}); this task takes {allowed}",
        _mapping_hint(head, ("prompt", "completion") if task == "sft" else ("prompt",)),
    )


def _refuse_mixture(
    form: str, ballots: Sequence[tuple[tuple[str, ...], int]], source: Source
) -> None:
    """A few rows of another kind are bad rows; a tenth or more means that the source is a
    mixture."""
    other = [(forms, number) for forms, number in ballots if form not in forms]
    total = sum(number for _, number in ballots)
    if sum(number for _, number in other) * 10 < total:
        return
    counts = [((form,), total - sum(number for _, number in other)), *other]
    found = ", ".join(f"{number} {'/'.join(forms)}" for forms, number in counts)
    raise DataError(
        f"{source.path}: rows of several forms in one source: {found} (of the first {total} rows)",
        "put each form in a file of its own and list them under `train:`, or write a `function:` "
        "that makes them alike",
    )


def _mapping_hint(head: Sequence[Row], wanted: Sequence[str]) -> str:
    """What to write in a recipe and on a command line, with the columns that look right filled
    in."""
    have = list(dict.fromkeys(name for row in head for name in row))
    likely = {
        "prompt": PROMPT_LIKE,
        "completion": ANSWER_LIKE,
        "chosen": CHOSEN_LIKE,
        "rejected": REJECTED_LIKE,
    }
    pairs = {}
    for target in wanted:
        near = [name for name in likely.get(target, ()) if name in have]
        near += difflib.get_close_matches(target, [str(name) for name in have], n=1)
        pairs[target] = target if target in have else near[0] if near else "..."
    keys = ", ".join(f"{target}: {name}" for target, name in pairs.items())
    options = " ".join(f"--column {target}={name}" for target, name in pairs.items())
    return (
        f"say which column holds what: `columns: {{{keys}}}` beside the `path:` in a recipe "
        f"(`data.train.columns.{next(iter(pairs))}=...` on its command line), `{options}` with "
        "commands that have no recipe"
    )


def _columns(head: Sequence[Row]) -> str:
    """Columns of the first rows with the type of what they hold."""
    types: dict[str, str] = {}
    for row in head:
        for name, value in row.items():
            if value is not None or name not in types:
                types[str(name)] = kind(value).removeprefix("a ").removeprefix("an ")
    return ", ".join(f"{name} ({what})" for name, what in list(types.items())[:20]) + (
        " ..." if len(types) > 20 else ""
    )


def _ticked(names: Iterable[str], joiner: str = ", ") -> str:
    return joiner.join(f"`{name}`" for name in names)
