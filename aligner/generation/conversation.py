"""A conversation with a model, whose answers come out as they are written.

One request at a time, decoded by transformers' `generate` with our own choice of tokens
(`aligner.generation.batchwise`), so that an answer is the one that the same seed, settings and
prompt give elsewhere. Ctrl-C ends an answer and keeps what there is of it; it stays in the
conversation, as the reader has seen it. SIGTERM is not caught.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from aligner.data.rows import Messages
from aligner.errors import UsageError
from aligner.generation.batchwise import decode_batch, rows_of
from aligner.generation.decode import check_room, within_positions
from aligner.generation.hf import decoder_of
from aligner.generation.requests import Request
from aligner.tokenization.chat_template import has_template
from aligner.tokenization.encode import encode_prompt, stop_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from aligner.generation.sampling import Sampling

OnText = Callable[[str], None]
"""Called with each piece of an answer, as soon as it is a text."""

UNFINISHED = "\ufffd"
"""What the first bytes of a character are decoded to while the others are missing."""


@dataclass(frozen=True)
class Answer:
    """One answer: its text, how it ended, its number of tokens, and the seconds that it took."""

    text: str
    finish_reason: Literal["stop", "length", "interrupted"]
    num_tokens: int
    seconds: float


class Conversation:
    """What was said so far, and the model that answers.

    Raises: UsageError for a model whose tokenizer has no chat template.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        system: str | None = None,
    ) -> None:
        if not has_template(tokenizer):
            raise UsageError(
                "the model's tokenizer has no chat template: it continues texts, and does not chat",
                'use aligner generate MODEL "the beginning of a text"',
            )
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.system = system
        self.messages: Messages = []

    def reset(self, system: str | None = None) -> None:
        """Forget what was said; `system`: the system message from now on, else the one before."""
        self.messages = []
        self.system = self.system if system is None else system or None

    @property
    def whole(self) -> Messages:
        """The messages, with the system message."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, *self.messages]

    def ask(self, text: str, on_text: OnText) -> Answer:
        """Send a message and return the answer, whose pieces `on_text` gets as they come.

        A message that cannot be answered, or was interrupted before the first piece, leaves the
        conversation as it was.

        Raises: DataError when the conversation leaves no room for an answer within the model's
        positions, or its template refuses it.
        """
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            answer = self._answer(on_text)
        except BaseException:
            self.messages = before
            raise
        if answer.text or answer.finish_reason != "interrupted":
            self.messages.append({"role": "assistant", "content": answer.text})
        else:
            self.messages = before
        return answer

    def _answer(self, on_text: OnText) -> Answer:
        ids = encode_prompt(self.tokenizer, self.whole)
        check_room(self.model, ids, "the conversation")
        sampling = within_positions(self.model, ids, replace(self.sampling, num_samples=1))
        stops = tuple(stop_token_ids(self.tokenizer, self.model))
        request = Request(ids, sampling, stops, stream=len(self.messages) // 2)
        written = _Written(self.tokenizer, stops, on_text)
        started = time.monotonic()
        with _ended_by_ctrl_c() as interrupted, decoder_of(self.model) as decoder:
            decode_batch(decoder, rows_of([request]), lambda tokens: written.add(tokens[0]))
        reason: Any = "interrupted" if interrupted else written.finish_reason
        text = written.finish()
        return Answer(text, reason, len(written.ids), time.monotonic() - started)


@contextmanager
def _ended_by_ctrl_c() -> Iterator[list[bool]]:
    """Let Ctrl-C end what is within, and say that it did; SIGTERM, which is a kind of it, ends
    everything."""
    interrupted: list[bool] = []
    try:
        yield interrupted
    except KeyboardInterrupt as stop:
        if type(stop) is not KeyboardInterrupt:
            raise
        interrupted.append(True)


class _Written:
    """The tokens of an answer, and the text that was handed out of them."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stops: tuple[int, ...], on_text: OnText
    ) -> None:
        self.tokenizer, self.stops, self.on_text = tokenizer, stops, on_text
        self.ids: list[int] = []
        self.told = ""

    @property
    def finish_reason(self) -> Literal["stop", "length"]:
        return "stop" if self.ids and self.ids[-1] in self.stops else "length"

    def add(self, token: int) -> None:
        """Take a token, and hand out the text that is certain now."""
        self.ids.append(token)
        text = self._text()
        if not text.endswith(UNFINISHED):
            self._hand_out(text)

    def finish(self) -> str:
        """Hand out the rest, and return the whole text."""
        text = self._text()
        self._hand_out(text)
        return text

    def _text(self) -> str:
        said = self.ids[:-1] if self.finish_reason == "stop" else self.ids
        return self.tokenizer.decode(
            said, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _hand_out(self, text: str) -> None:
        if len(text) > len(self.told) and text.startswith(self.told):
            piece, self.told = text[len(self.told) :], text
            self.on_text(piece)
