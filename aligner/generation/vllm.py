"""The engine `vllm`: vLLM in this process, token ids in and out. It has not been run by us, since
there was no GPU to run it on: it is tested against a stand-in with the signatures of vLLM 0.33.

It loads the weights of a folder (or of a name on the hub) itself, and serves a LoRA adapter beside
its base, so it writes with weights as they were saved, and not with a model that is being trained.
Each sample is a request of its own, with a seed of its own that follows from the same numbers as
everywhere; which numbers vLLM draws with it is vLLM's affair. Samples come back when all are done,
and `on_finished` is called then.

vLLM's own defaults do not apply: an answer ends at the request's stop ids alone, the checkpoint's
`generation_config` is not read, and log-probabilities are asked for as the model has them, at
temperature 1. Those of the distribution that was drawn from are therefore known where it is the
same one, and missing under another temperature or a truncation; with `for_ratio`, where a ratio of
probabilities is trained on, such sampling is refused. `aligner.generation.mismatch` compares them
with a trainer's.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from aligner.config.recipe import Model
from aligner.errors import RecipeError, UsageError
from aligner.generation.batchwise import Row, rows_of
from aligner.generation.outside import drawn_logps, refuse_for_ratio, seed_of
from aligner.generation.requests import Generated, OnFinished, Request, in_order
from aligner.models.files import adapter_config, base_of

INSTALL = (
    "pip install 'aligner-toolkit[vllm]'; while vLLM asks for an older transformers, serve the "
    "model from an environment of its own, and use the engine `endpoint`"
)

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM makes room for."""


class VllmEngine:
    """vLLM with the weights of `model`. `options` go to `vllm.LLM` as they are."""

    def __init__(
        self,
        model: Model,
        *,
        options: Mapping[str, Any] | None = None,
        for_ratio: bool = False,
    ) -> None:
        """Load the weights. Raises: UsageError without vLLM; RecipeError for what it cannot
        serve."""
        check_installed()
        adapter = adapter_config(model.name_or_path)
        refuse_unfit(model, adapter)
        vllm: Any = import_module("vllm")
        base, revision = base_of(model)
        settings: dict[str, Any] = {
            "model": base,
            "revision": revision,
            "trust_remote_code": model.trust_remote_code,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "logprobs_mode": "raw_logprobs",
            "dtype": model.dtype,
        }
        if adapter is not None:
            rank = next(size for size in LORA_RANKS if size >= adapter["r"])
            settings |= {"enable_lora": True, "max_lora_rank": rank}
        self._params = vllm.SamplingParams
        self._llm = vllm.LLM(**{**settings, **(options or {})})
        self._adapter = None
        if adapter is not None:
            request = import_module("vllm.lora.request").LoRARequest
            self._adapter = request("aligner", 1, model.name_or_path)
        self.for_ratio = for_ratio

    def generate(
        self, requests: Sequence[Request], on_finished: OnFinished | None = None
    ) -> list[list[Generated]]:
        """Return the samples of each request, in the order of the requests.

        Raises: UsageError with `for_ratio` for sampling whose log-probabilities vLLM does not tell.
        """
        rows = rows_of(requests)
        if self.for_ratio:
            for row in rows:
                refuse_for_ratio(row.request.sampling)
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(row.request.prompt_ids)} for row in rows],
            [self._params(**params_of(row)) for row in rows],
            use_tqdm=False,
            lora_request=self._adapter,
        )
        samples = {}
        for row, output in zip(rows, outputs, strict=True):
            one = samples[row.index, row.sample] = _generated(row, output.outputs[0])
            if on_finished is not None:
                on_finished(row.index, row.sample, one)
        return in_order(requests, samples)

    def close(self) -> None:
        """Give the GPU back."""
        import torch

        self._llm = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def params_of(row: Row) -> dict[str, Any]:
    """Return vLLM's `SamplingParams` for one sample, as a mapping."""
    sampling = row.request.sampling
    return {
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": seed_of(sampling.seed, row.request.stream, row.sample),
        "max_tokens": row.budget,
        "stop_token_ids": list(row.request.stop_ids),
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
    }


def check_installed() -> None:
    """Raises: UsageError when vLLM is not installed; imports nothing."""
    if find_spec("vllm") is None:
        raise UsageError("the engine `vllm` needs vLLM, which is not installed", INSTALL)


def refuse_unfit(model: Model, adapter: Mapping[str, Any] | None) -> None:
    """Raise RecipeError for what vLLM does not serve as we would."""
    where, hint = f"the engine `vllm` cannot serve {model.name_or_path}", "use the engine `hf`"
    if model.quantization != "none":
        raise RecipeError(f"{where} in `{model.quantization}`", hint)
    if adapter is None:
        return
    if adapter.get("peft_type") != "LORA":
        raise RecipeError(f"{where}: its adapter is of the kind {adapter.get('peft_type')}", hint)
    if adapter.get("use_dora") or adapter.get("modules_to_save") or adapter["r"] > LORA_RANKS[-1]:
        raise RecipeError(
            f"{where}: DoRA, modules saved whole and ranks above {LORA_RANKS[-1]} are not served",
            hint,
        )


def _generated(row: Row, output: Any) -> Generated:
    ids = list(output.token_ids)
    raw_logps = [step[token].logprob for step, token in zip(output.logprobs or (), ids)]
    logps = drawn_logps(row.request.sampling, raw_logps, len(ids))
    if output.finish_reason == "stop" and ids and ids[-1] in row.request.stop_ids:
        return Generated(ids, "stop", logps, raw_logps)
    if output.finish_reason == "length":
        return Generated(ids, "length", logps, raw_logps)
    return Generated(ids, "error", logps, raw_logps, f"vLLM ended it with {output.finish_reason!r}")
