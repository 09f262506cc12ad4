"""Log-probabilities of whole answers, for training and for references: prompts with their answers
in; one sum for each answer out.

Answers stand in rows of their own, padded on the right, or those to one prompt share a row
(`aligner.models.shared_prefix`); the sums are the same up to rounding, and so are gradients. Which
it is, a batch says itself. The model's head is fused (`aligner.models.fused_head`). All arithmetic
on logits is in float32.

Legend: G groups of answers, K answers of a group, S = K G answers: the first of every group, then
the second of every group, ...; R rows, T tokens, M positions that are read, N read tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from aligner.models.forward import Answer, Batch, Ids, Progress, batches_by_length, eval_mode, pad
from aligner.models.shared_prefix import is_worth_sharing, lay_out
from aligner.tokenization.encode import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Prefix = Literal["auto", "shared", "separate"]
"""Whether answers to one prompt share a row: where that saves enough, always, or never."""


def stack_answers(
    groups: Sequence[Sequence[Answer]], pad_token_id: int, prefix: Prefix = "separate"
) -> Batch:
    """Return a batch of G groups of K answers, sharing prefixes or not."""
    if is_shared(list(map(joined, groups)), prefix):
        return share_answers(groups, pad_token_id)
    return pad_answers(list(chain.from_iterable(zip(*groups, strict=True))), pad_token_id)


def joined(group: Sequence[Answer]) -> list[list[int]]:
    """Return each answer behind its prompt."""
    return [[*prompt, *answer] for prompt, answer in group]


def is_shared(sequences: Sequence[Sequence[Ids]], prefix: Prefix) -> bool:
    """Say whether a batch of groups of sequences is one whose rows share prefixes."""
    if prefix == "auto":
        return is_worth_sharing(sequences)
    return prefix == "shared"


def pad_answers(answers: Sequence[Answer], pad_token_id: int) -> Batch:
    """Stack S prompts with their answers into `input_ids`, `attention_mask` and `labels`, each
    (S, T), padded on the right; labels are the ids of the answers, and -100 elsewhere."""
    batch = pad([[*prompt, *answer] for prompt, answer in answers], pad_token_id)
    starts = torch.tensor([[len(prompt)] for prompt, _ in answers])
    in_answer = torch.arange(batch["input_ids"].shape[1]) >= starts
    in_answer &= batch["attention_mask"].bool()
    batch["labels"] = batch["input_ids"].masked_fill(~in_answer, IGNORED)
    return batch


def share_answers(groups: Sequence[Sequence[Answer]], pad_token_id: int) -> Batch:
    """Put G groups of K answers into rows with shared prefixes.

    Returns `input_ids`, `position_ids`, `groups` and `branches` (R, T); `read_from` and `targets`
    (M,), the places of the rows laid end to end that tokens are predicted from, and these tokens;
    `take` and `owners` (N,), the prediction of each answer's tokens, and the answer that each
    belongs to; `answer_lengths` (S,) in tokens.
    """
    whole = list(map(joined, groups))
    rows = lay_out(whole, pad_token_id)
    places = iter(rows.places)
    read: dict[tuple[int, int], int] = {}
    by_owner: dict[int, list[int]] = {}
    for number, (group, sequences) in enumerate(zip(groups, whole)):
        for branch, ((prompt, _), ids) in enumerate(zip(group, sequences)):
            where = next(places)
            tokens = [(where[i - 1], ids[i]) for i in range(max(1, len(prompt)), len(ids))]
            # An answer's beginning that others share is predicted once.
            taken = [read.setdefault(token, len(read)) for token in tokens]
            by_owner[branch * len(groups) + number] = taken
    owners = sorted(by_owner)
    lengths = torch.tensor([len(by_owner[owner]) for owner in owners])
    return {
        "input_ids": rows.input_ids,
        "position_ids": rows.position_ids,
        "groups": rows.groups,
        "branches": rows.branches,
        "read_from": torch.tensor([place for place, _ in read], dtype=torch.long),
        "targets": torch.tensor([token for _, token in read], dtype=torch.long),
        "take": torch.tensor([i for owner in owners for i in by_owner[owner]], dtype=torch.long),
        "owners": torch.repeat_interleave(torch.tensor(owners), lengths),
        "answer_lengths": lengths,
    }


SHARED = ("position_ids", "groups", "branches", "read_from")
"""What a model gets of rows that share prefixes, beside their ids."""


def answer_logps(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return summed log-probabilities of the S answers of a batch (S,), in float32, with gradients,
    and their lengths in tokens (S,)."""
    outputs = _of_fused_head(model, batch)
    if "read_from" not in batch:
        lengths = (batch["labels"][:, 1:] != IGNORED).sum(dim=1)
        return outputs.log_probs.float().sum(dim=1), lengths
    logps = outputs.log_probs.float()[batch["take"]]
    sums = logps.new_zeros(len(batch["answer_lengths"])).index_add(0, batch["owners"], logps)
    return sums, batch["answer_lengths"]


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """What a model says of the tokens of S answers, each (S, L), L the longest, in float32: their
    log-probabilities and, where the head gives them, entropies; 0 where `mask` is false."""

    logps: Tensor
    entropies: Tensor
    mask: Tensor


def answer_tokens(model: torch.nn.Module, batch: Batch) -> AnswerTokens:
    """Return log-probabilities of each token of the S answers of a batch, with gradients."""
    outputs = _of_fused_head(model, batch)
    entropies = outputs.entropy
    if entropies is None:
        entropies = torch.zeros_like(outputs.log_probs, requires_grad=False)
    found = [outputs.log_probs, entropies]
    if "read_from" not in batch:
        there = batch["labels"][:, 1:] != IGNORED
        found = [values[there] for values in found]
    lengths = answer_lengths(batch)
    logps, entropies = (by_answer(values, batch, lengths) for values in found)
    mask = torch.arange(logps.shape[1], device=lengths.device) < lengths[:, None]
    return AnswerTokens(logps, entropies.detach(), mask)


def answer_lengths(batch: Batch) -> Tensor:
    """Return the lengths in tokens of the S answers of a batch (S,)."""
    if "read_from" in batch:
        return batch["answer_lengths"]
    return (batch["labels"][:, 1:] != IGNORED).sum(dim=1)


def by_answer(values: Tensor, batch: Batch, lengths: Tensor) -> Tensor:
    """Return numbers (S, L) in float32, 0 behind the end of an answer, from those at each place
    that a batch's tokens are predicted from (M,)."""
    if "read_from" in batch:
        values = values[batch["take"]]
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, values.float())


def _of_fused_head(model: torch.nn.Module, batch: Batch) -> Any:
    names: Iterable[str] = ("input_ids", "attention_mask", "labels")
    if "read_from" in batch:
        names = ("input_ids", *SHARED, "targets")
    return model(**{name: batch[name] for name in names}, fused_lm_head=True)


def batched_logps(
    model: PreTrainedModel,
    answers_of: Callable[[int], Sequence[Answer]],
    lengths: Sequence[int],
    *,
    pad_token_id: int,
    batch_rows: int,
    prefix: Prefix = "separate",
    autocast: AbstractContextManager | None = None,
    on_progress: Progress | None = None,
) -> list[list[float]]:
    """Return `answer_logps` of the answers of each group, in the order of groups, with the model at
    rest.

    Each group has as many answers as the others, and they share a batch, of `batch_rows` groups;
    `answers_of` gives them when it is made, and `lengths` says how long a group's longest is, with
    its prompt. `autocast` is what is computed under.
    """
    found: dict[int, list[float]] = {}
    with eval_mode(model):
        for groups in batches_by_length(lengths, rows=batch_rows):
            stacked = stack_answers([answers_of(group) for group in groups], pad_token_id, prefix)
            batch = {name: value.to(model.device) for name, value in stacked.items()}
            with autocast or nullcontext():
                logps = answer_logps(model, batch)[0]
            found |= zip(groups, logps.view(-1, len(groups)).T.tolist())
            if on_progress is not None:
                on_progress(len(found), len(lengths))
    return [found[group] for group in range(len(lengths))]
