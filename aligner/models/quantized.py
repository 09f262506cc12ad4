"""Layers in 4 and 8 bits (bitsandbytes) that compute in evaluation exactly as in training, with a
proof at loading.

On a CPU, bitsandbytes has other arithmetic for inference. A layer in 4 bits is repacked for
AVX512-BF16 at its first forward in eval mode: from then on no gradient flows through it, its scales
are rounded to bfloat16, and sizes that are not a multiple of 32 raise. A layer in 8 bits rounds its
inputs to 8 bits too, so that a loss in evaluation is not the loss that is trained. Here every layer
always takes the way of training; on a GPU both ways are the same already. Nor is a bias turned into
the data type of whatever comes in, which under autocast would round it to bfloat16 for good.

With AVX512, its kernel for 4 bits also takes the scales of other blocks where K is a multiple of 16
but not of the block (64): it lets row n begin at block n * (K // 64), while blocks run on from row
to row. The weights come out wrong by a quarter and more, in training too. Importing this module
puts a kernel before it, which asks for rows of whole blocks; so whatever unpacks 4 bits in this
process on a CPU, PEFT's DoRA for instance, gets the weights that were packed.

Legend: N outputs and K inputs of a layer.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from copy import deepcopy
from importlib import metadata
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

from aligner.errors import RecipeError
from aligner.models.load_errors import MODEL_ERRORS, first_line

TOLERANCE = 0.05
"""Of the gradient's size; bfloat16 gives up to 0.01, a gradient that does not flow 1."""

LANES = 64
"""Kernels for one kind of processor ask for sizes that are a multiple of this, at most; it is the
block of 4 bits, too."""

NATIVE = torch.library.get_kernel("bitsandbytes::dequantize_4bit", "CPU")
"""The kernel of bitsandbytes that unpacks 4 bits on a CPU."""

OURS = torch.library.Library("bitsandbytes", "IMPL")
"""What is registered here holds as long as this object."""

logging.getLogger("bitsandbytes.autograd._functions").addFilter(
    lambda record: (
        "inputs will be cast" not in record.getMessage()
    )  # said by int8 on a GPU, at every layer and step
)


def unpack_whole_blocks(
    keys: Any,
    packed: Tensor,
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """Unpack 4 bits into weights of `shape`, in rows of whole blocks for the kernel of
    bitsandbytes; in one row where the last block is not full."""
    rows = tuple(shape)
    if rows[-1] % blocksize:
        count = math.prod(shape)
        rows = (1, count) if count % blocksize else (count // blocksize, blocksize)
    return NATIVE.call_boxed(keys, packed, absmax, blocksize, quant_type, rows, dtype).view(
        tuple(shape)
    )


with warnings.catch_warnings():  # torch says that there was a kernel before
    warnings.simplefilter("ignore")
    OURS.impl("dequantize_4bit", unpack_whole_blocks, "CPU", with_keyset=True)


class SteadyLinear4bit(bnb.nn.Linear4bit):
    """A layer in 4 bits that is never repacked for inference."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        wanted = self.compute_dtype or x.dtype
        bias = None if self.bias is None else self.bias.to(wanted)
        return bnb.matmul_4bit(
            x.to(wanted), self.weight, quant_state=self.weight.quant_state, bias=bias
        ).to(x.dtype)


class SteadyLinear8bit(bnb.nn.Linear8bitLt):
    """A layer in 8 bits that multiplies its inputs unrounded on a CPU, also in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        self.state.is_training = True
        if (
            self.weight.SCB is not None
        ):  # PEFT's DoRA puts a weight without scales here; those of the state hold
            self.init_8bit_state()
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return bnb.matmul(x, self.weight, bias=bias, state=self.state)


STEADY: dict[type[nn.Module], type[nn.Module]] = {
    bnb.nn.Linear4bit: SteadyLinear4bit,
    bnb.nn.Linear8bitLt: SteadyLinear8bit,
}


def keep_steady(model: nn.Module) -> None:
    """Let all quantized layers compute as in training, and prove the gradient of the smallest of
    each kind: of those whose K is a multiple of 64, and of those whose K is not.

    Raises: RecipeError when it is not the gradient of the layer's own weights after an evaluation.
    """
    layers = quantized_layers(model)
    for layer in layers.values():
        layer.__class__ = STEADY.get(type(layer), type(layer))
    samples: dict[tuple[type[nn.Module], bool], tuple[str, Any]] = {}
    for name, layer in sorted(layers.items(), key=lambda item: _size(item[1])):
        samples.setdefault((type(layer), layer.in_features % LANES == 0), (name, layer))
    for sample in samples.values():
        _prove(*sample)


def refuse_direct_reads(model: Any) -> None:
    """Read three tokens, since the code of some models takes the numbers of a layer's weight, which
    are packed now.

    Raises: RecipeError when the model cannot be computed.
    """
    ids = torch.ones(1, 3, dtype=torch.long, device=model.device)
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except MODEL_ERRORS as error:
        raise RecipeError(
            f"model.quantization: {type(model).__name__} cannot be computed with packed weights "
            f"({first_line(error)})",
            "leave out model.quantization; model.dtype=bfloat16 halves the memory too",
        ) from error


def quantized_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers of a model that bitsandbytes has quantized, by name."""
    return {
        name: layer for name, layer in model.named_modules() if isinstance(layer, tuple(STEADY))
    }


def plain_weight(layer: Any) -> Tensor:
    """Return the weights (N, K) that a quantized layer stands for, in float32, computed without its
    kernels."""
    if isinstance(layer, bnb.nn.Linear8bitLt):
        stored = layer.weight.data if layer.state.CB is None else layer.state.CB
        scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
        return stored.float() * scales.float()[:, None] / 127
    state = layer.weight.quant_state
    scales = state.absmax
    if state.nested:
        scales = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    packed = layer.weight.data.view(torch.uint8).flatten().long()
    places = torch.stack([packed >> 4, packed & 15], dim=1).flatten()[: state.shape.numel()]
    values = state.code.float()[places]
    return (values * scales.float().repeat_interleave(state.blocksize)[: len(values)]).view(
        state.shape
    )


def _size(layer: Any) -> tuple[bool, int]:
    sizes = (layer.out_features, layer.in_features)
    return any(size % LANES for size in sizes), sizes[0] * sizes[1]


def _prove(name: str, layer: Any) -> None:
    """Refuse a layer whose gradient, after an evaluation, is not that of its own weights."""
    layer = deepcopy(layer)  # a forward leaves traces in it, which PEFT reads
    weights_NK = plain_weight(layer)
    device = layer.weight.device
    by_default = torch.float32 if device.type == "cpu" else torch.float16
    computes_in = getattr(layer, "compute_dtype", None) or by_default
    row_1K = torch.ones(1, layer.in_features, device=device, dtype=computes_in)
    with torch.no_grad():
        layer.eval()(row_1K)
    with torch.enable_grad():
        sums = layer.train()(row_1K.requires_grad_()).sum()
        found = (
            torch.autograd.grad(sums, row_1K)[0].float()
            if sums.requires_grad
            else torch.zeros_like(row_1K)
        )
    wanted = weights_NK.sum(dim=0)
    gap = float((found[0] - wanted).norm() / wanted.norm().clamp(min=1e-30))
    if not gap <= TOLERANCE:
        raise RecipeError(
            f"model.quantization: bitsandbytes {metadata.version('bitsandbytes')} gives a wrong "
            "gradient here: after an "
            f"evaluation, that of {name} differs by {gap:.0%} from the one of its own weights",
            "install the version in constraints.txt (`aligner doctor` says more), or leave out "
            "model.quantization",
        )
