"""The wheel and the editable install, tried for real. Needs no network: no dependency is resolved
or fetched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = ("aligner", "cli", "recipes", "reward_models", "pyproject.toml", "README.md", "LICENSE")
PIP = ("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what ships, because building writes beside its sources."""
    copy = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", *PIP[4:], "-w", str(out), str(source))
    return next(out.glob("*.whl"))


def run(*command: str, cwd: Path | None = None, **environment: str) -> str:
    """Standard output of a command that must succeed."""
    env = {**os.environ, **environment}
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_aligner_and_its_metadata_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"aligner"}
    assert "aligner/py.typed" in names
    assert "aligner/cli/app.py" in names
    assert "aligner/arena/voting/page.html" in names


def test_the_wheel_holds_every_recipe(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"aligner/{path.relative_to(ROOT)}" for path in (ROOT / "recipes").rglob("*.yaml")}
    assert recipes
    assert recipes <= names


def test_the_installed_wheel_runs_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, *PIP, "--target", str(site), str(wheel))
    where = "import aligner.cli, aligner.recipes; print(aligner.cli.__file__)"
    assert str(site) in run(sys.executable, "-c", where, cwd=elsewhere, PYTHONPATH=str(site))
    assert "Usage: aligner" in run(
        sys.executable, "-m", "aligner", "--help", cwd=elsewhere, PYTHONPATH=str(site)
    )
    listed = run(
        sys.executable, "-m", "aligner", "recipes", "list", cwd=elsewhere, PYTHONPATH=str(site)
    )
    assert "tiny/dpo" in listed


def test_the_editable_install_finds_the_mapped_folders(source: Path, tmp_path: Path) -> None:
    environment, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    python = str(environment / "bin" / "python")
    lend_dependencies(python)
    run(sys.executable, "-m", "pip", "--python", python, *PIP[2:], "-e", str(source))
    assert str(source) in run(
        python, "-c", "import aligner.cli; print(aligner.cli.__file__)", cwd=elsewhere
    )
    assert "tiny/dpo" in run(python, "-m", "aligner", "recipes", "list", cwd=elsewhere)
    assert "Usage: aligner" in run(str(environment / "bin" / "aligner"), "--help", cwd=elsewhere)


def lend_dependencies(python: str) -> None:
    """Put this Python's packages last on the other's path: a .pth line does not run the .pth files
    found there."""
    import typer

    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "zz_lent.pth").write_text(f"{Path(typer.__file__).parents[1]}\n", encoding="utf-8")
