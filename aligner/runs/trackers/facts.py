"""What a tracker gets of a run, read from its directory: its name, its recipe, where it came
from, and its points."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner.runs.files import dumps, flatten, read_json

PROJECT = "aligner"
"""The project of runs whose recipe and environment name none."""

LEFT_OUT = ("step", "split")
"""Of a line of `metrics.jsonl`: what is no measure."""

Value = str | int | float | bool
Point = tuple[str, int, float]
"""Name, step, value."""


@dataclass(frozen=True)
class Facts:
    """A run, as trackers get it."""

    run_dir: Path
    name: str
    """The name that the recipe gives it, or its folder; of the training of a stage, the place in
    the run that it belongs to."""
    group: str | None
    """The run that it is a part of."""
    project: str
    recipe: dict[str, Value]
    """The resolved recipe by dotted key; lists of sections are numbered, `data.train.0.path`."""
    lineage: dict[str, Value]
    """Versions, commit, fingerprints of data and models."""
    trainer: Mapping[str, Any]
    """The recipe's `trainer:`, for what it says of one tracker alone."""


def trackers_in(recipe: Mapping[str, Any]) -> list[str]:
    """Return what a recipe, as JSON has it, says in `report_to`, as a list without `none`."""
    found = (recipe.get("trainer") or {}).get("report_to") or recipe.get("report_to") or []
    words = [found] if isinstance(found, str) else found
    return [word for word in dict.fromkeys(words) if word != "none"]


def facts_of(run_dir: Path, project_variable: str) -> Facts:
    """Read what a tracker gets of a run. `project_variable`: the environment variable that names
    the tracker's project, before the recipe does."""
    recipe = (read_json(run_dir, "resolved.json") or {})["recipe"]
    trainer = recipe.get("trainer") or {}
    outer = _outer_run(run_dir)
    name = trainer.get("run_name") or (outer or run_dir.resolve()).name
    if outer is not None:
        name = f"{name}/{run_dir.resolve().relative_to(outer).parent.as_posix()}"
    return Facts(
        run_dir=run_dir,
        name=name,
        group=None if outer is None else outer.name,
        project=os.environ.get(project_variable) or trainer.get("project") or PROJECT,
        recipe=values_of(recipe),
        lineage=lineage_of(run_dir),
        trainer=trainer,
    )


def _outer_run(run_dir: Path) -> Path | None:
    """The outermost run that a run directory lies in; None for a run of its own."""
    around = [one for one in run_dir.resolve().parents if (one / "resolved.json").is_file()]
    return around[-1] if around else None


def values_of(section: Any) -> dict[str, Value]:
    """Return what stands in nested JSON by dotted key, as trackers can hold it."""
    found = {}
    for key, value in flatten(section).items():
        is_plain = isinstance(value, str | int | float | bool)
        found[re.sub(r"\[(\d+)\]", r".\1", key)] = value if is_plain else dumps(value)
    return found


def lineage_of(run_dir: Path) -> dict[str, Value]:
    """Return where a run came from, as far as its directory says so already: its method and place,
    versions and commit, and the fingerprints of its data, at the end those of its models too."""
    resolved = read_json(run_dir, "resolved.json") or {}
    environment = read_json(run_dir, "environment.json") or {}
    inputs = read_json(run_dir, "inputs.json") or {}
    parents = (read_json(run_dir, "manifest.json") or {}).get("parents") or [
        {"kind": "data", "path": path, "fingerprint": digest}
        for path, digest in inputs.get("sources", {}).items()
    ]
    found: dict[str, Value] = {"run": str(run_dir.resolve())}
    known = {
        "recipe_hash": resolved.get("recipe_hash"),
        "data_fingerprint": inputs.get("fingerprint"),
        "commit": (environment.get("git") or {}).get("commit"),
    }
    found |= {key: value for key, value in known.items() if value}
    found |= values_of({"version": environment.get("versions", {})})
    return found | parents_of(parents)


def parents_of(parents: list[dict[str, Any]]) -> dict[str, Value]:
    """Return a run's parents as `data: train.jsonl` -> fingerprint."""
    return {
        f"{each.get('kind', 'model')}: {each['path']}": str(each.get("fingerprint") or "unknown")
        for each in parents
    }


def points_of(record: Mapping[str, Any]) -> Iterator[Point]:
    """Yield the numbers of a line of `metrics.jsonl` under their names with the split before them,
    `train/loss`."""
    for key, value in record.items():
        if key not in LEFT_OUT and isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{record.get('split', 'train')}/{key}", int(record["step"]), float(value)


def table_of(values: Mapping[str, Value]) -> str:
    """Return values as a table in Markdown."""
    rows = [f"| {_cell(key)} | {_cell(value)} |" for key, value in values.items()]
    return "\n".join(["| key | value |", "| --- | --- |", *rows])


def _cell(value: Value) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
