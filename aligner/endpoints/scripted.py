"""Scripted replies: for tests, for trying a recipe without a model, and for what must not depend on
one.

Four forms: a function of the request, a mapping from the last message (or the text to continue) to
the reply, a list of replies in the order of the requests, or rules, of which the first that matches
the request says the reply, in whatever order requests come. A request that the script does not know
is an error that names it.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner.endpoints.request import (
    Backend,
    ChatRequest,
    Completion,
    estimated_tokens,
    name_of,
    prompt_text,
)
from aligner.errors import DataError, EndpointError, RecipeError

Reply = str | Completion | Exception
"""A text, a whole completion, or an error to be raised."""
Answer = Callable[[ChatRequest], Reply | Awaitable[Reply | None] | None]
Script = Answer | Mapping[str, Reply] | Sequence[Reply]


class ScriptedBackend(Backend):
    """Answers from a script, and keeps every request in `requests`. `start`: replies of a list that
    are used up."""

    def __init__(self, script: Script, *, start: int = 0) -> None:
        assert not isinstance(script, str), "a script is a function, a mapping or a list of replies"
        self._script = script
        self._next = start
        self.requests: list[ChatRequest] = []

    def capabilities(self) -> frozenset[str]:
        """A script takes whatever it is asked."""
        return frozenset({"chat", "complete", "seed"})

    async def chat(self, request: ChatRequest) -> Completion:
        """Give the scripted reply.

        Raises: EndpointError naming the request, when the script has none; the error that the
        script holds for it.
        """
        self.requests.append(request)
        reply = await self._reply(request)
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, Completion):
            return reply
        prompt_tokens = estimated_tokens(prompt_text(request))
        return Completion(
            reply, prompt_tokens=prompt_tokens, completion_tokens=estimated_tokens(reply)
        )

    async def _reply(self, request: ChatRequest) -> Reply:
        if isinstance(self._script, Mapping):
            asked = request.messages[-1]["content"] if request.prompt is None else request.prompt
            reply = self._script.get(str(asked))
        elif callable(self._script):
            answer = self._script(request)
            reply = await answer if inspect.isawaitable(answer) else answer
        else:
            return self._from_list(self._script, request)
        if reply is None:
            raise EndpointError(f"the script has no reply to {name_of(request)}", "add one")
        return reply

    def _from_list(self, replies: Sequence[Reply], request: ChatRequest) -> Reply:
        if self._next >= len(replies):
            raise EndpointError(
                f"the script's {len(replies)} replies are used up; {name_of(request)} has none",
                "add replies to the script, or ask for less",
            )
        self._next += 1
        return replies[self._next - 1]


@dataclass(frozen=True)
class Rule:
    """A reply for the requests whose text, all messages below one another, holds a match."""

    match: re.Pattern[str]
    reply: str
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Rules:
    """Rules of a script; the first that matches is taken. `^` and `$` are the ends of a line, `.`
    is anything within one. `\\1` and `\\g<name>` in its reply stand for what the groups of its
    expression found."""

    rules: tuple[Rule, ...]

    def __call__(self, request: ChatRequest) -> Completion | None:
        """Return the reply to a request, None where no rule matches."""
        text = prompt_text(request)
        for rule in self.rules:
            if (found := rule.match.search(text)) is not None:
                reply = found.expand(rule.reply)
                return Completion(
                    reply,
                    finish_reason=rule.finish_reason,
                    prompt_tokens=estimated_tokens(text),
                    completion_tokens=estimated_tokens(reply),
                )
        return None


def read_script(path: Path) -> list[Reply] | Rules:
    """Read a JSONL file: {"reply": "..."} in the order of the requests, or rules, {"match":
    "EXPRESSION", "reply": "..."}, where "finish_reason" may stand too.

    Raises: RecipeError when there is no such file; DataError naming the line that is not a reply.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"endpoint: the script {path} cannot be read: {error}", "check the path"
        ) from error
    rows = [
        (_read_line(line, f"{path}:{number}"), f"{path}:{number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not any("match" in row for row, _ in rows):
        return [str(row["reply"]) for row, _ in rows]
    return Rules(tuple(_rule(row, where) for row, where in rows))


FORMS = ({"reply"}, {"match", "reply"}, {"match", "reply", "finish_reason"})


def _read_line(line: str, where: str) -> dict[str, Any]:
    hint = 'each line is {"reply": "..."}, or each is {"match": "EXPRESSION", "reply": "..."}'
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}", hint) from error
    is_reply = isinstance(row, dict) and set(row) in FORMS
    if not is_reply or not all(isinstance(value, str) for value in row.values()):
        raise DataError(f"{where}: not a reply: {line[:80]}", hint)
    return dict(row)


def _rule(row: Mapping[str, str], where: str) -> Rule:
    """The rule of a line, tried once, so that a broken one is known before any request."""
    if "match" not in row:
        hint = "give each line a `match`, or none of them"
        raise DataError(f"{where}: a reply without `match` among rules", hint)
    try:
        pattern = re.compile(row["match"], re.MULTILINE)
        # the empty alternative matches anything, so that the reply's groups can be looked up
        anything = re.compile(f"{row['match']}|", pattern.flags).match("")
        assert anything is not None, "the alternative matches"
        anything.expand(row["reply"])
    except (re.error, RecursionError, IndexError, OverflowError) as error:
        hint = "`match` is a regular expression of Python, and `reply` may name its groups"
        raise DataError(f"{where}: {error}: {str(row)[:80]}", hint) from error
    return Rule(pattern, row["reply"], row.get("finish_reason", "stop"))
