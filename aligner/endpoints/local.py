"""A transformers model in this process, through `aligner.generation.decode`: for small models,
tests, and no server.

Requests that wait at the same time are collected into batches. Each has its own stream of random
numbers, from its whole content (messages, sampling parameters, seed, `sample_index`), so a reply
does not depend on the neighbours, and the same request has the same reply, with and without a
`seed`.

Stop strings end the text afterwards: the model does not stop earlier for them. A serving engine is
faster at all of this.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aligner.endpoints.request import (
    Backend,
    ChatRequest,
    Completion,
    LLMError,
    name_of,
    request_key,
)
from aligner.errors import DataError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from aligner.config.recipe import Model
    from aligner.generation.sampling import Sampling

EXTRA = ("top_k", "min_p", "repetition_penalty")
FURTHEST_BACK = 256  # waiting requests that are looked through for one batch


@dataclass
class _Waiting:
    request: ChatRequest
    prompt_tokens: int
    sampling: Sampling
    reply: asyncio.Future[Completion]
    since: float

    def fits(self, other: _Waiting) -> bool:
        """Whether both can be decoded in one batch: with the same parameters, both chat or both
        raw."""
        same_form = (self.request.prompt is None) == (other.request.prompt is None)
        return same_form and self.sampling == other.sampling


class LocalBackend(Backend):
    """A model and its tokenizer; one batch is decoded at a time, in a thread, so the event loop
    keeps running."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 8
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._raw_tokenizer = copy.copy(tokenizer)
        self._raw_tokenizer.chat_template = None  # a text to be continued is not a message
        self._batch_size = batch_size
        self._waiting: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None

    def capabilities(self) -> frozenset[str]:
        """A base model without a chat template only continues texts."""
        chat = {"chat"} if self._tokenizer.chat_template else set()
        return frozenset({"complete", "seed", *chat})

    async def chat(self, request: ChatRequest) -> Completion:
        """Wait for a place in a batch, and for its end.

        Raises: LLMError("context_length") when the prompt leaves no room for an answer; RecipeError
        for an `extra` that is not known here, or messages to a model without a chat template.
        """
        sampling = sampling_of(request)
        prompt_tokens = self._measure(request)
        reply: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(request, prompt_tokens, sampling, reply, time.monotonic()))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await reply

    async def aclose(self) -> None:
        """Let the batch in work end, and give up those that wait."""
        for waiting in self._waiting:
            waiting.reply.cancel()
        self._waiting.clear()
        if self._worker is not None:
            await asyncio.gather(self._worker, return_exceptions=True)

    def _measure(self, request: ChatRequest) -> int:
        from aligner.models.positions import max_positions

        if request.prompt is None and not self._tokenizer.chat_template:
            raise RecipeError(
                f"endpoint: {request.model or 'the local model'} has no chat template, so it "
                "cannot be sent messages",
                "use a chat model, or one that was trained with a template",
            )
        number = len(self._ids_of(request))
        positions = max_positions(self._model)
        if positions is not None and number >= positions:
            raise LLMError(
                f"{name_of(request)} has {number} tokens, and the model {positions} positions for "
                "prompt and answer",
                kind="context_length",
            )
        return number

    def _tokenizer_of(self, request: ChatRequest) -> PreTrainedTokenizerBase:
        return self._tokenizer if request.prompt is None else self._raw_tokenizer

    def _ids_of(self, request: ChatRequest) -> list[int]:
        from aligner.tokenization.encode import encode_prompt

        if isinstance(request.prompt, tuple):
            return list(request.prompt)
        asked = [dict(message) for message in request.messages]
        prompt = asked if request.prompt is None else request.prompt
        return encode_prompt(self._tokenizer_of(request), prompt)

    async def _work(self) -> None:
        await asyncio.sleep(0)  # those who ask in the same moment come along
        while batch := self._next_batch():
            try:
                completions = await asyncio.to_thread(self._decode, batch)
            except (
                Exception
            ) as error:  # handed on to those who asked; the next batch has its chance
                for waiting in batch:
                    if not waiting.reply.done():
                        waiting.reply.set_exception(_as_ours(error, waiting.request))
                continue
            for waiting, completion in zip(batch, completions):
                if not waiting.reply.done():
                    waiting.reply.set_result(completion)

    def _next_batch(self) -> list[_Waiting]:
        """Take the request that waits longest, and those near the head of the line that can go with
        it."""
        self._waiting = [waiting for waiting in self._waiting if not waiting.reply.done()]
        if not self._waiting:
            return []
        first, *others = self._waiting[:FURTHEST_BACK]
        batch = [first, *(other for other in others if first.fits(other))][: self._batch_size]
        taken = {id(waiting) for waiting in batch}
        self._waiting = [waiting for waiting in self._waiting if id(waiting) not in taken]
        return batch

    def _decode(self, batch: list[_Waiting]) -> list[Completion]:
        from aligner.generation.decode import continue_ids

        streams = [int(request_key(waiting.request)[:12], 16) for waiting in batch]
        answers = continue_ids(
            self._model,
            self._tokenizer_of(batch[0].request),
            [self._ids_of(waiting.request) for waiting in batch],
            batch[0].sampling,
            batch_size=len(batch),
            streams=streams,
        )
        return [_completion(waiting, answer) for waiting, (answer,) in zip(batch, answers)]


def load_local(model: Model, *, batch_size: int) -> LocalBackend:
    """Load a model and its tokenizer. Raises: RecipeError when they cannot be loaded."""
    from aligner.models.loading import load_policy
    from aligner.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(model)
    policy = load_policy(model, tokenizer, trainable=False, answers=True)
    return LocalBackend(policy, tokenizer, batch_size=batch_size)


def sampling_of(request: ChatRequest) -> Sampling:
    """Return the request's sampling; what makes it a draw of its own is its stream."""
    from aligner.generation.sampling import Sampling

    unknown = sorted(set(request.extra) - set(EXTRA))
    if unknown:
        raise RecipeError(
            f"endpoint: a local model does not know extra: {', '.join(unknown)}",
            f"it knows {', '.join(EXTRA)}",
        )
    given: Mapping[str, Any] = {"temperature": request.temperature, "top_p": request.top_p}
    return Sampling(
        max_new_tokens=request.max_tokens or 256,
        **{key: value for key, value in {**given, **request.extra}.items() if value is not None},
    )


def _completion(waiting: _Waiting, answer: Any) -> Completion:
    text, finish_reason = answer.text, answer.finish_reason
    ends = [place for stop in waiting.request.stop if (place := text.find(stop)) >= 0]
    if ends:
        text, finish_reason = text[: min(ends)], "stop"
    return Completion(
        text=text,
        finish_reason=finish_reason,
        prompt_tokens=waiting.prompt_tokens,
        completion_tokens=len(answer.token_ids),
        token_ids=tuple(answer.token_ids) if waiting.request.prompt is not None else None,
        latency_s=time.monotonic() - waiting.since,
    )


def _as_ours(error: Exception, request: ChatRequest) -> Exception:
    """A row that generation refuses is this request's fault; anything else is what it is."""
    if isinstance(error, DataError):
        return LLMError(f"{name_of(request)}: {error.message}", error.hint, kind="context_length")
    return error
