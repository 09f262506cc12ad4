"""How the next token is chosen: `Sampling`, and what it makes of the logits.

Every setting comes from `Sampling`, in transformers' own order; what it leaves out is off. Each row
draws its tokens with random numbers of its own, which follow from the seed, its prompt and its
sample alone. So they depend on no other row, and the global random state, on which a resumed
training run depends, is not touched.

Legend: B rows of a batch, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

HEAD = 256
"""Likeliest tokens among which top-p looks first."""

LARGEST_DRAW = 1.0 - 1e-12
"""Keeps a draw below the last value of a cumulative sum that rounds to one."""


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token. Temperature 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 are
    off."""

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        assert min(self.max_new_tokens, self.num_samples) >= 1, "at least one token and one sample"
        assert min(self.temperature, self.top_k) >= 0, "temperature and top_k are not negative"
        assert 0.0 < self.top_p <= 1.0 > self.min_p >= 0.0, "top_p lies in (0, 1], min_p in [0, 1)"
        assert self.repetition_penalty > 0.0, "repetition_penalty is positive"


@dataclass(frozen=True)
class Chosen:
    """The next token of each row (B,), its log-probability under the distribution that it was drawn
    from, and under the model's own, both (B,) in float32."""

    ids_B: Tensor
    logps_B: Tensor
    raw_logps_B: Tensor


def number_of(*parts: object) -> int:
    """Return a number that follows from the parts alone: for streams that belong to a row and a
    step."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big")


def draws(seed: int, stream: int, sample: int, steps: int) -> Tensor:
    """Return one number in [0, 1) for each step, (T,), in float64.

    They come from a generator of their own, which follows from `seed`, the number of the prompt and
    that of the sample; fewer steps have the first of the same numbers.
    """
    digest = hashlib.sha256(f"{seed}:{stream}:{sample}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(steps, generator=generator, dtype=torch.float64).clamp(max=LARGEST_DRAW)


def choose(
    logits_BV: Tensor, sampling: Sampling, said_BT: Tensor | None, draws_B: Tensor
) -> Chosen:
    """Choose the next token of rows with the same settings.

    `logits_BV` are in float32. `said_BT`: what the repetition penalty looks at, each row its own
    ids, filled up with any of them; None where there is no penalty. `draws_B`: a number for each
    row, as `draws` gives them.
    """
    scores_BV = logits_BV
    for processor in _processors(sampling):
        scores_BV = processor(said_BT, scores_BV)
    if sampling.temperature == 0.0:
        ids_B = scores_BV.argmax(dim=-1)
        return Chosen(ids_B, torch.zeros_like(logits_BV[:, 0]), _logps_of(logits_BV, ids_B))
    ids_B = _drawn(scores_BV, draws_B)
    raw_logps_B = _logps_of(logits_BV, ids_B)
    return Chosen(
        ids_B, raw_logps_B if scores_BV is logits_BV else _logps_of(scores_BV, ids_B), raw_logps_B
    )


def _processors(sampling: Sampling) -> list[Any]:
    """Return what shapes the distribution, in transformers' own order, and with nothing that was
    not asked for."""
    chain: list[Any] = []
    if sampling.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature == 0.0:
        return chain
    if sampling.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        chain.append(partial(_nucleus, top_p=sampling.top_p))
    if sampling.min_p:
        chain.append(MinPLogitsWarper(sampling.min_p))
    return chain


def _nucleus(_: Tensor | None, scores_BV: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens, as few as have `top_p` of the probability together.

    As transformers' TopPLogitsWarper, which sorts the whole vocabulary: here only its head, which
    grows until it holds what is kept.
    """
    vocabulary, size = scores_BV.shape[-1], min(HEAD, scores_BV.shape[-1])
    total_B1 = scores_BV.logsumexp(dim=-1, keepdim=True)
    while True:
        best_BK, ids_BK = scores_BV.topk(size)
        probabilities_BK = (best_BK - total_B1).to(_exact(scores_BV.device)).exp()
        before_BK = probabilities_BK.cumsum(dim=-1) - probabilities_BK
        is_kept_BK = before_BK < top_p
        if size == vocabulary or not is_kept_BK[:, -1].any():
            break
        size = min(vocabulary, 8 * size)
    kept_BK = best_BK.masked_fill(~is_kept_BK, float("-inf"))
    return torch.full_like(scores_BV, float("-inf")).scatter(1, ids_BK, kept_BK)


def _drawn(scores_BV: Tensor, draws_B: Tensor) -> Tensor:
    """Return each row's token by its own number (inverse of the cumulative distribution)."""
    exact = _exact(scores_BV.device)
    cumulative_BV = scores_BV.to(exact).softmax(dim=-1).cumsum(dim=-1)
    draws_B1 = draws_B[:, None].to(scores_BV.device, exact)
    ids_B1 = torch.searchsorted(cumulative_BV, draws_B1 * cumulative_BV[:, -1:], right=True)
    return ids_B1.clamp(max=scores_BV.shape[-1] - 1)[:, 0]


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _logps_of(scores_BV: Tensor, ids_B: Tensor) -> Tensor:
    return scores_BV.gather(1, ids_B[:, None])[:, 0] - scores_BV.logsumexp(dim=-1)


def settings_of(sampling: Sampling) -> tuple[float, ...]:
    """Return what rows must share to be chosen for together: how the distribution is shaped."""
    return (
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        sampling.min_p,
        sampling.repetition_penalty,
    )


def said_ids(sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Stack what rows have said, (B, T), each filled up with its own first id."""
    width = max(map(len, sequences))
    return torch.tensor(
        [[*ids, *([ids[0]] * (width - len(ids)))] for ids in sequences], device=device
    )
