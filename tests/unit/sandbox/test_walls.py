"""What programs of answers cannot reach, on machines with all walls and with some of them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aligner.reward_models.catalogue import load_scorer
from aligner.reward_models.sandboxed_verifiers import TestsVerifier
from aligner.sandbox import worker
from aligner.sandbox.worker import Limits, Worker

ROOT = Path(__file__).parents[3]
MARKER = "the right answer"

JOB = """
def open_job(setup):
    def job(program):
        names = {"__name__": "program"}
        exec(program, names)
        return names["found"]
    return job
"""

REACHES = """
import os, socket
def tries(what):
    try:
        return repr(what())
    except OSError:
        return "refused"
def datagram():
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return ours.sendto(b"x", SOCKET)
found = {
    "by its path": tries(lambda: open(DATA).read()),
    "through a link": tries(lambda: open(LINK).read()),
    "by a number": tries(lambda: os.read(NUMBER, 100)),
    "through the parent's numbers": tries(lambda: open(f"/proc/{PARENT}/fd/{NUMBER}").read()),
    "through the parent's root": tries(lambda: open(f"/proc/{PARENT}/root{DATA}").read()),
    "in the parent's folder": tries(lambda: open(f"/proc/{PARENT}/cwd/answers.jsonl").read()),
    "the parent's environment": tries(lambda: open(f"/proc/{PARENT}/environ").read()),
    "the parent's memory": tries(lambda: open(f"/proc/{PARENT}/mem")),
    "a socket by its path": tries(lambda: socket.socket(socket.AF_UNIX).connect(SOCKET)),
    "a datagram": tries(datagram),
    "a socket by its name": tries(lambda: socket.socket(socket.AF_UNIX).connect(chr(0) + NAME)),
    "a file at the root": tries(lambda: open("/x", "w")),
    "another family": tries(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
}
"""


@pytest.fixture
def job(tmp_path: Path) -> str:
    """What runs a program and gives what it calls `found`."""
    (tmp_path / "job.py").write_text(JOB)
    return f"{tmp_path}/job.py:open_job"


@pytest.fixture
def reaching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A program that looks for a file of the user's, and for sockets, where they really are."""
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.stat().st_uid == os.getuid() and folder != Path("/tmp"):
            folder.chmod(0o755)  # so that no wall stands but those of the sandbox
    data, link, path = tmp_path / "answers.jsonl", tmp_path / "link", tmp_path / "s"
    data.write_text(MARKER)
    link.symlink_to(data)
    name = f"aligner-test-{os.getpid()}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("RIGHT", MARKER)
    number = os.open(data, os.O_RDONLY)
    os.set_inheritable(number, True)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_UNIX) as named,
    ):
        server.bind("s")
        path.chmod(0o777)
        named.bind("\0" + name)
        named.listen()
        values = {"DATA": str(data), "LINK": str(link), "SOCKET": str(path), "NAME": name}
        values |= {"NUMBER": number, "PARENT": os.getpid()}
        yield "".join(f"{key} = {value!r}\n" for key, value in values.items()) + REACHES
    os.close(number)


@pytest.mark.parametrize("without", [[], ["landlock"], ["unshare"]], ids=str)
def test_a_program_reaches_neither_files_nor_sockets(
    job: str, reaching: str, without: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "WITHOUT", without)
    with Worker(job, None, Limits(memory_bytes=2**28), site=False) as one:
        found = one.call(reaching, 30).result
        walls = one.isolation
    assert MARKER not in str(found)
    if [walls[name] for name in ("reading", "sockets", "network")] == ["yes"] * 3:
        assert found == dict.fromkeys(found, "refused")


SUPERUSER = pytest.mark.skipif(
    os.name != "posix" or os.getuid() != 0, reason="asks for a superuser"
)


@SUPERUSER
@pytest.mark.parametrize("without", ["", "landlock", "unshare"])
def test_the_same_holds_for_an_ordinary_user(job: str, reaching: str, without: str) -> None:
    program = reaching.replace(f"PARENT = {os.getpid()}", "PARENT = os.getppid()")
    said = _said_to_ordinary_user(job, f"import os\n{program}", without)
    assert MARKER not in said
    assert said.startswith("WorkerResult(result={'by its path'"), said
    if "'reading': 'yes'" in said and "'sockets': 'yes'" in said:
        assert said.count("'refused'") == REACHES.count(": tries("), said


CHANGES = """
import os
found = []
for change in (
    lambda: os.chmod(DATA, 0o600),
    lambda: os.chown(DATA, -1, os.getgid()),
    lambda: os.utime(DATA, (1, 1)),
    lambda: os.setxattr(DATA, "user.marker", b"1"),
):
    try:
        change()
    except OSError:
        found.append("refused")
"""


@SUPERUSER
@pytest.mark.parametrize("without", ["", "landlock", "unshare", "unshare landlock"])
def test_rights_and_times_of_a_users_own_files_stay(
    job: str, reaching: str, without: str, tmp_path: Path
) -> None:
    data = tmp_path / "answers.jsonl"
    os.chown(data, 12345, 12345)
    data.chmod(0o644)
    before = data.stat()
    said = _said_to_ordinary_user(job, f"DATA = {str(data)!r}\n{CHANGES}", without)
    assert said.count("'refused'") == 4, said
    assert (data.stat().st_mode, data.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def _said_to_ordinary_user(job: str, program: str, without: str) -> str:
    """What a worker of an ordinary user gives, with its walls."""
    python = shutil.which("python3", path="/usr/bin:/bin")
    if python is None or not _can_run(python):
        pytest.skip("no Python that everybody can run")
    script = (
        "import sys; from aligner.sandbox import worker; worker.WITHOUT = sys.argv[3].split()\n"
        "with worker.Worker(sys.argv[1], None, worker.Limits(memory_bytes=2**28), site=False) as w:"
        "\n    print(w.call(sys.argv[2], 30), w.isolation)"
    )
    return subprocess.run(
        [python, "-B", "-c", script, job, program, without],
        user=12345,
        group=12345,
        extra_groups=[],
        env={"PYTHONPATH": str(ROOT), "RIGHT": MARKER},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def _can_run(python: str) -> bool:
    """Whether an ordinary user can run it, with this project."""
    said = subprocess.run(
        [python, "-B", "-c", "import aligner.sandbox.worker"],
        user=12345,
        group=12345,
        extra_groups=[],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    return said.returncode == 0


@pytest.mark.parametrize("without", [[], ["landlock"]], ids=str)
def test_data_that_lies_among_packages_is_not_read_and_the_packages_are(
    job: str, tmp_path: Path, without: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "packages"
    (packages / "one-1.dist-info").mkdir(parents=True)
    (packages / "one.py").write_text("value = 3")
    (packages / "deep").mkdir()
    (packages / "deep" / "__init__.py").write_text("value = 4")
    data = packages / "deep" / "answers.jsonl"
    data.write_text(MARKER)
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setattr(worker, "WITHOUT", without)
    program = (
        f"import one, deep\ntry:\n    read = open({str(data)!r}).read()\n"
        "except OSError:\n    read = 'refused'\nfound = [one.value, deep.value, read]\n"
    )
    with Worker(job, None, Limits(memory_bytes=2**28), site=False, closed=[str(data)]) as one:
        found = one.call(program, 30)
        if one.isolation["reading"] == "yes":
            assert found.result == [3, 4, "refused"], found


def test_what_a_command_has_read_as_data_is_closed_to_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner.data.files import file_record

    packages = tmp_path / "packages"
    (packages / "one-1.dist-info").mkdir(parents=True)
    data = packages / "answers.jsonl"
    data.write_text(MARKER)
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setattr("aligner.data.files.READ", set())
    scorer = load_scorer("verifier:tests")
    assert isinstance(scorer, TestsVerifier)
    program = f"try:\n    value = open({str(data)!r}).read()\nexcept OSError:\n    value = ''"
    rows = ["p"], [program], [f"assert value == {MARKER!r}"]
    before = scorer.score(*rows)
    file_record(data)
    assert scorer.score(*rows) == ([0.0] if scorer.isolation["reading"] == "yes" else before)
    assert before == [1.0]


FILLS = {
    "memory files": "os.write(os.memfd_create('x'), bytes(10**6))",
    "segments": "ctypes.CDLL(None, use_errno=True).shmget(0, 10**6, 0o1600)",
    "message queues": "ctypes.CDLL(None, use_errno=True).msgget(0, 0o1600)",
    "namespaces": "ctypes.CDLL(None, use_errno=True).unshare(0x10000000)",
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux")
@pytest.mark.parametrize("without", [[], ["landlock", "unshare"]], ids=str)
def test_memory_that_belongs_to_no_process_is_refused(
    job: str, without: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "WITHOUT", without)
    program = "import ctypes, os\nfound = {}\n"
    for name, what in FILLS.items():
        program += f"try:\n    found[{name!r}] = {what}\n"
        program += f"except OSError:\n    found[{name!r}] = -1\n"
    with Worker(job, None, Limits(memory_bytes=2**28), site=False) as one:
        found = one.call(program, 30)
        assert found.result == dict.fromkeys(FILLS, -1), (found, one.isolation)


TAKES = {
    "many processes": (
        "import os, time\n"
        "for _ in range(4):\n    if os.fork() == 0:\n"
        "        kept = b'x' * (40 * 2**20)\n        time.sleep(30)\n"
        "time.sleep(30)\n"
    ),
    "a mapping that processes share": (
        "import mmap, os, time\n"
        "for _ in range(4):\n    if os.fork() == 0:\n"
        "        kept = mmap.mmap(-1, 40 * 2**20)\n        kept.write(b'x' * (40 * 2**20))\n"
        "        time.sleep(30)\n"
        "time.sleep(30)\n"
    ),
}


@pytest.mark.parametrize("how", TAKES)
@pytest.mark.parametrize("without", [[], ["unshare"]], ids=str)
def test_the_limit_on_memory_holds_for_all_processes_together(
    job: str, how: str, without: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "WITHOUT", without)
    with Worker(job, None, Limits(memory_bytes=100 * 2**20, processes=8), site=False) as one:
        one.start()
        found = one.call(TAKES[how], 25)
        if one.isolation["total"] == "yes":
            assert found.stopped == "it needed more than 100 MiB of memory", found


def test_memory_that_processes_share_counts_once(job: str) -> None:
    program = (
        "import os, time\nkept = b'x' * (60 * 2**20)\n"
        "for _ in range(4):\n    if os.fork() == 0:\n        time.sleep(0.5)\n        os._exit(0)\n"
        "for _ in range(4): os.wait()\nfound = 'whole'\n"
    )
    with Worker(job, None, Limits(memory_bytes=150 * 2**20, processes=8), site=False) as one:
        assert one.call(program, 30).result == "whole"


@pytest.mark.parametrize("without", [[], ["landlock"], ["unshare"]], ids=str)
def test_files_that_are_deleted_while_they_are_open_count(
    job: str, without: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "WITHOUT", without)
    limits = Limits(memory_bytes=2**28, file_bytes=2**21, folder_bytes=4 * 2**20)
    program = (
        "import os, time\nkept = []\n"
        "for number in range(5):\n"
        "    kept.append(open(str(number), 'wb'))\n    os.remove(str(number))\n"
        "    kept[-1].write(bytes(2**21))\n    kept[-1].flush()\n"
        "time.sleep(20)\n"
    )
    with Worker(job, None, limits, site=False) as one:
        found = one.call(program, 25)
        if one.isolation["disk"] == "yes":
            assert found.stopped == "it wrote more than 4 MiB and was stopped"


def test_what_the_kernel_keeps_for_a_process_is_bounded_by_its_open_files(job: str) -> None:
    program = (
        "import os\nkept = []\ntry:\n    while True: kept.append(os.pipe())\n"
        "except OSError:\n    found = len(kept)\n"
    )
    with Worker(job, None, Limits(memory_bytes=2**28), site=False) as one:
        assert 100 < one.call(program, 30).result <= 128


ORDINARY = """
import asyncio, concurrent.futures, ctypes, multiprocessing, os, shutil, subprocess, sys, tempfile
import threading, time, zoneinfo
import numpy
def double(number):
    return 2 * number
async def later():
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(5)",
                                                   stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    return int(said) + await asyncio.to_thread(double, 2)
def of_processes():
    with multiprocessing.Pool(2) as pool:
        assert pool.map(double, range(4)) == [0, 2, 4, 6]
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        assert list(pool.map(double, range(4))) == [0, 2, 4, 6]
    queue, value = multiprocessing.Queue(), multiprocessing.Value("i", 3)
    process = multiprocessing.Process(target=queue.put, args=(value.value,))
    process.start()
    assert queue.get(timeout=20) == 3
    process.join()
def of_threads():
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(double, range(4))) == [0, 2, 4, 6]
def of_files():
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile() as file:
        file.write(b"x" * 1000)
        shutil.copy(file.name, folder)
    assert subprocess.run(["ls", "/"], capture_output=True, check=False).returncode in (0, 2)
    assert subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True).stdout == b"1\\n"
def of_numbers():
    values = numpy.random.default_rng(0).normal(size=(64, 64))
    assert numpy.allclose(numpy.linalg.inv(values) @ values, numpy.eye(64))
def of_coroutines():
    assert asyncio.run(later()) == 9
"""


@pytest.mark.parametrize(
    ("without", "left_out"),
    [([], ""), (["landlock"], ""), (["unshare"], "of_processes")],
    ids=["all walls", "no Landlock", "no namespaces"],
)
def test_ordinary_programs_run_within_the_walls(
    without: list[str], left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "WITHOUT", without)
    kinds = ("processes", "threads", "files", "numbers", "coroutines")
    tests = [f"def test_{kind}(): of_{kind}()" for kind in kinds if f"of_{kind}" != left_out]
    scorer = load_scorer("verifier:tests=share,timeout_s=60,memory_mb=2048,processes=16")
    found = scorer.score(["p"], [ORDINARY], ["\n".join(tests)])
    assert (found, found.remarks) == ([1.0], {})
