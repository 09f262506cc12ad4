"""Fixtures of every test: no network, no keys, no home directory but a temporary one, one thread;
and the toy world.

The environment is set while this file is imported, before any test imports a library that reads it
only once.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

try:
    import aligner.cli.app  # noqa: F401
except ModuleNotFoundError as error:  # an uninstalled checkout has no aligner.cli
    raise SystemExit(f"{error}: run `pip install -e '.[dev]'` (or `make test`) first") from error

HOME = Path(tempfile.mkdtemp(prefix="aligner-tests-"))
ENVIRONMENT = {
    "HOME": str(HOME),
    "XDG_CACHE_HOME": str(HOME / "cache"),
    "HF_HOME": str(HOME / "hf"),
    "MPLCONFIGDIR": str(HOME / "matplotlib"),
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "80",
    "NO_COLOR": "1",
}
os.environ.update(ENVIRONMENT)
for name in [name for name in os.environ if name.endswith(("_API_KEY", "_TOKEN", "_SECRET"))]:
    del os.environ[name]

LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "", None)


def pytest_unconfigure() -> None:
    """Remove the temporary home of this process."""
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every address beyond this machine, by name and by number."""
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
            raise RuntimeError(f"a test tried to reach {address[0]}")
        connect(self, address)

    def guarded_resolve(host: Any, *rest: Any, **named: Any) -> Any:
        if host not in (*LOOPBACK, socket.gethostname()):
            raise RuntimeError(f"a test tried to look up {host}")
        return resolve(host, *rest, **named)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_resolve)


@pytest.fixture(autouse=True)
def same_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a command sets in the environment or the working directory ends with its test."""
    before, folder = dict(os.environ), Path.cwd()
    yield
    os.chdir(folder)
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model and rows to train it on; read only."""
    from fakes import write_small_world

    return write_small_world(tmp_path_factory.mktemp("small-world"))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reference cache that no other test has filled."""
    monkeypatch.setenv("ALIGNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def toy_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy world with few rows and a base that has learned next to nothing; written once for all
    workers.

    Read it only: a test that trains copies what it needs, or gives an `output_dir` of its own.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / "toy-world"
    with FileLock(f"{folder}.lock"):
        if not (folder / "manifest.json").is_file():
            _write_small_world(folder)
    return folder


def _write_small_world(folder: Path) -> None:
    from aligner.toy import world

    rows = {"heldout": 40, "sft": 160, "preferences": 160, "prompts": 40}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "ROWS", rows)
        world.write_world(folder, steps=10)
