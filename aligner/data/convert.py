"""Write a typed row in another form, the other way round than `aligner.data.mapping`, with nothing
lost: what a form cannot say raises `BadRow` with what it is.

`meaning` is what two rows have in common if they say the same, whatever their form: the turns,
which of them are trained, tools, and variables of the template. A plain prompt is a turn of the
user, and its answer one of the assistant, as they are where a tokenizer has a chat template.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from aligner.data.checks import BadRow
from aligner.data.rows import (
    VARIABLES,
    WEIGHT,
    CompletionRow,
    ConversationRow,
    Messages,
    PreferenceRow,
    PromptRow,
    Row,
    as_turns,
    variables_of,
)
from aligner.data.turn_weight import without_weights

Raw = dict[str, Any]

SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
"""Roles -> speakers of ShareGPT-form files."""


def written(row: Row, form: str, *, in_turns: bool = False) -> Raw:
    """The columns of a row in a form. `in_turns`: a prompt that holds turns stays a list of them,
    also where text says as much.

    Raises: BadRow for what the form cannot say.
    """
    if isinstance(row, ConversationRow | CompletionRow):
        if form not in CONVERSATIONS:
            raise BadRow(f"it holds one answer, and `{form}` rows are something else")
        columns = CONVERSATIONS[form](_marked(row))
        is_plain = isinstance(row, CompletionRow) and isinstance(row.prompt, str)
        if form == "prompt_completion" and in_turns and not is_plain:
            columns = dict(zip(("prompt", "completion"), _cut(_marked(row))))
    elif isinstance(row, PreferenceRow):
        _refuse_other("preference", form, "two answers, of which one would be lost")
        columns = _pair(row)
    elif isinstance(row, PromptRow):
        _refuse_other("prompt", form, "a prompt without an answer")
        columns = {"prompt": row.prompt}
        columns |= {} if row.answer is None else {"answer": row.answer}
    else:
        _refuse_other("text", form, "plain text without turns")
        columns = {"text": row.text}
    if tools := getattr(row, "tools", None):
        columns["tools"] = tools
    if variables := variables_of(row):
        columns[VARIABLES] = variables
    return columns


def meaning(row: Row) -> Any:
    """What a row says, in a way that compares equal for rows of other forms that say the same."""
    if isinstance(row, ConversationRow | CompletionRow):
        return "answer", _marked(row), row.tools, variables_of(row)
    if isinstance(row, PreferenceRow):
        sides = [as_turns(side, "assistant") for side in (row.chosen, row.rejected)]
        said = [row.weight, row.tools, variables_of(row)]
        return "pair", as_turns(row.prompt, "user"), sides, *said
    if isinstance(row, PromptRow):
        return "prompt", row.prompt, row.answer, row.tools
    return "text", row.text


def as_text(value: Any) -> str:
    """The value as a field of a CSV file: text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _refuse_other(own: str, form: str, what: str) -> None:
    if form != own:
        raise BadRow(f"it holds {what}, which `{form}` cannot say")


def _marked(row: ConversationRow | CompletionRow) -> Messages:
    """All turns; one of the assistant that is not trained has the weight 0."""
    if isinstance(row, ConversationRow):
        return row.messages
    prompt = [_untrained(turn) for turn in as_turns(row.prompt, "user")]
    return [*prompt, *as_turns(row.completion, "assistant")]


def _untrained(turn: dict[str, Any]) -> dict[str, Any]:
    (plain,) = without_weights([turn])
    return {**plain, WEIGHT: 0} if turn["role"] == "assistant" else plain


def _messages(turns: Messages) -> Raw:
    return {"messages": turns}


def _sharegpt(turns: Messages) -> Raw:
    said = []
    for number, turn in enumerate(turns, start=1):
        if turn["role"] not in SPEAKERS:
            raise BadRow(f"turn {number} is the {turn['role']}'s, who has no name in ShareGPT form")
        rest = {key: value for key, value in turn.items() if key not in ("role", "content")}
        said.append({"from": SPEAKERS[turn["role"]], "value": turn["content"], **rest})
    return {"conversations": said}


def _prompt_completion(turns: Messages) -> Raw:
    prompt, answer = _cut(turns)
    system, asked = _without_system(prompt)
    if len(asked) == len(answer) == 1 and _is_plain(asked[0]) and _is_plain(answer[0]):
        return {**system, "prompt": asked[0]["content"], "completion": answer[0]["content"]}
    return {"prompt": prompt, "completion": answer}


def _alpaca(turns: Messages) -> Raw:
    prompt, answer = _cut(turns)
    system, asked = _without_system(prompt)
    for number, turn in enumerate([*asked, *answer], start=1):
        if not _is_plain(turn) or turn["role"] not in ("user", "assistant"):
            raise BadRow(f"turn {number} is not plain text of the user or the assistant")
    roles = [turn["role"] for turn in [*asked, *answer]]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise BadRow("the user and the assistant do not take turns, which Alpaca rows do")
    texts = [turn["content"] for turn in asked]
    history = {"history": list(map(list, zip(texts[0::2], texts[1::2])))} if texts[1:] else {}
    return {**system, **history, "instruction": texts[-1], "output": answer[0]["content"]}


def _cut(turns: Messages) -> tuple[Messages, Messages]:
    """The prompt and the answer, which begins behind the last turn that is no answer's."""
    start = len(turns)
    while start and turns[start - 1]["role"] in ("assistant", "tool"):
        start -= 1
    for number, turn in enumerate(turns[:start], start=1):
        if turn["role"] == "assistant" and turn.get(WEIGHT) != 0:
            raise BadRow(
                f"turn {number} is the assistant's and trained, and would stand in a prompt, which "
                "is not"
            )
    return without_weights(turns[:start]), turns[start:]


def _without_system(prompt: Messages) -> tuple[Raw, Messages]:
    """The first turn as a column, where it is a plain one of the system."""
    first = prompt[0]
    if first["role"] == "system" and _is_text_alone(first) and first["content"].strip():
        return {"system": first["content"]}, prompt[1:]
    return {}, prompt


def _is_text_alone(turn: dict[str, Any]) -> bool:
    return turn.keys() == {"role", "content"}


def _is_plain(turn: dict[str, Any]) -> bool:
    """Whether a turn is text alone; of the assistant's in a prompt, weight 0 was taken off."""
    return _is_text_alone(turn) and turn["role"] != "tool"


def _pair(row: PreferenceRow) -> Raw:
    columns = {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}
    return columns if row.weight == 1.0 else {**columns, "weight": row.weight}


CONVERSATIONS: dict[str, Callable[[Messages], Raw]] = {
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
}
"""Forms of rows with one answer -> what writes their turns."""
