"""A quick command is quick: it loads nothing heavy and costs little processor time."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

HEAVY = [
    "torch",
    "transformers",
    "trl",
    "datasets",
    "accelerate",
    "peft",
    "pyarrow",
    "pandas",
    "matplotlib",
    "numpy",
]
QUICK = (
    ["--help"],
    ["--version"],
    ["dpo", "--help"],
    ["sft", "--help"],
    ["recipes", "list"],
    ["recipes", "show", "tiny/dpo"],
    ["generate", "--help"],
    ["eval", "--help"],
    ["runs", "list"],
    ["dpo", "no-such-recipe"],
    ["dpo", "tiny/dpo", "dpo.betta=1"],
)
CPU_LIMIT_S = 1.0  # about 0.2 s is usual; the room is for a busy machine

PROGRAM = """
import sys
from aligner.cli.app import app
try:
    app(sys.argv[1:], prog_name="aligner")
except SystemExit:
    pass
print("LOADED", *sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_nothing_heavy_is_loaded(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True
    )
    loaded = done.stderr.rpartition("LOADED")[2].split()
    assert loaded, done.stderr
    assert "internal error" not in done.stderr
    assert [name for name in HEAVY if name in loaded] == []


@pytest.mark.parametrize(
    "arguments", [["--help"], ["dpo", "--help"], ["recipes", "list"]], ids=" ".join
)
def test_the_answer_costs_little_processor_time(arguments: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "aligner", *arguments]
    subprocess.run(command, capture_output=True, check=True, env=dict(os.environ))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < CPU_LIMIT_S, f"{spent:.2f} s of processor time"
