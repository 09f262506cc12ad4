"""Whether a run can be reproduced: each thing that it depended on is looked at, and what came out
is compared to the last digit."""

from __future__ import annotations

import json
import math
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from aligner.runs.environment import REDACTED, versions
from aligner.runs.reproduction import checks, outcome
from aligner.runs.tree import lines_of, tree_of


def write_run(folder: Path, **files: Any) -> Path:
    """A run directory; `files` are the JSON files by their stems, over usable ones."""
    folder.mkdir(parents=True)
    content = {
        "resolved": {"recipe": {"method": "sft"}, "origins": {}, "recipe_hash": "0"},
        "environment": {"versions": versions(), "sessions": [], "git": None},
        **files,
    }
    content["environment"] = {"working_directory": str(folder.parent), **content["environment"]}
    for name, value in content.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def verdicts(run: Path) -> dict[tuple[str, str], str]:
    return {(one.what, one.name): one.verdict for one in checks(run)}


@pytest.fixture
def read(tmp_path: Path) -> Path:
    """A run that read two data files and a model."""
    for name in ("a.jsonl", "b.jsonl", "weights"):
        (tmp_path / name).write_text(name)
    inputs = {
        "fingerprint": "f",
        "sources": {name: digest(tmp_path / name) for name in ("a.jsonl", "b.jsonl")},
        "named": {
            "model.name_or_path": {"weights": digest(tmp_path / "weights")},
            "dpo.reference_model": {"org/name": "c" * 40},
        },
    }
    return write_run(tmp_path / "run", inputs=inputs)


def test_nothing_changed(read: Path) -> None:
    found = verdicts(read)
    assert set(found.values()) == {"same"}
    assert ("data", "a.jsonl") in found
    assert ("model", "org/name") in found
    assert ("package", "torch") in found


def test_inputs_that_changed_or_went_are_found(read: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("other")
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "weights").write_text("other")
    found = verdicts(read)
    assert found["data", "a.jsonl"] == "differs"
    assert found["data", "b.jsonl"] == "missing"
    assert found["model", "weights"] == "differs"
    assert all(one.is_input for one in checks(read) if one.what != "package")


def test_packages_are_compared(tmp_path: Path) -> None:
    then = {**versions(), "torch": "0.1", "gone": "1"}
    run = write_run(tmp_path / "run", environment={"versions": then, "sessions": []})
    other = {one.name: (one.then, one.now) for one in checks(run) if one.verdict == "differs"}
    assert other == {"torch": ("0.1", versions()["torch"]), "gone": ("1", "none")}


def test_secrets_and_functions_cannot_be_run_again(tmp_path: Path) -> None:
    recipe = {"method": "sft", "key": REDACTED, "loss": "callable x:f sha256:0"}
    run = write_run(
        tmp_path / "run", resolved={"recipe": recipe, "origins": {}, "recipe_hash": "0"}
    )
    found = {one.name: one.verdict for one in checks(run) if one.what == "recipe"}
    assert found == {"key": "missing", "loss": "missing"}


def finished(
    folder: Path, results: dict[str, Any], lines: list[dict[str, Any]], **files: str
) -> Path:
    manifest = {"results": results, "finished": "x", "files": files}
    write_run(folder, manifest=manifest)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


LINES = [
    {"step": 1, "split": "train", "loss": 1.0, "time_s": 3.0},
    {"step": 2, "split": "eval", "loss": 0.5, "runtime": 1.0},
]


def test_an_equal_outcome_knows_no_times(tmp_path: Path) -> None:
    again = [{**line, "time_s": 9.0, "runtime": 7.0} for line in LINES]
    results = {"loss": 0.5, "bad": math.nan, "eval/runtime": 1.0}
    one = finished(tmp_path / "a", results, LINES, **{"final/w": "1", "final/README.md": "2"})
    for line, plain in zip(again, LINES):
        for key in set(line) - set(plain):
            del line[key]
    other = finished(tmp_path / "b", {**results, "eval/runtime": 2.0}, again, **{"final/w": "1"})
    found = outcome(one, other)
    assert found.is_equal
    assert found.has_same_files
    assert found.files == {"final/w": "same"}


def test_what_differs_is_said_from_its_first_step_on(tmp_path: Path) -> None:
    one = finished(tmp_path / "a", {"loss": 0.5}, LINES, **{"final/w": "1", "final/v": "1"})
    changed = [LINES[0], {**LINES[1], "loss": 0.5000001}]
    other = finished(tmp_path / "b", {"loss": 0.5000001}, changed, **{"final/w": "2"})
    found = outcome(one, other)
    assert not found.is_equal
    assert found.differences == {"loss": (0.5, 0.5000001)}
    assert found.first_step == 2
    assert found.files == {"final/w": "differs", "final/v": "missing"}


def test_a_shorter_record_differs_where_it_ends(tmp_path: Path) -> None:
    one = finished(tmp_path / "a", {}, LINES)
    other = finished(tmp_path / "b", {}, LINES[:1])
    assert outcome(one, other).first_step == 2


def test_a_tree_walks_through_runs_to_models_and_data(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("rows")
    first = {
        "results": {},
        "finished": "2026-01-02T00:00:00+00:00",
        "parents": [
            {"kind": "model", "path": "org/base", "fingerprint": "0"},
            {"kind": "data", "path": "rows.jsonl", "fingerprint": digest(tmp_path / "rows.jsonl")},
        ],
    }
    write_run(tmp_path / "sft", manifest=first)
    (tmp_path / "sft" / "final").mkdir()
    built = write_run(tmp_path / "built", manifest={**first, "parents": first["parents"][1:]})
    (built / "data").mkdir()
    (built / "data" / "train.jsonl").write_text("built")
    second = {
        "results": {},
        "finished": "2026-01-03T00:00:00+00:00",
        "parents": [
            {"kind": "model", "path": "sft/final"},
            {"kind": "data", "path": "built/data/train.jsonl", "fingerprint": "0" * 64},
            {"kind": "reward_model", "path": "sft/final"},
        ],
    }
    run = write_run(tmp_path / "dpo", manifest=second)
    assert list(lines_of(tree_of(run))) == [
        f"{run}  (sft run, finished 2026-01-03)",
        "├─ sft/final  (sft run, finished 2026-01-02)",
        "│  ├─ model  org/base",
        "│  └─ data  rows.jsonl",
        "├─ data  built/data/train.jsonl  (sft run, finished 2026-01-02; has other content now)",
        "│  └─ data  rows.jsonl",
        "└─ sft/final  (sft run, finished 2026-01-02; see above)",
    ]
    assert tree_of(run).to_json()["parents"][1]["is_changed"]


def test_a_run_that_lies_in_its_own_tree_ends(tmp_path: Path) -> None:
    parents = [{"kind": "model", "path": "run/final"}]
    manifest = {"results": {}, "finished": "2026-01-02T00:00:00+00:00", "parents": parents}
    run = write_run(tmp_path / "run", manifest=manifest)
    (run / "final").mkdir()
    assert len(list(lines_of(tree_of(run)))) == 2
