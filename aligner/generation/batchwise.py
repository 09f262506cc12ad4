"""Batches through transformers' own `generate`: for models whose cache only they know how to lead.

Rows are padded on the left with an explicit mask, and a batch decodes until its longest row ends.
This module takes out of transformers' hands only the choice of the next token (one logits processor
that leaves a single candidate), so that it has the same random numbers and log-probabilities as the
decode loop of our own (`aligner.generation.hf`), which needs a cache of plain keys and values.

Legend: B rows of a batch, P prompt tokens after padding, T tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from aligner.generation.requests import Generated, OnFinished, Request
from aligner.generation.sampling import Chosen, choose, draws, settings_of
from aligner.models.forward import pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Row:
    """Sample `sample` of the request at `index`."""

    index: int
    sample: int
    request: Request

    @property
    def budget(self) -> int:
        return self.request.sampling.max_new_tokens

    def draws(self) -> Tensor:
        """Return this row's random numbers, one for each token that it may have."""
        sampling = self.request.sampling
        return draws(sampling.seed, self.request.stream, self.sample, self.budget)


def rows_of(requests: Sequence[Request]) -> list[Row]:
    """Return what is to be written, longest prompt first, so that a batch too big for memory fails
    at the start; equal prompts one after the other."""
    prompts = [tuple(request.prompt_ids) for request in requests]
    first: dict[tuple[int, ...], int] = {}
    for index, ids in enumerate(prompts):
        first.setdefault(ids, index)
    order = sorted(range(len(requests)), key=lambda i: (-len(prompts[i]), first[prompts[i]]))
    rows = []
    for index in order:
        request = requests[index]
        rows += [Row(index, sample, request) for sample in range(request.sampling.num_samples)]
    return rows


def generate_batchwise(
    decoder: PreTrainedModel,
    rows: Sequence[Row],
    batch_size: int,
    positions: int | None,
    on_finished: OnFinished,
) -> None:
    """Decode rows batch by batch. `decoder` is at rest, with a neutral generation config.

    `positions`: how many the model has for a row, where there is a limit.
    """
    for batch in _batches(rows, batch_size, positions):
        for row, generated in zip(batch, decode_batch(decoder, batch)):
            on_finished(row.index, row.sample, generated)


def _batches(rows: Sequence[Row], batch_size: int, positions: int | None) -> Iterator[list[Row]]:
    """Cut rows into batches, in which all have the same settings and room for as many tokens as the
    batch will have."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: settings_of(row.request.sampling)):
        if batch and (len(batch) == batch_size or not _goes_with(row, batch, positions)):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _goes_with(row: Row, batch: list[Row], positions: int | None) -> bool:
    mine, theirs = row.request, batch[0].request
    if settings_of(mine.sampling) != settings_of(theirs.sampling):
        return False
    if mine.stop_ids != theirs.stop_ids:
        return False
    longest = max(len(one.request.prompt_ids) for one in (*batch, row))
    return positions is None or longest + max(one.budget for one in (*batch, row)) <= positions


def decode_batch(
    decoder: PreTrainedModel,
    batch: Sequence[Row],
    on_tokens: Callable[[list[int]], None] | None = None,
) -> list[Generated]:
    """Decode rows together, to the end of the longest. `on_tokens` hears of the token of each row
    as soon as it is chosen."""
    stops = batch[0].request.stop_ids
    pad_id = (*stops, 0)[0]
    padded = pad([row.request.prompt_ids for row in batch], pad_id, left=True)
    ids_BP, mask_BP = (padded[key].to(decoder.device) for key in ("input_ids", "attention_mask"))
    chooser = _Chooser(batch, mask_BP, on_tokens)
    # Greedy as transformers sees it: the processor has already chosen the token.
    config = GenerationConfig(
        max_new_tokens=max(row.budget for row in batch),
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=list(stops) or None,
        pad_token_id=pad_id,
    )
    decoder.generate(
        input_ids=ids_BP,
        attention_mask=mask_BP,
        generation_config=config,
        logits_processor=LogitsProcessorList([chooser]),
    )
    return chooser.generated()


class _Chooser(LogitsProcessor):
    """Chooses each row's token, and keeps it with its log-probabilities."""

    def __init__(
        self,
        batch: Sequence[Row],
        mask_BP: Tensor,
        on_tokens: Callable[[list[int]], None] | None = None,
    ) -> None:
        self.batch, self.on_tokens = batch, on_tokens
        self.padding_BP = mask_BP == 0
        width = max(row.budget for row in batch)
        self.draws_BT = torch.zeros(len(batch), width, dtype=torch.float64)
        for i, row in enumerate(batch):
            self.draws_BT[i, : row.budget] = row.draws()
        self.steps: list[Chosen] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # Padding would make the repetition penalty depend on the neighbours.
        width = self.padding_BP.shape[1]
        said_BT = input_ids.clone()
        said_BT[:, :width] = torch.where(
            self.padding_BP, input_ids[:, width - 1 : width], input_ids[:, :width]
        )
        draws_B = self.draws_BT[:, len(self.steps)]
        chosen = choose(scores, self.batch[0].request.sampling, said_BT, draws_B)
        self.steps.append(chosen)
        if self.on_tokens is not None:
            self.on_tokens(chosen.ids_B.tolist())
        return torch.full_like(scores, float("-inf")).scatter(1, chosen.ids_B[:, None], 0.0)

    def generated(self) -> list[Generated]:
        """Cut each row at its first stop id, or at its budget."""
        columns = zip(
            torch.stack([step.ids_B for step in self.steps], 1).tolist(),
            torch.stack([step.logps_B for step in self.steps], 1).tolist(),
            torch.stack([step.raw_logps_B for step in self.steps], 1).tolist(),
        )
        done = []
        for row, (ids, logps, raw_logps) in zip(self.batch, columns):
            stops = set(row.request.stop_ids)
            ends = (i + 1 for i, token in enumerate(ids[: row.budget]) if token in stops)
            end = next(ends, None)
            size = row.budget if end is None else end
            kept = (ids[:size], logps[:size], raw_logps[:size])
            done.append(Generated(kept[0], "length" if end is None else "stop", *kept[1:]))
        return done
