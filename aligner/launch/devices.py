"""Which device this process works on, and what that device can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligner.launch.world import local_world

if TYPE_CHECKING:
    import torch


def has_bf16_gpu() -> bool:
    """Say whether there is a CUDA device that computes in bfloat16 itself."""
    import torch

    return torch.cuda.is_available() and native_bf16("cuda")


def native_bf16(device: torch.device | str | int) -> bool:
    """Say whether a device computes in bfloat16 itself, rather than by way of float32: a CPU with
    AVX512-BF16 or AMX, a GPU of NVIDIA's Ampere or later, or one of AMD's.

    Whether that is faster for a given piece of work is another question. Of others, such as
    Apple's, we do not know, and say no.
    """
    import torch

    kind = torch.device(device).type
    if kind == "cpu":
        can = torch.cpu.get_capabilities()
        return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    return kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def best_device() -> str:
    """Return the device that one process works on: its CUDA device, Apple's, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{local_world()[0]}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def rank_device() -> str | int:
    import torch

    return local_world()[0] if torch.cuda.is_available() else "cpu"
