"""Two machines, as two network namespaces with a cable between them: what they train, and how they
end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ranks import DATA, HALVED, LORA, RECIPE, assert_same, save_world, train

pytestmark = pytest.mark.slow

ADDRESSES = ("10.213.7.1", "10.213.7.2")
PORT = 29511
SRUN = """#!/bin/bash
# as Slurm's: the command once on each node, here in the node's network namespace
while [[ $1 == --* ]]; do shift; done
for node in 0 1; do SLURM_NODEID=$node ip netns exec "$NODES$node" "$@" & done
for node in 0 1; do wait -n || { kill $(jobs -p); exit 1; }; done
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def nodes() -> Iterator[str]:
    """The beginning of the names of two namespaces."""
    name = f"aligner{os.getpid()}-"
    try:
        for node in (0, 1):
            ip("netns", "add", f"{name}{node}")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("network namespaces need root, and `ip`")
    try:
        ends = ("eth0", "netns", f"{name}0"), ("eth0", "netns", f"{name}1")
        ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        for node, address in enumerate(ADDRESSES):
            here = ("-n", f"{name}{node}")
            ip(*here, "addr", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                ip(*here, "link", "set", link, "up")
        yield name
    finally:
        for node in (0, 1):
            ip("netns", "del", f"{name}{node}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_world(tmp_path_factory.mktemp("machines"))


def environment(**more: str) -> dict[str, str]:
    others = ("RANK", "WORLD_SIZE", "ACCELERATE_USE_CPU")
    return {**{k: v for k, v in os.environ.items() if k not in others}, **more}


def start(
    folder: Path,
    nodes: str,
    node: int,
    method: str,
    *arguments: str,
    lora: str = "",
    patience: int = 200,
) -> subprocess.Popen[str]:
    """Start one process on one of two machines."""
    recipe = folder / f"{method}{len(lora)}.yaml"
    recipe.write_text(RECIPE.format(data=DATA[method], lora=lora), encoding="utf-8")
    where = [f"launch.machine_rank={node}", f"launch.main_process_ip={ADDRESSES[0]}"]
    where += ["launch.num_machines=2", f"launch.main_process_port={PORT}"]
    command = ["ip", "netns", "exec", f"{nodes}{node}", sys.executable, "-m", "aligner", method]
    return subprocess.Popen(
        [*command, recipe.name, *HALVED, *where, *arguments],
        cwd=folder,
        env=environment(ALIGNER_MEETING_TIMEOUT_S=str(patience)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(machine: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a machine's command; return its exit code and what it said."""
    _, said = machine.communicate(timeout=200)
    return machine.returncode, said


@pytest.mark.parametrize(
    ("method", "lora", "strategy"), [("dpo", LORA, "ddp"), ("dpo", "", "fsdp")]
)
def test_two_machines_train_what_two_processes_of_one_do(
    folder: Path, nodes: str, method: str, lora: str, strategy: str
) -> None:
    name = f"{method}-{strategy}"
    train(folder, method, f"{name}-one", *HALVED, lora=lora)
    output = (f"output_dir={name}-two", f"launch.strategy={strategy}")
    machines = [start(folder, nodes, node, method, *output, lora=lora) for node in (1, 0)]
    for machine in machines:
        code, said = ended(machine)
        assert code == 0, said[-3000:]
    assert_same(folder, f"{name}-one", f"{name}-two")
    # a finished run that is resumed is left as it is, by both
    again = [start(folder, nodes, n, method, *output, "--resume", lora=lora) for n in (0, 1)]
    assert [ended(machine)[0] for machine in again] == [0, 0]


def test_the_script_for_slurm_trains_on_both_nodes(folder: Path, nodes: str) -> None:
    train(folder, "sft", "slurm-one", *HALVED)
    tools = folder / "bin"
    tools.mkdir()
    names = " ".join(ADDRESSES)
    programs = {
        "srun": SRUN,
        "scontrol": f"#!/bin/bash\nprintf '%s\\n' {names}\n",
        "aligner": f'#!/bin/bash\nexec {sys.executable} -m aligner "$@"\n',
    }
    for name, text in programs.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    asked = ["--slurm", "--nodes", "2", "--gpus-per-node", "0", "--processes-per-node", "1"]
    settings = ["method=sft", HALVED[0], "output_dir=slurm-two"]
    printed = subprocess.run(
        [sys.executable, "-m", "aligner", "launch", "sft0.yaml", *settings, *asked],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    (folder / "job.sh").write_text(printed.stdout.replace("method=sft ", ""))
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[0-1]", "NODES": nodes, "PATH": path}
    done = subprocess.run(
        ["bash", "job.sh"],
        cwd=folder,
        env=environment(**slurm),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(folder, "slurm-one", "slurm-two")
    launch = json.loads((folder / "slurm-two" / "resolved.json").read_text())["recipe"]["launch"]
    assert (launch["num_machines"], launch["main_process_port"]) == (2, 20007)


def training(folder: Path, nodes: str, output: str) -> list[subprocess.Popen[str]]:
    """Two machines in the middle of a training that does not end."""
    endless = (f"output_dir={output}", "trainer.max_steps=100000")
    machines = [start(folder, nodes, node, "sft", *endless) for node in (0, 1)]
    metrics, deadline = folder / output / "metrics.jsonl", time.monotonic() + 200
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        assert all(machine.poll() is None for machine in machines), machines[0].communicate()
        time.sleep(0.2)
    return machines


def kill_rank(machine: psutil.Process) -> None:
    (rank,) = [one for one in machine.children(recursive=True) if "RANK" in one.environ()]
    rank.send_signal(signal.SIGKILL)


def kill_machine(machine: psutil.Process) -> None:
    for one in [machine, *machine.children(recursive=True)]:
        one.send_signal(signal.SIGKILL)


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (kill_rank, "machine 1 ended: a training process was killed by SIGKILL"),
        (kill_machine, f"machine 1 ({ADDRESSES[1]}) is gone: its connection was closed"),
    ],
)
def test_when_one_machine_ends_the_other_ends_and_says_why(
    folder: Path, nodes: str, end: Callable[[psutil.Process], None], told: str
) -> None:
    first, second = training(folder, nodes, f"ends-{end.__name__}")
    here = psutil.Process(first.pid).children(recursive=True)
    end(psutil.Process(second.pid))
    code, said = ended(first)
    assert code == 5, said[-3000:]
    assert told in said
    assert said.count("error:") == 1
    assert not [one for one in here if one.is_running() and one.status() != "zombie"]
    ended(second)
    shutil.rmtree(folder / f"ends-{end.__name__}")


def test_a_machine_with_other_values_is_refused_before_anything_is_read(
    folder: Path, nodes: str
) -> None:
    outputs = ("output_dir=here", "output_dir=there")
    machines = [start(folder, nodes, node, "sft", outputs[node], patience=20) for node in (0, 1)]
    (first, waited), (second, refused) = [ended(machine) for machine in machines]
    assert (first, second) == (5, 2)
    assert "output_dir: not what machine 0 has" in refused
    assert f"machine 1 did not come to {ADDRESSES[0]}:{PORT} within 20 seconds" in waited
    assert not (folder / "here").exists()
