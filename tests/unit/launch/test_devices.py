"""What a device can do."""

from __future__ import annotations

import pytest
import torch

from aligner.launch.devices import has_bf16_gpu, native_bf16


@pytest.mark.parametrize(
    ("can", "native"),
    [
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"avx512_f": True, "amx_tile": True, "amx_bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({"avx2": True}, False),
        ({"neon": True, "bf16": True}, False),  # ARM: not tried, so not claimed
    ],
)
def test_a_cpu_computes_bf16_itself_with_avx512_bf16_or_amx(
    can: dict[str, bool], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    assert native_bf16("cpu") is native
    assert native_bf16(torch.device("cpu")) is native


def test_a_gpu_that_emulates_bf16_does_not_compute_it_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not native_bf16("cuda:0")
    assert not has_bf16_gpu()
    assert not native_bf16("mps")
