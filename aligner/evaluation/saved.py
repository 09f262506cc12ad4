"""What each row added to the numbers of a model, kept in the JSON that `aligner eval --output`
writes, so that a model is measured once and others are compared with it later.

The file says what was asked, and a comparison with other rows, settings or metrics is refused. What
may differ is how the model was loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aligner.errors import DataError, UsageError
from aligner.evaluation.figures import Figure, Figures
from aligner.runs.files import dumps, file_sha256

PER_ROW = "per_row"
"""Key of the file that holds it, on a line of its own at the end."""

LONGEST = 60
"""Characters of a value that is shown."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Saved:
    """The evaluation of a model that was measured before. `tables`: its numbers on the rows, or on
    the questions of each task by name."""

    path: Path
    sha256: str
    model: str
    asked: Mapping[str, Any]
    tables: Mapping[str, Figures]
    tokens_sha256: str | None
    loaded: str

    def refuse_others(self, asked: Mapping[str, Any]) -> None:
        """Raise UsageError where something else is asked now, and say what."""
        before, now = (json.loads(dumps(one)) for one in (self.asked, asked))
        differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if differing:
            told = [_told(name, before.get(name), now.get(name)) for name in differing]
            raise UsageError(
                f"{self.path} was measured otherwise: {'; '.join(told)}",
                "ask as it did, or measure its model again with --output",
            )


def _told(name: str, before: Any, now: Any) -> str:
    if max(len(str(before)), len(str(now))) > LONGEST:  # a hash
        return f"{name} is not the same"
    return f"{name} was {before}, and is {now} here"


def text_of(
    record: Record,
    asked: Mapping[str, Any],
    tables: Mapping[str, Figures],
    *,
    tokens_sha256: str | None = None,
    loaded: str = "",
) -> str:
    """Return the file: the record of an evaluation, and what each row added to its numbers."""
    per_row = {
        "asked": asked,
        "tokens_sha256": tokens_sha256,
        "loaded": loaded,
        "tables": {name: _written(one) for name, one in tables.items()},
    }
    return f'{dumps(record, indent=2)[:-2]},\n  "{PER_ROW}": {dumps(per_row)}\n}}\n'


def _written(found: Figures) -> Record:
    figures = {
        name: {
            "better": one.better,
            "of_tokens": one.of_tokens,
            "parts": _numbers(one.parts),
            "sizes": _numbers(one.sizes),
        }
        for name, one in found.named.items()
        if not one.repeats
    }
    return {"groups": found.groups.tolist(), "figures": figures}


def _numbers(values: np.ndarray) -> list[float] | float:
    """Whole numbers as such, and one number for all of one kind."""
    found = [int(value) if value.is_integer() else value for value in values.tolist()]
    return found[0] if len(set(found)) == 1 else found


def read_saved(name: str) -> Saved:
    """Read an evaluation back. Raises: DataError for a file that holds none."""
    path = Path(name)
    hint = "`aligner eval MODEL --output FILE.json` writes one"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"--compare {name} cannot be read: {error.strerror}", hint) from error
    except ValueError as error:
        raise DataError(f"--compare {name} is not JSON: {error}", hint) from error
    if not isinstance(record, dict) or "metrics" not in record:
        raise DataError(f"--compare {name} is not an evaluation of a model", hint)
    if PER_ROW not in record:
        raise DataError(
            f"--compare {name} does not hold what single rows add, so nothing can be tested",
            f"{hint}; what --json prints, and older files, have none",
        )
    kept = record[PER_ROW]
    try:
        return Saved(
            path,
            file_sha256(path),
            str(record["model"]),
            kept["asked"],
            {name: _read(one) for name, one in kept["tables"].items()},
            kept["tokens_sha256"],
            kept["loaded"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"--compare {name}: `{PER_ROW}` is damaged: {error!r}", hint) from error


def _read(table: Record) -> Figures:
    groups = np.array(table["groups"], dtype=np.int64)
    named = {
        name: Figure(
            _array(one["parts"], len(groups)),
            _array(one["sizes"], len(groups)),
            one["better"],
            of_tokens=one["of_tokens"],
        )
        for name, one in table["figures"].items()
    }
    return Figures(named, groups)


def _array(values: Sequence[Any] | float | str, count: int) -> np.ndarray:
    found = [values] * count if isinstance(values, int | float | str) else values
    if len(found) != count:
        raise ValueError(f"{len(found)} numbers of {count} rows")
    return np.array([float(value) for value in found], dtype=np.float64)
