"""Cutting an answer into segments that get a reward each (arXiv 2501.02790): where they end, and
what decides it.

A token opens a segment when the reference model could hardly foresee it: when the entropy of the
distribution that it was drawn from is above a cutoff, in nats, at temperature 1, over the whole
vocabulary, in float32. The first token always opens one. What ends the answer (EOS) belongs to no
segment; an answer that is nothing else is one segment on it. The answer as a whole (`whole`) is
read at its end instead, EOS included, which makes a Bradley-Terry model of it.

Beside the paper's rule, and its baselines (tokens, sentences, the whole), there are segments of a
fixed length, those that end with a given text, and bounds on their length.

Only which places are ends is decided here. What happens at them is the reward model's
(`aligner.methods.reward.trainers`), and in reinforcement learning the rewards of tokens'
(`aligner.methods.rlhf.segment_rewards`). Imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from aligner.config.segments import Segments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SENTENCE_END = re.compile(r"([.!?][\"')\]]*\s*$)|\n")


def segment_ends(
    segments: Segments,
    answer_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    *,
    entropies: Sequence[float] | None = None,
    stop_ids: Sequence[int] = (),
) -> list[int]:
    """Return the places (0-based, within the answer) of the last token of each segment, ascending,
    at least one.

    `entropies`: for `entropy`, of the distribution that each token of the answer was drawn from, in
    nats.
    """
    assert answer_ids, "an answer has at least its stop token"
    last = len(answer_ids) - 1
    if segments.rule == "whole":
        return [last]
    body = last if answer_ids[-1] in stop_ids else last + 1
    if body == 0:
        return [0]
    opening = _opening(segments, answer_ids[:body], tokenizer, entropies)
    return _bounded(opening, body, segments.min_length, segments.max_length)


def _opening(
    segments: Segments,
    body_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    entropies: Sequence[float] | None,
) -> set[int]:
    """The places at which the rule opens a segment."""
    count = len(body_ids)
    if segments.rule == "token":
        return set(range(count))
    if segments.rule == "fixed":
        return set(range(0, count, segments.length))
    if segments.rule == "entropy":
        assert entropies is not None, "the rule needs the reference's entropies"
        assert len(entropies) in (count, count + 1), "one entropy a token"
        return {place for place in range(count) if entropies[place] > segments.cutoff}
    texts = [tokenizer.decode([token]) for token in body_ids]
    if segments.rule == "sentence":
        return {place + 1 for place, text in enumerate(texts) if _SENTENCE_END.search(text)}
    return _behind(segments.delimiter, texts)


def _behind(delimiter: str, texts: Sequence[str]) -> set[int]:
    """The places behind each token that holds the end of a delimiter, in the texts of the tokens
    put together."""
    found, read, searched = set(), "", 0
    for place, text in enumerate(texts):
        read += text
        if (at := read.rfind(delimiter, searched)) >= 0:
            found.add(place + 1)
            searched = at + len(delimiter)
    return found


def _bounded(opening: set[int], body: int, shortest: int, longest: int | None) -> list[int]:
    """The ends of segments that begin where one may open: not sooner than `shortest` tokens after
    the last beginning, and at the latest after `longest`."""
    ends, start = [], 0
    for place in range(1, body):
        length = place - start
        if (place in opening and length >= shortest) or length == longest:
            ends.append(place - 1)
            start = place
    return [*ends, body - 1]


def third_of(count: int, number: int) -> slice:
    """Return which of `count` segments lie in the first, second or last third (0 to 2) of an
    answer; of fewer than three, the one that lies there."""
    first, behind = number * count // 3, (number + 1) * count // 3
    return slice(first, max(first + 1, behind))


def cutoff_for(entropies: Iterable[float], target_length: int) -> float:
    """Return the entropy in nats that one token in `target_length` has more than: the (1 - 1/L)
    quantile, the higher of two neighbours, so that no more tokens lie above it."""
    ordered = sorted(entropies)
    assert ordered, "there are tokens"
    return ordered[min(len(ordered) - 1, math.ceil((1 - 1 / target_length) * len(ordered)) - 1)]
