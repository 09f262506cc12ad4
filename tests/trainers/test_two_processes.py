"""Two processes on CPU train what one trains, through our launcher and through accelerate's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import save_reward_model
from ranks import DATA, HALVED, LORA, RECIPE, assert_same, save_world, train

from aligner.runs.files import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_world(tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize(("method", "lora"), [("sft", ""), ("dpo", ""), ("dpo", LORA)])
def test_two_processes_equal_one_with_the_same_global_batch(folder, method, lora) -> None:
    name = f"{method}{len(lora)}"
    train(folder, method, f"{name}-one", lora=lora)
    done = train(folder, method, f"{name}-two", *HALVED, lora=lora)
    assert_same(folder, f"{name}-one", f"{name}-two")
    assert done.stderr.count("accelerate launch") == 1
    assert (done.stdout.count("train_loss"), done.stderr.count("rows a step")) == (1, 1), (
        "one process shows them"
    )
    assert "rank1" not in done.stderr


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_two_processes_equal_one_where_the_last_batch_is_short(folder, method: str) -> None:
    short = f"data.train=[{{path: {DATA[method]}, max_rows: 13}}]"
    train(folder, method, f"short-{method}-one", short)
    train(folder, method, f"short-{method}-two", short, *HALVED)
    assert_same(folder, f"short-{method}-one", f"short-{method}-two")


def test_two_processes_hold_the_same_battles_with_the_start(folder) -> None:
    settings = (
        "data.eval=[{path: pairs.jsonl}]",
        "trainer.eval_steps=1",
        "trainer.load_best_model_at_end=true",
        "trainer.save_steps=1",
        "trainer.metric_for_best_model=arena_win_rate",
        "eval.arena={judge: 'verifier:regex=^[a-m]', max_new_tokens: 8}",
    )
    train(folder, "dpo", "arena-one", *settings)
    train(folder, "dpo", "arena-two", *settings, *HALVED)
    assert_same(folder, "arena-one", "arena-two")
    rates = []
    for name in ("arena-one", "arena-two"):
        lines = read_metrics(folder / name)
        rates.append([line["arena_win_rate"] for line in lines if line["split"] == "eval"])
    assert rates[0] == rates[1]
    assert len(rates[0]) == 2


@pytest.mark.parametrize("unit", ["sequence", "segment", "shared rollout"])
def test_two_processes_sample_and_train_what_one_does(folder, unit: str) -> None:
    """Thirteen rows: the last step has blank ones. Advantages are scaled over all responses of a
    rollout, and responses are trained on twice, in the last case by whichever rank comes to."""
    card = "kind: segment\nmodel: .\nsegments: {rule: fixed, length: 2}\n"
    save_reward_model(folder / "values", card=card)
    settings = (
        "data.train=[{path: talks.jsonl, max_rows: 13}]",
        "rlhf.group_size=3",
        "rlhf.max_new_tokens=6",
        "rlhf.beta=0.05",
        "rlhf.iterations=2",
        "rlhf.scale=batch",
        "trainer.optim=sgd",
        "trainer.save_steps=1",
    )
    of_unit = {
        "sequence": ("rlhf.reward_models=['verifier:regex=[a-m]']", "rlhf.redraws=1"),
        "segment": ("rlhf.unit=segment", "rlhf.segment_model=values", "rlhf.normalizer_samples=16"),
    }
    of_unit["shared rollout"] = (of_unit["sequence"][0], "rlhf.steps_per_generation=2")
    train(folder, "rlhf", f"{unit}-one", *settings, *of_unit[unit])
    train(folder, "rlhf", f"{unit}-two", *settings, *of_unit[unit], *HALVED)
    assert_same(folder, f"{unit}-one", f"{unit}-two")
    one, two = (read_metrics(folder / f"{unit}-{name}") for name in ("one", "two"))
    for line, other in zip(one, two):
        for key in ("reward", "kl", "completions/mean_length", "frac_reward_zero_std"):
            assert line.get(key) == pytest.approx(other.get(key), abs=1e-5), key


@pytest.mark.parametrize(("lora", "steps"), [("", 1), (LORA, 2)])
def test_two_processes_train_the_critic_that_one_does(folder, lora: str, steps: int) -> None:
    """Thirteen rows: the last step has blank ones. Advantages are whitened over all responses of a
    step, the coefficient follows the divergence of all, and a policy rests everywhere or not."""
    settings = (
        "data.train=[{path: talks.jsonl, max_rows: 13}]",
        "rlhf.reward_models=['verifier:regex=[a-m]']",
        "rlhf.algorithm=ppo",
        "rlhf.group_size=2",
        "rlhf.max_new_tokens=6",
        "rlhf.beta=0.05",
        "rlhf.kl=adaptive",
        "rlhf.kl_horizon=20",
        "rlhf.iterations=2",
        "rlhf.target_kl=0.01",
        "rlhf.critic_learning_rate=0.1",
        f"rlhf.steps_per_generation={steps}",
        "trainer.optim=sgd",
        "trainer.save_steps=1",
    )
    names = [f"ppo{len(lora)}-{number}" for number in ("one", "two")]
    train(folder, "rlhf", names[0], *settings, lora=lora)
    train(folder, "rlhf", names[1], *settings, *HALVED, lora=lora)
    assert_same(folder, *names)
    one, two = (read_metrics(folder / name) for name in names)
    for line, other in zip(one, two):
        for key in ("reward", "kl", "beta", "value_loss", "explained_variance", "policy_rests"):
            assert line.get(key) == pytest.approx(other.get(key), abs=1e-5), key
        assert line["critic_grad_norm"] == pytest.approx(other["critic_grad_norm"], rel=1e-4)


@pytest.mark.parametrize("packing", ["false", "true"])
def test_two_processes_count_each_held_out_row_and_token_once(folder, packing: str) -> None:
    """Seven rows fill no batch; losses, accuracies, entropies and numbers of tokens are those of
    one process."""
    arguments = (
        "data.train=[{path: talks.jsonl, max_rows: 13}]",
        "data.eval=[{path: talks.jsonl, max_rows: 7}]",
        f"sft.packing={packing}",
        "trainer.learning_rate=0.001",
        "trainer.eval_steps=1",
    )
    train(folder, "sft", f"seven-{packing}-one", *arguments, "trainer.per_device_eval_batch_size=8")
    train(
        folder,
        "sft",
        f"seven-{packing}-two",
        *arguments,
        *HALVED,
        "trainer.per_device_eval_batch_size=2",
    )
    one, two = (read_metrics(folder / f"seven-{packing}-{name}") for name in ("one", "two"))
    for name in ("loss", "entropy", "mean_token_accuracy", "num_tokens", "split"):
        found, expected = ([line[name] for line in log] for log in (two, one))
        assert found == (
            expected if name in ("num_tokens", "split") else pytest.approx(expected, abs=1e-5)
        ), name


@pytest.mark.parametrize("loss", ["dbaql", "aqfl"])
def test_a_batch_statistic_is_over_the_pairs_of_both_processes(folder, loss: str) -> None:
    """And each held-out pair counts once, also where they fill no batch."""
    rows = (
        "data.train=[{path: pairs.jsonl, max_rows: 13}]",
        "data.eval=[{path: pairs.jsonl, max_rows: 5}]",
    )
    arguments = (*rows, f"dpo.loss={loss}", "trainer.learning_rate=0.001", "trainer.eval_steps=1")
    train(folder, "dpo", f"{loss}-one", *arguments, "trainer.per_device_eval_batch_size=8")
    train(folder, "dpo", f"{loss}-two", *arguments, *HALVED, "trainer.per_device_eval_batch_size=1")
    assert_same(folder, f"{loss}-one", f"{loss}-two")
    one, two = (read_metrics(folder / f"{loss}-{name}") for name in ("one", "two"))
    for name in ("loss", "rewards/margins", "rewards/accuracies"):
        found, expected = (
            [line[name] for line in log if line["split"] == "eval"] for log in (two, one)
        )
        assert expected
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["bradley_terry", "odin", "pairwise", "segment"])
def test_two_processes_train_the_same_reward_model_as_one(folder, kind: str) -> None:
    """Also where the last batch is short; the correlations of odin are over the answers of both."""
    arguments = (
        "data.train=[{path: pairs.jsonl, max_rows: 13}]",
        "data.eval=[{path: pairs.jsonl, max_rows: 5}]",
        f"reward.kind={kind}",
        "trainer.learning_rate=0.001",
        "trainer.eval_steps=1",
    )
    train(folder, "reward", f"{kind}-one", *arguments, "trainer.per_device_eval_batch_size=8")
    train(
        folder, "reward", f"{kind}-two", *arguments, *HALVED, "trainer.per_device_eval_batch_size=1"
    )
    assert_same(folder, f"{kind}-one", f"{kind}-two")
    one, two = (read_metrics(folder / f"{kind}-{number}") for number in ("one", "two"))
    for key in ("loss", "accuracy", "margin"):
        assert [line[key] for line in two] == pytest.approx(
            [line[key] for line in one], abs=1e-4
        ), key


@pytest.mark.parametrize("lora", ["", LORA])
def test_two_processes_follow_the_same_reward_model_as_one(folder, lora: str) -> None:
    """The choice is over the pairs of both; rewards are scored once, and answers of the reference
    are the same."""
    arguments = (
        "data.train=[{path: pairs.jsonl, max_rows: 13}]",
        "data.eval=[{path: pairs.jsonl, max_rows: 5}]",
        "dpo.loss=reward_distill",
        "dpo.reward_models=['verifier:regex=^0', 'verifier:regex=7|no no no no']",
        "dpo.reward_combine=min",
        "dpo.forward_kl_tokens=8",
        "trainer.learning_rate=0.001",
        "trainer.eval_steps=1",
    )
    name = f"distilled{len(lora)}"
    train(
        folder, "dpo", f"{name}-one", *arguments, "trainer.per_device_eval_batch_size=8", lora=lora
    )
    train(
        folder,
        "dpo",
        f"{name}-two",
        *arguments,
        *HALVED,
        "trainer.per_device_eval_batch_size=4",
        lora=lora,
    )
    assert_same(folder, f"{name}-one", f"{name}-two")
    one, two = (read_metrics(folder / f"{name}-{number}") for number in ("one", "two"))
    names = [key for key in one[0] if key.startswith("distill/")]
    assert "distill/active/2" in names
    for key in (*names, "forward_kl"):
        found, expected = ([line[key] for line in log] for log in (two, one))
        assert found == pytest.approx(expected, abs=1e-4), key


@pytest.mark.parametrize("lora", ["", LORA])
def test_two_processes_write_and_draw_the_same_pairs_as_one(folder, lora: str) -> None:
    """Each holds the same buffer; also where the last batch is short, and half of a step is one
    process's alone."""
    arguments = (
        "data.train=[{path: talks.jsonl, max_rows: 13}]",
        "data.eval=[{path: talks.jsonl, max_rows: 5}]",
        "trainer.eval_steps=2",
        "trainer.num_train_epochs=2",
        # Adam would turn what rounding leaves of gradients that cancel into whole steps.
        "trainer.optim=sgd",
        "trainer.train_sampling_strategy=random",
        "sapo.window=3",
        "sapo.temperature=1.0",
    )
    name = f"sapo{len(lora)}"
    train(folder, "sapo", f"{name}-one", *arguments, lora=lora)
    train(folder, "sapo", f"{name}-two", *arguments, *HALVED, lora=lora)
    assert_same(folder, f"{name}-one", f"{name}-two")
    one, two = (read_metrics(folder / f"{name}-{which}") for which in ("one", "two"))
    assert any(line["split"] == "eval" for line in two)
    one, two = ([line for line in log if line["split"] == "train"] for log in (one, two))
    for key in ("sapo/dead_pairs", "sapo/rejected_length", "sapo/buffer_age", "sapo/draws"):
        assert [line.get(key) for line in two] == pytest.approx([line.get(key) for line in one])


def test_accelerates_own_launcher_trains_the_same(folder) -> None:
    train(folder, "sft", "own-one")
    launcher = (
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        "-m",
        "aligner",
    )
    done = train(folder, "sft", "own-two", HALVED[0], launcher=launcher)
    assert_same(folder, "own-one", "own-two")
    assert done.stdout.count("train_loss") == 1


def test_an_error_in_a_rank_is_told_once_with_its_exit_code(folder) -> None:
    recipe = folder / "diverges.yaml"
    recipe.write_text(RECIPE.format(data=DATA["sft"], lora=""), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "aligner",
        "sft",
        recipe.name,
        "output_dir=nan",
        *HALVED,
        "trainer.learning_rate=1.0e+38",
    ]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 5, done.stderr[-2000:]
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr


OWN = (
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--main_process_port",
    "0",
    "-m",
)


@pytest.mark.parametrize("launcher", [("-m",), OWN], ids=["our launcher", "accelerate's own"])
def test_a_rank_that_is_killed_is_the_cause_and_the_others_say_that_they_are_not(
    folder, launcher
) -> None:
    import signal
    import time

    import psutil

    recipe = folder / "killed.yaml"
    recipe.write_text(RECIPE.format(data=DATA["sft"], lora=""), encoding="utf-8")
    run = folder / f"killed-{len(launcher)}"
    command = [sys.executable, *launcher, "aligner", "sft", recipe.name, f"output_dir={run}"]
    command += ["trainer.max_steps=100000", *(HALVED if len(launcher) == 1 else HALVED[:1])]
    alone = {
        k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "ACCELERATE_USE_CPU")
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=alone, **pipes) as process:
        metrics = run / "metrics.jsonl"
        deadline = time.monotonic() + 300
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[1][-3000:]
            time.sleep(0.2)
        ranks = psutil.Process(process.pid).children(recursive=True)
        (last,) = [child for child in ranks if child.environ().get("RANK") == "1"]
        last.send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "internal error" not in said
    if len(launcher) == 1:
        assert process.returncode == 5
        assert said.count("error:") == 1
        assert "a training process was killed by SIGKILL" in said
    else:
        assert "this rank stopped because another one ended" in said or "[rank" not in said
