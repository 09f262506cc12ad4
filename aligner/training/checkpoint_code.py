"""Read checkpoints as data: no file of one may run code, whoever wrote it.

What torch saves are pickles, which can call any function while they are read. transformers reads
its own files as plain data (`weights_only`); the shards of a state that is saved in parts (torch's
distributed checkpoints) and the files of DeepSpeed are not read so. Therefore the files are looked
at before any of them is read, and while they are, torch itself takes nothing but plain data.
`training_args.bin`, a pickle that older versions left in checkpoints, is never read.
"""

from __future__ import annotations

import os
import pickletools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.serialization import get_unsafe_globals_in_checkpoint
from torch.serialization import safe_globals as allowed
from transformers.trainer_pt_utils import safe_globals as allowed_by_transformers

from aligner.errors import DataError

SAVED_BY_TORCH = ("*.pt", "*.pth", "optimizer*.bin", "pytorch_model*.bin", "adapter_model*.bin")
PARTS = "*.metadata"
"""The list of the parts of a distributed checkpoint, a plain pickle."""

FORCED = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
"""Environment variables that make `torch.load` take plain data alone, also where its caller asks
for more."""

OF_DEEPSPEED = (
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)
"""Classes of plain values that DeepSpeed's own files name."""

_METADATA = (
    "Metadata",
    "MetadataIndex",
    "ChunkStorageMetadata",
    "TensorStorageMetadata",
    "BytesStorageMetadata",
    "TensorProperties",
    "StorageMeta",
    "_MEM_FORMAT_ENCODING",
)
OF_PARTS = frozenset(
    {
        *(f"torch.distributed.checkpoint.metadata {name}" for name in _METADATA),
        "torch.distributed.checkpoint.filesystem _StorageInfo",
        "torch Size",
        "torch.serialization _get_layout",
        "collections OrderedDict",
        *(f"pathlib {name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath")),
    }
)
"""What a list of parts may name, as "module name": values, and what they are made of."""


def refuse_code(checkpoint: Path) -> None:
    """Raise DataError for a file of a checkpoint that is more than plain data; nothing in it is
    run."""
    for pattern in SAVED_BY_TORCH:
        for file in sorted(checkpoint.rglob(pattern)):
            _refuse(file, checkpoint, _named_by_torch_file(file))
    for file in sorted(checkpoint.rglob(PARTS)):
        named = named_by_pickle(file.read_bytes())
        _refuse(file, checkpoint, [name for name in sorted(named) if not _is_of_parts(name)])


def _refuse(file: Path, checkpoint: Path, named: list[str]) -> None:
    if named:
        raise DataError(
            f"{file} is not plain data: reading it would run {named[0].replace(' ', '.')}",
            f"find out who wrote it; delete {checkpoint} to resume from the checkpoint before it, "
            "or start again with --overwrite",
        )


@contextmanager
def only_plain_data() -> Iterator[None]:
    """Let `torch.load` read plain data alone, whatever its caller and the environment ask for."""
    before = {name: os.environ.get(name) for name in FORCED}
    os.environ.update(FORCED)
    try:
        with _allowed():
            yield
    except CheckpointException as error:
        if "Weights only load failed" not in str(error):
            raise
        raise DataError(
            "a part of the checkpoint is not plain data: reading it would run code",
            "find out who wrote it; delete the checkpoint to resume from the one before it",
        ) from error
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _allowed() -> Iterator[None]:
    """Take the classes that the files of transformers and of DeepSpeed name for plain data."""
    found: list[Any] = []
    if find_spec("deepspeed") is not None:
        found = [getattr(import_module(module), name, None) for module, name in OF_DEEPSPEED]
    with ExitStack() as stack:
        stack.enter_context(allowed_by_transformers())
        stack.enter_context(allowed([one for one in found if one is not None]))
        yield


def _named_by_torch_file(file: Path) -> list[str]:
    with _allowed():
        try:
            return sorted(get_unsafe_globals_in_checkpoint(str(file)))
        except (ValueError, RuntimeError, UnpicklingError):  # not of torch.save, or cut short
            return ["what torch.save does not write"]


def _is_of_parts(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    is_dtype = module == "torch" and isinstance(getattr(torch, attribute, None), torch.dtype)
    return is_dtype or name in OF_PARTS


def named_by_pickle(content: bytes) -> set[str]:
    """Return what a pickle would import, as "module name", without reading it as one; an import
    whose name is not written plainly is "something unnamed"."""
    names: set[str] = set()
    memo: dict[int, str | None] = {}
    top: list[str | None] = [None, None]
    """The texts that lie on top of the stack; None for what is none."""
    try:
        for opcode, argument, _ in pickletools.genops(content):
            what = opcode.name
            if what in ("GLOBAL", "INST"):
                names.add(str(argument))
            elif what == "STACK_GLOBAL":
                plain = None not in top
                names.add(" ".join(map(str, top)) if plain else "something unnamed")
            elif what.startswith("EXT"):
                names.add("something unnamed")
            if what == "MEMOIZE":
                memo[len(memo)] = top[-1]
            elif "PUT" in what:
                memo[int(str(argument))] = top[-1]
            elif what != "FRAME":
                top = [top[-1], _text(what, argument, memo)]
    except ValueError:
        names.add("something unnamed")
    return names


def _text(what: str, argument: Any, memo: dict[int, str | None]) -> str | None:
    """What an instruction puts on the stack, if that is a text."""
    if "UNICODE" in what:
        return str(argument)
    return memo.get(int(argument)) if what in ("GET", "BINGET", "LONG_BINGET") else None
