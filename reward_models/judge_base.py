"""What judges share: a language model that is asked, and what became of its replies.

A reply must end in a line of a fixed form (`judge_prompts.py`). One that does not is asked for
again with a reminder. A row that has no verdict then gets no score: neither the worst grade nor a
middle one would be the judge's opinion. All other rows are asked, their replies are kept, and then
`NoVerdict`, a DataError that lists such rows, is raised. Asking once more takes the others from the
cache and asks new questions only for these.

Replies are kept in `$ALIGNER_CACHE/judge`, or `~/.cache/aligner/judge`, in one file for each
fingerprint; deleting it costs money and time only. The endpoint's budget holds from the first
question to the end of the program; under `account` it continues in a later one.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aligner.config.recipe import Endpoint, Model
from aligner.errors import Problem, RecipeError
from aligner.runs.cache import cache_folder

from .base import NoVerdict
from .judge_session import Reply, Session

LISTED = 20
"""Rows without a verdict that an error lists; all of them are in its `rows`."""


class JudgeBase:
    """Asks a language model. A subclass says what, and what decides its replies (`_made_of`).

    `weights`: a model to load in place of the one that a `local` endpoint names; `identity`: what
    tells it, or a served one, from others of its name.
    """

    kind = "judge"

    def __init__(
        self, name: str, endpoint: Endpoint, *, weights: Model | None = None, identity: str = ""
    ) -> None:
        assert weights is None or (endpoint.backend == "local" and identity), "as it is said above"
        self._name = name
        self.endpoint = endpoint
        self._loaded = weights
        self._identity = identity

    @property
    def name(self) -> str:
        """The name of its card."""
        return self._name

    @property
    def account(self) -> str:
        """The name under which the budget continues in a later program; set it before the first
        question."""
        return self._session.run

    @account.setter
    def account(self, name: str) -> None:
        self._session.run = name

    def fingerprint(self) -> str:
        """Model, sampling and all that the judge reads; not the address, as in the cache of
        replies."""
        return f"{self.kind}:{self._asked}{self._weights}"

    def usage(self) -> dict[str, Any]:
        """What was asked and spent so far: calls, cached replies, tokens, money where the card has
        prices."""
        return self._session.usage()

    def close(self) -> None:
        """Give connections, files and a local model back; the next question opens them again."""
        self._session.close()

    def _made_of(self) -> list[Any]:
        """What decides a reply, beside the endpoint."""
        raise NotImplementedError

    @functools.cached_property
    def _asked(self) -> str:
        """A digest of what decides a reply, but for a local model's weights."""
        sampling = {"backend", "model", "temperature", "top_p", "max_tokens", "extra"}
        identity = [self._identity] if self._identity else []
        what = [self.endpoint.model_dump(include=sampling), *self._made_of(), *identity]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    @functools.cached_property
    def _session(self) -> Session:
        cache = cache_folder("judge") / f"{self._asked}.sqlite"
        return Session(self.endpoint, cache, self._loaded)

    @functools.cached_property
    def _weights(self) -> str:
        """What tells models of one name apart: the weights of a local one, the text of a script."""
        if self.endpoint.replay is not None or self.endpoint.backend == "openai" or self._identity:
            return ""
        if self.endpoint.backend == "scripted":
            script = Path(str(self.endpoint.script)).read_bytes()
            return ":" + hashlib.sha256(script).hexdigest()[:16]
        from aligner.models.fingerprint import model_fingerprint

        self._session.open()  # a model of the hub is on this machine after that
        return ":" + model_fingerprint(Model(name_or_path=self.endpoint.model))[:16]

    def _values(self, replies: Mapping[int, list[Reply]], what: str) -> dict[int, list[Any]]:
        """The values of each row's replies; NoVerdict names the rows that lack one."""
        values, missing = {}, {}
        for row, found in replies.items():
            values[row] = [reply.value for reply in found if reply.value is not None]
            if len(values[row]) < len(found):
                missing[row] = next(reply.reason for reply in found if reply.value is None)
        if missing:
            raise self._no_verdict(missing, len(replies), what)
        return values

    def _no_verdict(self, missing: dict[int, str], asked: int, what: str) -> NoVerdict:
        problems = [
            Problem(reason, where=f"row {row + 1}")
            for row, reason in sorted(missing.items())[:LISTED]
        ]
        error = NoVerdict(
            f"{self.name} gave no usable {what} for {len(missing)} of {asked} rows; the others "
            "are answered and kept",
            "Score again to ask about these rows only, leave them out, or raise "
            "endpoint.max_tokens where replies were cut.",
            problems,
        )
        error.rows = missing
        return error


def read_rubric(file: str) -> str:
    """What is to be judged, from a card's `rubric`. Raises: RecipeError."""
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"the rubric {file} cannot be read: {error}",
            "a path that begins with a dot is taken from the card's folder",
        ) from error
    if not text:
        raise RecipeError(
            f"the rubric {file} is empty", "write down what is to be judged, or drop `rubric`"
        )
    return text


def remarks_of(replies: Iterable[tuple[int, Reply]]) -> dict[int, str]:
    """Rows whose first reply could not be used."""
    return {
        row: f"the judge was asked {reply.asked} times" for row, reply in replies if reply.asked > 1
    }
