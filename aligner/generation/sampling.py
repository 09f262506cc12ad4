"""How the next token is chosen: `Sampling`, and what it makes of the logits.

Every setting comes from `Sampling`, in transformers' own order; what it leaves out is off. Each row
draws its tokens with random numbers of its own, which follow from the seed, its prompt and its
sample alone. So they depend on no other row, and the global random state, on which a resumed
training run depends, is not touched.

Legend: B rows of a batch, P prompt tokens after padding, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

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


def draws(streams: Sequence[tuple[int, int]], steps: int, seed: int) -> torch.Tensor:
    """Return one number in [0, 1) for each row and step, (B, T), each row's from a generator of its
    own.

    `streams`: two numbers for each row, from which its generator follows: that of the prompt, and
    that of the sample.
    """
    numbers = []
    for stream, sample in streams:
        digest = hashlib.sha256(f"{seed}:{stream}:{sample}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        numbers.append(torch.rand(steps, generator=generator, dtype=torch.float64))
    return torch.stack(numbers).clamp(max=LARGEST_DRAW)


def processors(
    sampling: Sampling, mask_BP: torch.Tensor, draws_BT: torch.Tensor
) -> LogitsProcessorList:
    """Return what turns logits into the next token, in transformers' own order, and with nothing
    that was not asked for.

    `mask_BP` is the mask of the padded prompts, `draws_BT` what `draws` gives.
    """
    chain: list[Any] = []
    if sampling.repetition_penalty != 1.0:
        chain.append(_PenaltyWithoutPadding(sampling.repetition_penalty, mask_BP))
    if sampling.temperature == 0.0:
        return LogitsProcessorList(chain)
    if sampling.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        chain.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        chain.append(MinPLogitsWarper(sampling.min_p))
    return LogitsProcessorList([*chain, _Draw(draws_BT, mask_BP.shape[1])])


class _PenaltyWithoutPadding(LogitsProcessor):
    """Repetition penalty on what was said, not on padding (which would depend on the neighbours in
    the batch)."""

    def __init__(self, penalty: float, mask_BP: torch.Tensor) -> None:
        self.inner = RepetitionPenaltyLogitsProcessor(penalty)
        self.padding_BP = mask_BP == 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        width = self.padding_BP.shape[1]
        said_BT = input_ids.clone()
        said_BT[:, :width] = torch.where(
            self.padding_BP, input_ids[:, width - 1 : width], input_ids[:, :width]
        )
        return self.inner(said_BT, scores)


class _Draw(LogitsProcessor):
    """Choose each row's token by its own number between 0 and 1 (inverse of the cumulative
    distribution)."""

    def __init__(self, draws_BT: torch.Tensor, prompt_width: int) -> None:
        self.draws_BT = draws_BT
        self.prompt_width = prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        exact = torch.float32 if scores.device.type == "mps" else torch.float64
        cumulative_BV = scores.to(exact).softmax(dim=-1).cumsum(dim=-1)
        draw_B1 = self.draws_BT[:, input_ids.shape[1] - self.prompt_width, None].to(
            scores.device, exact
        )
        choice_B1 = torch.searchsorted(cumulative_BV, draw_B1 * cumulative_BV[:, -1:], right=True)
        choice_B1 = choice_B1.clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, float("-inf")).scatter(1, choice_B1, 0.0)
