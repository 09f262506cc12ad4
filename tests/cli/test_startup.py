"""A quick command is quick: it loads nothing heavy and costs little processor time."""

from __future__ import annotations

import os
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
    times = [processor_time(arguments) for _ in range(2)]  # the first may compile what is imported
    assert min(times) < CPU_LIMIT_S, f"{min(times):.2f} s of processor time"


def processor_time(arguments: list[str]) -> float:
    """What one command takes, and no other process that has ended meanwhile."""
    command = [sys.executable, "-m", "aligner", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime
