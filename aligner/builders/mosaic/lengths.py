"""How long a row is, in tokens: by the chat template of the model to be trained, or an estimate
where no model is named."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from aligner.builders.mosaic.phrasings import Phrasings
from aligner.data.rows import CompletionRow, as_turns
from aligner.tokenization.encode import encode_sft, keeps_texts, length_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS_PER_TOKEN = 3.5
"""Of the estimate that stands in for a tokenizer."""
MARKUP = 1.25
"""Brackets and digits around texts take more tokens for each character than the phrasings
do."""


class Lengths(Protocol):
    """What the engine asks about lengths."""

    @property
    def is_exact(self) -> bool:
        """Whether lengths are counted and not estimated."""

    @property
    def tokens_per_character(self) -> float:
        """Tokens of meta-instructions and marks, taken on the safe side."""

    def measure(self, row: CompletionRow) -> tuple[int, int]:
        """Return the tokens of a row, and those of them that are trained."""

    def total(self, row: CompletionRow) -> int:
        """Return the tokens of a row."""

    def keeps(self, row: CompletionRow) -> bool:
        """Say whether the chat template leaves question and answer as they are inside a longer
        text."""


@dataclass(frozen=True)
class TokenizerLengths:
    """Exact lengths: what `aligner sft` would train on with this tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    tokens_per_character: float
    spoken_of: re.Pattern[str]
    """Finds what the chat template speaks of: rows without it come through as any plain text
    does."""
    is_exact: bool = True

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, phrasings: Phrasings) -> TokenizerLengths:
        """Learn from the phrasings how many tokens a character of it takes."""
        lines = "\n".join(_lines(phrasings))
        ids = tokenizer(lines, add_special_tokens=False, verbose=False)["input_ids"]
        plain = CompletionRow("Is this (all) plain?\nYes: 1, 2.", "It is:\n\n* plain - all of it!")
        spoken_of = (
            _spoken_of(tokenizer) if keeps_texts(tokenizer, plain) else ""
        )  # "" is in every text
        return cls(tokenizer, MARKUP * len(ids) / len(lines), re.compile(spoken_of))

    def measure(self, row: CompletionRow) -> tuple[int, int]:
        """Return the tokens of a row, and those of them that are trained."""
        encoded = encode_sft(self.tokenizer, row)
        return len(encoded.input_ids), encoded.num_trained

    def total(self, row: CompletionRow) -> int:
        """Return the tokens of a row."""
        return length_of(self.tokenizer, row)

    def keeps(self, row: CompletionRow) -> bool:
        """Say whether the chat template leaves question and answer as they are inside a longer
        text."""
        texts = (
            turn["content"]
            for turn in (*as_turns(row.prompt, "user"), *as_turns(row.completion, "assistant"))
        )
        return not any(map(self.spoken_of.search, texts)) or keeps_texts(self.tokenizer, row)


def _spoken_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """A pattern that finds the marks which a chat template holds as texts in its expressions, such
    as `</think>`."""
    pairs = re.findall(
        r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""", tokenizer.get_chat_template()
    )
    texts = {(single or double).replace(r"\n", "\n").strip() for single, double in pairs}
    marks = sorted(text for text in texts if re.search(r"[^\w\s]", text))
    return "|".join(map(re.escape, marks)) or r"(?!)"


def _lines(phrasings: Phrasings) -> Iterable[str]:
    return (
        text.wording
        for forms in phrasings.texts.values()
        for texts in forms.values()
        for text in texts
    )


@dataclass(frozen=True)
class EstimatedLengths:
    """Characters over 3.5: for planning without a tokenizer. Nothing is counted for a chat
    template."""

    tokens_per_character: float = 1.0 / CHARACTERS_PER_TOKEN
    is_exact: bool = False

    def measure(self, row: CompletionRow) -> tuple[int, int]:
        """Return the estimated tokens of a row, and those of its answer."""
        asked, answered = _characters(row.prompt), _characters(row.completion)
        return math.ceil((asked + answered) / CHARACTERS_PER_TOKEN), math.ceil(
            answered / CHARACTERS_PER_TOKEN
        )

    def total(self, row: CompletionRow) -> int:
        """Return the estimated tokens of a row."""
        return self.measure(row)[0]

    def keeps(self, row: CompletionRow) -> bool:
        """Nothing is known of a template: True."""
        return True


def _characters(value: str | list[dict[str, str]]) -> int:
    return len(value) if isinstance(value, str) else sum(len(turn["content"]) for turn in value)
