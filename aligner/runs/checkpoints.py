"""The checkpoints of a run: their names, which are whole, which are kept, which is the last.
Imports no torch.

The checkpoint of step N is the folder `checkpoint-N`, as transformers names it. It counts only once
the file `complete` is in it, written after everything else is on disk, and older ones are removed
only then; so a kill at any moment leaves one that can be resumed.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from aligner.errors import DataError
from aligner.runs.environment import now
from aligner.runs.files import dumps, parse_json, write_atomically

COMPLETE = "complete"
STATE = "trainer_state.json"
"""What transformers notes of a training: the step, the numbers so far, the best checkpoint."""

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
    sizes in bytes last."""
    sizes = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
            sizes[path.relative_to(checkpoint).as_posix()] = path.stat().st_size
    write_atomically(checkpoint / COMPLETE, dumps({"time": now(), "sizes": sizes}))


def check_checkpoint(checkpoint: Path) -> None:
    """Raise DataError where a file of a whole checkpoint is no longer there or has another size
    than it had."""
    cure = (
        f"delete {checkpoint}: --resume then continues from the checkpoint before it, or from "
        "the start"
    )
    sizes = parse_json(checkpoint / COMPLETE, cure, needed=["sizes"])["sizes"]
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            raise DataError(f"{file} is missing", cure)
        if file.stat().st_size != size:
            raise DataError(
                f"{file} is damaged: it has {file.stat().st_size:,} bytes of {size:,}", cure
            )


def is_last(checkpoint: Path) -> bool:
    """Say whether a run had come to its end, by its steps or by early stopping, when it wrote this
    checkpoint."""
    state = parse_json(
        checkpoint / STATE, f"delete {checkpoint}", needed=["global_step", "max_steps"]
    )
    control = state["stateful_callbacks"].get("TrainerControl", {}).get("args", {})
    return bool(state["global_step"] >= state["max_steps"] or control.get("should_training_stop"))


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
