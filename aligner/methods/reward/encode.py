"""Encode rows for a reward model: one encoder for each kind, in the form that
`aligner.tokenization.dataset` calls.

Nothing of an answer is ever cut: where `data.on_too_long` is `truncate`, a row that is too long
loses the beginning of its prompt, as published reward models do (left truncation), and one whose
answer alone is too long is left out and counted.

Columns. Pairs (`bradley_terry`, `odin`, `segment`): `prompt_ids`, `chosen_ids`, `rejected_ids`,
`strength`, `weight`, `length`. Ratings (`regression`): `prompt_ids`, `answer_ids`, `ratings` (NaN
where there is none), `weight`, `length`. Questions (`pairwise`): `input_ids`, `letter_ids` (the
right one, the wrong one), `weight`, `length`.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import numpy as np

from aligner.config.recipe import Reward, RewardRecipe
from aligner.data.rows import (
    LARGEST_NUMBER,
    WEIGHT,
    ConversationRow,
    PreferenceRow,
    Row,
    TextRow,
    question_of,
    refuse_tools,
)
from aligner.errors import DataError
from aligner.reward_models.pairwise_prompt import encode_question, length_of_answers
from aligner.tokenization.dataset import Encode
from aligner.tokenization.encode import encode_answer, encode_pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encoder(recipe: RewardRecipe, tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Return what turns a row into columns, or says why nothing is left to train."""
    if recipe.reward.kind == "regression":
        encode = _ratings(recipe.reward, tokenizer)
    else:
        pairwise = recipe.reward.kind == "pairwise"
        encode = _questions(recipe, tokenizer) if pairwise else _pairs(recipe.reward, tokenizer)

    def encode_row(row: Row, limit: int | None) -> dict[str, Any] | str:
        refuse_tools([row], "a reward model")
        return encode(row, limit)

    return encode_row


def _pairs(reward: Reward, tokenizer: PreTrainedTokenizerBase) -> Encode:
    def encode(row: Row, limit: int | None) -> dict[str, Any] | str:
        assert isinstance(row, PreferenceRow), "the task is preference"
        strength = strength_of(row, reward)
        if strength == 0.0:
            return "a tie: the strength of the preference is 0"
        pair = encode_pair(tokenizer, row)
        sides = (pair.chosen_ids, pair.rejected_ids)
        longest, shortest = max(map(len, sides)), min(map(len, sides))
        if limit is not None and longest > limit:
            return (
                f"the longer answer alone has {longest:,} tokens, more than {limit}, and answers "
                "are not cut"
            )
        prompt, cut = _shortened(
            pair.prompt_ids, shortest, limit
        )  # what an answer has no room for, its batch cuts off
        assert prompt is not None, "the shorter answer fits as well"
        length = len(prompt) + longest if limit is None else min(limit, len(prompt) + longest)
        return {
            "prompt_ids": np.asarray(prompt, dtype=np.int32),
            "chosen_ids": np.asarray(pair.chosen_ids, dtype=np.int32),
            "rejected_ids": np.asarray(pair.rejected_ids, dtype=np.int32),
            "strength": strength,
            "weight": row.weight * (strength if reward.loss == "scaled" else 1.0),
            "length": length,
            "tokens": sum(length - longest + len(side) for side in sides),
            "trained": sum(map(len, sides)),
            "whole": len(pair.prompt_ids) + longest,
            "cut": cut or max(0, len(prompt) + longest - length),
        }

    return encode


def strength_of(row: PreferenceRow, reward: Reward) -> float:
    """The strength of a row's preference, 1 where the loss does not read it and there is none.

    Raises: DataError naming the row, for one that is missing where it is needed, negative, or no
    number.
    """
    value = row.extra.get(reward.strength)
    if value is None:
        if reward.loss == "plain":
            return 1.0
        raise DataError(
            f"{row.origin}: there is no `{reward.strength}`, and reward.loss={reward.loss} needs "
            "one",
            "name the column with reward.strength, or map it: `columns: {strength: your_column}`",
        )
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not abs(value) <= LARGEST_NUMBER
    ):
        raise DataError(
            f"{row.origin}: `{reward.strength}` is {str(value)[:40]}, not a number up to "
            f"{LARGEST_NUMBER:g}",
            "1, 2 or 3, for example",
        )
    if value < 0:
        raise DataError(
            f"{row.origin}: `{reward.strength}` is {value:g}: the rejected answer would be the "
            "better one",
            "swap the answers and give the strength without its sign",
        )
    return float(value)


def _ratings(reward: Reward, tokenizer: PreTrainedTokenizerBase) -> Encode:
    def encode(row: Row, limit: int | None) -> dict[str, Any] | str:
        if isinstance(row, TextRow):
            raise DataError(
                f"{row.origin}: plain text has no prompt and no answer", "give rows with both"
            )
        question = question_of(row)
        if question is None or question[1] is None:
            raise DataError(
                f"{row.origin}: there is no answer to rate", "give rows with prompt and completion"
            )
        if isinstance(row, ConversationRow) and row.messages[-1].get(WEIGHT) == 0:
            return "its answer has weight 0"
        ratings = [_rating(row, name) for name in reward.attributes]
        if all(map(math.isnan, ratings)):
            return f"it has no rating: {', '.join(reward.attributes)} are all missing"
        whole, answer = encode_answer(tokenizer, question[0], question[1], row.origin)
        prompt, cut = _shortened(whole, len(answer), limit)
        if prompt is None:
            return (
                f"the answer alone has {len(answer):,} tokens, more than {limit}, and answers are "
                "not cut"
            )
        return {
            "prompt_ids": np.asarray(prompt, dtype=np.int32),
            "answer_ids": np.asarray(answer, dtype=np.int32),
            "ratings": np.asarray(ratings, dtype=np.float32),
            "weight": 1.0,
            "length": len(prompt) + len(answer),
            "tokens": len(prompt) + len(answer),
            "trained": len(answer),
            "whole": len(whole) + len(answer),
            "cut": cut,
        }

    return encode


def _rating(row: Any, name: str) -> float:
    value = row.extra.get(name)
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST_NUMBER:
        raise DataError(
            f"{row.origin}: `{name}` is {str(value)[:40]}, not a number up to {LARGEST_NUMBER:g}",
            "give a number, or null for no rating",
        )
    return float(value)


def _questions(recipe: RewardRecipe, tokenizer: PreTrainedTokenizerBase) -> Encode:
    def encode(row: Row, limit: int | None) -> dict[str, Any] | str:
        assert isinstance(row, PreferenceRow), "the task is preference"
        if strength_of(row, recipe.reward) == 0.0:
            return "a tie: the strength of the preference is 0"
        chosen, rejected = (_answer_text(row, side) for side in (row.chosen, row.rejected))
        if chosen == rejected:
            return "both answers are the same"
        swapped = random.Random(f"{recipe.seed} {row.origin}").random() < 0.5
        first, second = (rejected, chosen) if swapped else (chosen, rejected)
        asked = encode_question(tokenizer, row.prompt, first, second, row.origin)
        letters = (
            [asked.second_id, asked.first_id] if swapped else [asked.first_id, asked.second_id]
        )
        cut = 0 if limit is None else max(0, len(asked.input_ids) - limit)
        if (
            limit is not None
            and cut
            and (needed := length_of_answers(tokenizer, first, second)) > limit
        ):
            return (
                f"both answers alone have {needed:,} tokens, more than {limit}, and answers are "
                "not cut"
            )
        return {
            "input_ids": np.asarray(asked.input_ids[cut:], dtype=np.int32),
            "letter_ids": np.asarray(letters, dtype=np.int32),
            "weight": row.weight,
            "length": len(asked.input_ids) - cut,
            "tokens": len(asked.input_ids) - cut,
            "trained": 1,
            "whole": len(asked.input_ids),
            "cut": cut,
        }

    return encode


def _answer_text(row: PreferenceRow, side: Any) -> str:
    """An answer as text.

    Raises: DataError naming the row when it has several turns.
    """
    if isinstance(side, str):
        return side
    if len(side) != 1:
        raise DataError(
            f"{row.origin}: an answer has {len(side)} turns",
            "put the earlier ones into the prompt, one turn is compared",
        )
    return str(side[0]["content"])


def _shortened(prompt: list[int], answer: int, limit: int | None) -> tuple[list[int] | None, int]:
    """The prompt without as much of its beginning as the answer leaves no room for; None when there
    is no room at all."""
    if limit is None:
        return prompt, 0
    if answer > limit:
        return None, 0
    cut = max(0, len(prompt) + answer - limit)
    return prompt[cut:], cut
