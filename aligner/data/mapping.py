"""Map one raw row to one typed row, form by form. A row that does not fit raises `BadRow` with the
reason.

The preference form follows TRL's conventions: an explicit `prompt`, or none, in which case what
`chosen` and `rejected` share at their beginning is the prompt. Shared turns are split off whole.
Shared plain text is split after the last "\\n\\nAssistant:" where there is one (the form of
Anthropic's helpful/harmless data), else at the last white space before the first difference; TRL
cuts at the character and may cut a word in two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import takewhile
from typing import Any

from aligner.data.checks import BadRow, kind, text
from aligner.data.messages import answer, conversation, messages, question, sharegpt
from aligner.data.rows import (
    LARGEST_NUMBER,
    SAMPLED,
    VARIABLES,
    CompletionRow,
    ConversationRow,
    Messages,
    PreferenceRow,
    PromptRow,
    Row,
    Task,
    TextRow,
    as_turns,
)
from aligner.data.strict_json import RepeatedKey, decode
from aligner.data.turn_weight import trained_side, without_weights

Raw = Mapping[str, Any]

DIALOGUE_MARK = "\n\nAssistant:"

NO_VARIABLES = frozenset(
    (
        *("messages", "conversation", "tools", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "tokenize", "padding", "truncation", "max_length"),
        *("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
    )
)
"""Arguments of `apply_chat_template` that say how it works, and what rows say elsewhere."""

SAME_ANSWERS = "chosen and rejected are the same"
"""Why a pair that compares an answer with itself cannot be used."""


def map_row(raw: Raw, form: str, task: Task, origin: str) -> Row:
    """The typed row, or `BadRow`."""
    if task == "prompts":
        return PROMPT_MAPPERS[form](raw, origin)
    row = ROW_MAPPERS[form](raw, origin)
    if isinstance(row, TextRow | PromptRow) or not (variables := _variables(raw)):
        return row
    return replace(row, chat_template_kwargs=variables)


def _need(raw: Raw, column: str) -> Any:
    if raw.get(column) is None:
        raise BadRow(f"`{column}` is null" if column in raw else f"`{column}` is missing")
    return raw[column]


def _messages(raw: Raw, origin: str) -> ConversationRow:
    turns = _with_system(raw, messages(_need(raw, "messages"), "messages"))
    return ConversationRow(conversation(turns, "messages"), _tools(raw), origin)


def _sharegpt(raw: Raw, origin: str) -> ConversationRow:
    turns = _with_system(raw, sharegpt(_need(raw, "conversations"), "conversations"))
    return ConversationRow(conversation(turns, "conversations"), _tools(raw), origin)


def _with_system(raw: Raw, turns: Messages) -> Messages:
    """Put the text of a `system` column, if there is any, before the turns."""
    if not raw.get("system"):
        return turns
    if turns and turns[0]["role"] == "system":
        if turns[0]["content"] == raw["system"]:
            return turns
        raise BadRow("both the column `system` and the first turn hold a system prompt")
    return [{"role": "system", "content": text(raw["system"], "system")}, *turns]


def _tools(raw: Raw) -> list[Any] | None:
    """The `tools` column, a list or JSON text of one; or `functions`, as OpenAI called it
    before."""
    name = "functions" if raw.get("tools") is None and raw.get("functions") is not None else "tools"
    tools = _value(raw, name)
    if not tools:
        return None
    if not isinstance(tools, list):
        raise BadRow(f"{name} is {kind(tools)}, not a list")
    for number, tool in enumerate(tools, start=1):
        if not isinstance(tool, dict):
            raise BadRow(f"tool {number} of {name} is {kind(tool)}, not an object")
    return (
        [{"type": "function", "function": tool} for tool in tools] if name == "functions" else tools
    )


def _value(raw: Raw, name: str) -> Any:
    """What a column holds, itself or as JSON text."""
    value = raw.get(name)
    if not (isinstance(value, str) and value.strip()):
        return value
    try:
        return decode(value)
    except RepeatedKey as error:
        raise BadRow(f"in {name}, {error}") from None
    except (ValueError, RecursionError):
        raise BadRow(f"{name} is a string that is not JSON") from None


def _variables(raw: Raw) -> dict[str, Any]:
    """The variables of the chat template that a row sets, an object or JSON text of one. A null is
    an absent one, as it is in files of columns."""
    value = _value(raw, VARIABLES)
    if not value:
        return {}
    if not isinstance(value, dict):
        raise BadRow(f"{VARIABLES} is {kind(value)}, not an object")
    for name in value:
        if name in NO_VARIABLES:
            raise BadRow(f"{VARIABLES} sets `{name}`, which is not for a row to say")
    return {name: item for name, item in value.items() if item is not None}


def _alpaca(raw: Raw, origin: str) -> CompletionRow:
    completion = text(_need(raw, "output"), "output")
    said = [{"role": "assistant", "content": completion}]
    return CompletionRow(_alpaca_prompt(raw), said, origin, tools=_tools(raw))


def _alpaca_prompt(raw: Raw) -> Messages:
    """System prompt, earlier rounds, then the instruction and, after a blank line, its input."""
    instruction = text(_need(raw, "instruction"), "instruction")
    given = text(raw.get("input") or "", "input", allow_empty=True)
    asked = f"{instruction}\n\n{given}" if given.strip() else instruction
    history = raw.get("history") or []
    if not isinstance(history, list):
        raise BadRow(f"history is {kind(history)}, not a list of [question, answer] pairs")
    turns = []
    for number, round_ in enumerate(history, 1):
        if not isinstance(round_, list) or len(round_) != 2:
            raise BadRow(f"round {number} of history is not a [question, answer] pair")
        for role, part in zip(("user", "assistant"), round_):
            turns.append({"role": role, "content": text(part, f"round {number} of history")})
    return _with_system(raw, [*turns, {"role": "user", "content": asked}])


def _text(raw: Raw, origin: str) -> TextRow:
    return TextRow(text(_need(raw, "text"), "text"), origin)


def _prompt(value: Any) -> str | Messages:
    if isinstance(value, list):
        return question(messages(value, "prompt"), "prompt")
    return text(value, "prompt")


def _untrained(prompt: str | Messages) -> str | Messages:
    """A prompt that is never trained, whatever its turns say."""
    return prompt if isinstance(prompt, str) else without_weights(prompt)


def _completion(raw: Raw, origin: str) -> CompletionRow:
    prompt, value, tools = _prompt(_need(raw, "prompt")), _need(raw, "completion"), _tools(raw)
    if isinstance(prompt, str) and not isinstance(value, list) and not raw.get("system"):
        return CompletionRow(prompt, text(value, "completion"), origin, tools=tools)
    prompt = as_turns(prompt, "user")
    answered = _answer_turns(value, "completion", prompt)
    return CompletionRow(_with_system(raw, prompt), answered, origin, tools=tools)


def _asked_with_system(raw: Raw, prompt: str | Messages) -> str | Messages:
    """The prompt, behind the text of a `system` column if there is any."""
    return _with_system(raw, as_turns(prompt, "user")) if raw.get("system") else prompt


def _answer_turns(value: Any, name: str, prompt: Messages) -> Messages:
    """An answer as turns of the assistant; a copy of the whole prompt before it is taken off."""
    if not isinstance(value, list):
        return [{"role": "assistant", "content": text(value, name)}]
    turns = messages(value, name)
    if without_weights(turns[: len(prompt)]) == without_weights(prompt):
        turns = turns[len(prompt) :]
    if not turns:
        raise BadRow(f"{name} holds nothing after the prompt")
    return answer(turns, name)


def _preference(raw: Raw, origin: str) -> PreferenceRow:
    chosen, rejected = _need(raw, "chosen"), _need(raw, "rejected")
    if type(chosen) is not type(rejected):
        raise BadRow(f"chosen is {kind(chosen)} and rejected is {kind(rejected)}")
    if raw.get(SAMPLED) is not None and raw.get("prompt") is not None:
        return _sampled_pair(raw, origin)
    prompt: str | Messages
    if isinstance(chosen, list):
        prompt, chosen, rejected = _conversational_pair(raw.get("prompt"), chosen, rejected)
    else:
        prompt, chosen, rejected = _plain_pair(
            raw.get("prompt"), text(chosen, "chosen"), text(rejected, "rejected")
        )
    if chosen == rejected:
        raise BadRow(SAME_ANSWERS)
    if raw.get("system"):
        prompt = _asked_with_system(raw, prompt)
        chosen, rejected = as_turns(chosen, "assistant"), as_turns(rejected, "assistant")
    return PreferenceRow(prompt, chosen, rejected, _pair_weight(raw), origin, tools=_tools(raw))


def _sampled_pair(raw: Raw, origin: str) -> PreferenceRow:
    return PreferenceRow(
        _asked_with_system(raw, _untrained(_prompt(raw["prompt"]))),
        _said(raw["chosen"], "chosen"),
        _said(raw["rejected"], "rejected"),
        _pair_weight(raw),
        origin,
        tools=_tools(raw),
    )


def _said(value: Any, name: str) -> str | Messages:
    """What a model said, of which the token ids are known: it may have said nothing."""
    if not isinstance(value, list):
        return text(value, name, allow_empty=True)
    turn = value[0] if len(value) == 1 and isinstance(value[0], dict) else {}
    if turn.get("role") != "assistant":
        raise BadRow(f"{name} is not one turn of the assistant, as a model's answer is")
    content = text(turn.get("content"), f"content of {name}", allow_empty=True)
    return [{"role": "assistant", "content": content}]


def _plain_pair(
    value: Any, chosen: str, rejected: str
) -> tuple[str | Messages, str | Messages, str | Messages]:
    if chosen == rejected:
        raise BadRow(SAME_ANSWERS)
    if value is None:
        cut = _shared_text(chosen, rejected)
        if not chosen[:cut].strip():
            raise BadRow(
                "there is no `prompt`, and chosen and rejected share no beginning that could be one"
            )
        return (
            chosen[:cut],
            text(chosen[cut:], "chosen after the prompt"),
            text(rejected[cut:], "rejected after the prompt"),
        )
    prompt = _untrained(_prompt(value))
    if isinstance(prompt, str):
        return prompt, chosen, rejected
    return (
        prompt,
        _answer_turns(chosen, "chosen", prompt),
        _answer_turns(rejected, "rejected", prompt),
    )


def _shared_text(chosen: str, rejected: str) -> int:
    """How many characters of the two are the prompt."""
    same = takewhile(lambda letters: letters[0] == letters[1], zip(chosen, rejected))
    shared = chosen[: sum(1 for _ in same)]
    mark = shared.rfind(DIALOGUE_MARK)
    if mark >= 0:
        return mark + len(DIALOGUE_MARK)
    return max((position for position, letter in enumerate(shared) if letter.isspace()), default=0)


def _conversational_pair(
    value: Any, chosen: Any, rejected: Any
) -> tuple[Messages, Messages, Messages]:
    chosen, rejected = _compared(chosen, "chosen"), _compared(rejected, "rejected")
    if chosen == rejected:
        raise BadRow(SAME_ANSWERS)
    if isinstance(value, list) or (isinstance(value, str) and chosen[0]["role"] == "assistant"):
        prompt = as_turns(_untrained(_prompt(value)), "user")
    else:
        prompt = _shared_turns(chosen, rejected)
        said = [turn["content"].strip() for turn in prompt if turn["role"] == "user"]
        if value is not None and text(value, "prompt").strip() not in [*said[:1], *said[-1:]]:
            raise BadRow("prompt is not what the user asks in chosen and rejected")
    return (
        prompt,
        _answer_turns(chosen, "chosen", prompt),
        _answer_turns(rejected, "rejected", prompt),
    )


def _compared(value: Any, name: str) -> Messages:
    """The turns of one side: what it says of their training concerns the answer alone, which is its
    last turn."""
    turns = messages(value, name)
    return [*without_weights(turns[:-1]), *trained_side(turns[-1:], name)]


def _shared_turns(chosen: Messages, rejected: Messages) -> Messages:
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise BadRow("there is no `prompt`, and chosen and rejected share no first turn")
    return question(chosen[:shared], "what chosen and rejected share")


def _pair_weight(raw: Raw) -> float:
    weight = raw.get("weight")
    if weight is None:
        return 1.0
    if (
        isinstance(weight, bool)
        or not isinstance(weight, int | float)
        or not 0 < weight <= LARGEST_NUMBER
    ):
        raise BadRow(
            f"weight is {str(weight)[:40]}, not a number above 0 and at most {LARGEST_NUMBER:g}"
        )
    return float(weight)


def _prompt_only(raw: Raw, origin: str) -> PromptRow:
    extra = {key: value for key, value in raw.items() if key not in ("prompt", "answer")}
    prompt = _asked_with_system(raw, _untrained(_prompt(_need(raw, "prompt"))))
    return PromptRow(prompt, _expected(raw.get("answer")), extra, origin, _tools(raw))


def _expected(value: Any) -> str | None:
    if value is None:
        return None
    return text(
        str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value,
        "answer",
    )


def _prompt_of_completion(raw: Raw, origin: str) -> PromptRow:
    row = _completion(raw, origin)
    expected = (
        row.completion if isinstance(row.completion, str) else row.completion[-1]["content"] or None
    )
    return PromptRow(_untrained(row.prompt), expected, {}, origin, row.tools)


def _prompt_of_preference(raw: Raw, origin: str) -> PromptRow:
    return PromptRow(_preference(raw, origin).prompt, None, {}, origin, _tools(raw))


def _prompt_of_alpaca(raw: Raw, origin: str) -> PromptRow:
    expected = raw.get("output")
    return PromptRow(
        _alpaca_prompt(raw), text(expected, "output") if expected else None, {}, origin, _tools(raw)
    )


def _prompt_of_messages(raw: Raw, origin: str) -> PromptRow:
    turns = _with_system(raw, messages(_need(raw, "messages"), "messages"))
    return _prompt_of_turns(turns, "messages", origin, _tools(raw))


def _prompt_of_sharegpt(raw: Raw, origin: str) -> PromptRow:
    turns = _with_system(raw, sharegpt(_need(raw, "conversations"), "conversations"))
    return _prompt_of_turns(turns, "conversations", origin, _tools(raw))


def _prompt_of_turns(turns: Messages, name: str, origin: str, tools: list[Any] | None) -> PromptRow:
    """The last answer is what is expected; everything before it is the prompt."""
    turns = without_weights(turns)
    if turns[-1]["role"] != "assistant":
        return PromptRow(turns, None, {}, origin, tools)
    conversation(turns, name)
    return PromptRow(question(turns[:-1], name), turns[-1]["content"] or None, {}, origin, tools)


ROW_MAPPERS: dict[str, Callable[[Raw, str], Row]] = {
    "messages": _messages,
    "prompt_completion": _completion,
    "preference": _preference,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "text": _text,
    "prompt": _prompt_only,
}

PROMPT_MAPPERS: dict[str, Callable[[Raw, str], PromptRow]] = {
    "prompt": _prompt_only,
    "prompt_completion": _prompt_of_completion,
    "preference": _prompt_of_preference,
    "messages": _prompt_of_messages,
    "sharegpt": _prompt_of_sharegpt,
    "alpaca": _prompt_of_alpaca,
}
