"""Self-tests of 4 and 8 bits: adapters over a quantized base get the gradient that they would get
over its dequantized twin, before and after an evaluation.

bitsandbytes has a fast way for inputs without gradients, and layers that remember it: a training
that evaluates in between once went on with gradients that stopped at the last layer. Llama is
random, with two layers; every quantized layer's own weight, dequantized, makes the twin.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from aligner.doctor.numerics import (
    ROUGH_TOLERANCE,
    TOLERANCE,
    Measured,
    measured,
    random_adapter,
    random_llama,
    random_rows,
)

QUANTIZED = ("nf4", "fp4", "int8")
INT8_TOLERANCE = 0.15  # inputs rounded to 8 bits give 0.03 here, a gradient that does not flow 1


def quantized(kind: str, device: str) -> float:
    """Gradient of adapters over a quantized base against that over its dequantized twin, before and
    after an evaluation.

    Returned is the larger difference, as a share of the gradient's size.
    """
    from aligner.models.quantized import keep_steady

    policy, twin = (random_adapter(_quantize(random_llama(device), kind)) for _ in range(2))
    keep_steady(policy)
    _dequantize(twin)
    row_1T = random_rows()[0][None].to(device)
    wanted, before = _adapter_gradient(twin, row_1T), _adapter_gradient(policy, row_1T)
    with torch.no_grad():
        policy.eval()(input_ids=row_1T, use_cache=False)
    after = _adapter_gradient(policy, row_1T)
    return max(float((found - wanted).norm() / wanted.norm()) for found in (before, after))


def measure_quantized(kind: str, device: str) -> Measured:
    """Run the self-test of one kind of quantization on a device. On a GPU, `int8` rounds the inputs
    of its layers too."""
    claim = (
        f"{kind} trains: its gradient is that of its dequantized twin, before and after an "
        "evaluation"
    )
    tolerance = (
        TOLERANCE if device == "cpu" else INT8_TOLERANCE if kind == "int8" else ROUGH_TOLERANCE
    )
    return measured(kind, claim, partial(quantized, kind), device, tolerance)


def _quantize(model: Any, kind: str) -> Any:
    """Put every linear layer but the head into 4 or 8 bits, as loading with `model.quantization`
    does."""
    import bitsandbytes as bnb

    for name, layer in list(model.model.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            shape = layer.in_features, layer.out_features
            if kind == "int8":
                packed = bnb.nn.Linear8bitLt(
                    *shape, bias=False, has_fp16_weights=False, threshold=6.0
                )
            else:
                packed = bnb.nn.Linear4bit(
                    *shape, bias=False, compute_dtype=layer.weight.dtype, quant_type=kind
                )
            packed.load_state_dict(layer.state_dict())
            model.model.set_submodule(name, packed.to(layer.weight.device))
    setattr(
        model, "is_loaded_in_8bit" if kind == "int8" else "is_loaded_in_4bit", True
    )  # PEFT asks
    return model


def _dequantize(model: Any) -> None:
    from aligner.models.quantized import plain_weight, quantized_layers

    for name, layer in quantized_layers(model).items():
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight = torch.nn.Parameter(plain_weight(layer), requires_grad=False)
        model.set_submodule(name, plain)


def _adapter_gradient(policy: Any, row_1T: Tensor) -> Tensor:
    policy.train().zero_grad()
    policy(input_ids=row_1T, labels=row_1T, use_cache=False).loss.backward()
    return torch.cat(
        [weight.grad.flatten() for weight in policy.parameters() if weight.requires_grad]
    )
