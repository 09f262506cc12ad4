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
    limit = time.monotonic() + 300
    while not found():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_stopped_command_says_so_and_holds_nothing(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_until((tmp_path / "slow").exists, process)
    process.terminate()
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 143, output
    said = "stopped by SIGTERM: nothing was kept yet; the same command with --resume continues\n"
    assert said in output
    assert "Traceback" not in output
    assert not (tmp_path / "out.jsonl.part").exists()
    assert_resumed(tmp_path)


def assert_resumed(folder: Path) -> None:
    again = start(folder, "--resume")
    assert again.wait(120) == 0
    assert len((folder / "out.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGTERM, 143, "stopped by SIGTERM: "), (signal.SIGINT, 130, "interrupted: ")],
)
def test_a_second_signal_ends_it_sooner_and_loses_nothing(
    tmp_path: Path, number: signal.Signals, code: int, said: str
) -> None:
    """It may meet the command while it unwinds, or once it has said its word and only ends."""
    process = start(tmp_path)
    wait_until((tmp_path / "slow").exists, process)
    for _ in range(2):
        process.send_signal(number)
        time.sleep(0.01)
    output = process.communicate(timeout=120)[0]
    assert process.returncode in (code, -number), output
    assert said in output
    assert "Traceback" not in output
    assert_resumed(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_while_it_only_ends_leave_no_traceback(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Python's own ending (threads, exit handlers) would answer Ctrl-C with a traceback."""
    process = start(tmp_path)
    wait_until((tmp_path / "slow").exists, process)
    process.send_signal(number)
    assert process.stdout is not None
    said = next(line for line in process.stdout if "--resume" in line)
    while process.poll() is None:
        process.send_signal(number)
        time.sleep(0.002)
    assert process.returncode in (128 + number, -number)
    assert "nothing was kept yet" in said
    assert process.stdout.read() == ""


def test_a_signal_after_a_command_is_done_leaves_no_traceback(tmp_path: Path) -> None:
    """The program asks for it: a signal is sent once `main` is left."""
    program = PROGRAM.replace(
        "main()\n", "try:\n    main()\nfinally:\n    import os\n    os.kill(os.getpid(), 2)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == -signal.SIGINT
    assert ended.stdout.startswith("aligner ")
    assert "Traceback" not in ended.stderr
