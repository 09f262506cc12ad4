"""What is noted of each row while it is tokenized: parts that reach no token, and control tokens in
its texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from aligner.data.ledger import SplitLedger
from aligner.data.rows import Row, TextRow
from aligner.tokenization.control_tokens import (
    control_tokens_of,
    found_in,
    in_words,
    pattern_of,
    refuse_control_tokens,
)
from aligner.tokenization.encode import has_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RowNotes:
    """Notes on the rows of a training. `unread` counts the parts of a row that reach no token."""

    tokenizer: PreTrainedTokenizerBase
    unread: Callable[[Row], Counter[str]]

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        return pattern_of(self.tokenizer)

    def check(self, row: Row) -> None:
        """Raise DataError for a row with a control token in its texts, where that is an error."""
        if control_tokens_of(self.tokenizer) == "error":
            refuse_control_tokens(self.tokenizer, row)

    def note(self, row: Row, ledger: SplitLedger) -> None:
        """Count what of a row is lost or is more than text."""
        ledger.note_unread(self.unread(row))
        if marks := found_in(self._marks, row):
            is_chat = has_template(self.tokenizer) and not isinstance(row, TextRow)
            ledger.note_control_tokens(marks, is_chat=is_chat)

    def remark(self, ledger: SplitLedger, name: str) -> str | None:
        """Return what to warn of once the rows of a split are tokenized."""
        if not ledger.chats_with_control or control_tokens_of(self.tokenizer) != "allow":
            return None
        return (
            f"control tokens stand in the texts of {ledger.chats_with_control:,} {name} rows and "
            "act as such "
            f"({in_words(ledger.control_tokens)}). data.control_tokens=as_text writes them as "
            "text, error refuses the rows"
        )
