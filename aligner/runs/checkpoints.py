"""The checkpoints of a run: their names, which are whole, which are kept, which is the last.
Imports no torch.

The checkpoint of step N is the folder `checkpoint-N`, as transformers names it. It counts only once
the file `complete` is in it, written after everything else is on disk, and older ones are removed
only then; so a kill at any moment leaves one that can be resumed. `complete` holds the size and the
checksum of each file; which checkpoint a run resumes from is settled by
`aligner.runs.resumable`.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import xxhash

from aligner.errors import DataError
from aligner.runs.environment import now
from aligner.runs.files import dumps, parse_json, share_weights, write_atomically

COMPLETE = "complete"
SUMS = "xxh3_128"
"""The key of the checksums in it."""
STATE = "trainer_state.json"
"""What transformers notes of a training: the step, the numbers so far, the best checkpoint."""

CURE = "move the checkpoint away: --resume then continues from an older one"

_NAME = re.compile(r"^checkpoint-(\d+)$")


def checkpoint_at(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies, or will lie."""
    return folder / f"checkpoint-{step}"


def step_of(checkpoint: str | Path) -> int:
    """Return the step that a checkpoint's name says."""
    match = _NAME.match(Path(checkpoint).name)
    assert match, checkpoint
    return int(match[1])


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, whole or not, by step; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if _NAME.match(path.name) and path.is_dir()),
        key=step_of,
    )


def is_complete(checkpoint: Path) -> bool:
    """Say whether a checkpoint was declared whole."""
    return (checkpoint / COMPLETE).exists()


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint to resume from: the highest step among the whole ones."""
    whole = [path for path in checkpoints_in(folder) if is_complete(path)]
    return whole[-1] if whole else None


def mark_complete(checkpoint: Path) -> None:
    """Declare a checkpoint whole: everything in it goes to disk first, the file `complete` with all
    sizes in bytes and checksums last."""
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    share_weights(checkpoint)
    sizes, sums = {}, {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
            name = path.relative_to(checkpoint).as_posix()
            sizes[name], sums[name] = path.stat().st_size, _checksum(path)
    record = {"time": now(), "sizes": sizes, SUMS: sums}
    write_atomically(checkpoint / COMPLETE, dumps(record))


def damage_of(checkpoint: Path) -> str:
    """Say which file of a checkpoint is not what `mark_complete` saw, and how it differs; "" where
    all are."""
    try:
        record = _record(checkpoint)
    except DataError as error:
        return error.message
    for name, size in record["sizes"].items():
        file = checkpoint / name
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != size:
            return f"{file} is damaged: it has {file.stat().st_size:,} bytes of {size:,}"
    for name, known in record.get(SUMS, {}).items():
        if _checksum(checkpoint / name) != known:
            return f"{checkpoint / name} is damaged: it is not what was written there"
    return ""


def has_checksums(checkpoint: Path) -> bool:
    """Say whether a checkpoint's record holds checksums; that of an older version has sizes
    alone."""
    return SUMS in _record(checkpoint)


def _record(checkpoint: Path) -> dict[str, Any]:
    file = checkpoint / COMPLETE
    record: dict[str, Any] = parse_json(file, CURE, needed=["sizes"])
    for key in (key for key in ("sizes", SUMS) if key in record):
        if not isinstance(record[key], dict) or record[key].keys() != record["sizes"].keys():
            raise DataError(f"{file} is damaged: its {key!r} are not those of the files", CURE)
    return record


def _checksum(path: Path) -> str:
    """The xxh3 of a file, in hexadecimal digits: against accidents, at the speed of memory."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def set_aside(checkpoint: Path) -> Path:
    """Rename a checkpoint so that it counts no longer, and return where it is kept."""
    place = checkpoint.with_name(f"{checkpoint.name}.damaged")
    number = 1
    while place.exists():
        number += 1
        place = checkpoint.with_name(f"{checkpoint.name}.damaged-{number}")
    checkpoint.rename(place)
    return place


def is_last(checkpoint: Path) -> bool:
    """Say whether a run had come to its end, by its steps or by early stopping, when it wrote this
    checkpoint."""
    state = _state(checkpoint)
    control = state["stateful_callbacks"].get("TrainerControl", {}).get("args", {})
    return bool(state["global_step"] >= state["max_steps"] or control.get("should_training_stop"))


def best_of(checkpoint: Path) -> Path | None:
    """Return where the best checkpoint lay when this one was written, in the same folder; None
    where none was the best."""
    best = _state(checkpoint).get("best_model_checkpoint")
    return None if best is None else checkpoint.with_name(Path(best).name)


def _state(checkpoint: Path) -> dict[str, Any]:
    needed = ("global_step", "max_steps", "stateful_callbacks")
    state: dict[str, Any] = parse_json(checkpoint / STATE, CURE, needed=needed)
    return state


def remove_old(folder: Path, keep: int, best: str | Path | None) -> None:
    """Remove all but the latest `keep` checkpoints, and `best`, which transformers loads at the
    end."""
    best_name = Path(best).name if best else None
    found = checkpoints_in(folder)
    for path in found[: max(0, len(found) - keep)]:
        if path.name != best_name:
            _remove(path)


def remove_incomplete(folder: Path) -> None:
    """Remove what a kill left half written or half removed."""
    for path in checkpoints_in(folder):
        if not is_complete(path):
            _remove(path)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint; one of which a kill leaves a part no longer counts as whole."""
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)
