"""What the wheel ships is a list in pyproject.toml; a package missing there works in a checkout and
nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")

ROOT = Path(__file__).parents[2]
MAPPED = ("cli", "recipes", "reward_models")


def packages_on_disk() -> set[str]:
    """Dotted names of the folders that hold an __init__.py, as they are installed."""
    found = set()
    for top in ("aligner", *MAPPED):
        for marker in (ROOT / top).rglob("__init__.py"):
            dotted = ".".join(marker.parent.relative_to(ROOT).parts)
            found.add(f"aligner.{dotted}" if top in MAPPED else dotted)
    return found


def settings() -> dict:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["tool"]["setuptools"]


def test_the_package_list_equals_the_packages_on_disk() -> None:
    assert set(settings()["packages"]) == packages_on_disk()


def test_every_folder_with_python_in_it_is_a_package() -> None:
    folders = {path.parent for top in ("aligner", *MAPPED) for path in (ROOT / top).rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_mapped_folders_are_installed_below_aligner() -> None:
    assert settings()["package-dir"] == {
        "aligner": "aligner",
        **{f"aligner.{name}": name for name in MAPPED},
    }


def test_recipes_holds_no_python() -> None:
    assert [path.name for path in (ROOT / "recipes").rglob("*.py")] == ["__init__.py"]
