"""How heavy libraries are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

CODE = """
import os, sys
from aligner.models.libraries import NO_COMPILER, import_bitsandbytes_plainly
import_bitsandbytes_plainly()
assert "bitsandbytes" in sys.modules
print("torch._inductor.compile_fx" in sys.modules, os.environ.get(NO_COMPILER))
"""


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("switch", [None, "0"])
def test_bitsandbytes_comes_without_the_compiler_and_leaves_the_switch_alone(
    switch: str | None,
) -> None:
    environment = {**os.environ, **({} if switch is None else {"TORCHDYNAMO_DISABLE": switch})}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", str(switch)]
