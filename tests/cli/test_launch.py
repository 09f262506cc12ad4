"""`aligner launch` at the front door: lines, the script, and what is refused."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from runner import aligner

SFT = "method: sft\nmodel: {name_or_path: x}\ndata: {train: a.jsonl}\n"


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft.yaml").write_text(SFT)
    return tmp_path


def test_one_process_is_started_as_always() -> None:
    done = aligner("launch", "sft.yaml", "trainer.learning_rate=1e-3")
    assert done.exit_code == 0, done.output
    assert done.stdout == "aligner sft sft.yaml trainer.learning_rate=1e-3\n"


def test_each_machine_gets_its_line() -> None:
    at = ("launch.main_process_ip=10.0.0.1", "launch.main_process_port=4000")
    done = aligner("launch", "sft.yaml", "--nodes", "2", "--gpus-per-node", "8", *at)
    assert done.exit_code == 0, done.output
    first, zero, second, one = done.stdout.splitlines()
    assert (first, second) == ("# machine 0 (10.0.0.1)", "# machine 1")
    wanted = ["launch.num_processes=16", "launch.num_machines=2", *at]
    assert shlex.split(zero) == ["aligner", "sft", "sft.yaml", *wanted, "launch.machine_rank=0"]
    assert shlex.split(one) == ["aligner", "sft", "sft.yaml", *wanted, "launch.machine_rank=1"]


def test_machines_of_the_recipe_are_those_of_the_script(world: Path) -> None:
    section = "launch: {num_processes: 8, num_machines: 4, main_process_ip: a, strategy: fsdp}\n"
    (world / "sft.yaml").write_text(SFT + section)
    done = aligner("launch", "sft.yaml", "--slurm", "--time", "1:00:00")
    assert done.exit_code == 0, done.output
    assert "#SBATCH --nodes=4\n" in done.stdout
    assert "#SBATCH --gpus-per-node=2\n" in done.stdout
    assert "launch.num_processes=8 launch.num_machines=4" in done.stdout
    assert 'launch.main_process_ip="$MAIN_NODE"' in done.stdout


def test_rounds_have_one_machine_and_may_have_a_script(world: Path) -> None:
    (world / "evolve.yaml").write_text(
        "method: evolve\ndata: {train: a.jsonl}\nendpoint: {base_url: 'http://h/v1', model: m}\n"
    )
    done = aligner("launch", "evolve.yaml", "--slurm", "--gpus-per-node", "0")
    assert done.exit_code == 0, done.output
    assert 'aligner evolve evolve.yaml "$@"' in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "none is named"),
        (("--slurm",), "none is named"),
        (("sft.yaml", "--nodes", "2"), "launch.main_process_ip: is missing"),
        (("sft.yaml", "--time", "90"), "--time has no effect without --slurm"),
        (("sft.yaml", "--gpus-per-node", "2", "--processes-per-node", "2"), "has no effect"),
        (("sft.yaml", "--slurm", "--time", "soon"), "no time that Slurm reads"),
        (("sft.yaml", "--slurm", "hub_token=hf_abcdefghijklmnopqrstuvw"), "looks like a key"),
        (("sft.yaml", "launch.stategy=fsdp"), "did you mean"),
        (
            ("sft.yaml", "--gpus-per-node=0", "--processes-per-node=2", "launch.strategy=zero3"),
            "no GPU was found",
        ),
        (("online.yaml", "--slurm", "--nodes", "2"), "`aligner online` runs on one machine"),
        (("evolve.yaml", "--slurm", "--gpus-per-node", "2"), "runs in one process"),
    ],
)
def test_what_would_not_start_is_refused(
    world: Path, arguments: tuple[str, ...], message: str
) -> None:
    (world / "online.yaml").write_text(
        "method: online\nmodel: {name_or_path: x}\ndata: {train: a.jsonl, eval: 0.1}\n"
        "online: {reward_models: ['verifier:regex=a']}\n"
    )
    (world / "evolve.yaml").write_text(
        "method: evolve\ndata: {train: a.jsonl}\nendpoint: {base_url: 'http://h/v1', model: m}\n"
    )
    done = aligner("launch", *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert "#SBATCH" not in done.stdout
