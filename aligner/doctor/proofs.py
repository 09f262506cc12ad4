"""All self-tests of the arithmetic in a row: `aligner doctor --numerics`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from aligner.doctor.numerics import Measured, measure
from aligner.doctor.quantized import QUANTIZED, measure_quantized
from aligner.doctor.trainings import TESTS, measure_training
from aligner.launch.devices import best_device


def prove(device: str | None = None) -> Iterator[Measured]:
    """Yield what each self-test finds on a device (absent: the one that would train), the quick
    ones first. The random state stays as it was."""
    device = device or best_device()
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        yield from measure(device)
        for kind in QUANTIZED:
            yield measure_quantized(kind, device)
        for name in TESTS:
            yield measure_training(name, device)
