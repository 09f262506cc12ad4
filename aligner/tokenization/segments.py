"""Cutting an answer into segments that get a reward each (arXiv 2501.02790): where they end, and
what decides it.

A token opens a segment when the reference model could hardly foresee it: when the entropy of the
distribution that it was drawn from is above a cutoff, in nats, at temperature 1, over the whole
vocabulary, in float32. The first token always opens one. What ends the answer (EOS) belongs to no
segment; an answer that is nothing else is one segment on it. The answer as a whole (`whole`) is
read at its end instead, EOS included, which makes a Bradley-Terry model of it.

Only which places are ends is decided here. What happens at them is the reward model's
(`aligner.methods.reward.trainers`).

Legend: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rule = Literal["entropy", "token", "sentence", "whole"]

_SENTENCE_END = re.compile(r"([.!?][\"')\]]*\s*$)|\n")


def segment_ends(
    rule: Rule,
    answer_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    *,
    entropies: Sequence[float] | None = None,
    cutoff: float = 0.0,
    stop_ids: Sequence[int] = (),
) -> list[int]:
    """Return the places (0-based, within the answer) of the last token of each segment, ascending,
    at least one.

    `entropies`: for `entropy`, of the distribution that each token of the answer was drawn from, in
    nats.
    """
    assert answer_ids, "an answer has at least its stop token"
    last = len(answer_ids) - 1
    if rule == "whole":
        return [last]
    body = last if answer_ids[-1] in stop_ids else last + 1
    if body == 0:
        return [0]
    if rule == "token":
        return list(range(body))
    if rule == "sentence":
        ends = [
            place
            for place in range(body)
            if _SENTENCE_END.search(tokenizer.decode([answer_ids[place]]))
        ]
    else:
        assert entropies is not None, "the rule needs the reference's entropies"
        assert len(entropies) == len(answer_ids), "one entropy a token"
        ends = [place - 1 for place in range(1, body) if entropies[place] > cutoff]
    return ends if ends and ends[-1] == body - 1 else [*ends, body - 1]
