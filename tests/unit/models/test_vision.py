"""Models that see and write: trained on text in their language part, and saved with what reads
pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import byte_tokenizer

from aligner.config.recipe import Lora, Model
from aligner.models.loading import load_policy
from aligner.models.saved_tokenizer import SavedTokenizer
from aligner.models.tokenizers import load_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
TEXT = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": 264}
SIGHT = {**SIZES, "image_size": 16, "patch_size": 8}
GRID = {
    "depth": 1,
    "embed_dim": 32,
    "hidden_size": 32,
    "num_heads": 4,
    "patch_size": 8,
    "spatial_merge_size": 1,
}
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}


def config_of(kind: str) -> Any:
    import transformers as hf

    if kind == "gemma3":
        text = {**TEXT, "head_dim": 8}
        return hf.Gemma3Config(
            text_config=text, vision_config=SIGHT, mm_tokens_per_image=4, image_token_index=261
        )
    if kind == "qwen2_vl":
        return hf.Qwen2VLConfig(
            text_config={**TEXT, **ROPE}, vision_config=GRID, image_token_id=261
        )
    sight = hf.CLIPVisionConfig(**SIGHT)
    return hf.LlavaConfig(
        text_config=hf.LlamaConfig(**TEXT), vision_config=sight, image_token_index=261
    )


@pytest.fixture(scope="module", params=["gemma3", "llava", "qwen2_vl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoModelForImageTextToText

    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config_of(request.param)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type":  "Any"}\n')
    return folder


def trained(policy: Any) -> list[str]:
    return [name for name, weight in policy.named_parameters() if weight.requires_grad]


def is_of_sight(name: str) -> bool:
    return any(part in name for part in ("vision", "visual", "multi_modal"))


def loaded(folder: Path, lora: Lora | None = None) -> Any:
    section = Model(name_or_path=str(folder), lora=lora)
    return load_policy(section, load_tokenizer(section), trainable=True)


def test_full_training_leaves_what_sees_alone(folder: Path) -> None:
    policy = loaded(folder)
    frozen = {name for name, _ in policy.named_parameters()} - set(trained(policy))
    assert frozen == {name for name, _ in policy.named_parameters() if is_of_sight(name)} != set()


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj", "fc1"]])
def test_adapters_sit_in_the_language_part_alone(folder: Path, targets: Any) -> None:
    names = trained(loaded(folder, Lora(target_modules=targets)))
    assert any("q_proj" in name for name in names)
    assert not any(is_of_sight(name) for name in names)


@pytest.mark.parametrize("training", [True, False])
def test_text_alone_is_read_from_left_to_right(folder: Path, training: bool) -> None:
    policy = loaded(folder).train(training)
    ids = torch.tensor([[9, 20, 31, 42, 53], [9, 20, 31, 99, 98]])
    with torch.no_grad():
        first, second = policy(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
        ).logits
    assert torch.allclose(first[:3], second[:3], atol=1e-5)
    assert not torch.allclose(first[3], second[3], atol=1e-3)


def test_what_reads_pictures_is_saved_with_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    section = Model(name_or_path=str(folder))
    SavedTokenizer(load_tokenizer(section), section).save_pretrained(tmp_path)
    file = "preprocessor_config.json"
    assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()
