"""Encode rows for SFT. Columns: `input_ids`, `labels`, `length`; packed: `input_ids`, `labels`,
`seq_lengths`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from aligner.config.recipe import SftRecipe
from aligner.data.rows import Row
from aligner.tokenization.dataset import Encode
from aligner.tokenization.encode import IGNORED, Encoded, encode_sft

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encoder(recipe: SftRecipe, tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Return what turns a row into columns, or says why nothing is left to train."""

    def encode(row: Row, limit: int | None) -> dict[str, Any] | str:
        whole = encode_sft(tokenizer, row, recipe.sft.loss_on)
        kept = Encoded(whole.input_ids[:limit], whole.labels[:limit])
        if kept.num_trained == 0:
            return f"no trained token is left within {limit} tokens"
        return {
            "input_ids": np.asarray(kept.input_ids, dtype=np.int32),
            "labels": np.asarray([IGNORED, *kept.labels[1:]], dtype=np.int32),
            "length": len(kept.input_ids),
            "tokens": len(kept.input_ids),
            "trained": kept.num_trained,
            "whole": len(whole.input_ids),
            "cut": len(whole.input_ids) - len(kept.input_ids),
        }

    return encode
