"""A stand-in for vLLM, with the signatures of its version 0.33 as far as they are used: a folder's
model behind `LLM.generate`, decoded with transformers.

`install(monkeypatch)` puts it in vLLM's place and returns the list of the `LLM`s that are made.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass
class SamplingParams:
    """Fields and defaults of vLLM's."""

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: Any = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: Any
    outputs: list[CompletionOutput]
    finished: bool


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclass
class LLM:
    """Takes the arguments that are used here, and no others."""

    model: str
    tokenizer: str | None = None
    skip_tokenizer_init: bool = False
    trust_remote_code: bool = False
    tensor_parallel_size: int = 1
    dtype: str = "auto"
    revision: str | None = None
    seed: int | None = None
    gpu_memory_utilization: float = 0.9
    generation_config: str = "auto"
    logprobs_mode: str = "raw_logprobs"
    max_num_seqs: int | None = None
    enable_lora: bool = False
    max_lora_rank: int = 16
    ends: str = ""
    """Not vLLM's: how every answer ends, where it is not by itself."""
    asked: list[tuple[Any, SamplingParams]] = field(default_factory=list)

    def __post_init__(self) -> None:
        from transformers import AutoModelForCausalLM

        assert self.max_lora_rank in LORA_RANKS
        self._model = AutoModelForCausalLM.from_pretrained(self.model).eval()

    def generate(
        self,
        prompts: Sequence[dict[str, Any]],
        sampling_params: Sequence[SamplingParams],
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[RequestOutput]:
        assert self.enable_lora or lora_request is None
        self.asked += zip(prompts, sampling_params)
        model: Any = self._model
        if lora_request is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, lora_request.lora_path)
        outputs = []
        for number, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True)):
            ids = prompt["prompt_token_ids"]
            output = self._continued(model, ids, params)
            outputs.append(RequestOutput(str(number), None, ids, None, [output], True))
        return outputs

    def _continued(self, model: Any, ids: list[int], params: SamplingParams) -> CompletionOutput:
        from aligner.generation.hf import HfEngine
        from aligner.generation.requests import Request
        from aligner.generation.sampling import Sampling

        assert params.n == 1
        assert params.max_tokens
        assert params.ignore_eos or model.generation_config.eos_token_id is None
        sampling = Sampling(
            max_new_tokens=params.max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            seed=params.seed or 0,
        )
        request = Request(ids, sampling, tuple(params.stop_token_ids or ()))
        said = HfEngine(model).generate([request])[0][0]
        logprobs = [{token: Logprob(x)} for token, x in zip(said.token_ids, said.raw_logps)]
        return CompletionOutput(
            0,
            "",
            tuple(said.token_ids),
            sum(said.raw_logps),
            None if params.logprobs is None else logprobs,
            self.ends or said.finish_reason,
        )


def install(monkeypatch: Any) -> list[LLM]:
    """Put the stand-in in vLLM's place."""
    made: list[LLM] = []

    def make(**settings: Any) -> LLM:
        made.append(LLM(**settings))
        return made[-1]

    vllm = types.ModuleType("vllm")
    vllm.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    vllm.LLM, vllm.SamplingParams = make, SamplingParams  # type: ignore[attr-defined]
    lora = types.ModuleType("vllm.lora")
    request = types.ModuleType("vllm.lora.request")
    request.LoRARequest = LoRARequest  # type: ignore[attr-defined]
    for module in (vllm, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made
