"""The engine `hf`: a transformers model in this process.

What it takes out of transformers' hands, because it changes results without a word there:

* The checkpoint's own `generation_config` (and transformers' default of top_k 50) never applies: it
  is replaced by a neutral one for the duration, and every sampling setting comes from `Sampling`.
* Randomness: each sample has its own stream of numbers (`aligner.generation.sampling`), so samples
  do not depend on the batch size, but for rounding in the logits.
* A sample ends at the first stop id. The pad id is never looked for, so padding with any id is
  safe, and a model that writes its own pad token is shown to have done so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig

from aligner.generation.batchwise import generate_batchwise, rows_of
from aligner.generation.continuous import Continuous, can_decode
from aligner.generation.requests import Generated, OnFinished, Request, in_order
from aligner.models.adapter_kinds import base_under_adapter, virtual_tokens
from aligner.models.forward import eval_mode
from aligner.models.positions import max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


CACHE_SHARE = 0.5
"""Part of the memory that is free at the start that the cache may take: the other half is for the
activations of prompts, logits, and what else runs on the machine."""


class HfEngine:
    """Decodes at most `batch_size` rows at a time with a loaded model, as it is at the moment of
    each call."""

    def __init__(self, model: PreTrainedModel, *, batch_size: int = 16) -> None:
        assert batch_size >= 1, "a batch holds at least one row"
        self.model = model
        self.batch_size = batch_size

    def generate(
        self, requests: Sequence[Request], on_finished: OnFinished | None = None
    ) -> list[list[Generated]]:
        """Return the samples of each request, in the order of the requests."""
        samples: dict[tuple[int, int], Generated] = {}

        def finished(index: int, sample: int, generated: Generated) -> None:
            samples[index, sample] = generated
            if on_finished is not None:
                on_finished(index, sample, generated)

        rows = rows_of(requests)
        in_front = virtual_tokens(self.model)
        with decoder_of(self.model) as decoder:
            if not in_front and can_decode(decoder):
                memory = free_memory(decoder.device) * CACHE_SHARE
                Continuous(decoder, rows, self.batch_size, memory, finished).run()
            else:
                # Behind what an adapter puts in front, padding would move a prompt's positions.
                batch_size = 1 if in_front else self.batch_size
                generate_batchwise(decoder, rows, batch_size, max_positions(self.model), finished)
        return in_order(requests, samples)


@contextmanager
def decoder_of(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Lend what decodes, at rest and with a neutral generation config.

    A PEFT model lends its base, in which the adapters sit, unless it puts something in front of the
    text. Gradient checkpointing acts in training mode only, so the cache works.
    """
    decoder = model if virtual_tokens(model) else base_under_adapter(model)
    own_config = decoder.generation_config
    decoder.generation_config = GenerationConfig()
    try:
        with eval_mode(model), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Position ids are not supported"
            )  # PEFT lets them follow from the mask
            yield decoder
    finally:
        decoder.generation_config = own_config


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device; those of the machine where it has none of its
    own."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    import psutil  # type: ignore[import-untyped]

    available: int = psutil.virtual_memory().available
    return available
