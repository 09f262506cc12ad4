"""Answers from a model: one function, and everything that decides what it returns is an argument.

Rows are sorted by length, padded on the left with an explicit mask, and decoded by transformers
with its key/value cache. What this module takes out of transformers' hands, because it changes
results without a word there:

* The checkpoint's own `generation_config` (and transformers' default of top_k 50) never applies: it
  is replaced by a neutral one for the duration, and every sampling setting comes from `Sampling`.
* Randomness: each answer has its own stream of numbers (`aligner.generation.sampling`), so the
  answers do not depend on the batch size, but for rounding in the logits.
* An answer ends at the first stop id. The pad id is never looked for, so padding with any id is
  safe, and a model that writes its own pad token is shown to have done so.

It does not shard, compile or page the cache: serving engines do that better.

Legend: B rows of a batch, P prompt tokens after padding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from transformers import GenerationConfig

from aligner.data.rows import Messages
from aligner.errors import DataError
from aligner.generation.sampling import Sampling, draws, processors
from aligner.models.adapter_kinds import base_under_adapter, virtual_tokens
from aligner.models.forward import Progress, eval_mode, pad
from aligner.models.positions import max_positions
from aligner.runs.journal import Journal
from aligner.tokenization.encode import encode_prompt, stop_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
def _decoder_of(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
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


def _decode_batch(
    decoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: Sequence[_Row],
    sampling: Sampling,
    stops: Sequence[int],
) -> list[list[int]]:
    """Return the new ids of each row, as far as the longest row of the batch went."""
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (*stops, 0)[0]
    padded = pad([row.prompt_ids for row in batch], pad_id, left=True)
    ids_BP, mask_BP = (padded[key].to(decoder.device) for key in ("input_ids", "attention_mask"))
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
    numbers = draws([(row.stream, row.sample) for row in batch], budget, sampling.seed)
    output = decoder.generate(
        input_ids=ids_BP,
        attention_mask=mask_BP,
        generation_config=config,
        logits_processor=processors(sampling, mask_BP, numbers),
    )
    return output[:, ids_BP.shape[1] :].tolist()


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
