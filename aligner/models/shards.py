"""Check that the weights of a model's folder are complete and undamaged, by names, sizes and
headers: nothing is loaded.

transformers and PEFT find out late, in words of their own, that a shard is missing or cut off:
after the rows are tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

from aligner.errors import RecipeError
from aligner.models.folder_kinds import MAX_HEADER_BYTES, read_object

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
AGAIN = "the download, or the copy, is not complete: fetch it again"


def check_shards(folder: Path, where: str, *, is_adapter: bool) -> None:
    """Refuse a folder whose weights are not all there, or are cut off.

    Raises: RecipeError naming the file, and its size beside the one that its header promises.
    """
    for file in _files(folder, where, is_adapter):
        size, promised = file.stat().st_size, _promised(file)
        if promised is None:
            raise RecipeError(
                f"{where}: {file} is not a safetensors file, or its beginning is damaged", AGAIN
            )
        if size != promised:
            what = "is cut off" if size < promised else "is longer than it says"
            raise RecipeError(f"{where}: {file} {what}: {size:,} bytes of {promised:,}", AGAIN)


def _files(folder: Path, where: str, is_adapter: bool) -> list[Path]:
    """The files that would be loaded."""
    single = folder / (ADAPTER_WEIGHTS if is_adapter else WEIGHTS)
    if single.is_file():
        return [single]
    if is_adapter:
        raise RecipeError(f"{where}: {folder} holds no {ADAPTER_WEIGHTS}", AGAIN)
    index = folder / INDEX
    if not index.is_file():
        others = ", ".join(sorted(file.name for file in folder.glob("*.safetensors"))[:3])
        raise RecipeError(
            f"{where}: {folder} holds neither {WEIGHTS} nor {INDEX} (but {others})", AGAIN
        )
    table = read_object(index, where).get("weight_map")
    if (
        not isinstance(table, dict)
        or not table
        or not all(isinstance(name, str) for name in table.values())
    ):
        raise RecipeError(f"{where}: {index} has no `weight_map` from weights to files", AGAIN)
    names = sorted(set(table.values()))
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        shown = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise RecipeError(
            f"{where}: {len(absent)} of {len(names)} files that {index} names are missing: {shown}",
            AGAIN,
        )
    return [folder / name for name in names]


def _promised(file: Path) -> int | None:
    """The size that a safetensors file says it has; None where its beginning says nothing."""
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
            return None
        text = stream.read(length)
    if len(text) < length:
        return 8 + length + 1  # cut off within the header: more was to come
    try:
        header = json.loads(text)
        ends = [
            entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"
        ]
        return 8 + length + max(ends, default=0)
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, IndexError):
        return None
