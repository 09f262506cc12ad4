"""The mismatch of an engine and a trainer: an estimate of a KL divergence, and the exact one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fakes import byte_tokenizer, tiny_llama

from aligner.generation.hf import HfEngine
from aligner.generation.mismatch import Compared, Mismatch, mismatch_of
from aligner.generation.requests import Generated, Request
from aligner.generation.sampling import Sampling


def test_by_hand() -> None:
    found = mismatch_of([[-1.0, -2.0], [-0.5]], [[-1.0, -1.9], [-0.7]])
    expected = (0.0 + (math.exp(0.1) - 1 - 0.1) + (math.exp(-0.2) - 1 + 0.2)) / 3
    assert found.kl == pytest.approx(expected)
    assert found.difference == pytest.approx((0.0 - 0.1 + 0.2) / 3)
    assert (found.largest, found.tokens) == (pytest.approx(0.2), 3)
    assert mismatch_of([[-1.0]], [[-1.0]]).kl == 0.0


def test_it_estimates_the_divergence_of_the_engine_from_the_trainer() -> None:
    generator = torch.Generator().manual_seed(0)
    engine = torch.randn(20, generator=generator).log_softmax(-1)
    trainer = (engine + 0.3 * torch.randn(20, generator=generator)).log_softmax(-1)
    exact = float((engine.exp() * (engine - trainer)).sum())
    drawn = torch.multinomial(engine.exp(), 40_000, replacement=True, generator=generator)
    found = mismatch_of([engine[drawn].tolist()], [trainer[drawn].tolist()])
    assert found.kl == pytest.approx(exact, rel=0.03)
    assert found.difference == pytest.approx(exact, abs=0.01)


def told_of(engine: Any, model: Any) -> list[Mismatch | None]:
    told: list[Mismatch | None] = []
    compared = Compared(engine, model, told.append)
    requests = [Request([5, 6, 7], Sampling(max_new_tokens=8, num_samples=3))]
    heard: list[Generated] = []
    first = compared.generate(requests, lambda index, sample, one: heard.append(one))
    assert first == engine.generate(requests)
    assert len(heard) == 3
    compared.generate(requests)
    assert len(told) == 1  # the first batch alone is compared
    return told


def test_the_first_batch_of_an_engine_is_compared_with_a_model() -> None:
    models = [tiny_llama(byte_tokenizer(), seed, initializer_range=0.3) for seed in (1, 2)]
    (same,) = told_of(HfEngine(models[0]), models[0])
    (other,) = told_of(HfEngine(models[0]), models[1])
    assert same is not None
    assert other is not None
    assert same.kl < 1e-9 < 0.1 < other.kl
    assert same.tokens == 24
    assert "24 tokens" in str(same)


class Silent:
    """An engine that tells no log-probabilities."""

    def generate(self, requests: Any, on_finished: Any = None) -> list[list[Generated]]:
        samples = [Generated([5], "length") for _ in range(3)]
        for number, one in enumerate(samples):
            if on_finished is not None:
                on_finished(0, number, one)
        return [samples]


def test_an_engine_without_log_probabilities_is_said_to_have_none() -> None:
    assert told_of(Silent(), tiny_llama(byte_tokenizer())) == [None]
