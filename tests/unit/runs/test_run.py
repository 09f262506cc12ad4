"""The run directory: created, refused, resumed, locked and finished; whole after any kill."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from example_run import finished_run, resolved, trained_run

from aligner.config.defaults import OF_ALIGNER
from aligner.errors import DataError, UsageError
from aligner.reports.finish import finish_run
from aligner.runs.checkpoints import checkpoint_at, latest_checkpoint, mark_complete
from aligner.runs.files import file_sha256, read_metrics, write_atomically
from aligner.runs.lineage import lineage
from aligner.runs.lock import LOCK_NAME, STALE_S, release_locks
from aligner.runs.run import Run, seconds_worked


@pytest.fixture(autouse=True)
def outside_any_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of this repository has no place in these records."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "x"


def begin(run_dir: Path, **changes: Any) -> Run:
    """A run that ended without finishing, after its data was ready."""
    run = Run.create(resolved(run_dir, **changes))
    run.write_json("data.json", {})
    run.close()
    return run


def checkpoint(run: Run, step: int, *, complete: bool = True) -> Path:
    folder = checkpoint_at(run.checkpoints_dir, step)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    if complete:
        mark_complete(folder)
    return folder


# --- creating -------------------------------------------------------------------------------------


def test_a_new_run_records_recipe_values_and_environment(run_dir: Path) -> None:
    run = begin(run_dir)
    assert (run_dir / "recipe.yaml").read_text() == resolved(run_dir).text
    assert run.read_json("resolved.json") == resolved(run_dir).as_json()
    environment = run.read_json("environment.json")
    assert {"python", "torch", "transformers", "trl"} <= set(environment["versions"])
    assert environment["working_directory"] == str(Path.cwd())
    assert not run.is_done


def test_an_empty_directory_is_taken(run_dir: Path) -> None:
    run_dir.mkdir(parents=True)
    assert begin(run_dir).read_json("resolved.json")


def test_a_run_stopped_at_its_first_file_is_begun_again(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            begin(run_dir)
    release_locks()
    assert list(run_dir.iterdir()) == []
    (run_dir / ".resolved.json.7.tmp").write_text('{"rec')  # what a kill leaves there
    run = Run.create(resolved(run_dir), resume=True)
    assert run.read_json("resolved.json")
    assert not list(run_dir.glob(".*.tmp"))


def test_an_existing_run_is_refused_and_described(run_dir: Path) -> None:
    checkpoint(begin(run_dir), 20)
    with pytest.raises(UsageError, match="unfinished sft run, saved up to step 20") as error:
        begin(run_dir)
    assert "--resume" in error.value.hint
    assert "--overwrite" in error.value.hint


@pytest.mark.parametrize("option", [{}, {"resume": True}, {"overwrite": True}])
def test_a_run_that_failed_before_its_data_was_ready_is_begun_again(
    run_dir: Path, option: dict[str, bool]
) -> None:
    run = Run.create(resolved(run_dir))
    run.check_data("one", {"a.jsonl": "1"})
    run.prepared_dir.mkdir()
    run.close()
    again = Run.create(resolved(run_dir, seed=7), **option)
    again.check_data("two", {"a.jsonl": "2"})
    assert not again.prepared_dir.exists()
    assert again.read_json("resolved.json")["recipe"]["seed"] == 7
    again.close()


def test_resume_and_overwrite_exclude_each_other(run_dir: Path) -> None:
    with pytest.raises(UsageError, match="exclude"):
        Run.create(resolved(run_dir), resume=True, overwrite=True)


@pytest.mark.parametrize("option", [{}, {"resume": True}, {"overwrite": True}])
def test_a_strangers_folder_is_never_touched(run_dir: Path, option: dict[str, bool]) -> None:
    run_dir.mkdir(parents=True)
    (run_dir / "thesis.tex").write_text("years of work")
    (run_dir / "recipe.yaml").write_text("method: sft")
    with pytest.raises(UsageError, match="not a run"):
        Run.create(resolved(run_dir), **option)
    assert sorted(path.name for path in run_dir.iterdir()) == ["recipe.yaml", "thesis.tex"]


def test_a_file_in_the_way_is_refused(run_dir: Path) -> None:
    run_dir.parent.mkdir()
    run_dir.write_text("a file")
    with pytest.raises(UsageError, match="is a file"):
        Run.create(resolved(run_dir), overwrite=True)


def test_the_working_directory_is_no_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    with pytest.raises(UsageError, match="working directory"):
        Run.create(resolved("."), overwrite=True)
    assert (tmp_path / "run" / "resolved.json").exists()


def test_overwrite_starts_from_nothing(run_dir: Path) -> None:
    finished_run(run_dir, steps=3)
    run = Run.create(resolved(run_dir), overwrite=True)
    assert not run.is_done
    assert not (run_dir / "final").exists()
    assert not (run_dir / "metrics.jsonl").exists()
    run.close()


def test_overwriting_a_link_keeps_what_linked_folders_inside_hold(
    run_dir: Path, tmp_path: Path
) -> None:
    run = begin(run_dir)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "model.safetensors").write_bytes(b"weights")
    run.checkpoints_dir.symlink_to(precious, target_is_directory=True)
    Run.create(resolved(run_dir), overwrite=True).close()
    assert (precious / "model.safetensors").exists()


def test_a_run_killed_while_it_was_created_can_be_resumed_from_nothing(run_dir: Path) -> None:
    run_dir.mkdir(parents=True)
    dead = {"pid": dead_pid(), "host": platform.node(), "process_began": "1"}
    (run_dir / LOCK_NAME).write_text(json.dumps(dead))
    run = Run.create(resolved(run_dir), resume=True)
    assert run.read_json("environment.json")
    run.close()


# --- resuming -------------------------------------------------------------------------------------


def test_resuming_nothing_starts_afresh(run_dir: Path) -> None:
    run = Run.create(resolved(run_dir), resume=True)
    assert latest_checkpoint(run.checkpoints_dir) is None
    run.close()


def test_resuming_a_finished_run_says_that_it_is_done(run_dir: Path) -> None:
    finished_run(run_dir, steps=3)
    before = sorted((path, path.stat().st_mtime_ns) for path in run_dir.iterdir())
    assert Run.create(resolved(run_dir), resume=True).is_done
    assert sorted((path, path.stat().st_mtime_ns) for path in run_dir.iterdir()) == before


def test_a_changed_recipe_is_refused_naming_every_key(run_dir: Path) -> None:
    begin(run_dir)
    changed = resolved(
        run_dir, seed=7, trainer={"learning_rate": 1e-4, "warmup_steps": 5, "max_steps": 240}
    )
    with pytest.raises(UsageError) as error:
        Run.create(changed, resume=True)
    assert {problem.key: problem.message for problem in error.value.problems} == {
        "seed": "42 -> 7",
        "trainer.learning_rate": "5e-05 -> 0.0001",
        "trainer.warmup_steps": "(absent) -> 5",
    }
    assert not (run_dir / LOCK_NAME).exists()


TRAINER = {"learning_rate": 5e-5, "max_steps": 240}


def test_another_default_is_another_recipe(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(resolved(run_dir).filled())
    run.write_json("data.json", {})
    run.close()
    given = resolved(run_dir, trainer={**TRAINER, "weight_decay": 0.0}).filled()
    Run.create(given, resume=True).close()
    monkeypatch.setitem(OF_ALIGNER, "logging_steps", 50)
    changed = resolved(run_dir, trainer={**TRAINER, "weight_decay": 0.1}).filled()
    with pytest.raises(UsageError) as error:
        Run.create(changed, resume=True)
    assert {problem.key: problem.message for problem in error.value.problems} == {
        "trainer.weight_decay": "0.0 -> 0.1",
        "trainer.logging_steps": "10 -> 50",
    }


def test_a_run_that_wrote_no_defaults_down_is_resumed_and_they_are_not_compared(
    run_dir: Path,
) -> None:
    """As runs of older versions did."""
    begin(run_dir)
    run = Run.create(resolved(run_dir).filled(), resume=True)
    assert any("were not compared" in note for note in run.notes)
    assert run.read_json("resolved.json")["recipe"]["trainer"]["weight_decay"] == 0.0
    run.close()
    changed = resolved(run_dir, trainer={"max_steps": 240}).filled()
    with pytest.raises(UsageError) as error:
        Run.create(changed, resume=True)
    assert [problem.key for problem in error.value.problems] == ["trainer.learning_rate"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"launch": {"num_processes": 2}}, "launch.num_processes"),
        (
            {"data": {"train": ["sft.jsonl", "more.jsonl"], "eval": 0.05, "max_length": 256}},
            "data.train[1].path",
        ),
        ({"early_stopping": {"patience": 2}}, "early_stopping.patience"),
    ],
)
def test_what_changes_results_is_refused(run_dir: Path, changes: dict[str, Any], key: str) -> None:
    begin(run_dir)
    with pytest.raises(UsageError) as error:
        Run.create(resolved(run_dir, **changes), resume=True)
    assert key in {problem.key for problem in error.value.problems}


def test_what_changes_no_number_may_change(run_dir: Path) -> None:
    begin(run_dir)
    changes = {"report": {"num_prompts": 1}, "launch": {"main_process_port": 29501}}
    run = Run.create(resolved(run_dir, **changes), resume=True)
    assert run.read_json("resolved.json")["recipe"]["report"]["num_prompts"] == 1
    run.close()


def test_a_run_may_be_moved_and_resumed(run_dir: Path) -> None:
    begin(run_dir)
    moved = run_dir.with_name("moved")
    run_dir.rename(moved)
    Run.create(resolved(moved), resume=True).close()


def test_changed_data_is_refused_naming_the_file(run_dir: Path) -> None:
    run = begin(run_dir)
    run.check_data("one", {"a.jsonl": "1", "b.jsonl": "2", "c.jsonl": "3"})
    run.check_data("one", {"a.jsonl": "1", "b.jsonl": "2", "c.jsonl": "3"})
    with pytest.raises(DataError) as error:
        run.check_data("two", {"a.jsonl": "1", "b.jsonl": "9", "d.jsonl": "4"})
    assert {problem.where: problem.message for problem in error.value.problems} == {
        "b.jsonl": "has other content now",
        "c.jsonl": "is no longer among the sources",
        "d.jsonl": "was not among the sources",
    }
    with pytest.raises(DataError, match="the files are the same"):
        run.check_data("two", {"a.jsonl": "1", "b.jsonl": "2", "c.jsonl": "3"})


def test_only_whole_checkpoints_count_and_the_others_go_on_resume(run_dir: Path) -> None:
    run = begin(run_dir)
    checkpoint(run, 9)
    newest = checkpoint(run, 20)
    state = {"global_step": 20, "max_steps": 20, "stateful_callbacks": {}}
    (newest / "trainer_state.json").write_text(json.dumps(state))
    half = checkpoint(run, 100, complete=False)
    assert latest_checkpoint(run.checkpoints_dir) == newest
    resumed = Run.create(resolved(run_dir), resume=True)
    assert not half.exists()
    assert latest_checkpoint(resumed.checkpoints_dir) == newest
    resumed.close()


def test_temporary_files_of_a_killed_write_are_removed_on_resume(run_dir: Path) -> None:
    begin(run_dir)
    (run_dir / ".data.json.4711.tmp").write_text("{")
    Run.create(resolved(run_dir), resume=True).close()
    assert not (run_dir / ".data.json.4711.tmp").exists()


def test_versions_that_changed_are_noted(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(run_dir)
    monkeypatch.setattr("aligner.runs.run.versions", lambda: {"torch": "9.9"})
    run = Run.create(resolved(run_dir), resume=True)
    assert any("-> 9.9" in note for note in run.notes)
    assert run.read_json("environment.json")["sessions"][1]["versions"]["torch"] == "9.9"
    run.close()


def test_time_between_sessions_does_not_count() -> None:
    sessions = [
        {"started": "2030-01-01T00:00:00+00:00", "last_sign": "2030-01-01T00:00:10+00:00"},
        {"started": "2030-01-01T05:00:00+00:00"},
    ]
    assert seconds_worked(sessions, "2030-01-01T05:00:05+00:00") == 15


# --- the lock -------------------------------------------------------------------------------------


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


HOLDER = """
import sys
sys.path.insert(0, sys.argv[2])
from example_run import resolved
from aligner.runs.run import Run
run = Run.create(resolved(sys.argv[1]), resume=True)
print("ready", flush=True)
step = 0
while True:
    step += 1
    run.log_metrics({"step": step, "split": "train", "loss": 1 / step, "text": "x" * 2000})
"""


ELSEWHERE = """
import platform
platform.node = lambda: "elsewhere"
"""
QUICK = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import aligner.runs.lock
aligner.runs.lock.BEAT_S = 0.05
"""
WITHOUT_FLOCK = """
import aligner.runs.lock
aligner.runs.lock.fcntl = None
"""


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start_holder(run_dir: Path, first: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", first + HOLDER, str(run_dir), str(Path(__file__).parents[2])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_cannot_write_one_run_and_a_killed_ones_lock_is_taken_over(
    run_dir: Path,
) -> None:
    holder = start_holder(run_dir)
    try:
        wait_until(lambda: (run_dir / "metrics.jsonl").exists())
        for option in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(UsageError, match=f"in use by process {holder.pid}"):
                Run.create(resolved(run_dir), **option)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (run_dir / LOCK_NAME).exists()
    run = Run.create(resolved(run_dir), resume=True)
    assert any(f"process {holder.pid}" in note for note in run.notes)
    content = (run_dir / "metrics.jsonl").read_bytes()
    assert content.endswith(b"\n")
    steps = [json.loads(line)["step"] for line in content.splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    run.close()
    assert not (run_dir / LOCK_NAME).exists()


def test_a_process_that_ends_gives_its_lock_back(run_dir: Path) -> None:
    code = HOLDER.partition("print")[0]
    subprocess.run(
        [sys.executable, "-c", code, str(run_dir), str(Path(__file__).parents[2])], check=True
    )
    assert not (run_dir / LOCK_NAME).exists()


def test_a_lock_of_another_machine_is_respected(run_dir: Path) -> None:
    begin(run_dir)
    (run_dir / LOCK_NAME).write_text(
        json.dumps({"pid": 1, "host": "elsewhere", "process_began": "5"})
    )
    with pytest.raises(UsageError, match="process 1 on elsewhere") as error:
        Run.create(resolved(run_dir), resume=True)
    assert "delete" in error.value.hint


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
def test_what_a_killed_holder_had_forked_does_not_hold_its_lock(run_dir: Path) -> None:
    """Workers that load data may live for a moment longer."""
    # The child says when it runs: before that it has the lock of its parent for a moment.
    fork = (
        "\nimport os, time\nif not os.fork():\n    print(os.getpid(), flush=True)\ntime.sleep(60)\n"
    )
    code = HOLDER.replace('\nprint("ready"', fork + 'print("ready"')
    command = [sys.executable, "-c", code, str(run_dir), str(Path(__file__).parents[2])]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    child = int(holder.stdout.readline())
    try:
        holder.kill()
        holder.wait()
        Run.create(resolved(run_dir), resume=True).close()
        assert Path(f"/proc/{child}").exists() or not Path("/proc/self").exists()
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/ns").exists(), reason="needs to know the machine's start")
@pytest.mark.parametrize("first", [ELSEWHERE, ELSEWHERE + WITHOUT_FLOCK], ids=["", "no flock"])
def test_another_host_name_on_this_machine_hides_nobody(run_dir: Path, first: str) -> None:
    """A container, or a job, has another host name at each start."""
    holder = start_holder(run_dir, first)
    try:
        with pytest.raises(
            UsageError, match=f"in use by process {holder.pid} on elsewhere\n"
        ) as error:
            Run.create(resolved(run_dir), resume=True)
        assert error.value.hint == "wait for it or stop it"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    run = Run.create(resolved(run_dir), resume=True)
    assert "taken over" in run.notes[0]
    run.close()


def lock_of_another_machine(run_dir: Path, silence_s: float) -> Path:
    path = run_dir / LOCK_NAME
    holder = {"pid": os.getpid(), "host": platform.node(), "process_began": "5"}
    path.write_text(json.dumps({**holder, "boot": "another", "flock": True, "beat_s": 20}))
    then = time.time() - silence_s
    os.utime(path, (then, then))
    return path


def test_a_lock_of_another_machine_ends_with_its_signs_of_life(run_dir: Path) -> None:
    """Also where that machine, or container, has this one's name."""
    begin(run_dir)
    lock_of_another_machine(run_dir, STALE_S / 2)
    with pytest.raises(UsageError, match=r"last sign of life is (1[5-9]|2\d)\d s ago") as error:
        Run.create(resolved(run_dir), resume=True)
    assert "5 minutes after that sign" in error.value.hint
    lock_of_another_machine(run_dir, STALE_S + 1)
    Run.create(resolved(run_dir), resume=True).close()


def test_a_holder_gives_signs_of_life_and_stops_when_it_lost_the_lock(run_dir: Path) -> None:
    holder = start_holder(run_dir, QUICK)
    os.utime(run_dir / LOCK_NAME, (0, 0))
    wait_until(lambda: (run_dir / LOCK_NAME).stat().st_mtime > 0)
    lock_of_another_machine(run_dir, 0)
    assert holder.wait(120) != 0
    assert json.loads((run_dir / LOCK_NAME).read_text())["boot"] == "another"


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="needs /proc to tell processes apart"
)
def test_a_lock_whose_process_number_was_given_to_another_is_stale(run_dir: Path) -> None:
    begin(run_dir)
    (run_dir / LOCK_NAME).write_text(
        json.dumps({"pid": os.getpid(), "host": platform.node(), "process_began": "1"})
    )
    Run.create(resolved(run_dir), resume=True).close()


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="needs /proc to tell processes apart"
)
def test_the_lock_of_a_process_that_ended_and_was_not_waited_for_is_stale(run_dir: Path) -> None:
    begin(run_dir)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    holder = {"pid": child.pid, "host": platform.node(), "process_began": began}
    (run_dir / LOCK_NAME).write_text(json.dumps(holder))
    with pytest.raises(UsageError, match="in use"):
        Run.create(resolved(run_dir), resume=True)
    child.kill()
    stat = Path(f"/proc/{child.pid}/stat")
    wait_until(lambda: "Z" in stat.read_text().rpartition(")")[2].split()[0])
    run = Run.create(resolved(run_dir), resume=True)
    assert "no longer runs" in run.notes[0]
    run.close()
    child.communicate()


def test_an_empty_lock_is_respected_while_its_process_has_it_open(run_dir: Path) -> None:
    """A busy machine may stop a process between making the file and writing into it."""
    fcntl = pytest.importorskip("fcntl", reason="Windows has no such locks")
    begin(run_dir)
    with (run_dir / LOCK_NAME).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="is being opened by another process"):
            Run.create(resolved(run_dir), resume=True)
        assert (run_dir / LOCK_NAME).exists()


def test_an_empty_lock_is_stale(run_dir: Path) -> None:
    begin(run_dir)
    (run_dir / LOCK_NAME).write_text("")
    Run.create(resolved(run_dir), resume=True).close()


# --- writing --------------------------------------------------------------------------------------


def test_a_write_cut_short_leaves_the_old_content(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(run_dir)
    run.write_json("data.json", {"rows": 1})

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run.write_json("data.json", {"rows": 2})
    assert run.read_json("data.json") == {"rows": 1}


def test_content_is_on_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    write_atomically(tmp_path / "x", "text")
    assert calls == ["fsync", "rename", "fsync"]


def test_metrics_survive_what_is_no_number(run_dir: Path) -> None:
    run = begin(run_dir)
    run.log_metrics({"step": 1, "loss": float("nan"), "grad_norm": float("-inf"), "lr": 0.5})
    line = (run_dir / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1,
        "loss": "NaN",
        "grad_norm": "-Infinity",
        "lr": 0.5,
    }
    (record,) = read_metrics(run_dir)
    assert record["loss"] != record["loss"]
    assert record["grad_norm"] == float("-inf")


def test_a_line_cut_short_is_ignored_by_readers_and_removed_by_the_next_writer(
    run_dir: Path,
) -> None:
    run = begin(run_dir)
    run.log_metrics({"step": 1})
    run.close()
    path = run_dir / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 2, "lo')
    assert [record["step"] for record in read_metrics(run_dir)] == [1]
    Run.attach(run_dir).log_metrics({"step": 2})
    assert [record["step"] for record in read_metrics(run_dir)] == [1, 2]


@pytest.mark.parametrize("line", [b"nonsense", b"[7]", b'{"stop": 2}', b'{"step": null}'])
def test_a_broken_line_is_an_error_with_its_number(run_dir: Path, line: bytes) -> None:
    begin(run_dir)
    (run_dir / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(DataError, match=r"metrics.jsonl:2"):
        read_metrics(run_dir)


def test_metrics_after_the_checkpoint_are_dropped(run_dir: Path) -> None:
    run = begin(run_dir)
    for step in (0, 1, 2, 3):
        run.log_metrics({"step": step})
    run.trim_metrics(2)
    run.log_metrics({"step": 3, "again": True})
    assert [record["step"] for record in read_metrics(run_dir)] == [0, 1, 2, 3]
    run.trim_metrics(0)
    assert read_metrics(run_dir) == []


def test_attaching_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run directory"):
        Run.attach(tmp_path)


# --- finishing ------------------------------------------------------------------------------------


def test_the_manifest_is_written_last_and_holds_what_came_out(run_dir: Path) -> None:
    run = finished_run(run_dir, steps=3)
    assert run.is_done
    manifest = run.read_json("manifest.json")
    assert manifest["method"] == "sft"
    assert manifest["results"]["eval_loss"] == 0.3567
    assert manifest["recipe_hash"] == run.read_json("resolved.json")["recipe_hash"]
    assert manifest["data_fingerprint"] == "d" * 64
    assert set(manifest["files"]) == {
        "final/README.md",
        "final/config.json",
        "final/model.safetensors",
    }
    assert manifest["files"]["final/config.json"] == file_sha256(run.final_dir / "config.json")
    last = max(path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file())
    assert (run_dir / "manifest.json").stat().st_mtime_ns == last
    assert not (run_dir / LOCK_NAME).exists()


def test_a_run_killed_in_its_report_is_not_done(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained_run(run_dir, steps=3)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("aligner.reports.training.write_report", killed)
    with pytest.raises(KeyboardInterrupt):
        finish_run(run, {}, [])
    assert not run.is_done
    run.close()


def test_lineage_follows_models_that_are_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finished_run(Path("runs/sft"), steps=3)
    finished_run(Path("runs/dpo"), "dpo", "runs/sft/final", steps=3)
    monkeypatch.chdir("/")
    found = lineage(tmp_path / "runs" / "dpo")
    assert [(entry["kind"], Path(entry["path"]).name) for entry in found] == [
        ("run", "dpo"),
        ("run", "sft"),
        ("model", "model"),
    ]
    assert found[1]["results"]["train_loss"] == 0.4123


def test_lineage_of_a_run_that_names_itself_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finished_run(Path("loop"), "sft", "loop/final", steps=3)
    assert len(lineage("loop")) == 1
