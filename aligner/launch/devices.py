"""Which device this process works on, and what that device can do."""

from __future__ import annotations

from aligner.launch.world import local_world


def has_bf16_gpu() -> bool:
    """Say whether there is a CUDA device that computes in bfloat16."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def best_device() -> str:
    """Return the device that one process works on: its CUDA device, Apple's, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{local_world()[0]}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def rank_device() -> str | int:
    import torch

    return local_world()[0] if torch.cuda.is_available() else "cpu"
