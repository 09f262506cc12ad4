"""`aligner recipes`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runner import aligner


def test_every_recipe_on_disk_is_listed() -> None:
    shipped = Path(__file__).parents[2] / "recipes"
    names = {
        path.relative_to(shipped).with_suffix("").as_posix() for path in shipped.rglob("*.yaml")
    }
    assert {
        item["name"] for item in json.loads(aligner("recipes", "list", "--json").stdout)
    } == names
    table = aligner("recipes", "list").stdout
    assert all(f"\n{name} " in table for name in names)


def test_a_recipe_is_shown_with_its_comments() -> None:
    result = aligner("recipes", "show", "tiny/dpo")
    assert result.exit_code == 0
    assert result.stdout.startswith("#")
    assert "method: dpo" in result.stdout


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    result = aligner("recipes", "show", "tiny/dop")
    assert result.exit_code == 2
    assert "tiny/dpo" in result.stderr


def test_a_recipe_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert aligner("recipes", "copy", "tiny/dpo").exit_code == 0
    assert (tmp_path / "dpo.yaml").read_text("utf-8") == aligner(
        "recipes", "show", "tiny/dpo"
    ).stdout
    again = aligner("recipes", "copy", "tiny/dpo")
    assert again.exit_code == 2
    assert "dpo.yaml exists" in again.stderr


def test_a_recipe_is_copied_into_a_folder_or_to_a_name(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert aligner("recipes", "copy", "tiny/sft", tmp_path / "here").exit_code == 0
    assert aligner("recipes", "copy", "tiny/sft", tmp_path / "new" / "mine.yaml").exit_code == 0
    assert (tmp_path / "here" / "sft.yaml").is_file()
    assert (tmp_path / "new" / "mine.yaml").is_file()


def test_the_schema_is_printed_as_json() -> None:
    result = aligner("recipes", "schema", "dpo")
    assert result.exit_code == 0
    assert "DpoRecipe" in json.loads(result.stdout)["$defs"]
    wrong = aligner("recipes", "schema", "dop")
    assert wrong.exit_code == 2
    assert "dpo" in wrong.stderr


def test_a_recipe_of_another_tool_is_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dpo.yaml").write_text(
        "model_name_or_path: base\ndataset_name: pairs\nbeta: 0.2\nmax_length: 64\n", "utf-8"
    )
    printed = aligner("recipes", "migrate", "dpo.yaml")
    assert printed.exit_code == 0
    assert "method: dpo" in printed.stdout
    written = aligner("recipes", "migrate", "dpo.yaml", "-o", "ours.yaml")
    assert "next: aligner dpo ours.yaml --dry-run" in written.stdout
    assert Path("ours.yaml").read_text("utf-8") == printed.stdout
    again = aligner("recipes", "migrate", "dpo.yaml", "-o", "ours.yaml")
    assert (again.exit_code, "ours.yaml exists" in again.stderr) == (2, True)
    Path("dpo.yaml").write_text("model_name_or_path: base\nbeta: 0.1\nodd: 1\n", "utf-8")
    lost = aligner("recipes", "migrate", "dpo.yaml")
    assert lost.exit_code == 2
    assert "dpo.yaml:3: odd" in lost.stderr
