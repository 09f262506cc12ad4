"""Which device this process works on, and what that device can do."""

from __future__ import annotations

import os


def has_bf16_gpu() -> bool:
    """Say whether there is a CUDA device that computes in bfloat16."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def best_device() -> str:
    """Return the device that one process works on: its CUDA device, Apple's, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{_local_rank()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def rank_device() -> str | int:
    import torch

    return _local_rank() if torch.cuda.is_available() else "cpu"


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))
