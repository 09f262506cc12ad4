"""Encode preference pairs for DPO.

Columns: `prompt_ids`, `chosen_ids`, `rejected_ids`, `weight`, `length`, and `text` where reward
models will read it. A row with `pair_token_ids` has its answers trained on as they were sampled.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from aligner.data.rows import (
    SAMPLED,
    PreferenceRow,
    Row,
    question_of,
    refuse_tools,
    variables_of,
)
from aligner.errors import DataError
from aligner.methods.dpo.recipe import DpoRecipe
from aligner.tokenization.ahead import ChatsAhead, pairs_ahead
from aligner.tokenization.dataset import Encode, RowEncoder, SkipRow, TokenizedRow
from aligner.tokenization.encode import Pair, encode_pair, encode_prompt
from aligner.tokenization.unread_keys import unread_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encoder(recipe: DpoRecipe, tokenizer: PreTrainedTokenizerBase) -> RowEncoder:
    """Return what turns a row into columns."""
    chats = pairs_ahead(tokenizer)
    encode = _encode_pair_row(tokenizer, chats, recipe.dpo.max_prompt_length)
    if recipe.dpo.reward_models:
        encode = _with_text(encode)
    return RowEncoder(encode, partial(unread_of, tokenizer), look_ahead=chats.look_ahead)


def _encode_pair_row(
    tokenizer: PreTrainedTokenizerBase, chats: ChatsAhead, max_prompt: int | None
) -> Encode:
    def encode(row: Row, limit: int | None) -> TokenizedRow | SkipRow:
        assert isinstance(row, PreferenceRow)
        whole = _as_sampled(tokenizer, row) or encode_pair(tokenizer, row, chats.of(row))
        lost = 0
        if limit is not None and max_prompt is not None:
            lost = max(0, len(whole.prompt_ids) - max_prompt)
        prompt = whole.prompt_ids[lost:]
        room = None if limit is None else max(0, limit - len(prompt))
        kept = Pair(prompt, whole.chosen_ids[:room], whole.rejected_ids[:room])
        if not kept.chosen_ids or not kept.rejected_ids:
            return SkipRow(
                f"the prompt alone has {len(prompt):,} tokens, so no answer is left within {limit}"
            )
        if kept.chosen_ids == kept.rejected_ids:
            return SkipRow(f"both answers are the same within {limit} tokens")
        answers = len(kept.chosen_ids) + len(kept.rejected_ids)
        longest = max(len(whole.chosen_ids), len(whole.rejected_ids))
        columns = {
            "prompt_ids": np.asarray(prompt, dtype=np.int32),
            "chosen_ids": np.asarray(kept.chosen_ids, dtype=np.int32),
            "rejected_ids": np.asarray(kept.rejected_ids, dtype=np.int32),
            "weight": float(row.weight),
            "length": len(prompt) + max(len(kept.chosen_ids), len(kept.rejected_ids)),
        }
        return TokenizedRow(
            columns,
            num_tokens=2 * len(prompt) + answers,
            num_target=answers,
            num_untruncated=len(whole.prompt_ids) + longest,
            num_truncated=2 * lost + len(whole.chosen_ids) + len(whole.rejected_ids) - answers,
        )

    return encode


def _as_sampled(tokenizer: PreTrainedTokenizerBase, row: PreferenceRow) -> Pair | None:
    """Return the pair with the ids that a model sampled, where the row has them: another
    tokenization of the same text would be one that it did not sample."""
    sampled = row.extra.get(SAMPLED)
    if sampled is None:
        return None
    known = range(len(tokenizer))
    sides = sampled if isinstance(sampled, list) and len(sampled) == 2 else [None]
    for ids in sides:
        if not isinstance(ids, list) or not all(type(one) is int and one in known for one in ids):
            raise DataError(
                f"{row.origin}: `{SAMPLED}` holds no token ids of this tokenizer",
                "it is a list of two: the ids of the chosen and of the rejected answer; drop the "
                "column to have the texts tokenized",
            )
    prompt_ids = encode_prompt(tokenizer, row.prompt, row.tools, variables_of(row))
    return Pair(prompt_ids, *sides)


def _with_text(encode_pair_row: Encode) -> Encode:
    """Add a pair's `prompt`, `chosen`, `rejected`, `answer` (the right one, or null) and `origin`,
    as JSON."""

    def encode(row: Row, limit: int | None) -> TokenizedRow | SkipRow:
        encoded = encode_pair_row(row, limit)
        refuse_tools([row], "a reward model")
        assert isinstance(row, PreferenceRow)
        chosen, rejected = question_of(row), question_of(replace(row, chosen=row.rejected))
        assert chosen is not None, "a pair asks something"
        assert rejected is not None, "a pair asks something"
        right = row.extra.get("answer")
        text = {
            "prompt": row.prompt,
            "chosen": chosen[1],
            "rejected": rejected[1],
            "answer": None if right is None else str(right),
            "origin": row.origin,
        }
        if isinstance(encoded, SkipRow):
            return encoded
        return replace(encoded, columns={**encoded.columns, "text": json.dumps(text)})

    return encode
