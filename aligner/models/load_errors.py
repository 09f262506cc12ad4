"""Turn whatever libraries raise while they load a model folder into one sentence that names the
folder.

A folder can be wrong in more ways than a list of exceptions holds: transformers and PEFT raise
KeyError for an unknown kind, ZeroDivisionError for no heads, and tokenizers a bare Exception for a
damaged file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aligner.errors import AlignerError, RecipeError
from aligner.models.folder_kinds import SIZES, read_object

MAX_REASON_CHARACTERS = 300


@contextmanager
def reading(
    name: str, what: str, key: str = "model.name_or_path", hint: str = ""
) -> Iterator[None]:
    """Turn what is raised within into a RecipeError about the `what` (tokenizer, model, adapter) of
    `name`."""
    try:
        yield
    except AlignerError:
        raise
    except Exception as error:  # libraries, and code that ships with a model, may raise anything
        raise cannot_load(name, what, error, key, hint) from error


def cannot_load(
    name: str, what: str, error: Exception, key: str = "model.name_or_path", hint: str = ""
) -> RecipeError:
    """Return the error that says what cannot be loaded, why, and what to do."""
    return RecipeError(
        f"{key}: the {what} of {name!r} cannot be loaded: {_reason(error)}",
        hint or _hint(name, error),
    )


def _reason(error: Exception) -> str:
    """The first line of a message, with the next one where it ends in a colon; the type says it
    where the text does not."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    speaks = isinstance(error, OSError | ValueError | ImportError) or type(
        error
    ).__name__.startswith("Strict")
    kind = "" if text and speaks else f"{type(error).__name__}: "
    return f"{kind}{text}"[:MAX_REASON_CHARACTERS] or type(error).__name__


def _hint(name: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            "set model.trust_remote_code=true, or give --trust-remote-code, if you trust the code "
            "that ships with it"
        )
    if "alloc" in str(error) or isinstance(error, MemoryError):
        return (
            "are the sizes in its config.json right? Else name a smaller model, or load it with "
            "model.quantization"
        )
    file = Path(name).expanduser() / "config.json"
    config = read_object(file, "") if file.is_file() else {}
    # What divides by a size that is 0 does not say which one.
    if zeros := ", ".join(f"{key}: 0" for key in SIZES if config.get(key) == 0):
        return f"its config.json says {zeros}: is that right?"
    if Path(name).expanduser().exists() or isinstance(error, ImportError):
        return (
            "see the message: a file is missing or damaged, or a setting under `model` does not "
            "fit this model"
        )
    return (
        "check the name and the network (HF_HUB_OFFLINE), or name a folder that holds the model "
        "as safetensors"
    )


MODEL_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What the code of a model raises when sizes or inputs do not suit it; it is not ours, and each has
ways of its own."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
