"""What a model's tokenizer makes of rows: which its chat template refuses, what the template drops
of them, control tokens in their texts, and lengths that stand apart.

Rows are encoded as the trainings encode them. A length stands apart if its logarithm lies more than
three interquartile ranges beyond the quartiles (Tukey's "far out"), which lengths of texts, whose
logarithms are nearly normal, hardly ever do.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, Any

from aligner.data.inspection import Findings
from aligner.data.rows import PreferenceRow, PromptRow, Row
from aligner.errors import DataError
from aligner.tokenization.control_tokens import found_in, in_words, pattern_of
from aligner.tokenization.encode import encode_pair, encode_prompt, encode_sft
from aligner.tokenization.unread_keys import unread_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FEWEST = 20
"""Rows from which a length can stand apart."""
FAR_OUT = 3.0
NARROWEST = math.log(1.25)
"""Least interquartile range, of logarithms: where most lengths are equal, others are not far."""

QUANTILES = {"shortest": 0.0, "median": 0.5, "95%": 0.95, "99%": 0.99, "longest": 1.0}


class TokenChecks:
    """Encodes one row after the other, and notes what is found. `max_length`: tokens of the longest
    row that is not cut, None for no limit."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        findings: Findings,
        max_length: int | None = None,
    ) -> None:
        self.tokenizer, self.findings, self.max_length = tokenizer, findings, max_length
        self.lengths = array("Q")
        self._origins: list[str] = []

    def look(self, row: Row) -> None:
        """Look at a further row."""
        try:
            length = _length(self.tokenizer, row)
        except DataError as error:
            reason = error.message.removeprefix(f"{row.origin}: ")
            self.findings.note("refused", row.origin, reason)
            return
        self.lengths.append(length)
        self._origins.append(row.origin)
        if self.max_length is not None and length > self.max_length:
            self.findings.note("too_long", row.origin, f"{length:,} tokens")
        if lost := unread_of(self.tokenizer, row):
            self.findings.note("dropped", row.origin, ", ".join(sorted(lost)))
        if marks := found_in(pattern_of(self.tokenizer), row):
            self.findings.note("control_tokens", row.origin, in_words(marks))

    def finish(self) -> None:
        """Note the lengths that stand apart, once all rows were seen."""
        if len(self.lengths) < FEWEST:
            return
        ordered = sorted(self.lengths)
        low, high = (math.log(max(1, _at(ordered, share))) for share in (0.25, 0.75))
        reach = FAR_OUT * max(NARROWEST, high - low)
        for origin, length in zip(self._origins, self.lengths):
            if not low - reach <= math.log(max(1, length)) <= high + reach:
                median = _at(ordered, 0.5)
                what = f"{length:,} tokens, where the median is {median:,}"
                self.findings.note("outlier", origin, what)

    def quantiles(self) -> dict[str, int]:
        """Lengths in tokens, by name; of a pair the longer sequence counts."""
        ordered = sorted(self.lengths)
        return {name: _at(ordered, share) for name, share in QUANTILES.items()} if ordered else {}


def _at(ordered: list[int], share: float) -> int:
    return ordered[round(share * (len(ordered) - 1))]


def _length(tokenizer: PreTrainedTokenizerBase, row: Any) -> int:
    """Tokens of the longest sequence that is made of a row."""
    if isinstance(row, PreferenceRow):
        pair = encode_pair(tokenizer, row)
        return len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))
    if isinstance(row, PromptRow):
        return len(encode_prompt(tokenizer, row.prompt, row.tools))
    return len(encode_sft(tokenizer, row).input_ids)
