"""Recognize from its files a folder that is not a model, and say what to name instead.

Also whether its small files are JSON objects, and whether the sizes in its config.json can be those
of its weights. Imports nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aligner.data.strict_json import RepeatedKey, decode
from aligner.errors import RecipeError
from aligner.runs.checkpoints import checkpoints_in

CONFIG_FILE = "config.json"
JSON_FILES = (
    CONFIG_FILE,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "adapter_config.json",
)
"""Small files that hold an object each."""
MAX_HEADER_BYTES = 100_000_000
"""What safetensors itself allows a header to be."""

SIZES = (
    *(
        "hidden_size",
        "n_embd",
        "d_model",
        "vocab_size",
        "intermediate_size",
        "head_dim",
        "num_experts",
    ),
    *("num_attention_heads", "n_head", "num_key_value_heads", "num_local_experts"),
)
LAYERS = ("num_hidden_layers", "n_layer")
EXACT = ("hidden_size", "vocab_size")
"""Sizes that some weight of every model has; others can stand in a config without any use."""
POSITIONS = ("max_position_embeddings", "n_positions")
ALWAYS_ALLOWED = 65_536


def read_object(file: Path, where: str) -> dict[str, Any]:
    """Return the JSON object that a file holds. Raises: RecipeError naming the file and what it
    holds instead."""
    try:
        value = decode(file.read_text(encoding="utf-8"))
    except RepeatedKey as error:
        raise RecipeError(
            f"{where}: in {file}, {error}", "keep the value that the weights were made with"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = (
            "it is nested too deeply"
            if isinstance(error, RecursionError)
            else str(error) or "it cannot be read"
        )
        raise _damaged(where, file, f"is not JSON: {reason}") from error
    if not isinstance(value, dict):
        kinds = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
        kind = kinds.get(type(value), "a number")
        raise _damaged(where, file, f"holds {kind}, not an object")
    return value


def _damaged(where: str, file: Path, what: str) -> RecipeError:
    return RecipeError(
        f"{where}: {file} {what}", "the file is damaged: download it again, or save the model again"
    )


def check_files(folder: Path, where: str) -> None:
    """Refuse a folder of which a small file is no JSON object, or a tokenizer.json that is none."""
    for name in JSON_FILES:
        if (folder / name).exists():
            read_object(folder / name, where)
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file():  # too large to be read twice
        with tokenizer.open("rb") as stream:
            start = stream.read(64).lstrip()
        if not start.startswith(b"{"):
            raise _damaged(where, tokenizer, "holds no JSON object")


# --- other things than models ---------------------------------------------------------------------


def what_else(folder: Path) -> tuple[str, str]:
    """Return what a folder without config.json and without an adapter is, and what to name
    instead."""
    for is_it, what, hint in _other_things(folder):
        if is_it:
            return what, hint
    return "", "name the folder of a model, for example the final/ of a run"


def _other_things(folder: Path) -> Iterator[tuple[bool, str, str]]:
    final, checkpoints = folder / "final", checkpoints_in(folder)
    snapshots = sorted(folder.glob("snapshots/*/config.json"))
    inside = sorted(
        file.parent
        for name in (CONFIG_FILE, "adapter_config.json")
        for file in folder.glob(f"*/{name}")
    )
    yield not any(folder.iterdir()), "an empty folder", "is the download complete?"
    yield final.is_dir(), "the directory of a run", f"did you mean {final}?"
    yield (
        (folder / "manifest.json").is_file() and (folder / "resolved.json").is_file(),
        "a run that is finished and made no model",
        "name the folder of a model, for example the final/ of a training run",
    )
    yield (
        (folder / "resolved.json").is_file(),
        "a run that has not finished",
        "continue it with --resume",
    )
    yield (
        bool(checkpoints),
        "a folder of checkpoints",
        f"did you mean {checkpoints[-1] if checkpoints else ''}?",
    )
    yield (
        bool(snapshots),
        "a cache of the hub",
        f"name {snapshots[0].parent if snapshots else ''}, or the hub id",
    )
    yield (
        (folder / "model_index.json").is_file(),
        "a diffusers pipeline, which makes no text",
        "name a language model",
    )
    yield (
        (folder / "modules.json").is_file(),
        "a sentence-transformers model, which gives vectors and writes no text",
        "name a language model",
    )
    yield (
        (folder / "params.json").is_file(),
        "in the form of its authors, not of transformers",
        "name the folder that transformers reads (its name often ends in -hf)",
    )
    yield (
        bool(list(folder.glob("*.gguf"))),
        "a folder of several GGUF files",
        "name one of the files",
    )
    yield (
        bool(list(folder.glob("*.onnx"))),
        "an ONNX model",
        "name the model that it was exported from",
    )
    yield bool(inside), "a folder of models", f"did you mean {inside[0] if inside else ''}?"


# --- sizes ----------------------------------------------------------------------------------------


def check_sizes(folder: Path, where: str) -> None:
    """Refuse sizes that are not sizes, or that are too large for the weights, before anything is
    made of them.

    Made of them it would be: transformers fills up with random numbers what the files lack.
    """
    file = folder / CONFIG_FILE
    config = read_object(file, where)
    shapes: list[list[int]] = []
    for weights in folder.glob("*.safetensors"):
        tensors = [item for item in weights_header(weights).values() if isinstance(item, dict)]
        found = [tensor.get("shape") for tensor in tensors]
        shapes += [shape for shape in found if isinstance(shape, list)]
    inner = config.get("text_config")
    for part in (
        (inner,) if isinstance(inner, dict) else (config,)
    ):  # beside a part for text, sizes are often unused
        for key in (*SIZES, *LAYERS, *POSITIONS):
            if wrong := _wrong_size(key, part.get(key), shapes, has_own_code="auto_map" in config):
                raise RecipeError(
                    f"{where}: {file}: {key} {str(part[key])[:40]!r} {wrong}",
                    "the file is damaged, or belongs to another model: download it again",
                )


def _wrong_size(key: str, value: Any, shapes: list[list[int]], *, has_own_code: bool) -> str:
    """ "" or what is wrong with a size of a config."""
    if isinstance(value, bool | str | float):
        return "is not a whole number"
    if not isinstance(value, int):
        return ""
    if value < 0:
        return "is negative"
    if key in POSITIONS:
        return "" if value else "leaves no room for a token"
    sides = {side for shape in shapes for side in shape}
    most = len(shapes) if key in LAYERS else max([ALWAYS_ALLOWED, *sides])
    if shapes and value > most:
        return f"is more than the {len(shapes):,} weights beside it can have"
    if shapes and value and key in EXACT and value not in sides and not has_own_code:
        return "is not a side of any weight beside it"
    return ""


def weights_header(file: Path) -> dict[str, Any]:
    """Return what a safetensors file says of its tensors; nothing where it is damaged, which the
    loader will tell."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size)) if size <= MAX_HEADER_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}
