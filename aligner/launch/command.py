"""Training on several processes: start them, stop them, and say why they ended.

One process trains where it is. More are started by accelerate's launcher, with a line that is
printed and can be typed again. The line names every setting, so that a default configuration which
`accelerate config` once wrote for another job does not leak in. Four things are ours because
accelerate leaves them open:

* **CPU.** `accelerate launch --cpu --num_processes 2` starts one process (it counts on MPI). The
  launcher for several GPUs with ACCELERATE_USE_CPU set starts two that talk through gloo; so that
  is our line on a machine without GPUs.
* **The end.** A rank that fails leaves its error in a file of the launching process, which raises
  it once, with our exit codes; torch's table of child failures stays away. A rank killed by a
  signal is a `TrainingError`.
* **Nothing is left behind.** Ctrl-C and SIGTERM end all ranks. If the launching process itself is
  killed, the launcher notices and ends them; if the launcher is killed, the ranks notice
  (`watch_launcher`).
* **No DataParallel.** transformers wraps a model in it when one process sees several GPUs;
  `use_one_gpu` prevents that.

Nothing at the top of this module imports torch: everything that can be refused is refused before
that.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from aligner import errors
from aligner.config.recipe import Launch
from aligner.errors import AlignerError, Problem, TrainingError, UsageError
from aligner.launch.causes import LostConnectionError
from aligner.launch.strategies import ON_CPU, STRATEGIES, TRL_NAMES
from aligner.launch.world import local_world, world

FAILURES = (
    "ALIGNER_RANK_FAILURES"  # environment variable: the folder in which ranks leave their errors
)
FAILURE_WAIT_S = (
    20.0  # how long ranks may take to end after Ctrl-C or SIGTERM before they are killed
)
CAUSE_FIRST_S = 2.0
CHECK_S = 0.5
STARTER = "ALIGNER_STARTER"
"""Environment variable: the process that started this one, which may be gone before this one can
look."""
GLOO = "GLOO_SOCKET_IFNAME"
INTERRUPTED = 130


# --- the line -------------------------------------------------------------------------------------


def launch_line(launch: Launch, argv: Sequence[str], *, gpus: int | None = None) -> list[str]:
    """Return the command that trains on `launch.num_processes` processes: `accelerate launch ... -m
    aligner ARGV`.

    `gpus` is how many GPUs this machine has; absent, they are counted.

    Raises: UsageError when the strategy is unknown, is not installed, or needs more GPUs than there
    are.
    """
    assert launch.num_processes > 1, "one process needs no launcher"
    gpus = count_gpus() if gpus is None else gpus
    check_launch(launch, gpus)
    mixed = (
        launch.mixed_precision or "no"
    )  # `trainer.bf16` and `trainer.fp16` override it in the ranks
    hosts = _hosts(launch)
    if (strategy := TRL_NAMES.get(launch.strategy, launch.strategy)) in STRATEGIES:
        switch, settings = STRATEGIES[strategy]
        options = [switch, *(part for item in settings.items() for part in item)]
        options += ["--gpu_ids", "all", "--dynamo_backend", "no", "--mixed_precision", mixed]
    else:
        options = ["--config_file", launch.strategy]
        options += ["--mixed_precision", launch.mixed_precision] if launch.mixed_precision else []
    count = ["--num_processes", str(launch.num_processes)]
    return ["accelerate", "launch", *options, *count, *hosts, "-m", "aligner", *argv]


def _hosts(launch: Launch) -> list[str]:
    """Where the ranks meet: a free port of this machine, or the address of machine 0."""
    port = launch.main_process_port
    if launch.num_machines == 1:
        return [
            "--num_machines",
            "1",
            "--machine_rank",
            "0",
            "--main_process_port",
            str(port or free_port()),
        ]
    return [
        *("--num_machines", str(launch.num_machines)),
        *("--machine_rank", str(launch.machine_rank)),
        *("--main_process_ip", str(launch.main_process_ip)),
        *("--main_process_port", str(port)),
    ]


def check_launch(launch: Launch, gpus: int) -> None:
    """Refuse what cannot start, before torch is loaded."""
    strategy = TRL_NAMES.get(launch.strategy, launch.strategy)
    if strategy not in STRATEGIES and not Path(strategy).is_file():
        raise UsageError(
            f"launch.strategy is {launch.strategy!r}, which is neither a strategy nor a file",
            f"use one of {', '.join([*STRATEGIES, *TRL_NAMES])}, or the path of a configuration "
            "file of accelerate's",
        )
    _check_machines(launch)
    here = launch.num_processes // launch.num_machines
    if gpus and here > gpus:
        raise UsageError(
            f"{here} processes are asked for on this machine, but it has {gpus} "
            f"GPU{'s' if gpus > 1 else ''}",
            f"use --num-processes {gpus * launch.num_machines}, one for each GPU",
        )
    if not gpus and here > (most := max(64, os.cpu_count() or 1)):
        raise UsageError(
            f"{here:,} processes are asked for on this machine, which has no GPU and "
            f"{os.cpu_count()} cores",
            f"use --num-processes {most * launch.num_machines} at most",
        )
    if not gpus and strategy in STRATEGIES and strategy not in ON_CPU:
        raise UsageError(
            f"launch.strategy {launch.strategy!r} shards a model over GPUs, and no GPU was found "
            "here",
            f"on CPU use {' or '.join(ON_CPU)}; `aligner doctor` shows which devices there are",
        )
    if strategy.startswith("zero") and not _has_deepspeed():
        raise UsageError(
            f"launch.strategy {launch.strategy!r} needs DeepSpeed, which is not installed",
            'run: pip install "aligner-toolkit[deepspeed]"; or use launch.strategy=fsdp, which '
            "needs nothing",
        )


def _has_deepspeed() -> bool:
    return importlib.util.find_spec("deepspeed") is not None


def _check_machines(launch: Launch) -> None:
    if launch.num_processes % launch.num_machines:
        raise UsageError(
            f"launch.num_processes {launch.num_processes} is not a multiple of launch.num_machines "
            f"{launch.num_machines}",
            "num_processes counts the processes of all machines together",
        )
    if launch.machine_rank >= launch.num_machines:
        raise UsageError(
            f"launch.machine_rank {launch.machine_rank} is not below launch.num_machines "
            f"{launch.num_machines}",
            "machines are numbered from 0",
        )
    if launch.num_machines > 1 and not (launch.main_process_ip and launch.main_process_port):
        raise UsageError(
            "several machines need launch.main_process_ip and launch.main_process_port",
            "give the address and a free port of machine 0, the same on every machine",
        )


def free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch_environment(processes: int, gpus: int | None = None) -> dict[str, str]:
    """Return what `processes` ranks of this machine need in their environment and do not find
    there.

    That is a fair share of the CPUs each (torchrun would give them one thread), and on CPU the word
    for it.
    """
    gpus = count_gpus() if gpus is None else gpus
    needed = {"OMP_NUM_THREADS": str(max(1, _cpus() // processes))}
    if not gpus:
        needed["ACCELERATE_USE_CPU"] = "true"
    return {name: value for name, value in needed.items() if name not in os.environ}


def _cpus() -> int:
    """CPUs that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def shown(line: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Return the line as one would type it."""
    return " ".join(
        [*(f"{k}={shlex.quote(v)}" for k, v in (environment or {}).items()), shlex.join(line)]
    )


# --- devices, without torch -----------------------------------------------------------------------


def count_gpus() -> int:
    """Return how many NVIDIA GPUs this process may use, as CUDA_VISIBLE_DEVICES narrows them; 0
    with a CPU torch."""
    if _torch_is_cpu_only():
        return 0
    physical = count_nvidia()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not physical:
        return physical
    return len(_visible_entries(visible))


def _visible_entries(visible: str) -> list[str]:
    """CUDA reads the list up to the first entry that is not a device."""
    entries = []
    for entry in visible.split(","):
        if entry.strip() in ("", "-1"):
            break
        entries.append(entry.strip())
    return entries


def _torch_is_cpu_only() -> bool:
    return metadata.version("torch").endswith("+cpu")


def count_nvidia() -> int:
    """Return how many NVIDIA GPUs the driver shows."""
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        listed = subprocess.run(
            [tool, "-L"], capture_output=True, text=True, timeout=60, check=False
        )
        return sum(text.startswith("GPU ") for text in listed.stdout.splitlines())
    driver = Path("/proc/driver/nvidia/gpus")
    return len(list(driver.iterdir())) if driver.is_dir() else 0


def use_one_gpu() -> str | None:
    """Let this process see the first GPU only, and return a sentence saying so where there are
    more.

    To be called before torch is loaded, when one process trains.
    """
    gpus = count_gpus()
    if gpus < 2:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = _visible_entries(visible)[0] if visible else "0"
    os.environ["CUDA_VISIBLE_DEVICES"] = first
    return (
        f"this machine has {gpus} GPUs and one process uses one (GPU {first}); --num-processes "
        f"{gpus} uses all"
    )


# --- running --------------------------------------------------------------------------------------


def run_ranks(
    line: Sequence[str],
    *,
    gpus: int | None = None,
    on_line: Callable[[str], None] | None = None,
    check: Callable[[], None] | None = None,
    interface: str | None = None,
) -> int:
    """Run a line of `launch_line` to its end and return its exit code: 0, or that of a failure a
    rank has reported.

    `on_line` is given the line to print. `check` is called again and again, and ends the ranks with
    what it raises. `interface` is the network that ranks talk over without GPUs.

    Raises: the error that a rank left behind; TrainingError when a rank was killed;
    KeyboardInterrupt after Ctrl-C.
    """
    processes, machines = (
        int(line[line.index(flag) + 1]) for flag in ("--num_processes", "--num_machines")
    )
    environment = launch_environment(processes // machines, gpus)
    if interface is not None and GLOO not in os.environ:
        environment[GLOO] = interface
    if on_line is not None:
        on_line(shown(line, environment))
    assert list(line[:2]) == ["accelerate", "launch"], "a line of launch_line"
    command = [sys.executable, "-m", "aligner.launch.command", *line[2:]]
    with tempfile.TemporaryDirectory(prefix="aligner-ranks-") as folder:
        own = {FAILURES: folder, STARTER: str(os.getpid())}
        code = _wait_for(command, {**os.environ, **environment, **own}, check)
        failure = _first_failure(Path(folder))
    if code == 0:
        return 0
    if code in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    was_killed = code < 0 or code > 128
    if failure is not None and not (was_killed and isinstance(failure, LostConnectionError)):
        raise failure
    if was_killed:
        raise TrainingError(
            _death_notice(code),
            "if memory ran out, use smaller batches or more sharding; then --resume",
        )
    return code


def _wait_for(
    command: Sequence[str],
    environment: Mapping[str, str],
    check: Callable[[], None] | None = None,
) -> int:
    """Run the launcher; on Ctrl-C or SIGTERM end it with all ranks before continuing."""
    # A session of its own: Ctrl-C reaches this process alone, and the ranks end in order and not
    # each in its way.
    launcher = subprocess.Popen(command, env=dict(environment), start_new_session=True)
    with _sigterm_as_exit():
        try:
            while check is not None and launcher.poll() is None:
                check()
                with suppress(subprocess.TimeoutExpired):
                    launcher.wait(CHECK_S)
            return launcher.wait()
        finally:
            if launcher.poll() is None:
                _end(launcher)


def _end(launcher: subprocess.Popen) -> None:
    launcher.terminate()
    try:
        launcher.wait(FAILURE_WAIT_S)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.wait()


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """SIGTERM runs the `finally` clauses, as Ctrl-C does, unless it already does something else.
    Handlers can be set in the main thread only."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _death_notice(code: int) -> str:
    number = -code if code < 0 else code - 128
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    why = ": often the system taking back memory" if name == "SIGKILL" else ""
    return f"a training process was killed by {name}{why}"


# --- in the ranks ---------------------------------------------------------------------------------


def is_our_rank() -> bool:
    """Say whether this is a rank that `run_ranks` started: that process shows the recipe, the
    result and errors."""
    return FAILURES in os.environ and world()[1] > 1


def record_failure(error: AlignerError) -> bool:
    """In a rank of ours: leave the error for the launching process to report. Say whether that was
    possible.

    Where this returns True the rank prints nothing: the launching process speaks, once.
    """
    if not is_our_rank() or not (folder := Path(os.environ[FAILURES])).is_dir():
        return False
    if isinstance(error, LostConnectionError):
        time.sleep(
            CAUSE_FIRST_S
        )  # the launcher looks ten times a second: it shall see the rank that ended first
    rank, _ = world()
    problems = [[p.message, p.where, p.key, p.hint] for p in error.problems]
    record = {
        "error": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "problems": problems,
    }
    temporary = folder / f"{rank}.tmp"
    temporary.write_text(json.dumps({"time": time.time(), **record}), encoding="utf-8")
    temporary.rename(folder / f"{rank}.json")
    return True


def _first_failure(folder: Path) -> AlignerError | None:
    """The earliest error that a rank left: later ones mostly follow from it, and lost connections
    always do."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    if not records:
        return None
    first = min(
        records,
        key=lambda record: (record["error"] == LostConnectionError.__name__, record["time"]),
    )
    kind = {LostConnectionError.__name__: LostConnectionError, **vars(errors)}.get(
        first["error"], TrainingError
    )
    return kind(first["message"], first["hint"], [Problem(*parts) for parts in first["problems"]])


def enter_rank() -> None:
    """To be called first in a process that may be a rank; does nothing in a process that is alone.

    Without a GPU, a rank that torchrun or accelerate started talks through gloo only if
    ACCELERATE_USE_CPU says so; otherwise every rank would quietly train on its own.
    """
    if world()[1] == 1:
        return
    os.environ.update(launch_environment(local_world()[1]))
    watch_launcher()


def watch_launcher(interval_s: float = 1.0) -> None:
    """End this process when the one that started it is gone: a rank, or the launcher, must not
    train on alone."""
    parent = int(os.environ.pop(STARTER, os.getppid()))  # what this one starts has another one

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval_s)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch-launcher", daemon=True).start()


def _exit_code(failures: Sequence[Any]) -> int:
    """Of the rank that failed first. torch's clock counts whole seconds; of several in one, a rank
    that was killed comes first: the others may have failed because it was gone."""
    first = min(failure.timestamp for failure in failures)
    codes = [failure.exitcode for failure in failures if failure.timestamp == first]
    killed = [code for code in codes if code < 0 and code != -signal.SIGTERM]
    code = int((killed or codes)[0])
    return code if code >= 0 else 128 - code


def _main(arguments: Sequence[str]) -> int:
    """accelerate's launcher, with the exit code of the rank that failed first and without torch's
    table of failures."""
    watch_launcher()
    import logging

    logging.disable(logging.CRITICAL)  # the ranks and the exit code say what went wrong
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(launch_command_parser().parse_args(list(arguments)))
    except ChildFailedError as error:
        return _exit_code(list(error.failures.values()))
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
