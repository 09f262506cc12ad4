"""FSDP2 over two processes on CPU: what one process trains, with the model really split."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fakes import save_model
from ranks import DATA, HALVED, LORA, assert_same, losses, save_world, train, weights

from aligner.runs.files import read_metrics

pytestmark = pytest.mark.slow

SPLIT = (*HALVED, "launch.strategy=fsdp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_world(tmp_path_factory.mktemp("fsdp"))


def is_split(run: Path) -> bool:
    """Say whether the checkpoints of a run were gathered from shards."""
    names = {path.name for path in run.glob("checkpoints/*/*")}
    return {"pytorch_model_fsdp.bin", "optimizer.bin"} <= names


@pytest.mark.parametrize(
    ("method", "lora"),
    [("sft", ""), ("sft", LORA), ("dpo", ""), ("dpo", LORA), ("reward", LORA)],
)
def test_a_split_model_trains_what_a_whole_one_does(folder: Path, method: str, lora: str) -> None:
    """Held-out rows and accumulation included."""
    kind = DATA[method]
    arguments = (f"data.eval=[{{path: {kind}, max_rows: 5}}]", "trainer.eval_steps=1")
    # what is chosen by itself depends on the rows of one process's batch
    arguments += ("trainer.train_sampling_strategy=random",)
    name = f"{method}{len(lora)}"
    train(folder, method, f"{name}-one", *arguments, lora=lora)
    halves = ("trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2")
    done = train(folder, method, f"{name}-split", *arguments, *SPLIT, *halves, lora=lora)
    assert_same(folder, f"{name}-one", f"{name}-split")
    assert is_split(folder / f"{name}-split")
    assert not is_split(folder / f"{name}-one")
    assert "Warning" not in done.stderr
    norms = [
        [
            line["grad_norm"]
            for line in read_metrics(folder / f"{name}-{end}")
            if "grad_norm" in line
        ]
        for end in ("one", "split")
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("lora", ["", LORA])
def test_a_split_training_resumes_from_its_checkpoint(folder: Path, lora: str) -> None:
    name = f"resumed{len(lora)}"
    arguments = (*SPLIT, "trainer.save_steps=1")
    train(folder, "sft", f"{name}-whole", *arguments, lora=lora)
    train(folder, "sft", name, *arguments, lora=lora)
    for path in ("final", "checkpoints/checkpoint-2"):
        shutil.rmtree(folder / name / path)
    (folder / name / "manifest.json").unlink()
    done = train(folder, "sft", name, *arguments, "--resume", lora=lora)
    assert "resuming from" in done.stderr
    assert losses(folder, name) == losses(folder, f"{name}-whole")
    whole, resumed = weights(folder, f"{name}-whole"), weights(folder, name)
    assert all(bool((whole[key] == resumed[key]).all()) for key in whole)


def test_tied_weights_stay_tied_and_are_saved_once(folder: Path) -> None:
    save_model(folder / "tied", tie_word_embeddings=True)
    arguments = ("model.name_or_path=tied", "trainer.save_steps=1")
    train(folder, "sft", "tied-one", *arguments)
    train(folder, "sft", "tied-split", *arguments, *SPLIT)
    assert_same(folder, "tied-one", "tied-split")
    assert "lm_head.weight" not in weights(folder, "tied-split")


def test_what_a_split_training_saves_is_an_ordinary_model(folder: Path) -> None:
    """Another strategy trains it further, and transformers reads it."""
    from transformers import AutoModelForCausalLM

    train(folder, "sft", "ordinary", *SPLIT)
    final = folder / "ordinary" / "final"
    model, info = AutoModelForCausalLM.from_pretrained(final, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert json.loads((final / "config.json").read_text())["dtype"] == "float32"
    assert model.num_parameters() == sum(
        weight.numel() for weight in weights(folder, "ordinary").values()
    )
    train(folder, "dpo", "further", f"model.name_or_path={final}")


def test_a_launcher_that_splits_the_model_is_heard(folder: Path) -> None:
    """accelerate's own, with a recipe that says nothing of it: no rank answers prompts then, since
    none has the whole model."""
    launcher = ("-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2")
    launcher += ("--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP")
    launcher += ("--fsdp_state_dict_type", "FULL_STATE_DICT", "--num_processes", "2")
    launcher += ("--main_process_port", "0", "-m", "aligner")
    train(folder, "dpo", "theirs-one")
    done = train(folder, "dpo", "theirs", HALVED[0], "report.num_prompts=2", launcher=launcher)
    assert_same(folder, "theirs-one", "theirs")
    assert is_split(folder / "theirs")
    assert "the report shows no answers: no process holds the whole model" in done.stderr
