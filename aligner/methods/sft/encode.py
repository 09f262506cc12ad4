"""Encode rows for SFT. Columns: `input_ids`, `labels`, `length`; packed: `input_ids`, `labels`,
`seq_lengths`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from aligner.data.rows import Row
from aligner.methods.sft.recipe import SftRecipe
from aligner.tokenization.ahead import answers_ahead
from aligner.tokenization.dataset import RowEncoder, SkipRow, TokenizedRow
from aligner.tokenization.encode import IGNORED, Encoded, encode_sft
from aligner.tokenization.unread_keys import unread_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encoder(recipe: SftRecipe, tokenizer: PreTrainedTokenizerBase) -> RowEncoder:
    """Return what turns a row into columns."""

    chats = answers_ahead(tokenizer, lambda row: recipe.sft.loss_on)

    def encode(row: Row, limit: int | None) -> TokenizedRow | SkipRow:
        whole = encode_sft(tokenizer, row, recipe.sft.loss_on, chats.of(row))
        kept = Encoded(whole.input_ids[:limit], whole.labels[:limit])
        if kept.num_trained == 0:
            return SkipRow(f"no trained token is left within {limit} tokens")
        columns = {
            "input_ids": np.asarray(kept.input_ids, dtype=np.int32),
            "labels": np.asarray([IGNORED, *kept.labels[1:]], dtype=np.int32),
            "length": len(kept.input_ids),
        }
        return TokenizedRow(
            columns,
            num_tokens=len(kept.input_ids),
            num_target=kept.num_trained,
            num_untruncated=len(whole.input_ids),
            num_truncated=len(whole.input_ids) - len(kept.input_ids),
        )

    unread = partial(unread_of, tokenizer, trains_all=recipe.sft.loss_on == "all")
    return RowEncoder(encode, unread, recipe.sft.packing, chats.look_ahead)
