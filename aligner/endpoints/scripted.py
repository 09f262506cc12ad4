"""Scripted replies: for tests, for trying a recipe without a model, and for what must not depend on
one.

Three forms: a function of the request, a mapping from the last message (or the text to continue) to
the reply, or a list of replies in the order of the requests. A request that the script does not
know is an error that names it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

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


def read_script(path: Path) -> list[Reply]:
    """Read a JSONL file of {"reply": "..."}, in the order of the requests.

    Raises: RecipeError when there is no such file; DataError naming the line that is not a reply.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"endpoint: the script {path} cannot be read: {error}", "check the path"
        ) from error
    return [
        _read_line(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()
    ]


def _read_line(line: str, where: str) -> Reply:
    hint = 'each line is {"reply": "..."}'
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}", hint) from error
    if not isinstance(row, dict) or set(row) != {"reply"} or not isinstance(row["reply"], str):
        raise DataError(f"{where}: not a reply: {line[:80]}", hint)
    return str(row["reply"])
