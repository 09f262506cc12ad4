"""A real browser for tests: playwright drives a Chromium of this machine and downloads none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

PATIENCE_MS = 180_000
"""How long a busy machine may take for anything; half a minute without."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""What a package of the system calls it."""


def chromium() -> Iterator[Any]:
    """A browser, for a fixture of a module; skips, and says why, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)} is in PATH")
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0  # whom its sandbox refuses
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=path,
            args=["--no-sandbox"] if is_root else [],
            timeout=PATIENCE_MS,
        )
        yield browser
        browser.close()
