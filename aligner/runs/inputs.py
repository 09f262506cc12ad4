"""What stands behind the names in a run's recipe: remembered at its start, compared when it is
resumed. Imports no torch.

`inputs.json` holds, under `named`, each key of the recipe that names something, and the SHA-256 (of
a model on the hub: the commit) of every file behind it. The data files stand beside it under
`sources` and are compared by `Run.check_data`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aligner.errors import DataError, Problem
from aligner.runs.run import Run

Parts = Mapping[str, str]
"""What stands behind one name: file (or hub id) -> its SHA-256 (or commit). Empty where it cannot
be told yet, for a model of the hub that is not on this machine."""

DIGITS = 12
"""Hexadecimal digits of a digest that a message shows."""
NO_DATA: dict[str, Any] = {"fingerprint": "", "sources": {}}
"""What `inputs.json` says before the data are read, and where there are none."""


def check_named(run: Run, found: Mapping[str, Parts]) -> list[str]:
    """Remember what stands behind the names of a recipe, by their keys; on a resumed run refuse
    what is not the same. Return remarks on what could not be compared.

    Raises: DataError that says which key, which file, and its two digests.
    """
    before = run.read_json("inputs.json")
    inputs = before or NO_DATA
    known: dict[str, Parts] = inputs.get("named", {})
    problems = [
        problem
        for key, parts in found.items()
        if known.get(key) and parts
        for problem in _changes(key, known[key], parts)
    ]
    if problems:
        raise DataError(
            f"what the recipe names changed since {run.dir} was started; resuming would mix two "
            "runs",
            "put the old files back, or choose another output_dir",
            problems,
        )
    unknown = [key for key in found if key not in known]
    learned = {key: parts for key, parts in found.items() if parts or key not in known}
    if learned != known:
        run.write_json("inputs.json", {**inputs, "named": {**known, **learned}})
    is_resumed = len(run.read_json("environment.json")["sessions"]) > 1
    if before is None or not unknown or not is_resumed:
        return []
    return [
        f"inputs.json of this run says nothing of what stands behind {', '.join(unknown)} (another "
        "version started it), so that was not compared"
    ]


def _changes(key: str, old: Parts, new: Parts) -> Iterator[Problem]:
    for path in {**old, **new}:
        if path not in new:
            yield Problem("is no longer there", where=path, key=key)
        elif path not in old:
            yield Problem("was not there", where=path, key=key)
        elif old[path] != new[path]:
            what = f"{old[path][:DIGITS]} -> {new[path][:DIGITS]}"
            yield Problem(f"is not what it was: {what}", where=path, key=key)
