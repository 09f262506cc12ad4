"""A result gives the run's held-out loss however it is loaded: by us, by plain transformers, by
plain PEFT, and merged.

The model has habits that toys lack: what pads also ends answers, and head and embeddings are one
matrix.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import EOS, byte_tokenizer, save_model, small_recipe, write_small_world
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from aligner.config.recipe import Model
from aligner.data.rows import ConversationRow, PreferenceRow
from aligner.methods.pipeline import run_recipe
from aligner.models.loading import load_policy
from aligner.models.tokenizers import load_tokenizer
from aligner.reward_models.catalogue import load_scorer
from aligner.tokenization.encode import encode_pair, encode_sft

FAST = {"trainer__learning_rate": 0.02, "trainer__max_steps": 6, "trainer__save_strategy": "no"}
EMBEDDED = ["q_proj", "embed_tokens"]
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "adapter": {"model__lora": {"r": 4}},
    "adapter on tied embeddings": {"model__lora": {"r": 4, "target_modules": EMBEDDED}},
    "tied embeddings trained whole": {"model__lora": {"r": 4, "modules_to_save": ["embed_tokens"]}},
    "tied head trained whole": {"model__lora": {"r": 4, "modules_to_save": ["lm_head"]}},
    "adapter with new tokens": {"model__lora": {"r": 4}, "model__new_tokens": ["ab", "cd"]},
    "full with new tokens": {"model__new_tokens": ["ab", "cd"]},
}
TRAINED: dict[str, int] = {
    "adapter": 0,
    "adapter on tied embeddings": 2,
    "adapter with new tokens": 1,
}
"""How many tensors of the embeddings and the head an adapter's file has."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_small_world(tmp_path_factory.mktemp("world"), rows=16)
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = EOS
    save_model(folder / "model", tie_word_embeddings=True)
    config = folder / "model" / "config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "pad_token_id": tokenizer.eos_token_id})
    )
    tokenizer.save_pretrained(folder / "model")
    return folder


def run(method: str, world: Path, folder: Path, **flags: Any) -> Path:
    data = {"sft": "sft.jsonl", "reward": "pairs.jsonl"}[method]
    held_out = {"data__eval": str(world / data), "trainer__eval_steps": 6, **FAST}
    run_recipe(small_recipe(method, world, folder, **{**held_out, **flags}))
    return folder / "final"


def held_out_loss(final: Path) -> float:
    return float(json.loads((final.parent / "manifest.json").read_text())["results"]["eval/loss"])


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def loss_of(model: Any, tokenizer: Any, world: Path) -> float:
    """The mean over all trained tokens, one row at a time, by the model alone."""
    total, count = 0.0, 0
    for row in read(world / "sft.jsonl"):
        encoded = encode_sft(tokenizer, ConversationRow(row["messages"]))
        with torch.no_grad():
            loss = model.eval()(
                input_ids=torch.tensor([encoded.input_ids]), labels=torch.tensor([encoded.labels])
            ).loss
        total, count = total + loss.item() * encoded.num_trained, count + encoded.num_trained
    return total / count


def plainly(final: Path, base: Path) -> Any:
    """As the model card says."""
    if not (final / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(final)
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(final)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    return PeftModel.from_pretrained(model, str(final))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_loading_gives_the_loss_of_the_run(
    way: str, world: Path, tmp_path: Path
) -> None:
    final = run("sft", world, tmp_path / "run", **WAYS[way])
    expected = held_out_loss(final)
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert loss_of(plainly(final, world / "model"), tokenizer, world) == pytest.approx(
        expected, abs=1e-5
    )
    section = Model(name_or_path=str(final))
    merged = load_policy(section, load_tokenizer(section), trainable=False)
    assert loss_of(merged, tokenizer, world) == pytest.approx(expected, abs=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert loss_of(again, tokenizer, world) == pytest.approx(expected, abs=1e-5)
    if way in TRAINED:
        held = [
            name
            for name in load_file(final / "adapter_model.safetensors")
            if "embed" in name or "head" in name
        ]
        assert len(held) == TRAINED[way], held


def test_nothing_of_the_tokenizer_and_the_ids_changes_in_a_result_or_a_checkpoint(
    world: Path, tmp_path: Path
) -> None:
    final = run(
        "sft", world, tmp_path / "run", trainer__save_strategy="steps", trainer__save_steps=3
    )
    for folder in (final, tmp_path / "run" / "checkpoints" / "checkpoint-3"):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (folder / name).read_bytes() == (world / "model" / name).read_bytes()
        assert "{#- generation -#}" in (folder / "chat_template.jinja").read_text()
        for name in ("config.json", "generation_config.json"):
            before, after = (
                json.loads((place / name).read_text()) for place in (world / "model", folder)
            )
            assert {k: v for k, v in after.items() if k.endswith("token_id")} == {
                k: v for k, v in before.items() if k.endswith("token_id")
            }


def test_an_adapter_on_tied_embeddings_is_trained_further_from_where_it_stood(
    world: Path, tmp_path: Path
) -> None:
    lora = WAYS["adapter on tied embeddings"]["model__lora"]
    first = run("sft", world, tmp_path / "first", model__lora=lora)
    flags: dict[str, Any] = {"model__name_or_path": str(first), "trainer__learning_rate": 1e-12}
    for name, more in (("adapter", {"model__lora": lora}), ("merged", {})):
        second = run("sft", world, tmp_path / name, **flags, **more)
        assert held_out_loss(second) == pytest.approx(held_out_loss(first), abs=1e-5)
        base = world / "model" if more else second
        assert loss_of(
            plainly(second, base), AutoTokenizer.from_pretrained(second), world
        ) == pytest.approx(held_out_loss(first), abs=1e-5)


def pair_loss(rewards: Sequence[float]) -> float:
    count = len(rewards) // 2
    return (
        sum(math.log1p(math.exp(b - a)) for a, b in zip(rewards[:count], rewards[count:])) / count
    )


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "adapter"])
def test_a_reward_model_gives_the_loss_of_the_run_also_in_padded_batches(
    lora: dict[str, Any] | None, world: Path, tmp_path: Path
) -> None:
    final = run("reward", world, tmp_path / "run", **({"model__lora": lora} if lora else {}))
    scorer: Any = load_scorer(str(final))
    rows = [
        PreferenceRow(*(row[key] for key in ("prompt", "chosen", "rejected")))
        for row in read(world / "pairs.jsonl")
    ]
    sides = [
        [row.prompt for row in rows] * 2,
        [row.chosen[0]["content"] for row in rows] + [row.rejected[0]["content"] for row in rows],
    ]
    expected = held_out_loss(final)
    assert pair_loss(scorer.score(*sides)) == pytest.approx(expected, abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert tokenizer.pad_token == EOS
    tokenizer.pad_token = scorer.card.pad_token
    folder = world / "model" if lora else final
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    if lora:
        model.config.pad_token_id = tokenizer.pad_token_id
        model = PeftModel.from_pretrained(model, str(final))
    assert model.config.pad_token_id == tokenizer.pad_token_id
    pairs = [encode_pair(tokenizer, row) for row in rows]
    texts = [[*p.prompt_ids, *p.chosen_ids] for p in pairs] + [
        [*p.prompt_ids, *p.rejected_ids] for p in pairs
    ]
    batch = tokenizer.pad({"input_ids": texts}, return_tensors="pt")
    with torch.no_grad():
        rewards = model.eval()(**batch).logits[:, 0].tolist()
    assert pair_loss(rewards) == pytest.approx(expected, abs=1e-5)
