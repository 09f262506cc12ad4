"""Read and write the files of a run's record; a file is written whole or not at all. Imports no
torch.

`run.py` decides who may write and when; this module holds what it shares with the report, the model
card and the commands that list runs. Nothing in here changes a run, apart from `write_atomically`,
which is given the place.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aligner.errors import DataError


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill, finds the old content or the new and nothing
    between."""
    write_parts_atomically(path, [text])


def write_parts_atomically(path: Path, parts: Iterable[str]) -> None:
    """The same of a text that comes in parts, and is never in memory as a whole."""
    _write_atomically(path, (part.encode("utf-8") for part in parts))


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """The same of bytes."""
    _write_atomically(path, [content])


def _write_atomically(path: Path, parts: Iterable[bytes]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # a full disk, or a command that is being stopped
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def is_temporary(path: Path) -> bool:
    """Say whether a file is one that `write_atomically` had not renamed yet when it was killed."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def mode_of_new_files(folder: Path) -> int:
    """Return the mode that a new file gets in a folder, which the umask says, or the folder."""
    probe = folder / f".mode.{os.getpid()}.tmp"
    probe.touch()
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()


def share_weights(folder: Path) -> None:
    """Give the safetensors files below a folder the mode of other new files: safetensors writes
    ones that only their owner may read."""
    mode = mode_of_new_files(folder)
    for file in folder.rglob("*.safetensors"):
        file.chmod(mode)


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


PLAIN = frozenset({str, int, bool, type(None)})
"""Types that are in JSON what they are."""


def plain(value: Any) -> Any:
    """The value as strict JSON can hold it: NaN and infinities become the strings that `float()`
    reads back."""
    if isinstance(value, float):
        return (
            value
            if math.isfinite(value)
            else ("NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity")
        )
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if PLAIN.issuperset(map(type, value)):  # of token ids there are many
            return list(value)
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def dumps(
    value: Any, indent: int | None = None, default: Callable[[Any], str] | None = None
) -> str:
    """Strict JSON; half a surrogate pair, which UTF-8 cannot hold and Python's names of files can,
    stays as it is, escaped.

    `default` turns what JSON does not know into text; without it that is an error.
    """
    known = plain(value)
    text = json.dumps(known, ensure_ascii=False, allow_nan=False, indent=indent, default=default)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(known, allow_nan=False, indent=indent, default=default)
    return text


def json_line(value: Any, default: Callable[[Any], str] | None = None) -> str:
    """A line of strict JSON, with its end; see `dumps`."""
    return dumps(value, default=default) + "\n"


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Every whole line of `metrics.jsonl`; NaN and infinities are floats again. Changes nothing on
    disk."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    if path.is_dir():
        raise DataError(f"{path} is a folder where a file belongs", "move it away")
    lines = path.read_bytes().split(b"\n")[:-1]
    return [
        _metrics_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()
    ]


def _metrics_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    cure = "delete that line; the rest can be used"
    try:
        values = json.loads(line)
        found = {
            key: float(item) if item in ("NaN", "Infinity", "-Infinity") else item
            for key, item in values.items()
        }
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}:{number} is not a JSON object", cure) from error
    if not isinstance(found.get("step"), NUMBER):
        raise DataError(f"{path}:{number} says no step", cure)
    return found


LISTS = (
    "evaluation.json",
    "samples.json",
    "pairs.json",
    "rollouts.json",
    "scored.json",
    "warnings.json",
    "questions.json",
    "arena_prompts.json",
    "held_out_pairs.json",
)
"""Files of the record that hold a list; all others hold an object."""

LISTS_OF_OBJECTS = ("evaluation.json", "samples.json", "pairs.json", "scored.json")

NEEDED = {
    "resolved.json": ("recipe", "recipe_hash"),
    "environment.json": ("versions", "sessions"),
    "inputs.json": ("fingerprint", "sources"),
    "manifest.json": ("finished", "results"),
    "weights.json": ("total", "trained"),
    "merge.json": ("adapter", "base", "verified"),
}
"""File -> keys without which nothing can be made of it."""

NUMBER = (int, float)
OBJECTS = [dict]

KINDS: dict[str, dict[str, Any]] = {
    "resolved.json": {"recipe": dict, "origins": dict, "recipe_hash": str},
    "environment.json": {
        "versions": dict,
        "sessions": [{"started": str}],
        "working_directory": str,
        "git": (dict, type(None)),
        "isolation": dict,
        "arguments": dict,
    },
    "inputs.json": {"fingerprint": str, "sources": dict},
    "manifest.json": {
        "method": str,
        "results": dict,
        "parents": [{"path": str}],
        "files": dict,
        "created": str,
        "finished": str,
        "seconds": NUMBER,
    },
    "data.json": {"sources": [{"path": str}], "splits": dict, "prompts_in_both": NUMBER},
    "decided.json": {"cadence": (dict, type(None)), "steps": int, "all_held_out": int},
    "weights.json": {"total": int, "trained": int, "places": dict},
    "merge.json": {"adapter": str, "base": str, "dtype": str, "verified": dict},
}
"""File -> what some of its keys hold, where they are there: a type, a list of what stands in it, or
an object with the keys that each needs."""

CURES = {
    "manifest.json": "delete it and add --resume: what is left of the run is done again",
    "inputs.json": "delete it: --resume then takes the data as they are now",
    "data.json": "delete it and add --resume: the rows are tokenized again",
}
"""File -> what to do where it is damaged, if that is less than to start again."""

START_AGAIN = "restore it from a copy, or start again with --overwrite"


def read_json(run_dir: Path, name: str) -> Any:
    """A file of the record, or None where the run has not written it.

    Raises: DataError when it is damaged, with the way out.
    """
    path = run_dir / name
    if not path.exists():
        return None
    kind: type[dict] | type[list] = list if path.name in LISTS else dict
    cure = CURES.get(path.name, START_AGAIN)
    value = parse_json(path, cure, kind, NEEDED.get(path.name, ()))
    for key, wanted in KINDS.get(path.name, {}).items():
        if key in value and not _is_of(value[key], wanted):
            found = "incomplete" if isinstance(value[key], list) else _kind(value[key])
            raise DataError(f"{path} is damaged: its {key!r} is {found}", cure)
    if path.name in LISTS_OF_OBJECTS and not _is_of(value, OBJECTS):
        raise DataError(f"{path} is damaged: it is not a list of objects", cure)
    return value


def _is_of(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return isinstance(value, list) and all(_is_of(item, wanted[0]) for item in value)
    if isinstance(wanted, dict):
        return isinstance(value, dict) and all(
            key in value and _is_of(value[key], of) for key, of in wanted.items()
        )
    return isinstance(value, wanted)


def parse_json(
    path: Path, cure: str, kind: type[dict] | type[list] = dict, needed: Iterable[str] = ()
) -> Any:
    """Read a file that this program wrote, whole: a list or an object with the keys that it needs.

    Raises: DataError that says what is wrong with the file.
    """
    try:
        content = path.read_bytes()
        value = json.loads(content)
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder where a file belongs", "move it away") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", cure) from error
    except (ValueError, RecursionError) as error:
        what = f"not JSON ({error})" if content.strip() else "empty"
        raise DataError(f"{path} is damaged: it is {what}", cure) from error
    if not isinstance(value, kind):
        raise DataError(
            f"{path} is damaged: it holds {_kind(value)}, not "
            f"{'a list' if kind is list else 'an object'}",
            cure,
        )
    if absent := [key for key in needed if key not in value]:
        raise DataError(f"{path} is damaged: it lacks {absent[0]!r}", cure)
    return value


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")


CHECKSUMS = "checksums.json"


def write_checksums(folder: Path) -> None:
    """Note the sha256 of every file below a folder in the file `checksums.json` in it."""
    write_atomically(folder / CHECKSUMS, dumps(fingerprints(folder, folder)))


class DamagedError(DataError):
    """A file is not what was written there, or is gone."""


def check_checksums(folder: Path, cure: str) -> None:
    """Raise DamagedError for a file that is not what `write_checksums` saw; files that came later
    are not looked at."""
    noted = folder / CHECKSUMS
    if not noted.exists():
        raise DamagedError(
            f"{noted} is missing, so nothing says whether the files beside it are whole", cure
        )
    for name, digest in parse_json(noted, cure).items():
        if not (folder / name).is_file():
            raise DamagedError(f"{folder / name} is missing", cure)
        if file_sha256(folder / name) != digest:
            raise DamagedError(
                f"{folder / name} is damaged: it is not what was written there", cure
            )


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """`{"model": {"dtype": x}}` as `{"model.dtype": x}`; lists of sections are numbered:
    `data.train[0].path`."""
    if isinstance(value, dict) and value:
        pairs: Iterator[tuple[str, Any]] = (
            (f"{prefix}.{key}" if prefix else key, v) for key, v in value.items()
        )
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        pairs = ((f"{prefix}[{index}]", item) for index, item in enumerate(value))
    else:
        return {prefix: value}
    return {name: leaf for key, item in pairs for name, leaf in flatten(item, key).items()}


def fingerprints(run_dir: Path, folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder`, by path relative to the run directory."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(run_dir).as_posix(): file_sha256(path) for path in files}
