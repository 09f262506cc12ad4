"""GGUF files, the format of llama.cpp: read by transformers as an ordinary model, with the blocks
dequantized.

Tokenizer and chat template come out of the file too. The model is trained and saved like any other,
as safetensors. What llama.cpp's rounding took away is gone; the model that the file was made from
is the better start where it can be had.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aligner.errors import RecipeError

SUFFIX = ".gguf"
MAGIC = b"GGUF"
OTHER_FORMS = ("config.json", "adapter_config.json")


def gguf_file(name: str) -> Path | None:
    """Return the GGUF file that a name means: the file itself, or the only one of a folder that
    holds no other model."""
    path = Path(name).expanduser()
    if path.is_file():
        return path if path.suffix.lower() == SUFFIX else None
    if not path.is_dir() or any((path / other).exists() for other in OTHER_FORMS):
        return None
    found = sorted(path.glob(f"*{SUFFIX}"))
    return found[0] if len(found) == 1 else None


def check_gguf(file: Path, where: str) -> None:
    """Refuse a file that is no GGUF, and any while the package that reads them is not there."""
    with file.open("rb") as stream:
        is_gguf = stream.read(len(MAGIC)) == MAGIC
    if not is_gguf:
        raise RecipeError(
            f"{where}: {file} does not begin as a GGUF file does", "download it again"
        )
    if "-of-" in file.stem:
        raise RecipeError(
            f"{where}: {file} is a part of a GGUF model",
            "join the parts (llama-gguf-split --merge), or name the original",
        )
    if find_spec("gguf") is None:
        raise RecipeError(
            f"{where}: {file} is a GGUF file, and the package that reads those is not installed",
            'pip install "aligner-toolkit[gguf]"; or name the folder of the model that it was '
            "made from",
        )


def source_of(name: str) -> tuple[str, dict[str, Any]]:
    """Return what `from_pretrained` is called with for a name: folder or hub id, and the file in it
    if it is a GGUF."""
    file = gguf_file(name)
    if file is not None:
        return str(file.parent.resolve()), {"gguf_file": file.name}
    path = Path(name).expanduser()
    return (str(path.resolve()) if path.is_dir() else name), {}


def as_ordinary(policy: Any, name: str) -> None:
    """Let a model that came out of a GGUF file say where it came from, so that an adapter finds its
    base again."""
    file = gguf_file(name)
    if file is not None:
        policy.name_or_path = policy.config._name_or_path = str(file.resolve())
