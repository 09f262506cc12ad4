"""Further copies of a policy's trained weights: a moving average, and a reference that follows it.

A copy holds what training changes and nothing else: under LoRA the adapter's weights (policy,
average and reference then share one base, also a 4-bit one), in full fine-tuning every weight, on
the CPU if asked. It is put in the place of the policy's own weights for as long as it is needed
(`swapped_in`), by exchanging storage: no second module, no other code path than the policy's own.

Copies are float32 whatever the policy is: in bfloat16 the small steps of an average are rounded
away. The average of an adapter's two factors is not the factors of the average; the difference is
of second order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of a model that are trained, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


class WeightCopy:
    """A float32 copy of a model's trained weights. `device` None: beside the weights."""

    def __init__(self, model: nn.Module, device: str | torch.device | None = None) -> None:
        self.weights: dict[str, Tensor] = {
            name: weight.detach().to(device=device or weight.device, dtype=torch.float32, copy=True)
            for name, weight in trained_weights(model).items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float) -> None:
        """Move towards the model: copy = decay * copy + (1 - decay) * model. `decay` weighs the
        old."""
        for name, weight in trained_weights(model).items():
            mine = self.weights[name]
            mine.lerp_(weight.detach().to(mine), 1 - decay)

    @torch.no_grad()
    def copy_from(self, other: nn.Module | WeightCopy) -> None:
        """Take over the weights of a model or of another copy."""
        weights = other.weights if isinstance(other, WeightCopy) else trained_weights(other)
        for name, mine in self.weights.items():
            mine.copy_(weights[name].detach())

    @torch.no_grad()
    def distance(self, model: nn.Module) -> float:
        """Return |model - copy| / |model|, over all trained weights."""
        squares = []
        for name, weight in trained_weights(model).items():
            mine = self.weights[name]
            here = weight.detach().to(mine)
            squares.append(torch.stack([(here - mine).square().sum(), here.square().sum()]))
        apart, whole = torch.stack(squares).sum(dim=0).tolist()
        return (apart / whole) ** 0.5 if whole else 0.0

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Let the model work with these weights; nothing may be trained meanwhile."""
        own = {}
        try:
            for name, weight in trained_weights(model).items():
                own[name] = (weight, weight.data)
                weight.data = self.weights[name].to(device=weight.device, dtype=weight.dtype)
            yield
        finally:
            for weight, data in own.values():
                weight.data = data

    def save(self, file: Path) -> None:
        """Write the weights as safetensors."""
        save_file({name: weight.contiguous() for name, weight in self.weights.items()}, str(file))

    def load(self, file: Path) -> None:
        """Take over the weights in a file that `save` wrote."""
        found = load_file(str(file))
        assert found.keys() == self.weights.keys(), "the file holds the weights of another model"
        for name, mine in self.weights.items():
            mine.copy_(found[name])
