"""The checks of `aligner doctor`: versions, devices, 4-bit, several processes, the hub, the disk,
and the numerics.

`examine()` runs every check and returns them; nothing is printed or changed, and no check depends
on the network (one asks the hub whether it answers, unless HF_HUB_OFFLINE is set). A check names
what it found, and what to do where that is wrong. Checks really do what they speak of where that
takes a second: a model in 4 bits is trained, one process group is formed, and the arithmetic is
tested (`numerics.py`). Tests that train whole runs are left to `proofs.py`.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from aligner.doctor.numerics import Measured

DISTRIBUTION = "aligner-toolkit"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")
OPTIONAL = {
    "flash_attn": "model.attn_implementation=flash_attention_2",
    "deepspeed": "launch.strategy=zero1, zero2, zero3",
    "vllm": "serving what was trained",
    "matplotlib": "aligner arena rate --png",
    "lm_eval": "aligner eval --tasks",
}
"""Module -> what it is for."""

HUB_TIMEOUT_S = 5.0
SCARCE_DISK_GB = 10.0
CURE_OF_NUMERICS = (
    "do not trust training here: go back to the versions in constraints.txt, and report this"
)

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `note`: works without, but worth knowing. `problem`: something will fail.
    `cure`: what to do."""

    name: str
    status: Status
    detail: str
    cure: str = ""


def examine() -> list[Check]:
    """Run every check, the quick ones first. The random state stays as it was."""
    import torch

    parts: tuple[Callable[[], Iterator[Check]], ...] = (
        check_python,
        check_packages,
        check_cpu,
        check_gpus,
        check_quantized,
        check_processes,
        check_verifiers,
        check_hub,
        check_disk,
        check_optional,
        check_numerics,
    )
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        return [check for part in parts for check in part()]


def check_python() -> Iterator[Check]:
    """Python, the system, and this project's own version."""
    yield Check(
        "python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    yield Check("aligner", "ok", metadata.version(DISTRIBUTION))


def check_packages() -> Iterator[Check]:
    """Versions of what we stand on, against the ranges of our own package metadata."""
    from packaging.requirements import Requirement

    ranges = {
        r.name: r.specifier
        for r in map(Requirement, metadata.requires(DISTRIBUTION) or [])
        if r.marker is None
    }
    for name in PACKAGES:
        wanted = ranges[name]
        cure = f'run: pip install "{name}{wanted}"'
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, "problem", "not installed", cure)
            continue
        if wanted.contains(found, prereleases=True):
            yield Check(name, "ok", found)
        else:
            yield Check(name, "problem", f"{found}, outside {wanted}", cure)


def check_cpu() -> Iterator[Check]:
    """Threads and memory."""
    import psutil  # type: ignore[import-untyped]
    import torch

    memory = psutil.virtual_memory()
    cores = f"{os.cpu_count()} CPUs, torch uses {torch.get_num_threads()} threads"
    yield Check(
        "cpu", "ok", f"{cores}; {_gb(memory.total)} of memory, {_gb(memory.available)} free"
    )


def check_gpus() -> Iterator[Check]:
    """Every GPU that torch can use, with its memory and whether it computes in bfloat16."""
    import torch

    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        has_bf16 = torch.cuda.get_device_capability(index) >= (8, 0)
        detail = f"{torch.cuda.get_device_name(index)}, {_gb(total)} of memory, {_gb(free)} free"
        if has_bf16:
            yield Check(f"gpu {index}", "ok", f"{detail}, bfloat16")
        else:
            yield Check(
                f"gpu {index}",
                "note",
                f"{detail}, no bfloat16",
                "use trainer.fp16=true with model.lora",
            )
    if torch.backends.mps.is_available():
        yield Check("gpu", "ok", "Apple GPU (mps), for one process")
    elif not torch.cuda.is_available():
        yield _no_gpu(torch.__version__)


def _no_gpu(torch_version: str) -> Check:
    from aligner.launch.command import count_nvidia

    driver = count_nvidia()
    if driver:
        return Check(
            "gpu",
            "problem",
            f"{driver} NVIDIA GPU(s) here, but torch {torch_version} cannot use them",
            "install a CUDA build of torch (pytorch.org/get-started), or update the driver",
        )
    return Check(
        "gpu", "note", "none: everything runs on the CPU, which is enough for the tiny recipes"
    )


def check_quantized() -> Iterator[Check]:
    """Train a model in 4 and in 8 bits, evaluate it, and train it again: the gradient must be that
    of its own weights."""
    from aligner.doctor.quantized import QUANTIZED, measure_quantized
    from aligner.launch.devices import best_device

    device = best_device()
    cure = "go back to the bitsandbytes in constraints.txt; or leave out model.quantization"
    for kind in QUANTIZED:
        yield _checked(measure_quantized(kind, device), device, cure)


def check_processes() -> Iterator[Check]:
    """Form a process group of one over gloo, and say whether GPUs can talk over NCCL."""
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_gloo_available()):
        yield Check(
            "gloo",
            "problem",
            "this build of torch has no gloo",
            "install an ordinary build of torch",
        )
        return
    try:
        if not distributed.is_initialized():
            distributed.init_process_group(
                "gloo", store=distributed.HashStore(), rank=0, world_size=1
            )
            total = torch.ones(1)
            distributed.all_reduce(total)
            distributed.destroy_process_group()
        yield Check("gloo", "ok", "several processes on CPU can train together")
    except RuntimeError as error:
        cure = "name a network interface of this machine in GLOO_SOCKET_IFNAME, for example lo"
        yield Check("gloo", "problem", f"processes cannot talk: {_first_line(error)}", cure)
    if torch.cuda.is_available():
        has_nccl = distributed.is_nccl_available()
        detail = (
            "several GPUs can train together" if has_nccl else "this build of torch has no NCCL"
        )
        yield Check("nccl", "ok" if has_nccl else "note", detail)


def check_verifiers() -> Iterator[Check]:
    """Start what judges the programs of answers, and see which walls this machine can put around
    it."""
    from aligner.sandbox.standing import CURE, standing_walls, what_is_open
    from aligner.sandbox.worker import StartError

    try:
        found = what_is_open(standing_walls())
    except StartError as error:
        yield Check(
            "verifiers",
            "problem",
            str(error),
            "see whether the machine is short of memory or processes",
        )
        return
    if not found:
        shut = "programs of answers are shut in: files, network, sockets, processes, memory"
        yield Check("verifiers", "ok", shut)
        return
    yield Check("verifiers", "note", f"here programs of answers can {found}", CURE)


def check_hub() -> Iterator[Check]:
    """Whether models and datasets can be fetched."""
    import urllib.error
    import urllib.request

    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        yield Check("hub", "note", "offline by HF_HUB_OFFLINE: only local folders and the cache")
        return
    cure = "use local folders and set HF_HUB_OFFLINE=1, or set HF_ENDPOINT or HTTPS_PROXY"
    try:
        with urllib.request.urlopen(constants.ENDPOINT, timeout=HUB_TIMEOUT_S):
            pass
    except urllib.error.HTTPError as error:
        yield Check("hub", "note", f"{constants.ENDPOINT} answers with status {error.code}", cure)
    except (OSError, ValueError) as error:
        yield Check(
            "hub", "note", f"{constants.ENDPOINT} cannot be reached: {_first_line(error)}", cure
        )
    else:
        signed_in = (
            "signed in" if get_token() else "not signed in (gated models need `hf auth login`)"
        )
        yield Check("hub", "ok", f"{constants.ENDPOINT} answers; {signed_in}")


def check_disk() -> Iterator[Check]:
    """Where models are kept, and the room there and here."""
    from huggingface_hub import constants

    for name, folder in {
        "cache": Path(constants.HF_HUB_CACHE),
        "working directory": Path.cwd(),
    }.items():
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free
        if free > SCARCE_DISK_GB * 1e9:
            yield Check(name, "ok", f"{folder}, {_gb(free)} free")
        else:
            cure = (
                "set HF_HOME to a larger disk"
                if name == "cache"
                else "set output_dir to a larger disk"
            )
            yield Check(name, "note", f"{folder}, only {_gb(free)} free", cure)


def check_optional() -> Iterator[Check]:
    """Packages that nothing here needs."""
    for name, purpose in OPTIONAL.items():
        there = importlib.util.find_spec(name) is not None
        yield Check(
            name,
            "ok" if there else "note",
            f"{'installed' if there else 'not installed'} (for {purpose})",
        )


def check_numerics() -> Iterator[Check]:
    """The arithmetic that training stands on, on the device that would train."""
    from aligner.doctor.numerics import measure
    from aligner.launch.devices import best_device

    device = best_device()
    for found in measure(device):
        yield _checked(found, device, CURE_OF_NUMERICS)


def _checked(found: Measured, device: str, cure: str) -> Check:
    if found.error:
        said = f"{found.name} does not work on {device}: {found.error}"
        return Check(found.name, "problem", said, cure)
    detail = f"{found.claim} (difference {found.difference:.1g} on {device})"
    if found.holds:
        return Check(found.name, "ok", detail)
    return Check(found.name, "problem", f"not so: {detail}, allowed {found.tolerance:.1g}", cure)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
