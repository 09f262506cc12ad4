"""Launching: the line, what is refused before torch is loaded, and how two processes begin and
end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from aligner.config.recipe import Launch
from aligner.errors import DataError, TrainingError, UsageError
from aligner.launch import command
from aligner.launch.command import (
    check_launch,
    launch_line,
    record_failure,
    run_ranks,
    shown,
)
from aligner.launch.strategies import STRATEGIES, TRL_NAMES
from aligner.launch.world import local_world, strategy_of_launcher, world

TWO = Launch(num_processes=2)


@pytest.fixture
def deepspeed(monkeypatch):
    """Pretend that DeepSpeed is there."""
    monkeypatch.setattr(command, "_has_deepspeed", lambda: True)


def test_the_line_starts_this_command_line_on_every_rank() -> None:
    line = launch_line(
        Launch(num_processes=2, main_process_port=4000),
        ["dpo", "recipe.yaml", "dpo.beta=0.2"],
        gpus=2,
    )
    assert line[:2] == ["accelerate", "launch"]
    assert line[-5:] == ["-m", "aligner", "dpo", "recipe.yaml", "dpo.beta=0.2"]
    assert "--num_processes 2 --num_machines 1 --machine_rank 0 --main_process_port 4000" in shown(
        line
    )


@pytest.mark.parametrize("strategy", [*STRATEGIES, *TRL_NAMES])
def test_accelerate_accepts_the_line_of_every_strategy(strategy, deepspeed) -> None:
    from accelerate.commands.launch import launch_command_parser

    line = launch_line(
        Launch(num_processes=4, strategy=strategy, mixed_precision="bf16"),
        ["sft", "--resume"],
        gpus=4,
    )
    arguments = launch_command_parser().parse_args(line[2:])
    assert (arguments.num_processes, arguments.mixed_precision, arguments.module) == (
        4,
        "bf16",
        True,
    )
    assert arguments.use_fsdp == ("fsdp" in strategy)
    assert arguments.use_deepspeed == strategy.startswith("zero")
    if arguments.use_deepspeed:
        assert arguments.zero_stage == int(strategy[-1])
    assert [arguments.training_script, *arguments.training_script_args] == [
        "aligner",
        "sft",
        "--resume",
    ]


def test_our_fsdp_is_version_2_with_whole_checkpoints(monkeypatch) -> None:
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    line = launch_line(Launch(num_processes=4, strategy="fsdp"), ["sft"], gpus=4)
    for name, value in prepare_multi_gpu_env(launch_command_parser().parse_args(line[2:])).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.cpu_ram_efficient_loading


@pytest.mark.parametrize("strategy", ["ddp", "multi_gpu", "fsdp", "fsdp2"])
def test_two_processes_start_without_a_gpu(strategy: str) -> None:
    check_launch(Launch(num_processes=2, strategy=strategy), 0)


@pytest.mark.parametrize("strategy", [*STRATEGIES])
def test_a_rank_hears_how_its_launcher_shares_the_model(strategy, deepspeed, monkeypatch) -> None:
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "FSDP_VERSION"):
        monkeypatch.delenv(name, raising=False)
    line = launch_line(Launch(num_processes=4, strategy=strategy), ["sft"], gpus=4)
    given = launch_command_parser().parse_args(line[2:])
    if strategy.startswith("zero"):
        given.deepspeed_fields_from_accelerate_config = ""  # as launch_command sets it
        environment = prepare_deepspeed_cmd_env(given)[1]
    else:
        environment = prepare_multi_gpu_env(given)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert strategy_of_launcher() == (None if strategy == "ddp" else strategy)


def test_a_file_of_accelerates_is_passed_on(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("distributed_type: MULTI_GPU\n", encoding="utf-8")
    line = launch_line(Launch(num_processes=2, strategy=str(path)), ["sft"], gpus=2)
    assert line[2:4] == ["--config_file", str(path)]
    assert "--multi_gpu" not in line


def test_several_machines_meet_at_the_address_of_the_first() -> None:
    settings = Launch(
        num_processes=16,
        num_machines=2,
        machine_rank=1,
        main_process_ip="10.0.0.1",
        main_process_port=29500,
    )
    assert "--machine_rank 1 --main_process_ip 10.0.0.1 --main_process_port 29500" in shown(
        launch_line(settings, ["sft"], gpus=8)
    )


@pytest.mark.parametrize(
    ("settings", "gpus", "message"),
    [
        ({"num_processes": 3}, 2, "3 processes are asked for on this machine, but it has 2 GPUs"),
        ({"num_processes": 2}, 1, "2 processes are asked for on this machine, but it has 1 GPU"),
        ({"num_processes": 2, "strategy": "fsdp1"}, 0, "no GPU was found"),
        ({"num_processes": 2, "strategy": "zero3"}, 0, "no GPU was found"),
        ({"num_processes": 2, "strategy": "zero2"}, 2, "needs DeepSpeed, which is not installed"),
        (
            {"num_processes": 2, "strategy": "zero9"},
            2,
            "'zero9', which is neither a strategy nor a file",
        ),
        ({"num_processes": 3, "num_machines": 2}, 8, "not a multiple"),
        ({"num_processes": 4, "num_machines": 2, "machine_rank": 2}, 8, "not below"),
        (
            {"num_processes": 4, "num_machines": 2},
            8,
            "main_process_ip and launch.main_process_port",
        ),
    ],
)
def test_what_cannot_start_is_refused_with_a_cure(settings, gpus, message, monkeypatch) -> None:
    monkeypatch.setattr(command, "_has_deepspeed", lambda: False)
    with pytest.raises(UsageError) as caught:
        check_launch(Launch(**settings), gpus)
    assert message in caught.value.message
    assert caught.value.hint


def test_refusing_loads_no_torch() -> None:
    code = (
        "import sys; from aligner.launch.command import launch_line, use_one_gpu; from "
        "aligner.config.recipe import Launch\n"
        "launch_line(Launch(num_processes=2), []); use_one_gpu(); sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )


def test_gpus_are_counted_as_cuda_would_see_them(monkeypatch) -> None:
    monkeypatch.setattr(command, "_torch_is_cpu_only", lambda: False)
    monkeypatch.setattr(command, "count_nvidia", lambda: 4)
    for visible, count in {None: 4, "": 0, "-1": 0, "2,3": 2, "1,-1,2": 1, "GPU-12ab": 1}.items():
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert command.count_gpus() == count, visible


def test_ranks_share_the_cpus_unless_the_user_said_how_many_threads(monkeypatch) -> None:
    monkeypatch.setattr(command, "_cpus", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert command.launch_environment(2, gpus=2) == {"OMP_NUM_THREADS": "4"}
    assert command.launch_environment(16, gpus=0) == {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert command.launch_environment(2, gpus=2) == {}


@pytest.mark.parametrize(("visible", "first"), [(None, "0"), ("2,3", "2")])
def test_one_process_sees_one_gpu_and_says_so(monkeypatch, visible, first) -> None:
    monkeypatch.setattr(command, "_torch_is_cpu_only", lambda: False)
    monkeypatch.setattr(command, "count_nvidia", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert "--num-processes 2" in (command.use_one_gpu() or "")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == first
    assert command.use_one_gpu() is None


def test_a_process_that_is_alone_is_rank_0_of_1(monkeypatch) -> None:
    monkeypatch.setenv("RANK", "")
    for name in ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert world() == local_world() == (0, 1)
    assert record_failure(DataError("row 3")) is False


def test_processes_of_a_machine_are_counted_apart_from_all(monkeypatch) -> None:
    said = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert world() == (5, 8)
    assert local_world() == (1, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert local_world() == (1, 4)


@pytest.mark.parametrize("rank", ["1", "gold"])
def test_a_rank_without_a_world_is_no_launch(monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    """Schedulers and shells set such a variable for themselves."""
    monkeypatch.setenv("RANK", rank)
    for size in ("", "1", "four"):
        monkeypatch.setenv("WORLD_SIZE", size)
        assert world() == (0, 1)


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([(5, 0.0), (-9, 0.0)], 137),  # one was killed, and the other lost its connection
        ([(-15, 0.0), (3, 0.0)], 143),
        ([(3, 0.0), (-15, 0.0), (-9, 30.0)], 3),  # ended by torch, and killed since it did not end
        ([(5, 2.0), (1, 1.0)], 1),
    ],
)
def test_the_exit_code_is_that_of_the_rank_that_failed_first(
    ends: list[tuple[int, float]], code: int
) -> None:
    failures = [SimpleNamespace(exitcode=end, timestamp=at) for end, at in ends]
    assert command._exit_code(failures) == code


# --- two real processes ---------------------------------------------------------------------------

RANK = """
import os, sys, time
from aligner.errors import DataError, Problem
from aligner.launch.command import enter_rank, record_failure
from aligner.launch.world import world

enter_rank()
what, folder = sys.argv[1:]
rank, size = world()
open(f"{folder}/{rank}-of-{size}.pid", "w").write(str(os.getpid()))
if what == "sum":
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator()
    total = accelerator.reduce(torch.tensor(rank + 1.0))
    open(f"{folder}/{rank}.sum", "w").write(f"{total.item()} {accelerator.state.backend}")
    accelerator.end_training()
    sys.exit(0)
if rank == 1 and what == "error":
    record_failure(DataError("row 7 is empty", "fill it", [Problem("bad", "x.jsonl:7")]))
    sys.exit(3)
if rank == 1 and what == "bug":
    sys.exit(1)
if rank == 1 and what == "killed":
    os.kill(os.getpid(), 9)
time.sleep(400)
"""


def rank_line(folder: Path, what: str) -> list[str]:
    """The line that our ranks get, with a small program in the place of the training."""
    program = folder / "rank.py"
    program.write_text(RANK, encoding="utf-8")
    line = launch_line(TWO, [], gpus=0)
    return [*line[: line.index("-m")], str(program), what, str(folder)]


def alive(folder: Path) -> list[int]:
    """Ranks that wrote their process id and still run."""
    pids = [int(path.read_text()) for path in folder.glob("*.pid") if path.read_text()]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and "Z" not in _state(pid)]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def wait_until(condition, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_on_cpu_work_on_one_thing(tmp_path) -> None:
    lines: list[str] = []
    assert run_ranks(rank_line(tmp_path, "sum"), gpus=0, on_line=lines.append) == 0
    assert [(tmp_path / f"{rank}.sum").read_text() for rank in (0, 1)] == ["3.0 gloo", "3.0 gloo"]
    assert lines[0].startswith("ACCELERATE_USE_CPU=true accelerate launch --multi_gpu ")


@pytest.mark.parametrize(("starter", "code"), [("own", 0), ("gone", -signal.SIGTERM)])
def test_a_process_whose_starter_was_gone_before_it_could_look_ends(starter, code) -> None:
    program = (
        "import os, time; from aligner.launch.command import STARTER, watch_launcher\n"
        "watch_launcher(0.01); assert STARTER not in os.environ\n"
        f"time.sleep({0.5 if starter == 'own' else 400})"
    )
    pid = os.getpid() if starter == "own" else os.getppid()
    environment = {**os.environ, command.STARTER: str(pid)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, timeout=300)
    assert done.returncode == code


def test_the_error_of_a_rank_is_raised_once_and_the_other_rank_ends(tmp_path, capfd) -> None:
    with pytest.raises(DataError) as caught:
        run_ranks(rank_line(tmp_path, "error"), gpus=0)
    assert (caught.value.message, caught.value.hint) == ("row 7 is empty", "fill it")
    assert str(caught.value.problems[0]) == "x.jsonl:7: bad"
    assert alive(tmp_path) == []
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_the_exit_code_of_a_rank_is_ours_and_a_killed_rank_is_a_training_error(tmp_path) -> None:
    assert run_ranks(rank_line(tmp_path, "bug"), gpus=0) == 1
    with pytest.raises(TrainingError, match="killed by SIGKILL"):
        run_ranks(rank_line(tmp_path, "killed"), gpus=0)
    assert alive(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_the_process_that_started_it(tmp_path, number) -> None:
    # A shell starts what it puts into the background with Ctrl-C ignored, and the tests may be
    # among that.
    heard = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = (
        f"{heard}; from aligner.launch.command import run_ranks; run_ranks(sys.argv[1:], gpus=0)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", program, *rank_line(tmp_path, "sleep")],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: len(alive(tmp_path)) == 2)
    starter.send_signal(number)
    assert starter.wait(120) != 0
    wait_until(lambda: alive(tmp_path) == [])
