"""Whether a run can be reproduced here: its code, packages, data and models against what is there
now, and afterwards what came out against what came out then. Imports no torch.

Data and models are compared by their content, wherever a clock or a name says otherwise. What was
computed on another device, or with other versions, may differ in its last digits: that is said,
and what came out decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from aligner.runs.comparison import is_timing
from aligner.runs.digests import digest_of
from aligner.runs.environment import REDACTED, git_state, versions
from aligner.runs.files import dumps, flatten, read_json, read_metrics

Verdict = Literal["same", "differs", "missing", "unknown"]

DIGITS = 12
"""Of a fingerprint, as it is shown."""

SHA256_DIGITS = 64


@dataclass(frozen=True)
class Check:
    """One thing that a run depended on: what it was, what it is now."""

    what: str
    name: str
    then: str
    now: str
    verdict: Verdict

    @property
    def is_input(self) -> bool:
        """Whether it is a file that the run read, so that no reproduction can do without it."""
        return self.what in ("data", "model", "recipe")


def checks(run_dir: Path) -> list[Check]:
    """Return everything that a run depended on, compared with what is here now."""
    environment = read_json(run_dir, "environment.json") or {}
    folder = Path(environment.get("working_directory") or ".")
    return [
        *_code(environment, folder),
        *_packages(environment.get("versions", {})),
        *_inputs(run_dir, folder),
        *_recipe(run_dir),
    ]


def _code(environment: Mapping[str, Any], folder: Path) -> Iterator[Check]:
    """The repository that the run was started in; nothing where it was in none."""
    git = environment.get("git")
    if not git:
        return
    found = git_state(folder)[0] if folder.is_dir() else None
    then, now = _commit(git), _commit(found) if found else "no repository"
    verdict: Verdict = "same" if then == now else "differs"
    if then == now and git.get("dirty"):
        verdict = "unknown"  # code.diff of the run says what was uncommitted
    yield Check("code", str(folder), then, now, verdict)


def _commit(git: Mapping[str, Any]) -> str:
    changes = ", with uncommitted changes" if git.get("dirty") else ""
    return f"{str(git.get('commit'))[:DIGITS]}{changes}"


def _packages(then: Mapping[str, str]) -> Iterator[Check]:
    now = versions()
    for name in {**then, **now}:
        one, other = then.get(name, "none"), now.get(name, "none")
        yield Check("package", name, one, other, "same" if one == other else "differs")


def _inputs(run_dir: Path, folder: Path) -> Iterator[Check]:
    """Each data file, and each file behind a name in the recipe."""
    ledger = read_json(run_dir, "data.json") or {}
    inputs = read_json(run_dir, "inputs.json") or {}
    files = {
        file["path"]: file["sha256"]
        for source in ledger.get("sources", [])
        for file in source.get("files", [])
        if "sha256" in file
    }
    for name, digest in (files or inputs.get("sources", {})).items():
        yield _file("data", name, digest, folder)
    for parts in inputs.get("named", {}).values():
        for name, digest in parts.items():
            yield _file("model", name, digest, folder)


def _file(what: str, name: str, digest: str, folder: Path) -> Check:
    then = digest[:DIGITS]
    path = folder / name
    if len(digest) != SHA256_DIGITS:  # a commit of the hub, which stays what it is
        return Check(what, name, then, then, "same")
    if not path.is_file():
        return Check(what, name, then, "not there", "missing")
    found = digest_of(path)
    return Check(what, name, then, found[:DIGITS], "same" if found == digest else "differs")


def _recipe(run_dir: Path) -> Iterator[Check]:
    """Values of the recipe that nothing can be run with again."""
    recipe = (read_json(run_dir, "resolved.json") or {}).get("recipe", {})
    for key, value in flatten(recipe).items():
        if REDACTED in str(value):
            yield Check("recipe", key, "a secret", "not recorded", "missing")
        elif isinstance(value, str) and value.startswith("callable "):
            yield Check("recipe", key, value, "a function of another process", "missing")


@dataclass(frozen=True)
class Outcome:
    """What came out of two runs of one recipe."""

    differences: dict[str, tuple[Any, Any]]
    """Results that differ, by name."""
    first_step: float | None
    """The first logged step at which they differ; None where all are equal."""
    files: dict[str, str]
    """File of the result -> `same`, `differs` or `missing`; its card is not looked at."""

    @property
    def is_equal(self) -> bool:
        """Whether results and logged numbers are equal, to the last digit."""
        return not self.differences and self.first_step is None

    @property
    def has_same_files(self) -> bool:
        """Whether the files of the result are the same, byte for byte."""
        return all(found == "same" for found in self.files.values())

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "is_equal": self.is_equal,
            "has_same_files": self.has_same_files,
            "differences": {name: list(pair) for name, pair in self.differences.items()},
            "first_step": self.first_step,
            "files": self.files,
        }


def outcome(run_dir: Path, again: Path) -> Outcome:
    """Compare a finished run with its reproduction; times are left out."""
    manifests = [read_json(folder, "manifest.json") or {} for folder in (run_dir, again)]
    results = [manifest.get("results", {}) for manifest in manifests]
    differing = {
        name: (results[0].get(name), results[1].get(name))
        for name in {**results[0], **results[1]}
        if not is_timing(name) and not _equal(results[0].get(name), results[1].get(name))
    }
    files = [_weights(manifest) for manifest in manifests]
    found = {
        name: "missing" if name not in files[1] else "same" if files[1][name] == one else "differs"
        for name, one in files[0].items()
    }
    return Outcome(differing, _first_difference(run_dir, again), found)


def _weights(manifest: Mapping[str, Any]) -> dict[str, str]:
    files: dict[str, str] = manifest.get("files", {})
    return {name: digest for name, digest in files.items() if not name.endswith(".md")}


def _first_difference(run_dir: Path, again: Path) -> float | None:
    """The first step of `metrics.jsonl` that is not in both, or not with the same numbers."""
    for one, other in zip_longest(read_metrics(run_dir), read_metrics(again)):
        if _without_times(one) != _without_times(other):
            return min(float(record["step"]) for record in (one, other) if record is not None)
    return None


def _without_times(record: Mapping[str, Any] | None) -> str:
    """A line as text, in which NaN equals NaN."""
    kept = {key: value for key, value in (record or {}).items() if not is_timing(key)}
    return dumps(kept)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)
