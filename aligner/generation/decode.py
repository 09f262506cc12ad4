"""Sampling answers from a model: one function, and everything that decides what it returns is an
argument.

Rows are sorted by length, padded on the left with an explicit mask, and decoded by transformers
with its key/value cache. What this module takes out of transformers' hands, because it changes
results without a word there:

* The checkpoint's own `generation_config` (and transformers' default of top_k 50) never applies: it
  is replaced by a neutral one for the duration, and every sampling setting comes from `Sampling`.
* Randomness: each answer has its own stream of numbers, derived from the seed, the place of the
  prompt and the number of the sample. So the answers do not depend on the batch size (but for
  rounding in the logits), and the global random state, on which a resumed training run depends, is
  not touched.
* An answer ends at the first stop id. The pad id is never looked for, so padding with any id is
  safe, and a model that writes its own pad token is shown to have done so.

It does not shard, compile or page the cache: serving engines do that better. Gradients are off
through `no_grad` and not `inference_mode`, whose tensors (rotary caches, for one) could not be used
in a later backward pass.

Legend: B rows of a batch, P prompt tokens after padding, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from aligner.data.rows import Messages
from aligner.errors import DataError
from aligner.models.adapter_kinds import base_under_adapter, virtual_tokens
from aligner.models.own_config import without_router_logits
from aligner.runs.journal import Journal
from aligner.tokenization.encode import encode_prompt, stop_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LARGEST_DRAW = (
    1.0 - 1e-12
)  # keeps a draw below the last value of a cumulative sum that rounds to one

Progress = Callable[[int, int], None]
"""Called with (answers done, answers in all)."""


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


@dataclass(frozen=True)
class Completion:
    """One answer: `token_ids` without prompt and padding, but with the stop id, which `text` does
    not show."""

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class _Row:
    """One answer to be written: `sample` of the prompt at `place`, with room for `budget` tokens.

    Its random numbers follow from the seed, `stream` and `sample`.
    """

    place: int
    sample: int
    stream: int
    prompt_ids: list[int]
    budget: int


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Messages],
    sampling: Sampling | None = None,
    *,
    batch_size: int = 16,
    streams: Sequence[int] | None = None,
    tools: Sequence[list | None] | None = None,
    on_progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[list[Completion]]:
    """Return `num_samples` answers for each prompt, in the order of the prompts. `tools`: those of
    each prompt.

    `streams`: a number for each prompt, from which its random numbers follow (its place by
    default), for answers that do not depend on which prompts are asked together. `journal`: where
    the answers of each batch are kept, so that the same call resumes after a kill.

    Raises: DataError when a prompt leaves no room for an answer within the positions that the model
    has.
    """
    contexts = []
    for place, (prompt, known) in enumerate(
        zip(prompts, tools or [None] * len(prompts), strict=True), 1
    ):
        contexts.append(encode_prompt(tokenizer, prompt, known))
        _check_room(model, contexts[-1], f"prompt {place} ({_first_words(prompt)!r})")
    return continue_ids(
        model,
        tokenizer,
        contexts,
        Sampling() if sampling is None else sampling,
        batch_size=batch_size,
        streams=streams,
        on_progress=on_progress,
        journal=journal,
    )


def continue_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[list[int]],
    sampling: Sampling,
    *,
    batch_size: int = 16,
    streams: Sequence[int] | None = None,
    on_progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[list[Completion]]:
    """Return `num_samples` continuations of each context of token ids, as `generate` does for
    prompts.

    Raises: DataError when a context leaves no room within the positions that the model has.
    """
    assert batch_size >= 1, "a batch holds at least one row"
    rows = _rows(model, contexts, sampling, streams or range(len(contexts)))
    stops = stop_token_ids(tokenizer, model)
    answers: dict[tuple[int, int], Completion] = {}
    # Behind what an adapter puts in front, padding would move a prompt's positions.
    batches = list(_batches(rows, 1 if virtual_tokens(model) else batch_size))
    with _decoder_of(model) as decoder:

        def work(batch: list[_Row]) -> list[dict[str, Any]]:
            outputs = _decode_batch(decoder, tokenizer, batch, sampling, stops)
            return [
                vars(_completion(tokenizer, ids[: row.budget], stops))
                for row, ids in zip(batch, outputs)
            ]

        for batch, (said, is_new) in zip(
            batches, (journal or Journal(None)).results(batches, work)
        ):
            answers |= {
                (row.place, row.sample): Completion(**one)
                for row, one in zip(batch, said, strict=True)
            }
            if on_progress is not None and is_new:
                on_progress(len(answers), len(rows))
    found = []
    for index in range(len(contexts)):
        found.append([answers[index, sample] for sample in range(sampling.num_samples)])
    return found


def max_positions(model: PreTrainedModel) -> int | None:
    """Return how many positions the model has, or None where it sets no limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if positions is None else positions - virtual_tokens(model)


def _rows(
    model: PreTrainedModel,
    contexts: Sequence[list[int]],
    sampling: Sampling,
    streams: Sequence[int],
) -> list[_Row]:
    """What is to be written, longest context first, so that a batch too big for memory fails at the
    start."""
    positions = max_positions(model)
    rows = []
    for place, (ids, stream) in enumerate(zip(contexts, streams, strict=True)):
        _check_room(model, ids, f"row {place + 1}")
        budget = (
            sampling.max_new_tokens
            if positions is None
            else min(sampling.max_new_tokens, positions - len(ids))
        )
        rows += [_Row(place, sample, stream, ids, budget) for sample in range(sampling.num_samples)]
    return sorted(rows, key=lambda row: len(row.prompt_ids), reverse=True)


def _check_room(model: PreTrainedModel, ids: Sequence[int], name: str) -> None:
    positions = max_positions(model)
    if not ids:
        raise DataError(
            f"{name} is empty: there is nothing to continue", "write something, or drop it"
        )
    if positions is not None and len(ids) >= positions:
        raise DataError(
            f"{name} has {len(ids)} tokens, but the model has {positions} positions for prompt "
            "and answer together",
            "shorten or drop the prompt, or use a model with a longer context",
        )


def _batches(rows: Sequence[_Row], batch_size: int) -> Iterator[list[_Row]]:
    """Cut sorted rows into batches; rows that the model's positions cut short go only with rows of
    the same budget."""
    batch: list[_Row] = []
    for row in rows:
        if batch and (len(batch) == batch_size or batch[0].budget != row.budget):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@contextmanager
def at_rest(model: torch.nn.Module) -> Iterator[None]:
    """Hold the model in eval mode without gradients, and put every module back into the mode it was
    in.

    The mode is kept for each module, since a frozen part may be in eval mode inside a model that
    trains.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), without_router_logits(model):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _decoder_of(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Lend what decodes, at rest and with a neutral generation config.

    A PEFT model lends its base, in which the adapters sit, unless it puts something in front of the
    text. Gradient checkpointing acts in training mode only, so the cache works.
    """
    decoder = model if virtual_tokens(model) else base_under_adapter(model)
    own_config = decoder.generation_config
    decoder.generation_config = GenerationConfig()
    try:
        with at_rest(model), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Position ids are not supported"
            )  # PEFT lets them follow from the mask
            yield decoder
    finally:
        decoder.generation_config = own_config


def _decode_batch(
    decoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: Sequence[_Row],
    sampling: Sampling,
    stops: Sequence[int],
) -> list[list[int]]:
    """Return the new ids of each row, as far as the longest row of the batch went."""
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (*stops, 0)[0]
    input_ids, mask = pad_left([row.prompt_ids for row in batch], pad_id)
    input_ids, mask = input_ids.to(decoder.device), mask.to(decoder.device)
    budget = batch[0].budget
    # Greedy as transformers sees it: where we sample, the last processor has already chosen the
    # token.
    config = GenerationConfig(
        max_new_tokens=budget,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=list(stops) or None,
        pad_token_id=pad_id,
    )
    processors = _processors(sampling, mask, _draws(batch, budget, sampling.seed))
    output = decoder.generate(
        input_ids=input_ids,
        attention_mask=mask,
        generation_config=config,
        logits_processor=processors,
    )
    return output[:, input_ids.shape[1] :].tolist()


def pad_left(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (ids_BP, mask_BP) of sequences aligned on the right."""
    width = max(len(ids) for ids in sequences)
    ids_BP = torch.tensor([[pad_id] * (width - len(ids)) + list(ids) for ids in sequences])
    mask_BP = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences])
    return ids_BP, mask_BP


def _processors(
    sampling: Sampling, mask_BP: torch.Tensor, draws_BT: torch.Tensor
) -> LogitsProcessorList:
    """What turns logits into the next token, in transformers' own order, and with nothing that was
    not asked for."""
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


def _draws(batch: Sequence[_Row], steps: int, seed: int) -> torch.Tensor:
    """Return one number in [0, 1) for each row and step, from a generator that belongs to the row
    alone."""
    draws = []
    for row in batch:
        digest = hashlib.sha256(f"{seed}:{row.stream}:{row.sample}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        draws.append(torch.rand(steps, generator=generator, dtype=torch.float64))
    return torch.stack(draws).clamp(max=LARGEST_DRAW)


def _completion(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stops: Sequence[int]
) -> Completion:
    """Cut at the first stop id; what transformers wrote behind it is padding."""
    wanted = set(stops)
    end = next((i for i, token in enumerate(ids) if token in wanted), None)
    said = list(ids) if end is None else list(ids[:end])
    text = tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Completion(
        text, said if end is None else [*said, ids[end]], "length" if end is None else "stop"
    )


def _first_words(prompt: str | Messages) -> str:
    text = (
        prompt if isinstance(prompt, str) else str(prompt[-1].get("content", "")) if prompt else ""
    )
    return text if len(text) <= 40 else text[:40] + "..."
