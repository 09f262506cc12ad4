"""Vectors of texts by a model in a folder: means of hidden states, cut texts, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import byte_tokenizer, save_model, save_reward_model

from aligner.errors import RecipeError
from aligner.models.encoders import Encoder, check_encoder


def save_bert(folder: Path) -> Path:
    """A random encoder with positions for 24 tokens, saved with the head that fills gaps."""
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = byte_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_vector_is_the_mean_of_the_last_hidden_states(tmp_path: Path) -> None:
    """Each text by itself, without padding, through transformers alone."""
    from transformers import AutoModel, AutoTokenizer

    folder = str(save_model(tmp_path / "llama"))
    texts = ["hello", "a much longer text than the first one", "hello"]
    found = Encoder(folder).vectors(texts)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    for text, vector in zip(texts, found):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            mean = model(input_ids=ids).last_hidden_state[0].mean(dim=0).numpy()
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert np.array_equal(found[0], found[2])


def test_an_encoder_reads_what_it_has_positions_for_and_counts_the_rest(tmp_path: Path) -> None:
    encoder = Encoder(str(save_bert(tmp_path / "bert")))
    assert encoder.limit == 24
    long = "x" * 40
    vectors = encoder.vectors(["short", long, "x" * 23])
    assert vectors.shape == (3, 16)
    assert encoder.cut == 1
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-6)
    assert vectors[1] == pytest.approx(vectors[2], abs=1e-6)  # <bos> and 23 letters


def test_an_empty_text_has_a_vector_too(tmp_path: Path) -> None:
    assert np.isfinite(Encoder(str(save_model(tmp_path / "llama"))).vectors([""])).all()


def test_names_of_the_hub_and_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no folder thenlper/gte-large"):
        check_encoder("thenlper/gte-large")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="--embedding"):
        check_encoder(str(tmp_path / "empty"))


def test_a_reward_model_embeds_by_its_body(tmp_path: Path) -> None:
    """Its head is left out without a warning."""
    folder = save_reward_model(tmp_path / "reward")
    assert Encoder(str(folder)).vectors(["a"]).shape == (1, 32)
