"""Answers to one prompt in one row: `[prompt, chosen, rejected]`, the prompt computed once.

A group of sequences that begin alike becomes their longest common prefix of token ids, followed by
what is left of each, its branches. Positions go on from the prefix in every branch, and a mask lets
a branch see the prefix and itself alone. So each token's hidden state is the one that it has in a
row of its own, up to rounding, and so are losses and gradients. The prefix reaches as far as the
ids agree: beyond the prompt where answers begin alike. Several groups go into one row where the
longest leaves room.

It is exact where every layer sees all tokens before it. Windows, chunks and recurrent states count
tokens of other branches too: `why_not_shared` refuses them by config, and `why_not_alike` also
compares real rows with separate ones, on the model itself, in each token's hidden state. Dropout of
adapters, which draws once for a shared prefix and twice for separate ones, is the one thing that
differs.

Legend: G groups, S sequences, R rows, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aligner.models.adapter_kinds import base_under_adapter, virtual_tokens
from aligner.models.load_errors import MODEL_ERRORS, first_line
from aligner.models.row_sharing import ROUGH_SHARE, SHARE, without_noise

Ids = Sequence[int]

LEAST_SAVING = 0.1
"""Share of the tokens of a padded batch that must be saved for a prefix to be shared."""

MOST_MASK = 2**28
"""Numbers in the mask of a batch, above which no prefix is shared: it is quadratic in the length of
a row. One row of 16,384 tokens has as many, 1 GiB in float32, and so have four of 8,192."""

MASKED = ("sdpa", "eager", "flex_attention")
"""Implementations of attention that take a mask of ours."""

_PADDING = -1
"""The group of padding."""


@dataclass(frozen=True, slots=True)
class SharedRows:
    """Groups of sequences in R rows of T tokens.

    `groups` (R, T) is the number of the group that a token belongs to, -1 for padding; `branches`
    (R, T) is 0 in a prefix and 1, 2, ... in what follows it. `places` holds, for each sequence in
    its order, where its tokens stand in the rows laid end to end.
    """

    input_ids: Tensor
    position_ids: Tensor
    groups: Tensor
    branches: Tensor
    places: list[list[int]]


def lay_out(groups: Sequence[Sequence[Ids]], pad_token_id: int) -> SharedRows:
    """Put groups of sequences into rows no longer than the longest group needs.

    Rows are filled by best fit, the longest group first, so the same groups always lie the same
    way. Sequences are numbered group by group.
    """
    shared = [common_prefix(group) for group in groups]
    sizes = [_size(group, prefix) for group, prefix in zip(groups, shared)]
    starts, num_rows = _fit(sizes)
    width = max(sizes)
    shape = (num_rows, width)
    input_ids = torch.full(shape, pad_token_id)
    position_ids = torch.zeros(shape, dtype=torch.long)
    branches = torch.zeros_like(position_ids)
    members = torch.full(shape, _PADDING)
    places: list[list[int]] = []
    for number, (group, prefix, (row, column)) in enumerate(zip(groups, shared, starts)):
        members[row, column : column + sizes[number]] = number
        here = slice(column, column + prefix)
        input_ids[row, here] = torch.as_tensor(group[0][:prefix], dtype=torch.long)
        position_ids[row, here] = torch.arange(prefix)
        in_prefix = range(row * width + column, row * width + column + prefix)
        column += prefix
        for branch, ids in enumerate(group, 1):
            own = len(ids) - prefix
            here = slice(column, column + own)
            input_ids[row, here] = torch.as_tensor(ids[prefix:], dtype=torch.long)
            position_ids[row, here] = torch.arange(prefix, len(ids))
            branches[row, here] = branch
            places.append([*in_prefix, *range(row * width + column, row * width + column + own)])
            column += own
    return SharedRows(input_ids, position_ids, members, branches, places)


def common_prefix(group: Sequence[Ids]) -> int:
    """Return how many first tokens all sequences of a group have in common."""
    ordered = sorted(list(ids) for ids in group)
    first, last = ordered[0], ordered[-1]
    agree = (place for place, (one, other) in enumerate(zip(first, last)) if one != other)
    return next(agree, min(len(first), len(last)))


def _size(group: Sequence[Ids], prefix: int) -> int:
    return prefix + sum(len(ids) - prefix for ids in group)


def _fit(sizes: Sequence[int]) -> tuple[list[tuple[int, int]], int]:
    """Return the row and the column that each group begins at, and the number of rows."""
    room: list[int] = []
    starts: dict[int, tuple[int, int]] = {}
    width = max(sizes)
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        fitting = [row for row, left in enumerate(room) if left >= sizes[number]]
        if not fitting:
            fitting = [len(room)]
            room.append(width)
        row = min(fitting, key=lambda row: room[row])
        starts[number] = (row, width - room[row])
        room[row] -= sizes[number]
    return [starts[number] for number in range(len(sizes))], len(room)


def share_saved(groups: Sequence[Sequence[Ids]]) -> float:
    """Return the share of tokens, padding included, that a batch of these groups saves against rows
    of their own."""
    rows, width = _area(groups)
    return _saved(groups, rows * width)


def is_worth_sharing(groups: Sequence[Sequence[Ids]]) -> bool:
    """Say whether a batch of these groups saves enough of its tokens, and needs no mask that is too
    large."""
    rows, width = _area(groups)
    return rows * width**2 <= MOST_MASK and _saved(groups, rows * width) >= LEAST_SAVING


def _area(groups: Sequence[Sequence[Ids]]) -> tuple[int, int]:
    """The rows of a batch that shares prefixes, and their width."""
    sizes = [_size(group, common_prefix(group)) for group in groups]
    return _fit(sizes)[1], max(sizes)


def _saved(groups: Sequence[Sequence[Ids]], shared: int) -> float:
    lengths = [len(ids) for group in groups for ids in group]
    separate = len(lengths) * max(lengths)
    return 1 - shared / separate if separate else 0.0


def attention_of(base: Any, groups: Tensor, branches: Tensor) -> Any:
    """Return the mask (R, 1, T, T) of rows of groups in the form that the attention of `base`, a
    model without adapters, reads: 0 where a token (its third axis) sees another, and the least
    number elsewhere.

    It is in the dtype that attention computes in. Of a boolean one, or of one to be cast, torch
    makes a copy in each layer and keeps them all for the backward pass.
    """
    attention = base.config.get_text_config()._attn_implementation
    if attention == "flex_attention":
        return _block_mask(groups, branches)
    seen = branches[:, :, None] == branches[:, None, :]
    seen |= branches[:, None, :] == 0
    seen &= groups[:, :, None] == groups[:, None, :]
    hidden = seen.tril_().logical_not_()[:, None]
    dtype, kind = base.get_input_embeddings().weight.dtype, groups.device.type
    if attention == "sdpa" and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=groups.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)


def _block_mask(groups: Tensor, branches: Tensor) -> Any:
    """The same for FlexAttention, which skips the blocks in which nothing is seen."""
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        alike = groups[row, query] == groups[row, key]
        seen = (branches[row, key] == 0) | (branches[row, query] == branches[row, key])
        return alike & seen & (query >= key)

    rows, width = groups.shape
    return create_block_mask(sees, rows, None, width, width, device=str(groups.device))


# --- whether a model may --------------------------------------------------------------------------


def why_not_shared(config: Any, attention: str) -> str:
    """Return what in a model's config, with an implementation of attention, speaks against sharing
    prefixes, as a clause; or nothing."""
    text = config.get_text_config()
    kinds = sorted({*(getattr(text, "layer_types", None) or ())} - {"full_attention"})
    if kinds:
        return f"the model has layers of {' and '.join(kinds)}"
    for key in ("sliding_window", "attention_chunk_size"):
        if getattr(text, key, None) and getattr(text, f"use_{key}", True):
            reach = getattr(text, key)
            return f"the model's attention reaches {reach:,} tokens back ({key})"
    if getattr(config, "is_encoder_decoder", False):
        return "the model has an encoder"
    if attention not in MASKED:
        return f"the model's attention ({attention}) takes no mask"
    return ""


def why_not_alike(model: Any, groups: Sequence[Sequence[Ids]], *, rough: bool = False) -> str:
    """Return why a model does not give tokens of groups the hidden states that they have in rows of
    their own, as a clause; or nothing, where it does.

    Tokens that stand behind others which are not theirs to see are compared, so some group must
    have two branches. How much they may differ is measured: by as much as they do where they see
    those. Rounding is a small share of that. The model is read in train mode with everything random
    off, and is left as it was; `rough`: it is called under autocast.
    """
    base = base_under_adapter(model)
    if why := why_not_shared(base.config, base.config.get_text_config()._attn_implementation):
        return why
    if getattr(base, "_is_stateful", False):
        return "the model's layers hand on a state from token to token"
    if virtual_tokens(model):
        return "the model's adapter puts vectors in front of every row"
    backbone = base.base_model
    device = model.get_input_embeddings().weight.device
    rows = lay_out(groups, 0)
    alone = [torch.tensor([list(ids)], device=device) for group in groups for ids in group]
    given, positions = rows.input_ids.to(device), rows.position_ids.to(device)
    mask = attention_of(base, rows.groups.to(device), rows.branches.to(device))

    def hidden(ids: Tensor, **more: Any) -> Tensor:
        states = backbone(input_ids=ids, use_cache=False, **more).last_hidden_state
        return states.reshape(-1, states.shape[-1]).float()

    with torch.no_grad(), without_noise(model):
        try:
            expected = torch.cat([hidden(ids) for ids in alone])
            found = hidden(given, attention_mask=mask, position_ids=positions)
            mixed = hidden(given, position_ids=positions, attention_mask=torch.ones_like(given))
        except MODEL_ERRORS as error:
            return f"the model cannot read such rows ({first_line(error)})"
    places = torch.tensor([place for where in rows.places for place in where], device=device)
    # The others, most of a row where answers are short, would add nothing but rounding.
    width = positions.shape[1]
    behind = (positions != torch.arange(width, device=device)).flatten()[places]
    assert behind.any(), "a group with two branches"
    gap = float((found[places] - expected)[behind].abs().mean())
    effect = float((mixed[places] - expected)[behind].abs().mean())
    dtype = base.get_input_embeddings().weight.dtype
    if torch.get_float32_matmul_precision() != "highest":  # TF32, or bfloat16
        rough = True
    share = ROUGH_SHARE if rough else SHARE.get(dtype, ROUGH_SHARE)
    if not effect > 0:
        return "the model does not read what stands before a token"
    if not gap <= share * effect:
        return f"answers that share a prompt see each other (hidden states are {gap:.2g} off)"
    return ""
