"""A head that returns log-probabilities in place of logits, and projects trained positions alone.

A whole vocabulary would make logits the largest tensor of training, so TRL's fused head goes
through it in tiles and keeps none. Off CUDA that head projects every position, also those of
prompts and padding. Here the hidden states of the positions that are read are picked first, by a
hook on the backbone, on every device: the same numbers for less work.

    fuse_head(model)
    model(input_ids=..., attention_mask=..., labels=..., fused_lm_head=True).log_probs   # (B, T-1)
    model(input_ids=..., ..., read_from=places, targets=ids, fused_lm_head=True).log_probs   # (N,)
    # with `groups` and `branches` in place of a mask, rows share prefixes (`shared_prefix`)

Without `fused_lm_head` the model's forward is its own.

Legend: B rows, T tokens, N positions that are read, D hidden size.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from aligner.models.adapter_kinds import base_under_adapter
from aligner.models.shared_prefix import attention_of
from aligner.tokenization.encode import IGNORED

PER_TOKEN = ("log_probs", "entropy", "is_top1")
"""Fields of a fused head's output that hold a number for each position."""


@dataclass(slots=True)
class FusedHead:
    """What a fused head computes: beside log-probabilities, entropy and whether the token is the
    likeliest, where `with_metrics`; without, these fields are zeros."""

    with_metrics: bool = False


def fuse_head(model: Any, *, with_metrics: bool = False, temperature: float = 1.0) -> FusedHead:
    """Give a model, or the base under its adapters, a fused head; return what it computes, which
    may be changed between forward passes.

    `with_metrics`: whether entropies and top-1 matches may be asked for; they begin as asked.
    `temperature`: what logits are divided by, for entropies too.
    """
    base = base_under_adapter(model)
    own = base.forward
    add_fused_lm_head(base, temperature)
    heads = {False: base.forward}
    if with_metrics:
        base.forward = own
        add_fused_lm_head(base, temperature, outputs=PER_TOKEN)
        heads[True] = base.forward
    head = FusedHead(with_metrics)

    # Keeps the model's own signature, which `generate` compares its arguments with.
    @functools.wraps(type(base).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head or "shift_labels" in kwargs:
            return heads[max(heads)](*args, fused_lm_head=fused_lm_head, **kwargs)
        labels, places, targets = (
            kwargs.pop(name, None) for name in ("labels", "read_from", "targets")
        )
        if places is None:
            places, targets = trained_positions(labels)
        if "groups" in kwargs:  # rows that share prefixes
            kwargs["attention_mask"] = attention_of(
                self, kwargs.pop("groups"), kwargs.pop("branches")
            )
        with _picked(self.base_model, places):
            outputs = heads[head.with_metrics](
                *args, fused_lm_head=True, shift_labels=targets[None], **kwargs
            )
        for name in PER_TOKEN:
            found = getattr(outputs, name)
            if found is not None:
                setattr(outputs, name, found[0] if labels is None else _spread(found, labels))
            elif True in heads:
                setattr(outputs, name, torch.zeros_like(outputs.log_probs, requires_grad=False))
        outputs.label_mask = targets != IGNORED if labels is None else labels[:, 1:] != IGNORED
        return outputs

    base.forward = types.MethodType(forward, base)
    return head


def trained_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """From labels (B, T) to the flat places (N,) that trained tokens are predicted from, and these
    tokens (N,); where nothing is trained, a place without a token, so that there is a graph."""
    rows, columns = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    if not len(rows):
        return labels.new_zeros(1), labels.new_full((1,), IGNORED)
    return rows * labels.shape[1] + columns, labels[rows, columns + 1]


@contextmanager
def _picked(backbone: Any, places: Tensor) -> Iterator[None]:
    """Let the backbone return only the hidden states at some of its places, (1, N, D)."""

    def pick(_module: Any, _inputs: Any, outputs: Any) -> Any:
        hidden_BTD = outputs.last_hidden_state
        # With the model split across devices, the backbone may end on another one.
        where = places.to(hidden_BTD.device)
        outputs.last_hidden_state = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])[where][None]
        return outputs

    hook = backbone.register_forward_hook(pick)
    try:
        yield
    finally:
        hook.remove()


def _spread(found: Tensor, labels: Tensor) -> Tensor:
    """Return numbers (1, N) of trained positions as (B, T-1), with zeros elsewhere."""
    trained = (labels[:, 1:] != IGNORED).to(found.device)
    return found.new_zeros(trained.shape).masked_scatter(trained, found.flatten())
