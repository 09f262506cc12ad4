"""What holds for every engine: the same requests, the same form of answers, and the same tokens
where nothing is drawn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_vllm
import pytest
import torch
from fake_endpoint import Continues, FakeEndpoint
from fakes import byte_tokenizer, save_model, tiny_llama

from aligner.config.recipe import Endpoint, Model
from aligner.generation.endpoint import EndpointEngine
from aligner.generation.hf import HfEngine
from aligner.generation.hf_cb import HfCbEngine
from aligner.generation.requests import Engine, Generated, Request
from aligner.generation.sampling import Sampling
from aligner.generation.vllm import VllmEngine
from aligner.models.forward import read_tokens, token_logps

LOUD = {"initializer_range": 0.5}  # weights large enough that answers to prompts differ
HERE = ("hf", "hf_cb")
"""Engines that draw with our random numbers."""
GREEDY = Sampling(max_new_tokens=12, temperature=0.0)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(byte_tokenizer(), seed=7, **LOUD)


@pytest.fixture(params=["hf", "hf_cb", "vllm", "endpoint"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def engine(
    name: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    with ExitStack() as stack:
        if name == "vllm":
            fake_vllm.install(monkeypatch)
            folder = save_model(tmp_path / "model", seed=7, **LOUD)
            yield VllmEngine(Model(name_or_path=str(folder)))
        elif name == "endpoint":
            server = stack.enter_context(FakeEndpoint(Continues(model, byte_tokenizer())))
            section = Endpoint(base_url=server.base_url, model="toy", max_in_flight=3)
            yield EndpointEngine(section, byte_tokenizer())
        else:
            yield {"hf": HfEngine, "hf_cb": HfCbEngine}[name](model, batch_size=3)


def requests_of(sampling: Sampling, stops: tuple[int, ...] = ()) -> list[Request]:
    generator = torch.Generator().manual_seed(0)
    sizes = (3, 40, 1, 17, 90, 8)
    prompts = [torch.randint(4, 250, (size,), generator=generator).tolist() for size in sizes]
    return [Request(ids, sampling, stops, stream) for stream, ids in enumerate(prompts)]


def by_hand(model: Any, request: Request) -> list[int]:
    """Greedy decoding in the slow, obvious way: no cache, no padding, no batch."""
    ids = list(request.prompt_ids)
    with torch.no_grad():
        for _ in range(request.sampling.max_new_tokens):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] in request.stop_ids:
                break
    return ids[len(request.prompt_ids) :]


def test_greedy_equals_decoding_by_hand(engine: Engine, model: Any) -> None:
    requests = requests_of(GREEDY)
    found = engine.generate(requests)
    assert [[one.token_ids for one in samples] for samples in found] == [
        [by_hand(model, request)] for request in requests
    ]
    assert {one.finish_reason for (one,) in found} == {"length"}


def test_each_request_ends_at_its_own_stop_ids_and_keeps_them(engine: Engine) -> None:
    free = [one.token_ids for (one,) in engine.generate(requests_of(GREEDY))]
    stops = (free[0][4], free[1][2])
    requests = requests_of(GREEDY, stops)
    requests[1] = replace(requests[1], stop_ids=())
    found = engine.generate(requests)
    for number, (before, (after,)) in enumerate(zip(free, found)):
        ends = [i + 1 for i, token in enumerate(before) if token in stops and number != 1]
        assert after.token_ids == before[: ends[0] if ends else None]
        assert after.finish_reason == ("stop" if ends else "length")
    assert {samples[0].finish_reason for samples in found} == {"stop", "length"}


def test_requests_of_other_lengths_and_settings_go_together(engine: Engine, model: Any) -> None:
    requests = requests_of(GREEDY)
    requests[2] = replace(requests[2], sampling=replace(GREEDY, max_new_tokens=3))
    requests[4] = replace(requests[4], sampling=Sampling(max_new_tokens=7, num_samples=3, top_k=4))
    found = engine.generate(requests)
    assert [len(samples) for samples in found] == [1, 1, 1, 1, 3, 1]
    assert found[2][0].token_ids == by_hand(model, requests[2])
    assert found[3][0].token_ids == by_hand(model, requests[3])
    assert all(len(one.token_ids) == 7 for one in found[4])


def test_samples_differ_and_come_again_with_the_same_seed(engine: Engine) -> None:
    sampling = Sampling(max_new_tokens=10, num_samples=3, seed=5)
    first = ids_of(engine.generate(requests_of(sampling)))
    assert first == ids_of(engine.generate(requests_of(sampling)))
    assert first != ids_of(engine.generate(requests_of(replace(sampling, seed=6))))
    assert all(len({tuple(ids) for ids in samples}) == 3 for samples in first)
    assert len({ids[0] for samples in first for ids in samples}) > 3  # also the first token


def ids_of(found: list[list[Generated]]) -> list[list[list[int]]]:
    return [[one.token_ids for one in samples] for samples in found]


def test_a_sample_does_not_depend_on_its_neighbours(engine: Engine) -> None:
    requests = requests_of(Sampling(max_new_tokens=10, num_samples=2, seed=5))
    together = ids_of(engine.generate(requests))
    assert ids_of(engine.generate(requests[3:4])) == together[3:4]


def test_log_probabilities_are_those_of_the_model(engine: Engine, model: Any, name: str) -> None:
    sampling = Sampling(max_new_tokens=10, num_samples=2, seed=1)
    requests = requests_of(sampling)
    for request, samples in zip(requests, engine.generate(requests)):
        for one in samples:
            ids = [*request.prompt_ids, *one.token_ids]
            wanted = [range(len(request.prompt_ids), len(ids))]
            (logps,) = read_tokens(model, [ids], wanted, token_logps, pad_token_id=0)
            assert one.raw_logps == pytest.approx(logps, abs=1e-4)
            assert one.logps == one.raw_logps


@pytest.mark.parametrize("setting", [{"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8}])
def test_log_probabilities_of_what_was_drawn_from(
    engine: Engine, name: str, setting: dict[str, float]
) -> None:
    (one,) = engine.generate(requests_of(Sampling(max_new_tokens=10, **setting)))[1]
    assert len(one.raw_logps) == 10
    if name in HERE:
        assert len(one.logps) == 10
        assert one.logps != pytest.approx(one.raw_logps, abs=1e-3)
    else:
        assert one.logps == []  # not known, and nothing is said in its place
    (greedy,) = engine.generate(requests_of(GREEDY))[1]
    assert greedy.logps == [0.0] * 12
    assert min(greedy.raw_logps) < 0.0


def test_a_callback_hears_of_every_sample_once(engine: Engine) -> None:
    heard: list[tuple[int, int, Generated]] = []
    requests = requests_of(Sampling(max_new_tokens=5, num_samples=2))
    found = engine.generate(requests, lambda *one: heard.append(one))
    assert sorted((index, sample) for index, sample, _ in heard) == [
        (index, sample) for index in range(6) for sample in range(2)
    ]
    assert all(found[index][sample] is one for index, sample, one in heard)


def test_nothing_is_left_behind(engine: Engine, model: Any) -> None:
    model.train()
    before = torch.get_rng_state(), model.generation_config, model.config._attn_implementation
    engine.generate(requests_of(Sampling(max_new_tokens=3)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert model.generation_config is before[1]
    assert model.config._attn_implementation == before[2]
    assert model.training
    model.eval()


def test_no_requests_have_no_answers(engine: Engine) -> None:
    assert engine.generate([]) == []


def test_the_engines_that_draw_here_draw_the_same(model: Any) -> None:
    sampling = Sampling(max_new_tokens=12, num_samples=3, temperature=0.9, top_p=0.9, seed=3)
    penalty = replace(sampling, repetition_penalty=1.5, top_k=20)
    requests = [*requests_of(sampling, (9, 30)), *requests_of(penalty)]
    ours, theirs = (kind(model, batch_size=4).generate(requests) for kind in (HfEngine, HfCbEngine))
    assert ids_of(ours) == ids_of(theirs)
    for one, other in zip((x for y in ours for x in y), (x for y in theirs for x in y)):
        assert one.logps == pytest.approx(other.logps, abs=1e-4)
        assert one.finish_reason == other.finish_reason


def test_an_exception_in_the_callback_leaves_no_thread(model: Any) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("a scorer failed")

    threads = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="a scorer failed"):
        HfCbEngine(model, batch_size=2).generate(requests_of(Sampling(max_new_tokens=30)), fails)
    assert set(threading.enumerate()) <= threads
    assert HfCbEngine(model).generate(requests_of(GREEDY)[:1])[0][0].finish_reason == "length"
