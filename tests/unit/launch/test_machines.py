"""Lines and scripts that start a training on several machines."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aligner.config.recipe import Launch
from aligner.errors import UsageError
from aligner.launch import machines
from aligner.launch.machines import Job, machine_lines, own_environment, sbatch_script

TWO = Launch(num_processes=16, num_machines=2, main_process_ip="10.0.0.1")
COMMAND = ["dpo", "r.yaml", "rlhf.reward_models=['a b', \"c\"]"]


def job(nodes: int = 2, **settings: object) -> Job:
    return Job(nodes, 8, "aligner-dpo", "runs/x", **{"setup": [], **settings})


def test_a_line_for_each_machine_differs_in_its_number() -> None:
    lines = [shlex.split(line) for line in machine_lines(TWO, COMMAND)]
    assert [line[:4] for line in lines] == [["aligner", *COMMAND]] * 2
    assert "launch.main_process_port=29500" in lines[0]
    different = [set(lines[0]) - set(lines[1]), set(lines[1]) - set(lines[0])]
    assert different == [{"launch.machine_rank=0"}, {"launch.machine_rank=1"}]


def test_one_machine_has_one_line_and_no_addresses() -> None:
    assert machine_lines(Launch(num_processes=8), ["sft", "r.yaml"]) == [
        "aligner sft r.yaml launch.num_processes=8"
    ]
    assert machine_lines(Launch(), ["sft", "r.yaml"]) == ["aligner sft r.yaml"]


@pytest.mark.parametrize(
    ("launch", "asked"),
    [
        (TWO, job()),
        (TWO, job(cpus_per_node=64, time="2-12:00", partition="gpu", account="a_1")),
        (TWO, job(further=["qos=high", "exclusive"], setup=["module load cuda"])),
        (TWO, job(setup=own_environment())),
        (Launch(num_processes=8), job(1)),
        (Launch(), job(1)),
    ],
)
def test_scripts_are_valid_shell(tmp_path: Path, launch: Launch, asked: Job) -> None:
    path = tmp_path / "job.sh"
    path.write_text(sbatch_script(asked, launch, COMMAND), encoding="utf-8")
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    beside = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if (tool := beside or shutil.which("shellcheck")) is not None:
        found = subprocess.run([tool, path], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout


def test_directives_stand_before_the_first_command_and_hold_what_was_asked() -> None:
    asked = job(cpus_per_node=64, time="12:00:00", partition="gpu", further=["qos=high"])
    lines = sbatch_script(asked, TWO, COMMAND).splitlines()
    assert lines[0] == "#!/bin/bash"
    directives = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")]
    assert all(line.startswith("#") for line in lines[: len(directives) + 1])
    wanted = {"nodes=2", "ntasks-per-node=1", "gpus-per-node=8", "cpus-per-task=64"}
    assert wanted | {"time=12:00:00", "partition=gpu", "qos=high"} <= set(directives)


def test_a_job_without_gpus_asks_for_none() -> None:
    asked = Job(2, 0, "aligner-dpo", "runs/x", setup=())
    assert "gpus" not in sbatch_script(asked, TWO, ["dpo", "r.yaml"])


@pytest.mark.parametrize(
    "settings",
    [
        {"time": "tomorrow"},
        {"time": "1:2:3:4"},
        {"partition": "gpu fast"},
        {"account": "a\nrm -rf x"},
        {"further": ["qos=$(id)"]},
        {"further": ["comment='x'"]},
    ],
)
def test_what_slurm_would_not_read_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        sbatch_script(job(**settings), TWO, COMMAND)
    assert caught.value.hint


@pytest.mark.parametrize("time", ["90", "90:00", "12:00:00", "2-0", "2-12:30", "1-00:00:00"])
def test_times_are_written_as_slurm_does(time: str) -> None:
    assert f"#SBATCH --time={time}" in sbatch_script(job(time=time), TWO, COMMAND)


def test_the_environment_of_a_script_is_that_of_this_program(monkeypatch) -> None:
    monkeypatch.setattr(machines.sys, "prefix", "/home/a b/.venv")
    assert own_environment() == ["source '/home/a b/.venv/bin/activate'"]
    monkeypatch.setattr(machines.sys, "base_prefix", "/home/a b/.venv")
    assert own_environment() == []


SRUN = """#!/bin/bash
# as Slurm's: the command once on each node, with the node's number; it ends when one of them fails
nodes=1
while [[ $1 == --* ]]; do [[ $1 == --nodes=* ]] && nodes=${1#*=}; shift; done
for ((node = 0; node < nodes; node++)); do SLURM_NODEID=$node "$@" & done
for ((node = 0; node < nodes; node++)); do wait -n || { kill $(jobs -p); exit 1; }; done
"""
SCONTROL = '#!/bin/bash\n[ "$1 $2 $3" = "show hostnames node[7-8]" ] && printf "node7\\nnode8\\n"\n'
ALIGNER = '#!/bin/bash\nprintf "%s\\0" "$@" > "seen-$SLURM_NODEID"\n'


@pytest.mark.parametrize(("restarts", "further"), [("0", []), ("2", ["--resume"])])
def test_a_script_starts_each_node_with_its_number_and_what_slurm_says(
    tmp_path: Path, restarts: str, further: list[str]
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "aligner": ALIGNER}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(sbatch_script(job(), TWO, COMMAND), encoding="utf-8")
    slurm = {"SLURM_JOB_ID": "91234", "SLURM_JOB_NODELIST": "node[7-8]"}
    slurm |= {"SLURM_RESTART_COUNT": restarts, "PATH": f"{tools}:/usr/bin:/bin"}
    subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=slurm, check=True, timeout=300)
    for node in (0, 1):
        seen = (tmp_path / f"seen-{node}").read_text().split("\0")[:-1]
        assert seen[:3] == COMMAND
        places = ["launch.num_processes=16", "launch.num_machines=2"]
        places += ["launch.main_process_ip=node7", "launch.main_process_port=21234"]
        assert seen[3:] == [*places, *further, f"launch.machine_rank={node}"]
