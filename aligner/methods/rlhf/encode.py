"""Encode prompts that are answered while the model trains.

Columns: `row`, `prompt_ids`, `weight`, `length`, and as text, for whoever scores responses,
`prompt` (as JSON), `answer` (the right one, or null) and `origin`.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from aligner.data.rows import PromptRow, Row, refuse_tools
from aligner.methods.rlhf.recipe import RlhfRecipe
from aligner.tokenization.dataset import RowEncoder, SkipRow, TokenizedRow
from aligner.tokenization.encode import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encoder(recipe: RlhfRecipe, tokenizer: PreTrainedTokenizerBase) -> RowEncoder:
    """Return what turns a row into columns."""
    numbers = itertools.count()
    room = recipe.rlhf.max_new_tokens

    def encode(row: Row, limit: int | None) -> TokenizedRow | SkipRow:
        assert isinstance(row, PromptRow)
        refuse_tools([row], "what scores responses")
        prompt = encode_prompt(tokenizer, row.prompt)
        if not prompt:
            return SkipRow("the prompt is empty")
        if limit is not None and len(prompt) + room > limit:
            return SkipRow(
                f"the prompt has {len(prompt):,} tokens, which leaves no room for a response of "
                f"{room:,} (rlhf.max_new_tokens) within {limit:,}"
            )
        columns = {
            "row": next(numbers),
            "prompt_ids": np.asarray(prompt, dtype=np.int32),
            "weight": 1.0,
            "prompt": json.dumps(row.prompt),
            "answer": row.answer,
            "origin": row.origin,
            "length": len(prompt),
        }
        return TokenizedRow(
            columns, num_tokens=len(prompt), num_target=0, num_untruncated=len(prompt) + room
        )

    return RowEncoder(encode, lambda row: Counter())
