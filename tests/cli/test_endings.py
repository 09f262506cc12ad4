"""Commands that are stopped from outside: Ctrl-C and SIGTERM, once and again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

RULE = """
import time
from pathlib import Path

def grade(prompt, completion, reference):
    if completion == "slow" and not Path("slow").exists():
        Path("slow").touch()
        time.sleep(60)
    return 1.0
"""
# A shell starts what it puts into the background with Ctrl-C ignored.
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from aligner.cli.app import main
main()
"""


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    (folder / "rule.py").write_text(RULE)
    rows = [{"prompt": "p", "completion": text} for text in ("quick", "slow")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-c", PROGRAM, "score", "--reward-model", "verifier:rule.py:grade"]
    return subprocess.Popen(
        [*command, "--data", "rows.jsonl", "--output", "out.jsonl", *options],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_until(found: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while not found():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("numbers", "code", "said"),
    [
        ([signal.SIGTERM], 143, "stopped by SIGTERM: "),
        ([signal.SIGTERM, signal.SIGTERM], 143, "stopped by SIGTERM: "),
        ([signal.SIGINT, signal.SIGINT], 130, "interrupted: "),
    ],
    ids=["SIGTERM", "SIGTERM twice", "Ctrl-C twice"],
)
def test_a_stopped_command_says_so_and_holds_nothing(
    tmp_path: Path, numbers: list[signal.Signals], code: int, said: str
) -> None:
    process = start(tmp_path)
    wait_until((tmp_path / "slow").exists, process)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.01)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code, output
    assert f"{said}nothing was kept yet; the same command with --resume continues\n" in output
    assert "Traceback" not in output
    assert not (tmp_path / "out.jsonl.part").exists()
    again = start(tmp_path, "--resume")
    assert again.wait(60) == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
