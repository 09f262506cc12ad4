"""Muon (Jordan et al., 2024): momentum whose matrices are orthogonalised before each step.

On the toy world's model it needs less than half the batches that AdamW needs, which is what lets
pretraining end within a minute. `torch.optim.Muon` does the same sums one matrix at a time and in
bfloat16, which is slow on a CPU; this one stacks matrices of one shape and stays in float32. It
serves `pretrain.py` and keeps to what that needs: no weight decay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; for weight matrices only, embeddings excepted."""

    def __init__(self, matrices: Iterable[Parameter], lr: float, momentum: float = 0.95) -> None:
        by_shape: dict[torch.Size, list[Parameter]] = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        super().__init__(
            [{"params": group} for group in by_shape.values()], {"lr": lr, "momentum": momentum}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            matrices = group["params"]
            gradient = torch.stack([matrix.grad for matrix in matrices])
            state = self.state[matrices[0]]
            average = state.setdefault("average", torch.zeros_like(gradient)).lerp_(
                gradient, 1 - group["momentum"]
            )
            update = orthogonalised(gradient.lerp(average, group["momentum"]))
            rows, columns = update.shape[1:]
            update *= -group["lr"] * max(1.0, rows / columns) ** 0.5
            torch._foreach_add_(matrices, list(update))


def orthogonalised(stack: Tensor) -> Tensor:
    """Bring the singular values of every matrix in a stack near 1, by Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
