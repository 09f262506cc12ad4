"""How far an engine's probabilities are from those of the model that is trained.

Another engine computes the same weights with other kernels, often in another data type, so a token
that it drew has another probability than the trainer gives it. For tokens drawn by the engine, with
d = log p_trainer - log p_engine, the mean of exp(d) - 1 - d estimates KL(engine || trainer) without
bias and is never negative (the estimator k3 of J. Schulman, "Approximating KL divergence", 2020).
The mean of -d estimates the same with more noise, and shows the direction. Nats a token; a few
thousandths are usual between kernels in bfloat16, and tenths mean that the weights, the template or
the sampling differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aligner.generation.requests import Engine, Generated, OnFinished, Request
from aligner.models.forward import read_tokens, token_logps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPARED = 32
"""Samples that are compared."""


@dataclass(frozen=True)
class Mismatch:
    """`kl`: k3 in nats a token; `difference`: mean of log p_engine - log p_trainer; `largest`: the
    largest of its size; `tokens`: how many were compared."""

    kl: float
    difference: float
    largest: float
    tokens: int

    def __str__(self) -> str:
        return (
            f"KL {self.kl:.2g} nats a token over {self.tokens:,} tokens, mean difference of "
            f"log-probabilities {self.difference:+.2g}, largest {self.largest:.2g}"
        )


def mismatch_of(
    engine_logps: Sequence[Sequence[float]], trainer_logps: Sequence[Sequence[float]]
) -> Mismatch:
    """Compare log-probabilities of the same tokens, sample by sample: the engine's, which drew
    them, and the trainer's."""
    pairs = [
        pair
        for engine, trainer in zip(engine_logps, trainer_logps, strict=True)
        for pair in zip(engine, trainer, strict=True)
    ]
    assert pairs, "there is a token to compare"
    differences = [trainer - engine for engine, trainer in pairs]
    kl = sum(math.expm1(d) - d for d in differences) / len(differences)
    mean = -sum(differences) / len(differences)
    return Mismatch(kl, mean, max(map(abs, differences)), len(differences))


class Compared:
    """An engine whose first samples are compared with what `model` says of their tokens, in one
    padded forward pass.

    `tell` gets the mismatch, or None where the engine tells no log-probabilities.
    """

    def __init__(
        self, engine: Engine, model: PreTrainedModel, tell: Callable[[Mismatch | None], None]
    ) -> None:
        self.engine = engine
        self.model = model
        self.tell: Callable[[Mismatch | None], None] | None = tell

    def generate(
        self, requests: Sequence[Request], on_finished: OnFinished | None = None
    ) -> list[list[Generated]]:
        """Return the samples of each request, in the order of the requests."""
        found = self.engine.generate(requests, on_finished)
        if self.tell is not None and found:
            self.tell(self._compare(requests, found))
            self.tell = None
        return found

    def _compare(
        self, requests: Sequence[Request], found: Sequence[Sequence[Generated]]
    ) -> Mismatch | None:
        prompts, told = [], []
        for request, samples in zip(requests, found):
            for one in samples:
                if one.raw_logps and one.token_ids:
                    prompts.append(list(request.prompt_ids))
                    told.append(one)
        prompts, told = prompts[:COMPARED], told[:COMPARED]
        if not told:
            return None
        sequences = [[*prompt, *one.token_ids] for prompt, one in zip(prompts, told)]
        wanted = [range(len(prompt), len(ids)) for prompt, ids in zip(prompts, sequences)]
        logps = read_tokens(self.model, sequences, wanted, token_logps, pad_token_id=0)
        return mismatch_of([one.raw_logps for one in told], logps)
