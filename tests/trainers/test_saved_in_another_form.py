"""Models that save their weights under other names, or in another form, than they hold them:
experts, above all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import byte_tokenizer, small_recipe
from safetensors.torch import load_file, save_file

from aligner.errors import TrainingError
from aligner.methods.pipeline import run_recipe
from aligner.models.loading import load_saved_weights


@pytest.fixture(scope="module")
def experts(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world with a Mixtral, which holds the matrices of its experts as one and saves them
    one by one."""
    from transformers import MixtralConfig, MixtralForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("experts"), byte_tokenizer()
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    MixtralForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "sft.jsonl").symlink_to(small_world / "sft.jsonl")
    return folder


def train(world: Path, run: Path, *, resume: bool = False, **flags: Any) -> dict[str, torch.Tensor]:
    """Train every weight in float32, and return those of the result as they are saved."""
    recipe = small_recipe("sft", world, run, trainer__learning_rate=1e-2, **flags)
    return load_file(run_recipe(recipe, resume=resume).run_dir / "final" / "model.safetensors")


def test_a_resumed_run_goes_on_from_the_trained_experts(experts, tmp_path, monkeypatch):
    whole = train(experts, tmp_path / "whole", trainer__save_steps=2)
    start = load_file(experts / "model" / "model.safetensors")
    names = [name for name in whole if "experts" in name]
    assert names
    assert all(not torch.equal(whole[name], start[name]) for name in names)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("aligner.training.fit.save_final", stop)
        with pytest.raises(KeyboardInterrupt):
            train(experts, tmp_path / "run", trainer__save_steps=2)
    (tmp_path / "run" / "checkpoints" / "checkpoint-4" / "complete").unlink()
    resumed = train(experts, tmp_path / "run", resume=True, trainer__save_steps=2)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_the_best_step_comes_back_with_its_experts(experts, tmp_path, monkeypatch):
    from aligner.methods.sft.train import SeededSFTTrainer

    evaluate = SeededSFTTrainer.evaluate

    def grows(self: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        return {**evaluate(self, *args, **kwargs), "eval_loss": float(self.state.global_step)}

    monkeypatch.setattr(SeededSFTTrainer, "evaluate", grows)
    flags = {"data__eval": 0.25, "early_stopping": {"patience": 3}, "trainer__save_total_limit": 4}
    steps = {f"trainer__{key}": 1 for key in ("eval_steps", "save_steps")}
    result = train(experts, tmp_path / "run", **flags, **steps)
    saved = [
        load_file(tmp_path / f"run/checkpoints/checkpoint-{n}/model.safetensors") for n in (1, 4)
    ]
    same = [all(torch.equal(result[name], weights[name]) for name in result) for weights in saved]
    assert same == [True, False]


def test_a_checkpoint_that_lacks_weights_is_not_gone_on_from(experts, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(experts / "model")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        TrainingError, match=r"lacks 1 weights of the model \(model\.norm\.weight\)"
    ):
        load_saved_weights(model, str(tmp_path))
