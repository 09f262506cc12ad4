"""The engine `hf_cb`: transformers' continuous batching, with our choice of the next token.

transformers packs whatever rows are under way into one row without padding and keeps their keys and
values in pages. What it would do its own way, and what we do instead:

* It draws with one seed for all, from torch's global generator, and forks the samples of a prompt.
  Here every sample is a row of its own, whose prompt's full pages are shared, and one logits
  processor chooses for every row with that row's settings and random numbers. So the samples are
  those of the engine `hf`, but for rounding, and their log-probabilities are known.
* It takes up to 60% of a CPU's memory (80 to 90% of a GPU's) for its pages. Here there are as many
  as `batch_size` of the longest rows fill.
* A request that fails comes back with an error and without tokens, and a loop that dies takes all
  requests with it. Either becomes a sample with the finish reason "error".
* It decodes in a thread of its own, which has ended when `generate` returns, also by an exception.

It has no CUDA graphs here and no asynchronous steps: the choice of a token is Python. It refuses
what it cannot decode: adapters that put vectors in front of a text, attention other than `sdpa`,
`eager` and `flash_attention_*`, layers other than full and sliding attention, and models without
transformers' interface of attention (Bloom, GPT-J, GPT-Neo, ...), which transformers would decode
without a cache, and wrongly, and not say so.

Legend: B rows that get a token in a step, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cache import group_layers_by_attn_type
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)

from aligner.errors import UsageError
from aligner.generation.batchwise import Row, rows_of
from aligner.generation.continuous import positions_of_the_batch
from aligner.generation.hf import decoder_of
from aligner.generation.requests import Generated, OnFinished, Request, in_order
from aligner.generation.sampling import choose, said_ids, settings_of
from aligner.models.adapter_kinds import base_under_adapter, virtual_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAGE = 64
"""Tokens of a page of the cache: what samples of a prompt share, and what a row wastes at most."""

MOST_STEP_TOKENS = 2048
"""Tokens that go through the model at once; longer prompts are cut."""

MARGIN = 0.15
"""Share of the cache below which transformers takes in no further request."""


class HfCbEngine:
    """Decodes at most `batch_size` rows at a time with a loaded model, as it is at the moment of
    each call."""

    def __init__(self, model: PreTrainedModel, *, batch_size: int = 16) -> None:
        """Raises: UsageError when continuous batching cannot decode with this model."""
        assert batch_size >= 1, "a batch holds at least one row"
        _refuse_unfit(model)
        self.model = model
        self.batch_size = batch_size

    def generate(
        self, requests: Sequence[Request], on_finished: OnFinished | None = None
    ) -> list[list[Generated]]:
        """Return the samples of each request, in the order of the requests."""
        rows = rows_of(requests)
        if not rows:
            return []
        chooser = _Chooser(rows)
        samples: dict[tuple[int, int], Generated] = {}
        with decoder_of(self.model) as decoder, _manager(decoder, rows, self) as manager:
            manager.logit_processor = _only(chooser)
            manager.start()
            for number, row in enumerate(rows):
                manager.add_request(
                    list(row.request.prompt_ids),
                    request_id=str(number),
                    max_new_tokens=row.budget,
                    eos_token_id=list(row.request.stop_ids),
                )
            for number, error in _results(manager, len(rows)):
                row = rows[number]
                samples[row.index, row.sample] = one = chooser.generated(number, error)
                if on_finished is not None:
                    on_finished(row.index, row.sample, one)
        return in_order(requests, samples)


class _Chooser(ContinuousBatchingLogitsProcessor):
    """Chooses the token of each row of a step, and keeps it with its log-probabilities."""

    supported_kwargs: ClassVar[dict[str, type]] = {}
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.draws = [row.draws() for row in rows]
        self.done: list[list[tuple[int, float, float]]] = [[] for _ in rows]
        self.numbers: list[int] = []

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Nothing travels in the tensor of arguments."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        """Note which rows the next step chooses for, in the order of its logits."""
        self.numbers = [int(one.state.request_id) for one in requests_with_new_token]
        return torch.zeros(len(self.numbers), dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """Return scores (B, V) that leave each row its token alone."""
        choice_B1 = torch.zeros(len(scores), 1, dtype=torch.long, device=scores.device)
        groups: dict[tuple[float, ...], list[int]] = {}
        for place, number in enumerate(self.numbers):
            settings = settings_of(self.rows[number].request.sampling)
            groups.setdefault(settings, []).append(place)
        for places in groups.values():
            choice_B1[places, 0] = self._choose(scores, places)
        return torch.full_like(scores, float("-inf")).scatter(1, choice_B1, 0.0)

    def _choose(self, scores: Tensor, places: list[int]) -> Tensor:
        """Choose for the rows at some places of a step, which have the same settings."""
        numbers = [self.numbers[place] for place in places]
        draws_B = torch.stack([self.draws[number][len(self.done[number])] for number in numbers])
        sampling = self.rows[numbers[0]].request.sampling
        said_BT = None
        if sampling.repetition_penalty != 1.0:
            said_BT = said_ids([self._said(number) for number in numbers], scores.device)
        chosen = choose(scores[places], sampling, said_BT, draws_B)
        columns = (chosen.ids_B, chosen.logps_B, chosen.raw_logps_B)
        for number, one in zip(numbers, zip(*(column.tolist() for column in columns))):
            self.done[number].append(one)
        return chosen.ids_B

    def _said(self, number: int) -> list[int]:
        prompt_ids = self.rows[number].request.prompt_ids
        return [*prompt_ids, *(token for token, _, _ in self.done[number])]

    def generated(self, number: int, error: str | None) -> Generated:
        """Return what a row has said until now."""
        done = self.done[number]
        ids = [token for token, _, _ in done]
        logps, raw_logps = [logp for _, logp, _ in done], [logp for _, _, logp in done]
        if error is not None:
            return Generated(ids, "error", logps, raw_logps, error)
        stopped = ids[-1] in self.rows[number].request.stop_ids
        return Generated(ids, "stop" if stopped else "length", logps, raw_logps)


def _only(chooser: _Chooser) -> ContinuousBatchingLogitsProcessorList:
    """Return the list that transformers keeps its processors in, with ours alone."""
    processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([chooser]))
    processors.tensors_required = 1
    return processors


@contextmanager
def _manager(decoder: PreTrainedModel, rows: Sequence[Row], engine: HfCbEngine) -> Iterator[Any]:
    """Lend a manager, not yet started; its thread is over afterwards, torch's random numbers and
    the model's attention are as before."""
    lengths = sorted((len(row.request.prompt_ids) + row.budget for row in rows), reverse=True)
    pages = sum(-(-length // PAGE) + 1 for length in lengths[: engine.batch_size])
    config = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=int(pages / (1 - MARGIN)) + 1,
        safety_margin=MARGIN,
        max_requests_per_batch=engine.batch_size,
        max_batch_tokens=max(engine.batch_size, min(MOST_STEP_TOKENS, sum(lengths))),
        max_blocks_per_request=0,
        use_async_batching=False,
        use_cuda_graph=False,
        auto_switch_to_flash=False,
        seed=0,
    )
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=1)
    attention = decoder.config._attn_implementation
    devices = [decoder.device] if decoder.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), _quiet():
        manager = decoder.init_continuous_batching(greedy, config)
        try:
            yield manager
        finally:
            if manager.is_running():
                manager.stop(block=True, hard_stop=True)
            manager.destroy()
            if decoder.config._attn_implementation != attention:
                decoder.set_attn_implementation(attention)


def _results(manager: Any, total: int) -> Iterator[tuple[int, str | None]]:
    """Yield each row's number and what went wrong with it, as they finish."""
    missing = set(range(total))
    while missing:
        is_over = not manager.is_running()  # asked before: what it left behind is still read
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            missing.discard(int(result.request_id))
            yield int(result.request_id), result.error
        elif result is None and is_over:
            break
    cause = manager.background_thread_status.fatal_error
    for number in sorted(missing):
        yield number, f"transformers' continuous batching ended early ({cause})"


@contextmanager
def _quiet() -> Iterator[None]:
    """What transformers logs of a failure comes back with the request."""
    logger = logging.getLogger("ContinuousBatchingLogger")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _refuse_unfit(model: PreTrainedModel) -> None:
    found = ""
    config = model.config.get_text_config()
    attention = config._attn_implementation
    if virtual_tokens(model):
        found = "an adapter puts vectors in front of its texts"
    elif attention not in ("sdpa", "eager") and "flash" not in str(attention):
        found = f"its attention is `{attention}`"
    elif not base_under_adapter(model)._supports_attention_backend:
        found = "its attention is written in an older way, and would not see the pages"
    elif positions_of_the_batch(base_under_adapter(model)):
        found = "its rotary positions follow from the longest row of a batch"
    else:
        try:
            group_layers_by_attn_type(config)
        except ValueError as error:
            found = str(error)
    if found:
        raise UsageError(
            f"the engine `hf_cb` cannot decode with this model: {found}", "use the engine `hf`"
        )
