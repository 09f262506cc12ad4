"""The decode loop of our own: the same tokens as transformers, for every architecture that it takes
and by the other path for those that it does not; and no work that is not needed."""

from __future__ import annotations

import gc
import random
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from fakes import byte_tokenizer, tiny_llama
from peft import AdaptionPromptConfig, LoraConfig, PromptTuningConfig, get_peft_model

import aligner.generation.hf
from aligner.generation.batchwise import Row
from aligner.generation.continuous import Continuous, can_decode
from aligner.generation.hf import HfEngine
from aligner.generation.requests import Generated, Request
from aligner.generation.sampling import Sampling
from aligner.models.quantized import keep_steady

WORDS = 260
SHAPE: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WINDOW = {**SHAPE, "sliding_window": 8}
EXPERTS = {**SHAPE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
RECURRENT = {
    **SHAPE,
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
LATENT = {
    **EXPERTS,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
FALCON = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}

LOOP = {
    "llama": lambda: hf.LlamaConfig(**SHAPE),
    "qwen3": lambda: hf.Qwen3Config(**SHAPE, head_dim=8),
    "mistral with a window": lambda: hf.MistralConfig(**WINDOW),
    "gemma2": lambda: hf.Gemma2Config(**WINDOW, head_dim=8),
    "gemma3": lambda: hf.Gemma3TextConfig(**WINDOW, head_dim=8, sliding_window_pattern=2),
    "qwen3 moe": lambda: hf.Qwen3MoeConfig(**EXPERTS, head_dim=8),
    "mixtral": lambda: hf.MixtralConfig(**SHAPE, num_local_experts=4),
    "granite moe": lambda: hf.GraniteMoeConfig(**SHAPE, num_local_experts=4),
    "deepseek v3": lambda: hf.DeepseekV3Config(**{**LATENT, "num_key_value_heads": 4}),
    "llama4 in chunks": lambda: hf.Llama4TextConfig(
        **{**SHAPE, "head_dim": 8, "num_local_experts": 4, "intermediate_size_mlp": 64},
        attention_chunk_size=8,
    ),
    "falcon with alibi": lambda: hf.FalconConfig(**FALCON, alibi=True),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3
    ),
}
"""Decoded by the loop of our own."""

FALLBACK = {
    "falcon mamba": lambda: hf.MambaConfig(
        vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, initializer_range=0.3
    ),
    "qwen3 next": lambda: hf.Qwen3NextConfig(**RECURRENT, num_experts=0),
    "positions of the batch": lambda: hf.LlamaConfig(**SHAPE, rope_parameters=DYNAMIC),
    "bloom": lambda: hf.BloomConfig(vocab_size=WORDS, hidden_size=32, n_layer=2, n_head=4),
}
"""Decoded by `model.generate`: recurrent states, frequencies that depend on the neighbours, and
positions that are not among the inputs."""


def model_of(config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def prompts(count: int = 9) -> list[list[int]]:
    rng = random.Random(1)
    sizes = (3, 40, 1, 17, 40, 8, 90, 2, 25, 11, 33, 5)
    return [[rng.randrange(4, WORDS) for _ in range(size)] for size in sizes[:count]]


def requests_of(sampling: Sampling, lengths: bool = False) -> list[Request]:
    """Requests with lengths of their own, where that is asked for."""
    made = []
    for stream, ids in enumerate(prompts()):
        size = 1 + stream * 7 % 12 if lengths else sampling.max_new_tokens
        made.append(Request(ids, replace(sampling, max_new_tokens=size), (2,), stream))
    return made


def ids_of(found: list[list[Generated]]) -> list[list[list[int]]]:
    return [[one.token_ids for one in samples] for samples in found]


def by_transformers(model: Any, request: Request) -> list[int]:
    """What `model.generate` writes for one prompt alone."""
    config = hf.GenerationConfig(
        max_new_tokens=request.sampling.max_new_tokens,
        do_sample=False,
        repetition_penalty=request.sampling.repetition_penalty,
        eos_token_id=list(request.stop_ids),
        pad_token_id=0,
    )
    ids = torch.tensor([request.prompt_ids])
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
    )
    return output[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", [*LOOP, *FALLBACK])
def test_greedy_equals_transformers(name: str) -> None:
    model = model_of({**LOOP, **FALLBACK}[name]())
    assert can_decode(model) == (name in LOOP)
    requests = requests_of(Sampling(max_new_tokens=14, temperature=0.0), lengths=True)
    expected = [[by_transformers(model, request)] for request in requests]
    assert len({tuple(ids) for (ids,) in expected}) == len(requests), (
        "the model tells prompts apart"
    )
    assert ids_of(HfEngine(model, batch_size=3).generate(requests)) == expected


def parted(found: list[list[Generated]], alone: list[list[Generated]]) -> int:
    """How many samples have other tokens. Up to there their log-probabilities must be the same but
    for rounding."""
    count = 0
    for one, other in zip(chain(*found), chain(*alone), strict=True):
        same = [x == y for x, y in zip(one.token_ids, other.token_ids)]
        place = same.index(False) if False in same else len(same)
        assert one.raw_logps[:place] == pytest.approx(other.raw_logps[:place], abs=1e-3)
        count += one.token_ids != other.token_ids
    return count


@pytest.mark.parametrize(
    ("name", "most"),
    # The state of a linear attention is computed in chunks, which follow from the padding, and in
    # float32: log-probabilities differ by 1e-4, and a draw that is so close to the next token may
    # become that. On one processor none of the 27 samples parts, on another one does.
    [("llama", 0), ("gemma2", 0), ("mixtral", 0), ("qwen3 next", 4)],
)
def test_samples_depend_on_no_neighbour_and_no_order(name: str, most: int) -> None:
    model = model_of({**LOOP, **FALLBACK}[name]())
    sampling = Sampling(max_new_tokens=12, num_samples=3, seed=5, top_p=0.95, temperature=0.8)
    requests = requests_of(sampling, lengths=True)
    alone = HfEngine(model, batch_size=1).generate(requests)
    for batch_size in (3, 8):
        found = HfEngine(model, batch_size=batch_size).generate(requests)
        assert parted(found, alone) <= most
    order = random.Random(0).sample(range(len(requests)), len(requests))
    shuffled = HfEngine(model, batch_size=4).generate([requests[i] for i in order])
    assert parted(shuffled, [alone[i] for i in order]) <= most


def log_probabilities(model: Any, request: Request, one: Generated) -> tuple[Any, Any]:
    """Those of a sample's tokens in one forward pass over all of it, shaped by transformers' own
    warpers, and raw."""
    ids = torch.tensor([[*request.prompt_ids, *one.token_ids]])
    start, sampling = len(request.prompt_ids), request.sampling
    with torch.no_grad():
        raw = model(ids).logits[0, start - 1 : -1]
    shaped = []
    for place, logits in enumerate(raw):
        scores = logits[None]
        for warper in (
            hf.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
            hf.TemperatureLogitsWarper(sampling.temperature),
            hf.TopKLogitsWarper(sampling.top_k or WORDS),
            hf.TopPLogitsWarper(sampling.top_p),
            hf.MinPLogitsWarper(sampling.min_p),
        ):
            scores = warper(ids[:, : start + place], scores)
        shaped.append(scores[0])
    places = torch.tensor(one.token_ids)[:, None]
    both = (torch.stack(shaped), raw)
    return tuple(scores.log_softmax(-1).gather(1, places)[:, 0].tolist() for scores in both)


SETTINGS: list[dict[str, float]] = [
    {},
    {"temperature": 0.6},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"repetition_penalty": 1.4},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1},
]


@pytest.mark.parametrize(
    ("name", "tolerance"),
    # a linear attention's state is computed in chunks there and token by token here; how far that
    # rounds apart differs by processor, 1.6e-4 on one
    [("llama", 1e-4), ("gemma3", 1e-4), ("qwen3 next", 1e-3)],
)
def test_log_probabilities_are_those_of_a_forward_pass(name: str, tolerance: float) -> None:
    model = model_of({**LOOP, **FALLBACK}[name]())
    requests = [
        Request(ids, Sampling(max_new_tokens=10, seed=2, **settings), (2,), stream)
        for stream, (ids, settings) in enumerate(zip(prompts(), SETTINGS))
    ]
    for request, (one,) in zip(requests, HfEngine(model, batch_size=4).generate(requests)):
        logps, raw_logps = log_probabilities(model, request, one)
        assert one.logps == pytest.approx(logps, abs=tolerance)
        assert one.raw_logps == pytest.approx(raw_logps, abs=tolerance)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_repetition_penalty_is_transformers_own(batch_size: int) -> None:
    model = model_of(LOOP["llama"]())
    requests = requests_of(
        Sampling(max_new_tokens=14, temperature=0.0, repetition_penalty=1.7), lengths=True
    )
    expected = [[by_transformers(model, request)] for request in requests]
    assert ids_of(HfEngine(model, batch_size=batch_size).generate(requests)) == expected


class Counted:
    """Counts what goes through a model: the rows and the columns of each forward pass."""

    def __init__(self, model: Any) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.widths: list[int] = []
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: Any, args: Any, inputs: Any) -> None:
        self.shapes.append(tuple(inputs["input_ids"].shape))
        self.widths.append(inputs["attention_mask"].shape[1])

    @property
    def steps(self) -> list[int]:
        """Rows of each step of decoding."""
        return [rows for rows, columns in self.shapes if columns == 1]


def sized(lengths: list[int], prompt_tokens: int = 5, samples: int = 1) -> list[Request]:
    rng = random.Random(2)
    made = []
    for stream, length in enumerate(lengths):
        ids = [rng.randrange(4, WORDS) for _ in range(prompt_tokens)]
        made.append(Request(ids, Sampling(max_new_tokens=length, num_samples=samples), (), stream))
    return made


def test_a_finished_row_leaves_and_a_waiting_one_takes_its_place() -> None:
    model = model_of(LOOP["llama"]())
    counted = Counted(model)
    finished: list[int] = []
    lengths = [40, *[20] * 6]
    HfEngine(model, batch_size=2).generate(sized(lengths), lambda index, *_: finished.append(index))
    assert sum(counted.steps) == sum(lengths) - len(lengths)  # the first token is the prompt's
    assert len(counted.steps) < sum(lengths) / 2 + 5
    assert finished[0] == 1, "streamed as they end"
    assert finished.index(0) < finished.index(3)


def test_rows_wait_for_others_only_while_that_costs_less_than_a_pass() -> None:
    model = model_of(LOOP["llama"]())
    counted = Counted(model)
    rng = random.Random(0)
    lengths = [rng.randrange(4, 40) for _ in range(200)]
    HfEngine(model, batch_size=40).generate(sized(lengths))
    assert sum(counted.steps) == sum(lengths) - 200
    assert len(counted.steps) < 1.2 * sum(lengths) / 40 + 40  # the last rows end alone
    assert len(counted.shapes) - len(counted.steps) < 0.5 * len(counted.steps)


def test_a_prompt_is_computed_once_for_all_its_samples() -> None:
    model = model_of(LOOP["llama"]())
    counted = Counted(model)
    for batch_size in (2, 8):
        counted.shapes.clear()
        HfEngine(model, batch_size=batch_size).generate(sized([4, 4], 30, samples=5))
        prefilled = [rows for rows, columns in counted.shapes if columns == 30]
        assert sum(prefilled) == 2
    equal = [replace(one, stream=5) for one in sized([4, 4], 30, samples=5)]
    counted.shapes.clear()
    HfEngine(model, batch_size=3).generate([*sized([4, 4], 30, samples=5), *equal])
    assert sum(rows for rows, columns in counted.shapes if columns == 30) == 2


def test_prompts_of_other_lengths_are_not_padded_to_the_longest() -> None:
    model = model_of(LOOP["llama"]())
    counted = Counted(model)
    requests = [Request(ids * 2, Sampling(max_new_tokens=1)) for ids in prompts()]
    HfEngine(model, batch_size=16).generate(requests)
    computed = sum(rows * columns for rows, columns in counted.shapes)
    assert computed <= 1.25 * sum(len(request.prompt_ids) for request in requests)
    assert len(counted.shapes) <= 4, "short ones go together"


def test_attention_is_as_wide_as_the_longest_row_that_is_left() -> None:
    model = model_of(LOOP["llama"]())
    counted = Counted(model)
    rows = [*sized([3], 90), *sized([60, 60, 60], 4)]
    HfEngine(model, batch_size=2).generate(rows)
    assert max(counted.widths[-50:]) <= 64 < max(counted.widths)


def test_the_batch_is_bounded_by_the_memory_of_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of(LOOP["llama"]())
    requests = sized([8] * 7, 12)
    expected = ids_of(HfEngine(model, batch_size=7).generate(requests))
    counted = Counted(model)
    token = 4 * 2 * 2 * 8 * 4  # layers, keys and values, heads, their size, bytes
    for room, rows in ((3.5, 3), (0.1, 1)):
        counted.shapes.clear()
        memory = room * token * 20 / aligner.generation.hf.CACHE_SHARE
        monkeypatch.setattr(aligner.generation.hf, "free_memory", lambda _, memory=memory: memory)
        assert ids_of(HfEngine(model, batch_size=7).generate(requests)) == expected
        assert max(counted.steps) == rows


def test_long_prompts_behind_short_ones_find_room() -> None:
    """The loop alone takes rows in any order: the cache must move, grow, and keep what it has."""
    model = model_of(LOOP["llama"]())
    requests = sized([70, 3, 50, 3, 90], 3) + sized([40, 5], 110) + sized([30], 20)
    expected = [by_transformers(model, greedy(one)) for one in requests]
    found: dict[int, list[int]] = {}
    rows = [Row(index, 0, greedy(one)) for index, one in enumerate(requests)]
    with torch.no_grad():
        Continuous(
            model, rows, 3, 1e9, lambda index, _, one: found.update({index: one.token_ids})
        ).run()
    assert [found[index] for index in range(len(requests))] == expected


def greedy(request: Request) -> Request:
    return replace(request, sampling=replace(request.sampling, temperature=0.0))


def test_weights_in_bf16_and_autocast_decode_in_the_loop() -> None:
    requests = requests_of(Sampling(max_new_tokens=8, seed=1))
    for model, autocast in (
        (model_of(LOOP["llama"]()).to(torch.bfloat16), False),
        (model_of(LOOP["gemma2"]()), True),
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = HfEngine(model, batch_size=3).generate(requests)
            alone = HfEngine(model, batch_size=1).generate(requests[:1])
        assert all(len(one.token_ids) == len(one.logps) for (one,) in found)
        assert alone[0][0].logps == pytest.approx(found[0][0].logps, abs=0.1)


def test_adapters_and_checkpointing_decode_in_the_loop() -> None:
    requests = requests_of(Sampling(max_new_tokens=8, seed=1))
    base = tiny_llama(byte_tokenizer(), seed=7, initializer_range=0.5)
    policy = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    policy.train()
    policy.activation_checkpointing_enable()
    counted = Counted(policy.get_base_model())
    found = ids_of(HfEngine(policy, batch_size=4).generate(requests))
    assert policy.training
    assert counted.steps
    merged = policy.merge_and_unload().eval()
    assert found == ids_of(HfEngine(merged, batch_size=4).generate(requests))
    in_front = get_peft_model(
        tiny_llama(byte_tokenizer(), seed=7),
        PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    )
    (alone,) = HfEngine(in_front, batch_size=4).generate(requests[3:4])
    assert ids_of(HfEngine(in_front, batch_size=4).generate(requests))[3] == ids_of([alone])[0]


@pytest.mark.parametrize("kind", ["nf4", "beside"])
def test_both_paths_write_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4-bit weights, and adapters beside the attention, which transformers' own loop leads as well:
    neither changes what is cached."""
    model = model_of(hf.LlamaConfig(**{**SHAPE, "hidden_size": 64, "intermediate_size": 128}))
    if kind == "nf4":
        model.save_pretrained(tmp_path)
        quantization = hf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        model = hf.AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=quantization, dtype=torch.float32
        )
        keep_steady(model)  # else another number of rows may take another kernel
    else:
        model = get_peft_model(model, AdaptionPromptConfig(adapter_len=4, adapter_layers=2))
        for name, parameter in model.named_parameters():
            if "adaption" in name:
                torch.nn.init.constant_(parameter, 0.5)
    requests = requests_of(Sampling(max_new_tokens=10, num_samples=2, seed=1), lengths=True)
    ours = HfEngine(model, batch_size=3).generate(requests)
    monkeypatch.setattr(aligner.generation.hf, "can_decode", lambda _: False)
    theirs = HfEngine(model, batch_size=3).generate(requests)
    assert ids_of(ours) == ids_of(theirs)
    for one, other in zip(chain(*ours), chain(*theirs)):
        assert one.logps == pytest.approx(other.logps, abs=1e-3)
        assert one.finish_reason == other.finish_reason


def test_the_cache_is_gone_once_all_is_decoded() -> None:
    """Without a look of the garbage collector: an update that follows needs the memory."""

    def held() -> int:
        """Bytes of keys and values that anything still holds."""
        return sum(
            one.nbytes
            for one in gc.get_objects()
            if type(one) is torch.Tensor and one.dim() == 4 and one.shape[-1] == 8
        )

    engine = HfEngine(model_of(LOOP["llama"]()), batch_size=4)
    requests = requests_of(Sampling(max_new_tokens=5))
    engine.generate(requests)
    gc.collect()
    before = held()
    gc.disable()
    try:
        engine.generate(requests)
        assert held() == before
    finally:
        gc.enable()
