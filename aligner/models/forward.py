"""The one padded forward pass: sequences of token ids in; log-probabilities, entropies, values or
hidden states out.

Sequences go through a model longest first, so that a batch too big for memory fails at the start,
in batches of a number of tokens or rows, with an explicit mask. What is read of a sequence does not
depend on the order of the sequences, nor, but for rounding, on which others share its batch. All
arithmetic on logits is in float32 whatever the model's type.

Legend: B rows of a batch, T tokens, N wanted tokens of one sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from aligner.models.own_config import without_router_logits
from aligner.runs.journal import Journal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

Ids = Sequence[int]
Answer = tuple[Ids, Ids]
"""The token ids of a prompt, and those of an answer to it."""
Batch = dict[str, Tensor]
Read = Callable[[Batch, Sequence[int]], Sequence[T]]
"""From a padded batch and the places of its sequences to what is read of each."""
Progress = Callable[[int, int], None]
"""Called with (sequences done, sequences in all)."""

BATCH_TOKENS = 16384
"""Tokens of a batch, padding included, where nothing else is asked for."""

_CHUNK = 1024
"""Positions whose logits are turned to float32 at a time."""


# --- batches --------------------------------------------------------------------------------------


def pad(sequences: Sequence[Ids], pad_token_id: int, *, left: bool = False) -> Batch:
    """Stack B sequences into `input_ids` and `attention_mask`, each (B, T), T the longest.

    Padding is known by the mask, never by its id. On the right a token's position is its place,
    which models assume; on the `left` it is not, so `position_ids` (B, T) say it.
    """
    width = max(map(len, sequences))
    input_ids = torch.full((len(sequences), width), pad_token_id)
    attention_mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for i, ids in enumerate(sequences):
        where = slice(width - len(ids), width) if left else slice(0, len(ids))
        input_ids[i, where] = torch.as_tensor(ids, dtype=torch.long)
        attention_mask[i, where] = 1
    batch = {"input_ids": input_ids, "attention_mask": attention_mask}
    if left:
        batch["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    return batch


def batches_by_length(
    lengths: Sequence[int], *, rows: int | None = None, tokens: int | None = None
) -> Iterator[list[int]]:
    """Yield the places of sequences in batches, longest first, equal lengths in their order.

    A batch holds at most `rows` sequences, and at most `tokens` once it is padded; but at least one
    sequence.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    start = 0
    while start < len(order):
        size = rows or len(order)
        if tokens is not None:
            size = min(size, tokens // max(1, lengths[order[start]]))
        yield order[start : start + max(1, size)]
        start += max(1, size)


# --- forward passes -------------------------------------------------------------------------------


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Hold the model in eval mode without gradients, and put every module back into the mode it was
    in.

    The mode is kept for each module, since a frozen part may be in eval mode inside a model that
    trains. Gradients are off through `no_grad` and not `inference_mode`, whose tensors (rotary
    caches, for one) could not be used in a later backward pass.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), without_router_logits(model):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def batched_forward(
    model: PreTrainedModel,
    sequences: Sequence[Ids],
    read: Read[T],
    *,
    pad_token_id: int,
    batch_tokens: int | None = BATCH_TOKENS,
    batch_rows: int | None = None,
    left: bool = False,
    marks: Sequence[Hashable] | None = None,
    on_progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[T]:
    """Return what `read` finds in each sequence, in their order, with the model at rest.

    `read` calls the model on a batch of `pad`, on its device: padded on the right, or on the `left`
    for who reads the last place of every row. Equal sequences are read once, unless their `marks`
    differ. `journal` keeps the result of each batch, which JSON must be able to hold then, so that
    the same call resumes after a kill.
    """
    places: dict[Any, list[int]] = {}
    for place, ids in enumerate(sequences):
        places.setdefault((tuple(ids), None if marks is None else marks[place]), []).append(place)
    keys = sorted(places)
    lengths = [len(ids) for ids, _ in keys]
    batches = list(batches_by_length(lengths, rows=batch_rows, tokens=batch_tokens))

    def work(batch: list[int]) -> list[T]:
        padded = pad([keys[i][0] for i in batch], pad_token_id, left=left)
        padded = {name: value.to(model.device) for name, value in padded.items()}
        return list(read(padded, [places[keys[i]][0] for i in batch]))

    found: dict[int, T] = {}
    with eval_mode(model):
        results = (journal or Journal(None)).results(batches, work)
        for batch, (values, is_new) in zip(batches, results):
            for i, value in zip(batch, values, strict=True):
                found |= dict.fromkeys(places[keys[i]], value)
            if on_progress is not None and is_new:
                on_progress(len(found), len(sequences))
    return [found[place] for place in range(len(sequences))]


# --- what logits say of tokens --------------------------------------------------------------------


def read_tokens(
    model: PreTrainedModel,
    sequences: Sequence[Ids],
    wanted: Sequence[Ids],
    of: Callable[[Tensor, Tensor], Tensor],
    **options: Any,
) -> list[list[Any]]:
    """Return what `of` says of each wanted token of each sequence, as plain numbers.

    `wanted` are ascending places of tokens in their sequence, each 1 or more, for the first has
    nothing before it. `of` turns the logits that n of them were predicted from (n, V), in float32,
    and their ids (n,) into (n, ...). `options` are those of `batched_forward`.
    """

    def read(batch: Batch, rows: Sequence[int]) -> list[list[Any]]:
        ids_BT = batch["input_ids"]
        width = ids_BT.shape[1]
        first = min((wanted[row][0] for row in rows if wanted[row]), default=width) - 1
        kept = width - first
        logits = model(**batch, logits_to_keep=kept, use_cache=False).logits
        logits_BTV = logits[:, -kept:]  # some adapters put tokens of their own in front
        found: list[list[Any]] = [[] for _ in rows]
        for numbers, row, ids_T, logits_TV in zip(found, rows, ids_BT, logits_BTV):
            places_N = torch.tensor(wanted[row], dtype=torch.long, device=ids_T.device)
            for places_n in places_N.split(_CHUNK):
                logits_nV = logits_TV[places_n - 1 - first].float()
                numbers += of(logits_nV, ids_T[places_n]).tolist()
        return found

    return batched_forward(model, sequences, read, marks=[tuple(one) for one in wanted], **options)


def token_logps(logits_NV: Tensor, ids_N: Tensor) -> Tensor:
    """Return the log-probability of each token (N,), in nats."""
    return logits_NV.gather(1, ids_N[:, None])[:, 0] - logits_NV.logsumexp(dim=-1)


def token_entropies(logits_NV: Tensor, _: Tensor) -> Tensor:
    """Return the entropy (N,) in nats of what each token was drawn from."""
    logps_NV = logits_NV.log_softmax(-1)
    return -(logps_NV.exp() * logps_NV).sum(-1)


def answer_entropies(
    model: PreTrainedModel, answers: Sequence[Answer], **options: Any
) -> list[list[float]]:
    """Return the entropy in nats of what every token of each answer was drawn from; 0 for a token
    that nothing stands before. `options` are those of `batched_forward`."""
    sequences = [[*prompt, *answer] for prompt, answer in answers]
    wanted = [range(max(1, len(p)), len(ids)) for (p, _), ids in zip(answers, sequences)]
    found = read_tokens(model, sequences, wanted, token_entropies, **options)
    return [
        [0.0] * (len(answer) - len(numbers)) + numbers
        for (_, answer), numbers in zip(answers, found)
    ]
