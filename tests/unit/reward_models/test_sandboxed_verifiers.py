"""Verifiers that run code: whatever it does, the row is scored, a remark says what happened, and
the run continues."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aligner.errors import DataError, RecipeError, UsageError
from aligner.reward_models import sandboxed_verifiers
from aligner.reward_models.base import Scores
from aligner.reward_models.catalogue import load_scorer
from aligner.reward_models.sandboxed_verifiers import RegexVerifier
from aligner.reward_models.verifier_options import Options
from aligner.sandbox import child, worker

LIMITS = "memory_mb=256,processes=2"

HOSTILE = """
import os, signal, socket, subprocess, sys, threading, time

def loops():
    while True:
        pass

def sleeps():
    time.sleep(1000)

def asks_for_too_much():
    return [0] * 10**12

def allocates_without_end():
    kept = []
    while True:
        kept.append(bytearray(10**7))

def bombs():
    while True:
        os.fork()

def bombs_with_programs():
    return [subprocess.Popen(["sleep", "1000"]) for _ in range(1000)]

def starts_threads():
    for _ in range(1000):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()

def leaves():
    sys.exit(0)

def leaves_at_once():
    os._exit(0)

def crashes():
    import ctypes
    ctypes.string_at(0)

def aborts():
    os.abort()

def closes_everything():
    os.closerange(0, 1000)
    while True:
        pass

def writes_to_every_pipe():
    for number in range(3, 50):
        try:
            os.write(number, b'{"id": "0", "result": 3, "dirty": false}\\n')
        except OSError:
            pass
    return 1

def floods_every_pipe():
    for number in range(3, 50):
        try:
            while True:
                os.write(number, b"x" * 10**6)
        except OSError:
            pass

def kills_what_is_above():
    for number in (os.getppid(), 0, -1):
        try:
            os.kill(number, 9)
        except OSError:
            pass
    time.sleep(1000)

def stops_itself():
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1000)
"""

# what is done -> what the remark says, one of these
TOO_LATE = ("it took longer than 1 s and was stopped",)
TOO_MUCH = ("it needed more than 256 MiB of memory",)
TOO_MANY = ("it started more than 2 processes or threads",)
ENDS: dict[str, tuple[str, ...]] = {
    "loops": TOO_LATE,
    "sleeps": TOO_LATE,
    "asks_for_too_much": TOO_MUCH,
    "allocates_without_end": TOO_MUCH,
    "bombs": TOO_MANY,
    "bombs_with_programs": TOO_MANY,
    "starts_threads": TOO_MANY,
    "leaves": ("it ended with status 0 and without an answer",),
    "leaves_at_once": ("it ended with status 0 and without an answer",),
    "crashes": ("it was ended by signal SIGSEGV",),
    "aborts": ("it was ended by signal SIGABRT",),
    "closes_everything": ("it closed its output and went on without an answer",),
    "writes_to_every_pipe": ("its answer cannot be read",),
    "floods_every_pipe": ("it answered with more than 1000000 bytes and was stopped",),
    "kills_what_is_above": (*TOO_LATE, "it was ended by signal SIGKILL"),
    "stops_itself": TOO_LATE,
}
"""What meets another wall than time has plenty of it: on a busy machine a second is not enough to
come to that wall."""


def seconds_for(what: str) -> int:
    return 1 if TOO_LATE[0] in ENDS[what] else 10


@pytest.fixture(autouse=True)
def leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every worker has a temporary folder; when a test is over, all are gone."""
    place = tmp_path / "temporary"
    place.mkdir()
    place.chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield
    import gc

    gc.collect()
    assert not list(place.iterdir())


def processes_marked(mark: str) -> list[str]:
    """Process ids of those that run and have the mark in their command line or environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            said = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if mark.encode() in said and state != "Z":
            found.append(folder.name)
    return found


def wait_until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def wait_until_gone(mark: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while (left := processes_marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def children_of_this_process() -> set[str]:
    return {
        pid
        for file in Path("/proc/self/task").glob("*/children")
        for pid in file.read_text().split()
    }


# --- a function of the user's ---------------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path: Path) -> str:
    path = tmp_path / "hostile.py"
    path.write_text(
        HOSTILE
        + "\ndef judge(prompt, completion, reference):\n    return globals()[completion]() or 1.0\n"
    )
    path.write_text(path.read_text() + "\ndef fine():\n    return 0.5\n")
    return f"verifier:{path}:judge"


@pytest.mark.parametrize("what", ENDS)
def test_a_function_that_misbehaves_is_stopped_and_the_next_row_is_scored(
    hostile: str, what: str
) -> None:
    before = children_of_this_process()
    scorer = load_scorer(f"{hostile},{LIMITS},timeout_s={seconds_for(what)}")
    scores = scorer.score(["p"] * 3, ["fine", what, "fine"])
    assert scores == [0.5, 0.0, 0.5]
    assert list(scores.remarks) == [1]
    said = scores.remarks[1].removeprefix("scored as failed: ")
    assert any(said.startswith(text) for text in ENDS[what]), said
    del scorer
    assert not children_of_this_process() - before


def test_a_daemon_does_not_outlive_the_row_that_started_it(tmp_path: Path) -> None:
    path = tmp_path / "daemons.py"
    path.write_text(
        "import os, time\n"
        "def judge(prompt, completion, reference):\n"
        "    if completion == 'start' and os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(1000)\n"
        "        os._exit(0)\n"
        "    time.sleep(0.2)\n"
        "    return 1.0\n"
    )
    scorer = load_scorer(f"verifier:{path}:judge")
    count = len(processes_marked(str(tmp_path)))
    assert count in (2, 3)  # keeper and worker, and an init where there are namespaces
    assert scorer.score(["p", "p"], ["start", "then"]) == [1.0, 1.0]
    assert len(processes_marked(str(tmp_path))) == count
    del scorer
    wait_until_gone(str(tmp_path))


def test_what_a_function_prints_and_reads_disturbs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "talks.py"
    path.write_text(
        "import sys\n"
        "def judge(prompt, completion, reference):\n"
        "    for _ in range(100): sys.stdout.write('x' * 10**6)\n"
        "    print('and', file=sys.stderr)\n"
        "    sys.stdout.close()\n"
        "    return float(len(sys.stdin.read()))\n"
    )
    assert load_scorer(f"verifier:{path}:judge").score(["p"], ["a"]) == [0.0]
    assert load_scorer(f"verifier:{path}:judge").score(["p"], ["a"]) == [0.0]


def test_a_stopped_row_gets_the_lowest_of_the_range_on_the_card(
    hostile: str, tmp_path: Path
) -> None:
    card = tmp_path / "mine.yaml"
    rule = f"{hostile},timeout_s=0.5".removeprefix("verifier:")
    card.write_text(f"kind: verifier\nverifier: '{rule}'\nrange: [-2, 1]\n")
    scorer = load_scorer(str(card))
    assert scorer.name == "mine"
    assert scorer.range == (-2.0, 1.0)
    assert scorer.score(["p", "p"], ["loops", "fine"]) == [-2.0, 0.5]
    card.write_text(f"kind: verifier\nverifier: '{rule}'\nrange: [0.6, 1]\n")
    with pytest.raises(DataError, match=r"row 1: mine returned 0\.5, which is not from 0\.6 to 1"):
        load_scorer(str(card)).score(["p"], ["fine"])


def test_a_function_has_its_folder_its_environment_and_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "table.txt").write_text("0.25")
        (tmp_path / "own.py").write_text(
            "import os, socket\n"
            "def reads(prompt, completion, reference):\n"
            "    open('written.txt', 'w').write('x')\n"
            "    return float(open('table.txt').read()) + float(os.environ['MINE'])\n"
            "def connects(prompt, completion, reference):\n"
            f"    socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), timeout=5)\n"
            "    return 1.0\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MINE", "2")
        scorer = load_scorer("verifier:own.py:reads")
        monkeypatch.chdir("/")
        assert scorer.score(["p"], ["a"]) == [2.25]
        assert (tmp_path / "written.txt").read_text() == "x"
        monkeypatch.chdir(tmp_path)
        scorer = load_scorer("verifier:own.py:connects")
        if scorer._worker.isolation["network"] == "yes":  # type: ignore[attr-defined]
            with pytest.raises(DataError, match=r"row 1: .*raised OSError(.|\n)*network=yes"):
                scorer.score(["p"], ["a"])
        assert load_scorer("verifier:own.py:connects,network=yes").score(["p"], ["a"]) == [1.0]


def test_an_error_in_a_function_stays_an_error_however_it_is_made(tmp_path: Path) -> None:
    path = tmp_path / "raises.py"
    path.write_text(
        "class Odd(Exception):\n"
        "    def __str__(self): raise ValueError\n"
        "def odd(*values): raise Odd\n"
        "def large(*values): return 10**400\n"
        "def deep(*values): return deep(*values)\n"
    )
    for name, message in (
        ("odd", "raised Odd"),
        ("large", "not a finite number"),
        ("deep", "raised RecursionError"),
    ):
        with pytest.raises(DataError, match=f"row 1: .*{message}"):
            load_scorer(f"verifier:{path}:{name}").score(["p"], ["a"])


def test_a_file_that_ends_the_process_when_it_is_imported_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "leaves.py"
    path.write_text("import os\nos._exit(3)\n")
    with pytest.raises(RecipeError, match="it ended with status 3"):
        load_scorer(f"verifier:{path}:judge")


def test_a_worker_that_was_ended_between_two_calls_is_started_again(hostile: str) -> None:
    scorer = load_scorer(hostile)
    keeper = scorer._worker._child.process  # type: ignore[attr-defined]
    os.kill(keeper.pid, signal.SIGKILL)
    os.waitid(os.P_PID, keeper.pid, os.WEXITED | os.WNOWAIT)
    scores = scorer.score(["p"], ["fine"])
    assert (scores, scores.remarks) == ([0.5], {})


def test_calls_from_several_threads_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "lengths.py"
    path.write_text("def judge(prompt, completion, reference):\n    return len(completion)\n")
    scorer = load_scorer(f"verifier:{path}:judge")
    found: dict[int, Scores] = {}

    def ask(length: int) -> None:
        found[length] = scorer.score(["p"] * 50, ["x" * length] * 50)

    threads = [threading.Thread(target=ask, args=(length,)) for length in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {length: [float(length)] * 50 for length in range(1, 5)}


def test_a_copy_of_this_process_has_a_worker_of_its_own(hostile: str) -> None:
    scorer = load_scorer(hostile)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if scorer.score(["p"] * 20, ["fine"] * 20) == [0.5] * 20 else 2
            scorer._worker.close()  # type: ignore[attr-defined]
        finally:
            os._exit(code)
    assert scorer.score(["p"] * 20, ["fine"] * 20) == [0.5] * 20
    assert os.waitpid(pid, 0)[1] == 0
    assert scorer.score(["p"], ["fine"]) == [0.5]


@pytest.mark.parametrize(
    "how", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM], ids=["interrupted", "killed", "ended"]
)
@pytest.mark.parametrize("kind", ["function", "tests"])
def test_nothing_outlives_the_command(tmp_path: Path, how: signal.Signals, kind: str) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "def judge(prompt, completion, reference):\n"
        f"    pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "    time.sleep(1000)\n"
    )
    program = "open('begun', 'w').close()\nimport time\ntime.sleep(1000)"
    spec = (
        f"verifier:{tmp_path}/slow.py:judge,timeout_s=500"
        if kind == "function"
        else "verifier:tests,timeout_s=500"
    )
    code = (
        "import signal; signal.signal(signal.SIGINT, "
        "signal.default_int_handler)\n"  # a shell's background ignores it
        "from aligner.reward_models.catalogue import load_scorer\n"
        f"load_scorer({spec!r}).score(['p'] * 2, [{program!r}, ''], ['assert 0'] * 2)\n"
    )
    place = tmp_path / "temporary"
    environment = {**os.environ, "TMPDIR": str(place), "MARK": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE
    ) as command:
        deadline = time.monotonic() + 300
        while not [*tmp_path.glob("begun"), *place.glob("*/begun")]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        command.send_signal(how)
        _, complaint = command.communicate(timeout=120)
    assert ("KeyboardInterrupt" in complaint.decode()) == (how == signal.SIGINT)
    wait_until_gone(str(tmp_path))
    assert not list(place.iterdir())


def test_an_interrupt_while_programs_are_handed_out_ends_those_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(sandboxed_verifiers.ThreadPoolExecutor):
        def submit(self, *given: Any, **named: Any) -> Any:
            if not self._threads:
                return super().submit(*given, **named)
            wait_until(lambda: [*tmp_path.glob("temporary/*/begun")])
            raise KeyboardInterrupt

    monkeypatch.setattr(sandboxed_verifiers, "ThreadPoolExecutor", Interrupted)
    program = "open('begun', 'w').close()\nimport time\ntime.sleep(1000)"
    scorer = load_scorer("verifier:tests,timeout_s=500")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        scorer.score(["p"] * 2, [program, ""], ["assert 0"] * 2)
    assert time.monotonic() - began < 300
    assert not list(tmp_path.glob("temporary/*"))


def test_a_parent_that_ends_while_the_worker_starts_leaves_no_folder(tmp_path: Path) -> None:
    """It is killed after the worker has made its folder, and before it has read which process to
    watch."""
    (tmp_path / "judge.py").write_text("def build(setup):\n    return lambda payload: 1.0\n")
    folder = tmp_path / "temporary" / "aligner-worker"
    limits = dataclasses.asdict(worker.Limits(memory_bytes=2**28))
    request = {"factory": f"{tmp_path}/judge.py:build", "setup": {}, "path": [], "limits": limits}
    request |= {"parent": os.getpid(), "folder": str(folder), "is_home": True}
    request |= {"closed": [], "without": []}
    reading, writing = os.pipe()
    os.close(reading)  # nobody reads what the worker says
    command = [sys.executable, "-B", "-s", child.__file__]
    environment = {**os.environ, "MARK": str(tmp_path)}
    started = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=writing, env=environment, start_new_session=True
    )
    os.close(writing)
    started.communicate(json.dumps(request).encode() + b"\n", timeout=120)
    wait_until_gone(str(tmp_path))
    assert not folder.exists()


def test_ten_thousand_cheap_calls_do_not_take_long(tmp_path: Path) -> None:
    path = tmp_path / "cheap.py"
    path.write_text("def judge(prompt, completion, reference):\n    return 1.0\n")
    scorer = load_scorer(f"verifier:{path}:judge")
    begun = time.process_time()
    scorer.score(["p"] * 2000, ["an answer"] * 2000)
    assert time.process_time() - begun < 2.0  # a tenth of that where nothing else runs


# --- unit tests -----------------------------------------------------------------------------------

ADD = "def add(a, b):\n    return a + b\n"


def passing(program: str, tests: str, spec: str = "verifier:tests") -> Scores:
    return load_scorer(spec).score(["p"], [program], [tests])


@pytest.mark.parametrize(
    ("program", "tests", "passes", "share"),
    [
        (ADD, "assert add(1, 2) == 3\nassert add(-1, 1) == 0", 1.0, 1.0),
        (
            f"Here it is:\n```python\nwrong\n```\nor\n```python\n{ADD}```\nDone.",
            "assert add(1, 2) == 3",
            1.0,
            1.0,
        ),
        (f"```py\n{ADD}```\n```\nadd(1, 2)\n```", "assert add(1, 2) == 3", 1.0, 1.0),
        (ADD, "from solution import add\ndef test_one():\n    assert add(1, 2) == 3\n", 1.0, 1.0),
        (ADD, "assert add(1, 2) == 3\nassert add(1, 2) == 4\nassert add(2, 2) == 4", 0.0, 2 / 3),
        (
            ADD,
            "def test_a():\n    assert add(1, 1) == 2\ndef test_b():\n    assert add(1, 1) == 3\n",
            0.0,
            0.5,
        ),
        (ADD, "def check(candidate):\n    assert candidate(1, 2) == 3\n\ncheck(add)", 1.0, 1.0),
        (ADD, "def test_add(): assert add(1, 1) == 3\ntest_add()", 0.0, 0.0),
        (
            ADD,
            "right = add(1, 1)\nassert right == 2\nimport nothing_here\nassert right == 2",
            0.0,
            0.5,
        ),
        (ADD, "async def helper(): pass\nassert add(1, 1) == 2\nprint('done')", 1.0, 1.0),
        ("def add(a, b):\n    return a", "assert add(1, 0) == 1\nassert add(0, 1) == 1", 0.0, 0.5),
        ("I cannot program.", "assert add(1, 2) == 3", 0.0, 0.0),
        ("", "assert add(1, 2) == 3", 0.0, 0.0),
        ("\ud800", "assert add(1, 2) == 3", 0.0, 0.0),
        ("\0", "assert add(1, 2) == 3", 0.0, 0.0),
        (
            ADD + "if __name__ == '__main__':\n    raise SystemExit",
            "assert add(1, 2) == 3",
            1.0,
            1.0,
        ),
        (ADD + "input()", "assert add(1, 2) == 3", 0.0, 0.0),
        (
            "from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: 'int' = 3\n",
            "import pickle\nassert pickle.loads(pickle.dumps(Point())).x == 3",
            1.0,
            1.0,
        ),
        (
            ADD,
            "import unittest\nclass Adding(unittest.TestCase):\n"
            "    @classmethod\n    def setUpClass(cls): cls.one = 1\n"
            "    def setUp(self): self.two = 2\n"
            "    def test_right(self): self.assertEqual(add(self.one, self.two), 3)\n"
            "    def test_wrong(self): self.assertEqual(add(self.one, self.two), 4)\n",
            0.0,
            0.5,
        ),
    ],
)
def test_programs_are_judged_by_their_tests(
    program: str, tests: str, passes: float, share: float
) -> None:
    found = passing(program, tests)
    assert (found, found.remarks) == ([passes], {})
    assert passing(program, tests, "verifier:tests=share") == [pytest.approx(share)]


@pytest.mark.parametrize("when", ["in the program", "in the test"])
@pytest.mark.parametrize("seconds", [1, 10], ids=["by time", "by another wall"])
def test_programs_that_misbehave_are_stopped_and_fail(when: str, seconds: int) -> None:
    called = "\n{0}()\n" if when == "in the program" else "\ndef run():\n    {0}()\n"
    # "leaves" raises SystemExit, which is a plain failure here
    kinds = [what for what in ENDS if seconds_for(what) == seconds and what != "leaves"]
    tests = "def check(function): function()\ncheck(run)"
    programs = [*(HOSTILE + called.format(what) for what in kinds), "def run(): pass"]
    scores = load_scorer(f"verifier:tests,{LIMITS},timeout_s={seconds}").score(
        ["p"] * len(programs), programs, [tests] * len(programs)
    )
    assert scores == [0.0] * len(kinds) + [1.0]
    assert list(scores.remarks) == list(range(len(kinds)))
    said = {
        what: scores.remarks[row].removeprefix("scored as failed: ")
        for row, what in enumerate(kinds)
    }
    assert [what for what in kinds if not said[what].startswith(ENDS[what])] == [], said


CHEATS = {
    "leaves at once": "import os\nos._exit(0)",
    "leaves": "import sys\nsys.exit(0)",
    "leaves in the test": "import os\ndef add(a, b): os._exit(0)",
    "raises SystemExit in the test": "def add(a, b): raise SystemExit(0)",
    "prints what could be a result": (
        'import os\nfor fd in range(20):\n    try: os.write(fd, b\'{"id": 1, "result": 1, '
        '"dirty": false}\\n\')\n'
        "    except OSError: pass\nos._exit(0)"
    ),
    "replaces a "
    "builtin": "import builtins\nbuiltins.all = lambda values: True\ndef add(a, b): return 0",
    "empties the builtins": "import builtins\nvars(builtins).clear()",
    "replaces "
    "AssertionError": "import builtins\nbuiltins.AssertionError = None\ndef add(a, b): return 0",
    "replaces a method of unittest": (
        "import unittest\nunittest.TestCase.assertEqual = lambda *values: None\ndef add(a, b): "
        "return 0"
    ),
    "defines the tests itself": "def test_add(): pass\ndef add(a, b): return 0",
    "ends when a copy of it is "
    "judged": "import os\ndef add(a, b): return 3 if os.fork() == 0 else 0",
    "hides a builtin": "def add(a, b): return 0\nall = lambda values: True",
    "hides a builtin with another": "def add(a, b): return 0\nall = len",
    "has builtins of its own": (
        "import builtins\n__builtins__ = {**vars(builtins), 'all': lambda values: True}\ndef "
        "add(a, b): return 0"
    ),
    "serves another unittest from a file": (
        "import os, sys\nsys.path.insert(0, os.getcwd())\n"
        "open('unittest.py', 'w').write('class TestCase:\\n    def __init__(self, name): pass\\n'\n"
        "    '    assertEqual = lambda *values: None\\nclass TestSuite:\\n    def __init__(self, "
        "cases): pass\\n'\n"
        "    '    def debug(self): pass\\n')\ndef add(a, b): return 0"
    ),
    "replaces how tests are read": (
        "import ast\nread = ast.parse\nast.parse = lambda *values: read('assert True')\n"
        "ast.Assert.test = property(lambda node: ast.Constant(True, lineno=1, col_offset=0))\ndef "
        "add(a, b): return 0"
    ),
}

FINDERS = """
import importlib.machinery, sys
def add(a, b): return 0
class TestCase:
    def __init__(self, name): pass
    def assertEqual(self, *values): pass
class TestSuite:
    def __init__(self, cases): pass
    def debug(self): pass
class Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, cls) if name == "unittest" else None
    @staticmethod
    def create_module(spec): return None
    @staticmethod
    def exec_module(module): module.TestCase, module.TestSuite = TestCase, TestSuite
"""
CHEATS["puts a finder first"] = FINDERS + "sys.meta_path.insert(0, Finder)"
CHEATS["has a list of finders of its own"] = FINDERS + "sys.meta_path = [Finder, *sys.meta_path]"
CHEATS["puts a hook first"] = (
    FINDERS + "sys.path_hooks.insert(0, lambda entry: Finder)\nsys.path_importer_cache.clear()"
)
CHEATS["puts a finder behind a folder"] = (
    FINDERS + "sys.path_importer_cache.update(dict.fromkeys(sys.path, Finder))"
)


@pytest.mark.parametrize("how", CHEATS)
def test_the_usual_ways_to_fake_a_pass_do_not_work(how: str) -> None:
    tests = (
        "import unittest\n"
        "def test_add():\n    assert all([add(1, 2) == 3])\n"
        "class Adding(unittest.TestCase):\n    def test_add(self): self.assertEqual(add(1, 2), 3)\n"
    )
    assert passing(CHEATS[how], tests) == [0.0]
    assert passing(CHEATS[how], tests, "verifier:tests=share") == [0.0]
    assert passing(ADD, tests) == [1.0]


# what is done in the test that follows, by the first call
LATER = {
    "hides a builtin": "def add(a, b):\n    globals()['all'] = lambda values: True\n    return 0",
    "replaces a "
    "builtin": "def add(a, b):\n    import builtins\n    builtins.all = lambda values: True\n  "
    " "
    " "
    "return 0",
    "jumps over what is tested": """
import sys
def add(a, b): return 0
def watch(frame, event, value):
    if frame.f_code.co_name == "test_add" and event == "line" and frame.f_lineno == frame.f_code.co_firstlineno + 2:
        frame.f_lineno += 1
    return watch
sys.settrace(watch)
""",
}


@pytest.mark.parametrize("how", LATER)
def test_what_runs_between_the_lines_of_a_test_does_not_change_it(how: str) -> None:
    tests = "def test_add():\n    sum = add(1, 2)\n    assert all([sum == 3])\n    sum = 0\n"
    assert passing(LATER[how], tests) == [0.0]
    assert passing(ADD, tests) == [1.0]


@pytest.mark.parametrize(
    "hidden", ["range = lambda *values: []", "__builtins__ = {'range': lambda *values: []}"]
)
def test_a_loop_of_checks_runs_whatever_the_program_calls_range(hidden: str) -> None:
    loop = "def check(c):\n    for i in range(1, 9): assert c(i, i) == 2 * i\ncheck(add)"
    assert passing(f"def add(a, b): return 0\n{hidden}", loop) == [0.0]
    assert passing(f"{ADD}\n{hidden}", loop) == [1.0]


@pytest.mark.parametrize(
    ("program", "tests", "expected"),
    [
        ("def sum(a, b): return a + b", "assert sum(1, 2) == 3", 1.0),
        ("def sum(a, b): return a - b", "assert sum(1, 2) == 3", 0.0),
        (
            "class set:\n    size = 3",
            "class Mine(set):\n    twice = 2 * set.size\nassert Mine.twice == 6",
            1.0,
        ),
        ("sum = lambda a, b: a + b", "assert sum(1, 2) == 3", 0.0),
        ("sum = lambda a, b: a + b", "from solution import sum\nassert sum(1, 2) == 3", 1.0),
        ("def all(values): return True", "from builtins import all\nassert all([False])", 0.0),
        (
            "max = 3\nlist = [1]\ndef f(): return max + list[0]",
            "assert f() == 4\nassert max(list((1, 2))) == 2",
            1.0,
        ),
    ],
)
def test_a_name_that_hides_a_builtin_is_the_tests_too_where_the_program_defines_it(
    program: str, tests: str, expected: float
) -> None:
    assert passing(program, tests) == [expected]


def test_tests_see_what_the_program_changes_in_its_names_and_keep_their_own() -> None:
    program = (
        "count = 0\ndef more():\n    global count\n    count += 1\n    return count\ndef named(): "
        "return name\nname = 'a'"
    )
    tests = (
        "more()\nassert count == 1\ndef check(value):\n    more()\n    assert count == value\n"
        "class Holds:\n    value = count\nassert Holds.value == 1\ncheck(2)\n"
        "name = 'b'\nassert (name, named()) == ('b', 'a')\n"
        "import solution\nsolution.name = 'c'\nassert (name, named()) == ('b', 'c')\n"
        "import pickle\nassert type(pickle.loads(pickle.dumps(Holds()))) is Holds\n"
        "try:\n    nothing_of_that_name\nexcept NameError as error:\n    found = str(error)\n"
        "assert found == \"name 'nothing_of_that_name' is not defined\"\n"
    )
    found = passing(program, tests, "verifier:tests=share")
    assert (found, found.remarks) == ([1.0], {})


FILLS = {
    "with files": (
        "while True:\n    made += 1\n    open(str(made), 'wb').write(bytes(10**7))",
        "it wrote more than 64 MiB",
    ),
    "with folders": (
        "while True:\n    made += 1\n    os.makedirs(f'{made}/a/b/c')",
        "it made more than 2000 files",
    ),
    "out of sight": (
        "for made in range(1, 30):\n    os.mkdir('x' * 200)\n    os.chdir('x' * 200)\nimport "
        "time\ntime.sleep(1000)",
        "nobody can see how much it wrote (File name too long)",
    ),
}


@pytest.mark.parametrize("how", FILLS)
def test_a_program_that_fills_the_disk_is_stopped(how: str) -> None:
    program, says = FILLS[how]
    scorer = load_scorer("verifier:tests,timeout_s=60")
    scores = scorer.score(
        ["p"] * 2, [f"import os\nmade = 0\n{program}", "made = 1"], ["assert made"] * 2
    )
    assert scores == [0.0, 1.0]
    assert scores.remarks == {0: f"scored as failed: {says} and was stopped"}


def test_a_program_cannot_reach_the_files_the_environment_or_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    target = tmp_path / "precious.txt"
    target.write_text("here")
    tmp_path.chmod(0o777)
    target.chmod(0o666)
    monkeypatch.setenv("SOME_API_KEY", "secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = (
            "import os, socket\n"
            "open('own.txt', 'w').write('x' * 1000)\n"
            "def tries(what):\n"
            "    try:\n        what()\n    except OSError as error:\n        return 'refused'\n   "
            " return 'went through'\n"
            f"written = tries(lambda: open({str(target)!r}, 'w').write('x'))\n"
            f"removed = tries(lambda: os.remove({str(target)!r}))\n"
            f"made = tries(lambda: os.mkdir({str(tmp_path / 'new')!r}))\n"
            "large = tries(lambda: open('large', 'wb').write(bytes(10**8)))\n"
            "connected = tries(lambda: socket.create_connection(('127.0.0.1', "
            f"{server.getsockname()[1]}), timeout=5))\n"
            "secret = os.environ.get('SOME_API_KEY')\n"
        )
        scorer = load_scorer("verifier:tests")
        assert scorer.score(
            ["p"], [program], ["assert secret is None\nassert large == 'refused'"]
        ) == [1.0]
        walls = scorer.isolation  # type: ignore[attr-defined]
        names = (["connected"] if walls["network"] == "yes" else []) + (
            ["written", "removed", "made"] if walls["writing"] == "yes" else []
        )
        for name in names:
            assert scorer.score(["p"], [program], [f"assert {name} == 'refused', {name}"]) == [
                1.0
            ], name
    if walls["writing"] == "yes":
        assert target.read_text() == "here"


def test_a_program_reads_no_file_and_reaches_no_socket_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    secret = tmp_path / "secret.txt"
    secret.write_text("key")
    tmp_path.chmod(0o755)
    monkeypatch.chdir(
        tmp_path
    )  # where the command runs is on Python's path, and must not be readable for that
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path, tmp_path))
        server.listen()
        path.chmod(0o777)
        program = (
            "import os, socket\n"
            "open('own.txt', 'w').write('mine')\n"
            "def tries(what):\n"
            "    try:\n        return what()\n    except OSError:\n        return 'refused'\n"
            f"read = tries(lambda: open({str(secret)!r}).read())\n"
            f"listed = tries(lambda: os.listdir({str(tmp_path)!r}))\n"
            f"reached = tries(lambda: socket.socket(socket.AF_UNIX).connect({str(path)!r}))\n"
        )
        needed = (
            "import json, ctypes, sqlite3, concurrent.futures, numpy\nassert "
            "open('own.txt').read() == 'mine'\n"
        )
        needed += "assert len(socket.socketpair()) == 2\n"
        scorer = load_scorer("verifier:tests")
        scores = scorer.score(["p"], [program], [needed])
        assert (scores, scores.remarks) == ([1.0], {})
        walls = scorer.isolation  # type: ignore[attr-defined]
        names = (["read", "listed"] if walls["reading"] == "yes" else []) + (
            ["reached"] if walls["sockets"] == "yes" else []
        )
        for name in names:
            assert scorer.score(["p"], [program], [f"assert {name} == 'refused', {name}"]) == [
                1.0
            ], name


def test_the_same_program_gives_the_same_score_each_time() -> None:
    program = "import random\nvalue = (random.random(), list({'a', 'b', 'c', 'd', 'e'}), hash('x'))"
    tests = (
        "import os\nwith open(os.path.join(os.path.dirname(os.__file__), 'os.py')) as f: "
        "pass\nassert value[0] < 2"
    )
    assert passing(program, tests) == [1.0]
    rows = [f"assert hash(str(value)) % 11 == {rest}" for rest in range(11)]
    first, second = (
        load_scorer("verifier:tests").score(["p"] * 11, [program] * 11, rows) for _ in range(2)
    )
    assert sum(first) == 1.0
    assert first == second


def test_many_rows_keep_their_order_and_equal_ones_run_once() -> None:
    programs = [f"value = {number}" for number in (1, 2, 1, 3, 1, 2)]
    scores = load_scorer("verifier:tests").score(
        ["p"] * 6, programs, ["assert value < 3", "assert value == 1"] * 3
    )
    assert scores == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert load_scorer("verifier:tests").score([], [], []) == []


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("def test_(:", "row 2: the right answer is no Python code"),
        ("x = 3", "row 2: the right answer holds no test: 'x = 3'"),
        ("\0", "row 2: the right answer is no Python code"),
        (
            "assert 1\nreturn 2",
            "row 2: the right answer is no Python code: 'return' outside function",
        ),
        ("", "row 2: the right answer holds no test"),
    ],
)
def test_a_reference_without_tests_is_an_error_of_the_data(reference: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_scorer("verifier:tests").score(["p", "p"], ["x", "x"], ["assert 1", reference])
    with pytest.raises(DataError, match="row 1"):
        load_scorer("verifier:tests").score(["p"], ["x"], [None])


def test_a_machine_that_starts_no_process_fails_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    for spec in ("verifier:tests", "verifier:regex=a"):
        with pytest.raises(UsageError, match="could not start the process"):
            load_scorer(spec).score(["p"], ["x"], ["assert 1"])


def test_a_worker_that_does_not_start_in_time_is_no_answer_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "START_TIMEOUT_S", 0.0)
    with pytest.raises(UsageError, match="it did not start in 0 s and was stopped"):
        load_scorer("verifier:regex=a").score(["p"], ["x"])


# --- regular expressions --------------------------------------------------------------------------


def test_a_pattern_that_looks_for_ever_is_stopped() -> None:
    scorer = load_scorer(r"verifier:regex=^(?:a+)+$")
    assert isinstance(scorer, RegexVerifier)
    scorer.options = Options(timeout_s=0.5)
    scores = scorer.score(["p"] * 3, ["aaa", "a" * 50 + "!", "aaa"])
    assert scores == [1.0, 0.0, 1.0]
    assert scores.remarks == {1: "scored as failed: it took longer than 0.5 s and was stopped"}


def test_a_pattern_takes_any_text(tmp_path: Path) -> None:
    answers = ["x" * 5_000_000 + "the end", "\ud800 the end", "the\0end", "line\nthe end"]
    assert load_scorer(r"verifier:regex=the end\Z").score(["p"] * 4, answers) == [
        1.0,
        1.0,
        0.0,
        1.0,
    ]
    assert load_scorer(r"verifier:regex=(?s)(.*),timeout_s=1").score(
        ["p"], ["a,timeout_s=1"], ["a"]
    ) == [1.0]


# --- options and fingerprints ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("verifier:tests,timeout=3", r"no option 'timeout'(.|\n)*did you mean `timeout_s`"),
        ("verifier:tests,timeout_s=0", r"timeout_s is '0'(.|\n)*above 0"),
        ("verifier:tests,timeout_s=nan", "timeout_s is 'nan'"),
        ("verifier:tests,timeout_s=", "timeout_s is ''"),
        ("verifier:tests,memory_mb=1", "memory_mb is '1'"),
        ("verifier:tests,memory_mb=1.5", "memory_mb is '1.5'"),
        ("verifier:tests,processes=-1", "processes is '-1'"),
        ("verifier:tests,network=yes", "no option 'network'"),
        ("verifier:tests,timeout_s=1,timeout_s=2", "stands twice"),
        ("verifier:exact,timeout_s=1", r"no option 'timeout_s'(.|\n)*It takes none"),
        ("verifier:tests=some", "did you mean 'tests"),
        ("verifier:test", "did you mean 'tests'"),
    ],
)
def test_a_wrong_option_is_answered_with_the_cure(spec: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_scorer(spec)


def test_a_range_on_the_card_of_a_ready_verifier_must_be_its_own(tmp_path: Path) -> None:
    card = tmp_path / "ready.yaml"
    card.write_text("kind: verifier\nverifier: tests\nrange: [0, 1]\n")
    assert load_scorer(str(card)).name == "ready"
    card.write_text("kind: verifier\nverifier: tests\nrange: [0, 2]\n")
    with pytest.raises(RecipeError, match="from 0 to 2"):
        load_scorer(str(card))


def test_a_fingerprint_follows_what_decides_the_scores(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def a(p, c, r): return 1\ndef b(p, c, r): return 2\n")
    specs = [
        *(
            "verifier:tests",
            "verifier:tests=share",
            "verifier:tests,timeout_s=3",
            "verifier:tests,memory_mb=100",
        ),
        *(
            f"verifier:{path}:a",
            f"verifier:{path}:b",
            f"verifier:{path}:a,processes=1",
            "verifier:regex=a",
            "verifier:regex=b",
        ),
    ]
    first = [load_scorer(spec).fingerprint() for spec in specs]
    assert len(set(first)) == len(specs)
    assert first == [load_scorer(spec).fingerprint() for spec in specs]
    assert load_scorer("verifier:tests,timeout_s=10").fingerprint() == first[0]
    path.write_text("def a(p, c, r): return 3\ndef b(p, c, r): return 2\n")
    assert load_scorer(f"verifier:{path}:a").fingerprint() != first[4]
