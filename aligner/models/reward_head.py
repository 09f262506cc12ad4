"""The head of a reward model: a linear map from the hidden state after a token to one number or
several.

Models are Hugging Face's for sequence classification, so that they load anywhere and public ones
load here. `pool_by_mask` makes such a model read the head at the last token that is not padding;
`return_token_values` makes it hand out the numbers of every token instead, for segments;
`read_at_places` those of some tokens of rows that share prefixes. The head
computes in float32 whatever the rest does: in bfloat16, scores between 8 and 16 come in steps of
1/16.

Legend: B sequences, T tokens, M places that are read, K outputs, D hidden size.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from aligner.errors import RecipeError
from aligner.models.adapter_kinds import base_under_adapter
from aligner.models.shared_prefix import attention_of

HEADS = ("score", "classifier")
"""Names of the head in the sequence classification models of transformers."""


class Float32Linear(nn.Linear):
    """A linear map that computes in float32, also within autocast."""

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., K)."""
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return nn.functional.linear(hidden.float(), self.weight.float(), bias)


def has_head(model: Any) -> bool:
    """Say whether a model has a linear head under a name that we know; code that ships with a model
    may call it anything."""
    base = base_under_adapter(model)
    return any(
        isinstance(getattr(base, name, None), nn.Linear)
        or hasattr(getattr(base, name, None), "modules_to_save")
        for name in HEADS
    )


def head_of(model: Any) -> tuple[Any, str, nn.Linear]:
    """Return the module that holds the head, the head's name there, and the head that is in use (an
    adapter has its own).

    Raises: AssertionError for a model without a linear head.
    """
    base = base_under_adapter(model)
    name = next((name for name in HEADS if hasattr(base, name)), "")
    assert name, f"{type(base).__name__} has no head that we know"
    head = getattr(base, name)
    if hasattr(head, "modules_to_save"):  # PEFT's wrapper around a module that is trained whole
        return (
            head.modules_to_save,
            head.active_adapters[0],
            head.modules_to_save[head.active_adapters[0]],
        )
    return base, name, head


def keep_in_float32(model: Any) -> None:
    """Let the head compute in float32, with weights in float32."""
    if not has_head(model):
        return
    head = head_of(model)[2]
    if type(head) is nn.Linear:
        head.float()
        head.__class__ = Float32Linear


def read_head_again(model: Any, folder: str) -> None:
    """Take the head from its file in the precision that it was saved in; it was loaded in that of
    the other weights."""
    if not has_head(model):
        return
    head = head_of(model)[2]
    for file in sorted(Path(folder).expanduser().glob("*.safetensors")):
        with safe_open(str(file), "pt") as stored:
            for key in stored.keys():  # noqa: SIM118 - it is no mapping
                if (
                    key.rpartition(".")[0] in HEADS
                    and (value := stored.get_tensor(key)).is_floating_point()
                ):
                    part = getattr(head, key.rpartition(".")[2])
                    if part is None:
                        raise RecipeError(
                            f"model.name_or_path: {file} holds {key}, which the head of a reward "
                            "model does not have",
                            "is it a model that labels tokens? Name a reward model",
                        )
                    part.data.copy_(value)


def init_head(model: Any, seed: int) -> None:
    """Draw a fresh head: N(0, 1/(D+1)), so that rewards begin near 0; as the authors of arXiv
    2501.02790 do."""
    head = head_of(model)[2]
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(head.weight.shape, generator=generator) / (head.weight.shape[1] + 1)
    with torch.no_grad():
        head.weight.copy_(weights)
        if head.bias is not None:
            head.bias.zero_()


def merge_heads(model: Any, weights: Sequence[float]) -> None:
    """Make one output of several: their weighted sum. A regression on attributes becomes a model
    with one score."""
    holder, name, head = head_of(model)
    assert len(weights) == head.weight.shape[0], (
        f"{len(weights)} weights for {head.weight.shape[0]} outputs"
    )
    factors = torch.tensor(weights, dtype=head.weight.dtype, device=head.weight.device)
    joined = type(head)(head.in_features, 1, bias=head.bias is not None).to(head.weight)
    with torch.no_grad():
        joined.weight.copy_((factors @ head.weight)[None])
        if head.bias is not None:
            joined.bias.copy_((factors * head.bias).sum())
    joined.requires_grad_(head.weight.requires_grad)
    if isinstance(holder, nn.ModuleDict):
        holder[name] = joined
    else:
        setattr(holder, name, joined)
    base = base_under_adapter(model)
    base.config.num_labels = 1
    base.num_labels = 1


def pool_by_mask(model: Any) -> None:
    """Let a sequence classification model read its head at each sequence's last token that the mask
    shows, whatever its id.

    transformers looks for the last token that is not the padding id, which misses an end that is
    padded with itself. Models that read their head otherwise (at the first token, say) stay as they
    are.
    """
    base = base_under_adapter(model)
    if not has_head(model):
        return
    forward = base.forward

    @functools.wraps(forward)
    def pooled(*args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is None:
            return forward(*args, **kwargs)
        hook = head_of(model)[2].register_forward_hook(
            lambda _head, _inputs, values: _at_last(values, mask)
        )
        try:
            return forward(*args, **kwargs)
        finally:
            hook.remove()

    base.forward = pooled


def _at_last(values: Tensor, mask: Tensor) -> Tensor:
    """(B, T, K) -> the same, with the numbers of each row's last token of the mask (B, T) at all of
    its places."""
    if values.dim() != 3 or values.shape[:2] != mask.shape:
        return values
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    return values[
        torch.arange(len(last), device=values.device), last.to(values.device), None
    ].expand_as(values)


def read_at_places(model: Any) -> None:
    """Let a sequence classification model also read rows that share prefixes
    (`aligner.models.shared_prefix`): called with `read_from`, places (M,) of its rows laid end to
    end, `groups` and `branches`, it returns the numbers there (M, K) as its `logits`."""
    base = base_under_adapter(model)
    own = base.forward

    @functools.wraps(own)
    def forward(*args: Any, read_from: Tensor | None = None, **kwargs: Any) -> Any:
        if read_from is None:
            return own(*args, **kwargs)
        mask = attention_of(base, kwargs["groups"], kwargs["branches"])
        hidden = getattr(base, base.base_model_prefix)(
            input_ids=kwargs["input_ids"],
            position_ids=kwargs["position_ids"],
            attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        picked_MD = hidden.reshape(-1, hidden.shape[-1])[read_from]
        name = next(name for name in HEADS if hasattr(base, name))
        return SequenceClassifierOutput(logits=getattr(base, name)(picked_MD))

    base.forward = forward


def return_token_values(model: Any) -> None:
    """Let a sequence classification model return the numbers of every token (B, T, K) as its
    `logits`."""
    base = base_under_adapter(model)
    base.forward = types.MethodType(_values, base)


def _values(
    self: Any, input_ids: Tensor, attention_mask: Tensor, **_: Any
) -> SequenceClassifierOutput:
    backbone = getattr(self, self.base_model_prefix)
    hidden = backbone(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state
    name = next(name for name in HEADS if hasattr(self, name))
    return SequenceClassifierOutput(logits=getattr(self, name)(hidden))
