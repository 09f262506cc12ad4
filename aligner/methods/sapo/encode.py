"""Encode rows for SAPO: the last response of each, and all that comes before it.

Columns: `row`, `prompt_ids`, `chosen_ids`, `weight`, `length`, and as text, for a verifier,
`prompt` (as JSON) and `answer`.
"""

from __future__ import annotations

import itertools
import json
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from aligner.config.recipe import LossOn
from aligner.data.rows import ConversationRow, Row, TextRow, question_of
from aligner.errors import DataError
from aligner.methods.sapo.recipe import SapoRecipe
from aligner.tokenization.ahead import answers_ahead
from aligner.tokenization.dataset import RowEncoder, SkipRow, TokenizedRow
from aligner.tokenization.encode import IGNORED, encode_sft
from aligner.tokenization.unread_keys import unread_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encoder(recipe: SapoRecipe, tokenizer: PreTrainedTokenizerBase) -> RowEncoder:
    """Return what turns a row into columns."""
    numbers = itertools.count()
    chats = answers_ahead(tokenizer, _loss_on)

    def encode(row: Row, limit: int | None) -> TokenizedRow | SkipRow:
        if isinstance(row, TextRow):
            raise DataError(
                f"{row.origin}: plain text has no prompt and no answer", "give rows with both"
            )
        whole = encode_sft(tokenizer, row, _loss_on(row), chats.of(row))
        start = next(i for i, label in enumerate(whole.labels) if label != IGNORED)
        answer = [label for label in whole.labels if label != IGNORED]
        prompt, kept = (
            whole.input_ids[:start],
            answer[: None if limit is None else max(0, limit - start)],
        )
        if not prompt:
            return SkipRow("there is nothing before the answer")
        if not kept:
            return SkipRow(
                f"the prompt alone has {start:,} tokens, so no answer is left within {limit}"
            )
        question = question_of(row)
        assert question is not None, "a row with an answer has a question"
        columns = {
            "row": next(numbers),
            "prompt_ids": np.asarray(prompt, dtype=np.int32),
            "chosen_ids": np.asarray(kept, dtype=np.int32),
            "weight": 1.0,
            "prompt": json.dumps(question[0]),
            "answer": question[1],
            "length": start + len(kept),
        }
        return TokenizedRow(
            columns,
            num_tokens=start + len(kept),
            num_target=len(kept),
            num_untruncated=start + len(answer),
            num_truncated=len(answer) - len(kept),
        )

    return RowEncoder(encode, partial(unread_of, tokenizer), look_ahead=chats.look_ahead)


def _loss_on(row: Row) -> LossOn:
    return "last_assistant" if isinstance(row, ConversationRow) else "completion"
