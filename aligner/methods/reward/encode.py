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
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

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
from aligner.methods.reward.recipe import Reward, RewardRecipe
from aligner.reward_models.pairwise_prompt import encode_question, length_of_answers
from aligner.tokenization.ahead import ChatsAhead, pairs_ahead
from aligner.tokenization.dataset import Encode, RowEncoder, SkipRow, TokenizedRow
from aligner.tokenization.encode import encode_answer, encode_pair
from aligner.tokenization.unread_keys import as_text_answer, unread_beside_text, unread_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encoder(recipe: RewardRecipe, tokenizer: PreTrainedTokenizerBase) -> RowEncoder:
    """Return what turns a row into columns."""
    unread: Callable[[Row], Counter[str]]
    chats = pairs_ahead(tokenizer)
    look_ahead = None
    if recipe.reward.kind == "regression":
        encode, unread = _ratings(recipe.reward, tokenizer), partial(_unread_of_answer, tokenizer)
    elif recipe.reward.kind == "pairwise":
        encode, unread = _questions(recipe, tokenizer), unread_beside_text
    else:
        encode, unread = _pairs(recipe.reward, tokenizer, chats), partial(unread_of, tokenizer)
        look_ahead = chats.look_ahead

    def encode_row(row: Row, limit: int | None) -> TokenizedRow | SkipRow:
        refuse_tools([row], "a reward model")
        return encode(row, limit)

    return RowEncoder(encode_row, unread, look_ahead=look_ahead)


def _unread_of_answer(tokenizer: PreTrainedTokenizerBase, row: Row) -> Counter[str]:
    answered = unread_of(tokenizer, as_text_answer(row))
    return answered + unread_beside_text(row, only_answer=True)


def _pairs(reward: Reward, tokenizer: PreTrainedTokenizerBase, chats: ChatsAhead) -> Encode:
    def encode(row: Row, limit: int | None) -> TokenizedRow | SkipRow:
        assert isinstance(row, PreferenceRow), "the task is preference"
        strength = strength_of(row, reward)
        if strength == 0.0:
            return SkipRow("a tie: the strength of the preference is 0")
        pair = encode_pair(tokenizer, row, chats.of(row))
        sides = (pair.chosen_ids, pair.rejected_ids)
        longest, shortest = max(map(len, sides)), min(map(len, sides))
        if limit is not None and longest > limit:
            return SkipRow(
                f"the longer answer alone has {longest:,} tokens, more than {limit}, and answers "
                "are not cut"
            )
        prompt, cut = _shortened(
            pair.prompt_ids, shortest, limit
        )  # what an answer has no room for, its batch cuts off
        assert prompt is not None, "the shorter answer fits as well"
        length = len(prompt) + longest if limit is None else min(limit, len(prompt) + longest)
        columns = {
            "prompt_ids": np.asarray(prompt, dtype=np.int32),
            "chosen_ids": np.asarray(pair.chosen_ids, dtype=np.int32),
            "rejected_ids": np.asarray(pair.rejected_ids, dtype=np.int32),
            "strength": strength,
            "weight": row.weight * (strength if reward.loss == "scaled" else 1.0),
            "length": length,
        }
        return TokenizedRow(
            columns,
            num_tokens=sum(length - longest + len(side) for side in sides),
            num_target=sum(map(len, sides)),
            num_untruncated=len(pair.prompt_ids) + longest,
            num_truncated=cut or max(0, len(prompt) + longest - length),
        )

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
    def encode(row: Row, limit: int | None) -> TokenizedRow | SkipRow:
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
            return SkipRow("its answer has weight 0")
        ratings = [_rating(row, name) for name in reward.attributes]
        if all(map(math.isnan, ratings)):
            return SkipRow(f"it has no rating: {', '.join(reward.attributes)} are all missing")
        whole, answer = encode_answer(tokenizer, question[0], question[1], row.origin)
        prompt, cut = _shortened(whole, len(answer), limit)
        if prompt is None:
            return SkipRow(
                f"the answer alone has {len(answer):,} tokens, more than {limit}, and answers are "
                "not cut"
            )
        columns = {
            "prompt_ids": np.asarray(prompt, dtype=np.int32),
            "answer_ids": np.asarray(answer, dtype=np.int32),
            "ratings": np.asarray(ratings, dtype=np.float32),
            "weight": 1.0,
            "length": len(prompt) + len(answer),
        }
        return TokenizedRow(
            columns,
            num_tokens=len(prompt) + len(answer),
            num_target=len(answer),
            num_untruncated=len(whole) + len(answer),
            num_truncated=cut,
        )

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
    def encode(row: Row, limit: int | None) -> TokenizedRow | SkipRow:
        assert isinstance(row, PreferenceRow), "the task is preference"
        if strength_of(row, recipe.reward) == 0.0:
            return SkipRow("a tie: the strength of the preference is 0")
        chosen, rejected = (_answer_text(row, side) for side in (row.chosen, row.rejected))
        if chosen == rejected:
            return SkipRow("both answers are the same")
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
            return SkipRow(
                f"both answers alone have {needed:,} tokens, more than {limit}, and answers are "
                "not cut"
            )
        columns = {
            "input_ids": np.asarray(asked.input_ids[cut:], dtype=np.int32),
            "letter_ids": np.asarray(letters, dtype=np.int32),
            "weight": row.weight,
            "length": len(asked.input_ids) - cut,
        }
        return TokenizedRow(
            columns,
            num_tokens=len(asked.input_ids) - cut,
            num_target=1,
            num_untruncated=len(asked.input_ids),
            num_truncated=cut,
        )

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
