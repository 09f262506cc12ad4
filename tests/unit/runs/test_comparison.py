"""Runs beside each other: what differs, what is left out, and the curves of all of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from aligner.errors import UsageError
from aligner.reports.comparison import comparison_page, comparison_png, exact, short_fingerprint
from aligner.runs.comparison import compare, curves, curves_in_order, fingerprint_of, names_of

Values = dict[str, Any]


def run_folder(
    folder: Path,
    recipe: Values,
    origins: dict[str, str],
    results: Values | None = None,
    lines: list[Values] | None = None,
    inputs: Values | None = None,
    environment: Values | None = None,
) -> Path:
    """A run directory with these files in it."""
    folder.mkdir(parents=True)
    files: dict[str, Any] = {
        "resolved.json": {"recipe": recipe, "origins": origins, "recipe_hash": "0"},
        "environment.json": {"versions": {"torch": "2.0"}, "sessions": [], **(environment or {})},
    }
    if inputs is not None:
        files["inputs.json"] = {"fingerprint": "f", "sources": {}, **inputs}
    if results is not None:
        files["manifest.json"] = {"results": results, "finished": "2026-01-01T00:00:00+00:00"}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    text = "".join(json.dumps(line) + "\n" for line in lines or [])
    (folder / "metrics.jsonl").write_text(text)
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    one = run_folder(
        tmp_path / "a",
        {"method": "sft", "output_dir": "a", "seed": 1, "trainer": {"lr": 0.1, "warm": 0}},
        {"trainer.lr": "a.yaml:3", "seed": "default", "trainer.warm": "default of TRL"},
        {"steps": 2.0, "loss": 0.5, "nan": math.nan},
        [{"step": 1, "split": "train", "loss": 1.0}, {"step": 2, "split": "train", "loss": 0.5}],
        {"sources": {"x.jsonl": "aaaa"}, "named": {"model": {"m/w": "1", "m/c": "2"}}},
    )
    other = run_folder(
        tmp_path / "b",
        {"method": "dpo", "output_dir": "b", "seed": 1, "trainer": {"lr": 0.2}, "dpo": {"beta": 1}},
        {"trainer.lr": "trainer.lr=0.2", "dpo.beta": "default"},
        {"steps": 2.0, "loss": 0.25, "nan": math.nan, "margin": 1.0},
        [
            {"step": 1, "split": "train", "loss": 2.0, "margin": 0.1},
            {"step": 1, "split": "eval", "runtime": 3.0},
        ],
        {"sources": {"x.jsonl": "bbbb", "y.jsonl": "cc"}, "named": {"model": {"n/w": "1"}}},
        {"versions": {"torch": "2.1"}},
    )
    return [one, other]


def test_keys_that_differ_stand_with_their_origins(pair: list[Path]) -> None:
    found = compare(pair)
    assert found["recipe"] == [
        {"key": "method", "values": ["sft", "dpo"], "origins": ["default", "default"]},
        {
            "key": "trainer.lr",
            "values": [0.1, 0.2],
            "origins": ["a.yaml:3", "trainer.lr=0.2"],
        },
    ]
    assert found["hidden_defaults"] == 2, "trainer.warm and dpo.beta, which nobody wrote"


def test_results_data_and_versions_stand_side_by_side(pair: list[Path]) -> None:
    found = compare(pair)
    results = {row["name"]: (row["values"], row["is_same"]) for row in found["results"]}
    assert results["steps"] == ([2.0, 2.0], True)
    assert results["loss"] == ([0.5, 0.25], False)
    assert results["margin"] == ([None, 1.0], False)
    assert results["nan"][1], "not a number in both is no difference"
    data = {row["name"]: row["values"] for row in found["data"]}
    assert data["x.jsonl"] == ["aaaa", "bbbb"]
    assert data["y.jsonl"] == [None, "cc"]
    assert data["model"][0] != data["model"][1]
    assert [(row["name"], row["values"]) for row in found["environment"]] == [
        ("torch", ["2.0", "2.1"])
    ]


def test_a_fingerprint_of_files_knows_no_folder() -> None:
    assert fingerprint_of({"a/w": "1", "a/c": "2"}) == fingerprint_of({"b/c": "2", "b/w": "1"})
    assert fingerprint_of({"a/w": "1"}) != fingerprint_of({"a/w": "2"})


def test_curves_of_all_runs_are_on_one_plot(pair: list[Path]) -> None:
    found = curves(pair)
    assert found["train/loss"] == [[(1.0, 1.0), (2.0, 0.5)], [(1.0, 2.0)]]
    assert found["train/margin"] == [[], [(1.0, 0.1)]]
    names = [name for name, _ in curves_in_order(found)]
    assert names == ["train/loss", "train/margin", "eval/runtime"]


def test_names_are_as_long_as_they_must_be(tmp_path: Path) -> None:
    assert names_of([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert names_of([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    assert names_of([tmp_path, tmp_path]) == [str(tmp_path)] * 2


def test_the_page_holds_tables_and_curves_and_escapes_them(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    runs = [
        run_folder(
            tmp_path / name,
            {"method": "sft", "note": f"{attack}{name}"},
            {"note": attack},
            {attack: 1.0},
            [{"step": 1, "split": "train", attack: 1.0}],
        )
        for name in ("a", "b")
    ]
    html = comparison_page(compare(runs), runs)
    assert attack not in html
    assert "train/&lt;script&gt;" in html
    assert "<h2>Curves</h2>" in html
    assert html.count("<svg") == 1


def test_the_picture_is_a_png(pair: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert comparison_png(pair).startswith(b"\x89PNG")
    empty = [
        run_folder(tmp_path / name, {"method": "mosaic"}, {}) for name in ("empty", "empty too")
    ]
    with pytest.raises(UsageError, match="no run logged a step"):
        comparison_png(empty)


def test_values_as_they_are_shown() -> None:
    assert (exact(2e-5), exact(None), exact("a"), exact([1, "b"])) == (
        "2e-05",
        "null",
        "a",
        '[1, "b"]',
    )
    assert (short_fingerprint(None), short_fingerprint(1140)) == ("–", "1,140")
    assert short_fingerprint("0123456789abcdef") == "0123456789ab"
