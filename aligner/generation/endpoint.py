"""The engine `endpoint`: a model behind an OpenAI-compatible server, through `aligner.endpoints`,
with its cache, budget, limits and accounts.

Prompts go to /v1/completions, without the server's chat template: ours has made the prompt. Each
sample is a request of its own with a seed of its own; which numbers the server draws with it, and
whether it heeds it, is the server's affair. How much a server understands is asked on the first
request, with the best form first:

    ids       token ids in and out, stop ids, every sampling setting, log-probabilities (vLLM)
    prompt    token ids in, text out (OpenAI's own protocol)
    text      text in, text out (`transformers serve`)

Where text comes out its ids are those that the tokenizer gives it, checked against the server's
count of tokens; with `exact` that is not enough, and such a server is refused. A prompt that the
tokenizer does not give back from its text is refused too. A server that lacks the settings `top_k`,
`min_p` and `repetition_penalty` refuses what asks for them, and stops at its own stop ids.

The first answer stands for all: a server that changes its mind is an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aligner.config.recipe import Endpoint
from aligner.endpoints.budget import Spent
from aligner.endpoints.client import Client, open_client
from aligner.endpoints.request import ChatRequest, Completion, LLMClient, LLMError
from aligner.errors import UsageError
from aligner.generation.batchwise import Row, rows_of
from aligner.generation.outside import as_the_model_has_it, drawn_logps, refuse_for_ratio, seed_of
from aligner.generation.requests import Generated, OnFinished, Request, in_order
from aligner.tokenization.user_turn import text_of_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from aligner.generation.sampling import Sampling

Form = Literal["ids", "prompt", "text"]
FORMS: tuple[Form, ...] = ("ids", "prompt", "text")

REFUSED = (400, 415, 422)
"""Statuses with which a server says that it does not understand a form."""


class EndpointEngine:
    """A model behind a server. `tokenizer` is the model's own. `cache` and `run` are those of
    `open_client`.

    `exact`: the ids that the server drew are needed, and not others of the same text. `for_ratio`:
    so are their log-probabilities.
    """

    def __init__(
        self,
        section: Endpoint,
        tokenizer: PreTrainedTokenizerBase,
        *,
        cache: Path | None = None,
        run: str = "",
        exact: bool = False,
        for_ratio: bool = False,
        backend: LLMClient | None = None,
    ) -> None:
        self.section = section
        self.tokenizer = tokenizer
        self.exact = exact or for_ratio
        self.for_ratio = for_ratio
        self.form: Form | None = None
        self.retokenized = 0
        """Answers whose ids the tokenizer gives, and whose number is not the server's."""
        self.usage: dict[str, Any] = {}
        """Accounts of the last call."""
        self._spent = Spent()
        self._open: Callable[[], Client] = lambda: open_client(
            section,
            cache=cache,
            run=run,
            spent=None if cache is not None and run else self._spent,
            backend=backend,
        )

    def generate(
        self, requests: Sequence[Request], on_finished: OnFinished | None = None
    ) -> list[list[Generated]]:
        """Return the samples of each request, in the order of the requests; one that is too long
        for the server has the finish reason "error".

        Raises: EndpointError when the server fails or the budget is spent; UsageError for what it
        cannot do.
        """
        return asyncio.run(self._generate(requests, on_finished))

    async def _generate(
        self, requests: Sequence[Request], on_finished: OnFinished | None
    ) -> list[list[Generated]]:
        rows = rows_of(requests)
        samples: dict[tuple[int, int], Generated] = {}

        def finished(row: Row, one: Generated) -> None:
            samples[row.index, row.sample] = one
            if on_finished is not None:
                on_finished(row.index, row.sample, one)

        async def ask(row: Row) -> None:
            finished(row, await self._sample(client, row))

        async with self._open() as client:
            self._spent = client.spent
            if rows and self.form is None:
                finished(rows[0], await self._first(client, rows[0]))
                rows = rows[1:]
            tasks = [asyncio.create_task(ask(row)) for row in rows]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            self.usage = client.usage.to_json()
        return in_order(requests, samples)

    async def _first(self, client: Client, row: Row) -> Generated:
        """Find the best form that the server understands."""
        refusals = []
        for form in FORMS[:1] if self.exact else FORMS:
            self.form = form
            try:
                return await self._sample(client, row)
            except LLMError as error:
                if error.status not in REFUSED:
                    raise
                refusals.append(error)
        self.form = None
        if self.exact:
            raise UsageError(
                f"{self.section.base_url} does not take token ids and give them back, which is "
                f"needed here: {refusals[0].message}",
                "use a server of vLLM, or the engine `hf`",
            )
        raise refusals[-1]

    async def _sample(self, client: Client, row: Row) -> Generated:
        try:
            completion = await client.chat(self._asked(row))
        except LLMError as error:
            if error.kind != "context_length":
                raise
            return Generated([], "error", error=error.message)
        return self._generated(row, completion)

    def _asked(self, row: Row) -> ChatRequest:
        sampling, request = row.request.sampling, row.request
        if self.for_ratio:
            refuse_for_ratio(sampling)
        prompt: str | tuple[int, ...] = tuple(request.prompt_ids)
        extra: dict[str, Any] = {}
        if self.form == "ids":
            extra = {
                "top_k": sampling.top_k,
                "min_p": sampling.min_p,
                "repetition_penalty": sampling.repetition_penalty,
                "stop_token_ids": list(request.stop_ids),
                "ignore_eos": True,
                "skip_special_tokens": False,
                "logprobs": 0,
                "return_token_ids": True,
                "return_tokens_as_token_ids": True,
            }
        elif not as_the_model_has_it(_plain(sampling)):
            raise UsageError(
                f"{self.section.base_url} does not know top_k, min_p and repetition_penalty",
                "leave them out, or use a server of vLLM",
            )
        if self.form == "text":
            prompt = self._as_text(request.prompt_ids)
        return ChatRequest(
            prompt=prompt,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=row.budget,
            seed=seed_of(sampling.seed, request.stream, row.sample),
            purpose="generate",
            extra=extra,
        )

    def _as_text(self, ids: Sequence[int]) -> str:
        """Return a text that the server's tokenizer, which adds its special tokens, turns into
        these ids."""
        text = text_of_ids(self.tokenizer, ids)
        if text is not None:
            return text
        shown = self.tokenizer.decode(ids, skip_special_tokens=False)
        raise UsageError(
            f"{self.section.base_url} takes prompts as text alone, and {shown[-60:]!r} has other "
            "token ids as a text",
            "use a server that takes token ids (vLLM), or the engine `hf`",
        )

    def _generated(self, row: Row, completion: Completion) -> Generated:
        if completion.finish_reason not in ("stop", "length"):
            return Generated(
                [], "error", error=f"the server ended it with {completion.finish_reason!r}"
            )
        reason: Literal["stop", "length"] = "stop"
        if completion.truncated:
            reason = "length"
        if completion.token_ids is None:
            return self._from_text(row, completion.text, reason, completion.completion_tokens)
        ids, raw_logps = list(completion.token_ids), list(completion.token_logps or ())
        if len(raw_logps) != len(ids):
            raw_logps = []
        if self.for_ratio and ids and not raw_logps:
            raise UsageError(
                f"{self.section.base_url} gives no log-probabilities, which a ratio is made of",
                "use a server of vLLM, or the engine `hf`",
            )
        if reason == "stop" and (not ids or ids[-1] not in row.request.stop_ids):
            return Generated(ids, "error", error="the server stopped at none of the stop ids")
        logps = drawn_logps(row.request.sampling, raw_logps, len(ids))
        return Generated(ids, reason, logps, raw_logps)

    def _from_text(
        self, row: Row, text: str, reason: Literal["stop", "length"], counted: int
    ) -> Generated:
        """Return the ids that the tokenizer gives a text, with the first stop id where it ended by
        itself, which no text shows. `counted`: how many the server says there were."""
        if self.exact:
            raise UsageError(
                f"{self.section.base_url} gives no token ids, which are needed here",
                "use a server of vLLM from 0.10.2, or the engine `hf`",
            )
        said = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        ids = [*said, *row.request.stop_ids[:1]] if reason == "stop" else said
        self.retokenized += counted not in (len(said), len(ids))
        return Generated(ids, reason)


def _plain(sampling: Sampling) -> Sampling:
    """Return the sampling as if it had neither temperature nor top_p, which every server knows."""
    return replace(sampling, temperature=1.0, top_p=1.0)
