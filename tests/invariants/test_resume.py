"""Killed at any moment and resumed equals uninterrupted, bit for bit: final weights, metrics,
results."""

from __future__ import annotations

import json
import logging
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import save_model, small_recipe, write_jsonl
from killing import MOMENTS, ROLLOUTS, ROUNDS, owner_of, run_in_process

from aligner.errors import DataError, UsageError
from aligner.events import Notice
from aligner.methods.pipeline import run_recipe
from aligner.runs.files import read_metrics

LORA = {"r": 4, "lora_dropout": 0.2}
EVERY = {"trainer__max_steps": -1, "trainer__num_train_epochs": 2, "trainer__save_steps": 4}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sft grouped by length": (
        "sft",
        {
            **EVERY,
            "trainer__train_sampling_strategy": "group_by_length",
            "trainer__gradient_accumulation_steps": 2,
        },
    ),
    "sft packed": (
        "sft",
        {**EVERY, "sft__packing": True, "trainer__per_device_train_batch_size": 1},
    ),
    "sft on mosaics that are drawn again for each epoch": (
        "sft",
        {
            **EVERY,
            "data__mosaic": {"max_examples": 3},
            "data__max_length": 400,
            "trainer__num_train_epochs": 2.5,
            "trainer__train_sampling_strategy": "group_by_length",
            "trainer__gradient_accumulation_steps": 2,
            "data__eval": 0.2,
        },
    ),
    "dpo with a computed reference": ("dpo", {**EVERY, "trainer__gradient_accumulation_steps": 2}),
    "dpo with LoRA and dropout": (
        "dpo",
        {**EVERY, "model__lora": LORA, "data__eval": 0.2, "trainer__eval_steps": 3},
    ),
    "dpo that stops in the middle of an epoch": (
        "dpo",
        {"trainer__max_steps": 7, "trainer__save_steps": 3},
    ),
    "dpo that distils rewards": (
        "dpo",
        {
            **EVERY,
            "dpo__loss": "reward_distill",
            "dpo__reward_models": ["toy", "verifier:regex=^a"],
            "dpo__reward_combine": "min",
            "dpo__forward_kl_tokens": 8,
            "data__eval": 0.2,
            "trainer__gradient_accumulation_steps": 2,
            "trainer__eval_steps": 3,
        },
    ),
    "sapo": (
        "sapo",
        {
            **EVERY,
            "sapo__window": 3,
            "sapo__reference_every": 5,
            "trainer__gradient_accumulation_steps": 2,
        },
    ),
    "sapo with LoRA, held-out pairs and dropout": (
        "sapo",
        {
            **EVERY,
            "model__lora": LORA,
            "sapo__window": 3,
            "sapo__export": "ema",
            "data__eval": 0.2,
            "trainer__eval_steps": 3,
        },
    ),
    "rlhf on each response twice": (
        "rlhf",
        {
            **EVERY,
            "rlhf__iterations": 2,
            "rlhf__beta": 0.05,
            "rlhf__redraws": 1,
            "data__eval": 0.2,
            "trainer__eval_steps": 3,
            "trainer__gradient_accumulation_steps": 2,
        },
    ),
    "ppo on each response twice": (
        "rlhf",
        {
            **EVERY,
            "trainer__save_steps": 3,
            "rlhf__algorithm": "ppo",
            "rlhf__iterations": 2,
            "rlhf__beta": 0.05,
            "rlhf__kl": "adaptive",
            "rlhf__kl_horizon": 50,
            "rlhf__target_kl": 0.002,
            "trainer__gradient_accumulation_steps": 2,
        },
    ),
    "rlhf in the middle of a rollout": (
        "rlhf",
        {
            **EVERY,
            "rlhf__steps_per_generation": 3,
            "rlhf__beta": 0.05,
            "trainer__gradient_accumulation_steps": 2,
        },
    ),
    "ppo in the middle of a rollout": (
        "rlhf",
        {
            **EVERY,
            "rlhf__algorithm": "ppo",
            "rlhf__steps_per_generation": 3,
            "rlhf__iterations": 2,
            "rlhf__beta": 0.05,
            "rlhf__target_kl": 0.002,
            "trainer__gradient_accumulation_steps": 2,
        },
    ),
    "ppo with LoRA and dropout": (
        "rlhf",
        {**EVERY, "rlhf__algorithm": "ppo", "model__lora": LORA, "rlhf__beta": 0.05},
    ),
    "rlhf with LoRA and dropout": ("rlhf", {**EVERY, "model__lora": LORA, "rlhf__beta": 0.05}),
    "reward with LoRA, dropout and held-out pairs": (
        "reward",
        {
            **EVERY,
            "model__lora": LORA,
            "data__eval": 0.2,
            "trainer__eval_steps": 3,
            "trainer__disable_dropout": False,
        },
    ),
    "reward of two heads of which one is kept": (
        "reward",
        {**EVERY, "reward__kind": "odin", "trainer__gradient_accumulation_steps": 2},
    ),
    "sft with LoRA, dropout and battles with the start": (
        "sft",
        {
            **EVERY,
            "model__lora": LORA,
            "data__eval": 0.2,
            "trainer__eval_steps": 3,
            "eval__arena": {"judge": "verifier:regex=^[a-m]", "max_new_tokens": 8},
        },
    ),
    "sft that stops early": (
        "sft",
        {
            **EVERY,
            "trainer__num_train_epochs": 4,
            "trainer__save_steps": 3,
            "trainer__learning_rate": 0.3,
            "data__eval": 0.2,
            "early_stopping": {"patience": 2},
        },
    ),
}

COUNTS = {
    "in the middle of an epoch": 6,
    "after a line of metrics": 6,
    "while a checkpoint is written": 2,
}
"""At which passage the process dies, where it is not the first."""

TIMINGS = ("time_s", "runtime", "samples_per_second", "steps_per_second", "sapo/generation_share")
TIMINGS += ("time/sampling", "time/scoring", "time/reference", "time/values", "time/old_logps")


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key not in TIMINGS}
        for line in read_metrics(run)
    ]


def without_command(file: Path) -> bytes:
    """The content of a file of the result; the card also says which command began the run."""
    lines = file.read_bytes().split(b"\n")
    return b"\n".join(line for line in lines if not line.startswith(b"python -m "))


def assert_same(run: Path, whole: Path) -> None:
    """The same files of the result to the bit, the same metrics, no line twice or missing, the same
    manifest but for times."""
    finals = [
        {file.name: without_command(file) for file in (folder / "final").iterdir()}
        for folder in (run, whole)
    ]
    assert finals[0].keys() == finals[1].keys()
    assert [name for name in finals[0] if finals[0][name] != finals[1][name]] == []
    assert lines_of(run) == lines_of(whole)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (run, whole)]
    assert list(manifests[0])[-3:] == ["created", "finished", "seconds"]
    for manifest in manifests:
        for key in ("created", "finished", "seconds"):
            del manifest[key]
        del manifest["files"]["final/README.md"]  # with its command
    assert manifests[0] == manifests[1]
    assert not list(run.glob("*.unfinished"))


@pytest.fixture(scope="module")
def uninterrupted(small_world, tmp_path_factory):
    """A run of each case from start to end, made when first asked for."""
    folder, done = tmp_path_factory.mktemp("uninterrupted"), {}

    def get(case: str) -> Path:
        if case not in done:
            method, flags = CASES[case]
            done[case] = folder / str(len(done))
            assert run_in_process(method, small_world, done[case], flags=flags) == 0
        return done[case]

    return get


def kill_and_resume(
    case: str, moment: str, world: Path, run: Path, count: int | None = None
) -> None:
    method, flags = CASES[case]
    count = count or COUNTS.get(moment, 1)
    assert run_in_process(method, world, run, flags=flags, moment=moment, count=count) == -9
    assert not (run / "manifest.json").exists()
    assert run_in_process(method, world, run, flags=flags, resume=True) == 0


@pytest.mark.parametrize(
    ("case", "moment"),
    [
        ("sft grouped by length", "in the middle of an epoch"),
        ("sft on mosaics that are drawn again for each epoch", "in the middle of an epoch"),
        ("dpo with LoRA and dropout", "before a checkpoint is declared whole"),
        ("reward of two heads of which one is kept", "in the middle of an epoch"),
        ("dpo that distils rewards", "in the middle of an epoch"),
        ("sft with LoRA, dropout and battles with the start", "in the middle of an epoch"),
        ("ppo on each response twice", "in the middle of an epoch"),
        ("ppo in the middle of a rollout", "in the middle of an epoch"),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    uninterrupted, small_world, tmp_path, own_cache, case, moment
):
    kill_and_resume(case, moment, small_world, tmp_path / "run")
    assert_same(tmp_path / "run", uninterrupted(case))


@pytest.mark.parametrize("moment", [*MOMENTS, *ROLLOUTS, *ROUNDS])
def test_every_moment_is_a_place_in_the_code(moment):
    """Without it a rename is found by the slow tests alone."""
    place = MOMENTS[moment] if moment in MOMENTS else {**ROLLOUTS, **ROUNDS}[moment][0]
    assert callable(getattr(owner_of(place, "dpo"), place[1]))


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("case", CASES)
def test_killed_at_any_moment_and_resumed_equals_uninterrupted(
    uninterrupted, small_world, tmp_path, own_cache, case, moment
):
    if moment == "while the reference is computed" and ("dpo" not in case or "LoRA" in case):
        pytest.skip("this run computes no reference")
    if ("rewards" in moment or "answers" in moment) and "distils" not in case:
        pytest.skip("this run needs no rewards and no answers of the reference")
    kill_and_resume(case, moment, small_world, tmp_path / "run")
    assert_same(tmp_path / "run", uninterrupted(case))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ROLLOUTS)
@pytest.mark.parametrize(
    "case", ["rlhf in the middle of a rollout", "ppo in the middle of a rollout"]
)
def test_killed_within_a_rollout_and_resumed_equals_uninterrupted(
    uninterrupted, small_world, tmp_path, own_cache, case, moment
):
    kill_and_resume(case, moment, small_world, tmp_path / "run", ROLLOUTS[moment][1])
    assert_same(tmp_path / "run", uninterrupted(case))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_again_and_again_at_every_step(
    uninterrupted, small_world, tmp_path, own_cache, case
):
    """Each session gets as far as its fifth pass or its first checkpoint; in the end it is the same
    run."""
    method, flags = CASES[case]
    run, sessions = tmp_path / "run", 0
    moments = (("in the middle of an epoch", 5), ("after a checkpoint is declared whole", 1))
    while not (run / "manifest.json").exists():
        moment, count = moments[sessions % 2]
        code = run_in_process(
            method, small_world, run, flags=flags, resume=sessions > 0, moment=moment, count=count
        )
        assert code in (0, -9)
        sessions += 1
        assert sessions < 60
    assert sessions > 2
    assert_same(run, uninterrupted(case))


# --- the command itself ---------------------------------------------------------------------------


def start(recipe: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "aligner", "sft", recipe.name, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=recipe.parent, text=True, **pipes)


def wait_until(found: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 240
    while not found():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.fixture
def commanded(small_world, tmp_path, own_cache):
    """Recipe files of the same run in two places, and the one in the first place done without
    interruption."""
    flags = {
        **EVERY,
        "trainer__num_train_epochs": 6,
        "trainer__train_sampling_strategy": "group_by_length",
    }
    recipes = []
    for name in ("whole", "run"):
        recipes.append(tmp_path / name / "recipe.yaml")  # the card says which command it was
        recipes[-1].parent.mkdir()
        text = small_recipe("sft", small_world, tmp_path / name / "run", **flags).text
        recipes[-1].write_text(text)
    whole = start(recipes[0])
    assert whole.wait(240) == 0, whole.communicate()[0]
    return recipes[1], tmp_path / "run" / "run", tmp_path / "whole" / "run"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_says_what_is_kept_and_can_be_resumed(commanded, number, code):
    recipe, run, whole = commanded
    process = start(recipe)
    wait_until(lambda: any(run.glob("checkpoints/*/complete")), process)
    process.send_signal(number)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == code
    assert f"{run} holds an unfinished sft run, saved up to step" in output
    assert "the same command with --resume continues" in output
    assert "Traceback" not in output
    assert not (run / "lock").exists()
    again = start(recipe, "--resume")
    assert again.wait(240) == 0
    assert_same(run, whole)


@pytest.mark.slow
def test_the_command_killed_at_moments_that_nobody_chose(commanded):
    """Watch the run directory from outside; kill soon after whatever has just appeared."""
    recipe, run, whole = commanded
    signs: list[Callable[[], bool]] = [
        lambda: run.exists(),
        lambda: (run / "prepared").exists(),
        lambda: (run / "metrics.jsonl").exists(),
        lambda: any(run.glob("checkpoints/*")),
        lambda: any(run.glob("checkpoints/checkpoint-[3-9]?/*")),
        lambda: any(run.glob("final*")),
    ]
    draw, killed = random.Random(0), 0
    for sign in signs:
        process = start(recipe, *(["--resume"] if run.exists() else []))
        wait_until(sign, process)
        time.sleep(draw.random() * 0.05)
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed == len(signs)
    again = start(recipe, "--resume")
    output = again.communicate(timeout=240)[0]
    assert again.returncode == 0, output
    assert_same(run, whole)


# --- what is refused, and what is said ------------------------------------------------------------


@pytest.fixture
def begun(small_world, tmp_path, own_cache):
    """A run that was killed after its first checkpoint, and a function that resumes it."""
    data = tmp_path / "rows.jsonl"
    data.write_bytes((small_world / "sft.jsonl").read_bytes())
    flags = {"data__train": str(data), "trainer__save_steps": 2}
    run = tmp_path / "run"

    def resume(*overrides: str, **more: Any):
        return run_recipe(
            small_recipe("sft", small_world, run, *overrides, **flags), resume=True, **more
        )

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("aligner.training.fit.save_final", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(small_recipe("sft", small_world, run, **flags))
    return run, resume, data


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_resumption_warns_of_nothing_that_is_not_so(
    small_world, tmp_path, own_cache, monkeypatch
):
    """transformers would: that a share of the run is another number than its steps, and that tied
    weights are missing."""
    model = save_model(tmp_path / "model", tie_word_embeddings=True)
    flags = {"trainer__save_steps": 0.5, "model__name_or_path": str(model)}
    with monkeypatch.context() as patched:
        patched.setattr("aligner.training.fit.save_final", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(small_recipe("sft", small_world, tmp_path / "run", **flags))
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", said.append)
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        run_recipe(small_recipe("sft", small_world, tmp_path / "run", **flags), resume=True)
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in said if record.levelno >= logging.WARNING] == []


def test_a_run_in_the_way_says_how_to_go_on(begun, small_world):
    run, _, _ = begun
    with pytest.raises(UsageError, match="--resume"):
        run_recipe(small_recipe("sft", small_world, run))


@pytest.mark.parametrize(
    ("override", "key"),
    [("trainer.learning_rate=0.5", "trainer.learning_rate"), ("seed=7", "seed")],
)
def test_a_changed_recipe_is_not_resumed_and_the_key_is_named(begun, override, key):
    _, resume, _ = begun
    with pytest.raises(UsageError, match=key):
        resume(override)


def test_changed_data_are_not_resumed_and_the_file_is_named(begun):
    _, resume, data = begun
    write_jsonl(data, [json.loads(line) for line in data.read_text().splitlines()][1:])
    with pytest.raises(DataError, match=data.name):
        resume()


def test_resuming_says_where_it_goes_on_and_a_finished_run_is_left_alone(begun):
    run, resume, _ = begun
    events: list[Any] = []
    resume(on_event=events.append)
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert any("checkpoint-4" in text for text in notices)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    events.clear()
    outcome = resume(on_event=events.append)
    assert any("finished already" in event.text for event in events if isinstance(event, Notice))
    assert outcome.results["steps"] == 4
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
