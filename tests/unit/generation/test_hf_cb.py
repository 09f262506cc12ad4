"""The engine `hf_cb`: what transformers' continuous batching does its own way, and not here."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from fakes import byte_tokenizer, tiny_llama
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.generation.continuous_batching.cache import PagedAttentionCache

from aligner.errors import UsageError
from aligner.generation.decode import generate
from aligner.generation.hf import HfEngine
from aligner.generation.hf_cb import PAGE, HfCbEngine, _results
from aligner.generation.requests import Request
from aligner.generation.sampling import Sampling

SHAPE = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": 2,
}


def small(kind: str, **settings: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **{**SHAPE, **settings})
        ).eval()


def requests_of(sampling: Sampling) -> list[Request]:
    generator = torch.Generator().manual_seed(0)
    sizes = (3, 60, 1, 17, 90, 8)
    prompts = [torch.randint(4, 250, (size,), generator=generator).tolist() for size in sizes]
    return [Request(ids, sampling, (2,), stream) for stream, ids in enumerate(prompts)]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("qwen3", {"head_dim": 8}),
        ("mistral", {"sliding_window": 16}),
        ("gemma2", {"head_dim": 8, "sliding_window": 16}),
        ("mixtral", {"num_local_experts": 4}),
        ("llama", {"attn_implementation": "eager"}),
    ],
)
def test_it_decodes_other_families_as_the_engine_hf_does(
    kind: str, settings: dict[str, Any]
) -> None:
    model = small(kind, **settings)
    requests = requests_of(Sampling(max_new_tokens=30, temperature=0.0))
    ours = HfEngine(model, batch_size=1).generate(requests)
    theirs = HfCbEngine(model, batch_size=3).generate(requests)
    for (one,), (other,) in zip(ours, theirs):
        assert one.token_ids == other.token_ids, other.error
        assert one.raw_logps == pytest.approx(other.raw_logps, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "settings", "found"),
    [
        ("bloom", {"n_layer": 2, "n_head": 4}, "written in an older way"),
        (
            "gpt_neo",
            {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
            "older",
        ),
        ("mamba", {"state_size": 4}, "older way"),
        ("llama4_text", {"head_dim": 8}, "chunked_attention"),
        ("llama", {"attn_implementation": "flex_attention"}, "flex_attention"),
    ],
)
def test_models_that_it_would_decode_wrongly_are_refused(
    kind: str, settings: dict[str, Any], found: str
) -> None:
    with pytest.raises(UsageError, match=found):
        HfCbEngine(small(kind, **settings))


def test_its_cache_holds_what_the_rows_of_a_batch_need_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pages = []
    init = PagedAttentionCache.__init__

    def noted(self: Any, *args: Any, **settings: Any) -> None:
        init(self, *args, **settings)
        pages.append(self.num_blocks)

    monkeypatch.setattr(PagedAttentionCache, "__init__", noted)
    model = tiny_llama(byte_tokenizer())
    requests = requests_of(Sampling(max_new_tokens=40, num_samples=8))
    assert HfCbEngine(model, batch_size=4).generate(requests)
    needed = 4 * -(-(90 + 40) // PAGE)
    assert needed <= pages[0] <= 2 * needed


def test_what_was_done_while_its_thread_ended_is_not_lost() -> None:
    """The thread may end, with results that nobody has fetched, while one waits in vain."""

    class Ends:
        left: ClassVar = [SimpleNamespace(request_id=str(n), error=None) for n in range(2)]
        background_thread_status = SimpleNamespace(fatal_error=None)
        runs = True

        def is_running(self) -> bool:
            return self.runs

        def get_result(self, timeout: float) -> Any:
            if self.runs:
                self.runs = False
                return None
            return self.left.pop() if self.left else None

    for result in Ends.left:
        result.is_finished = lambda: True
    assert sorted(_results(Ends(), 2)) == [(0, None), (1, None)]


@pytest.mark.parametrize("fails_at", [1, 8])
def test_what_fails_in_its_thread_comes_back_with_every_row(
    fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama(byte_tokenizer(), initializer_range=0.5)
    forward, calls = model.forward, iter(range(1, 1000))

    def failing(*args: Any, **settings: Any) -> Any:
        if next(calls) >= fails_at:
            raise RuntimeError("out of memory")
        return forward(*args, **settings)

    monkeypatch.setattr(model, "forward", failing)
    threads = set(threading.enumerate())
    heard: list[Any] = []
    requests = requests_of(Sampling(max_new_tokens=30))
    found = HfCbEngine(model, batch_size=2).generate(requests, lambda *one: heard.append(one))
    assert len(heard) == len(requests)
    failed = [one for (one,) in found if one.finish_reason == "error"]
    assert len(failed) >= 4
    assert all("out of memory" in one.error for one in failed)
    assert set(threading.enumerate()) <= threads
    with pytest.raises(UsageError, match=r"row \d+ has no answer.*out of memory"):
        generate(model, byte_tokenizer(), ["a", "bc"], engine=HfCbEngine(model))
