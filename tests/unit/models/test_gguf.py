"""GGUF files: read as ordinary models where the package is there, and named where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import byte_tokenizer, tiny_llama

from aligner.config.recipe import Lora, Model
from aligner.errors import RecipeError
from aligner.models import gguf
from aligner.models.files import as_trained, check_model_path, has_tokenizer
from aligner.models.gguf import gguf_file, source_of

TEMPLATE = "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def test_a_name_means_a_file_or_the_only_one_of_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    assert gguf_file(str(file)) == gguf_file(str(tmp_path)) == file
    assert source_of(str(file)) == (str(tmp_path), {"gguf_file": "m.gguf"})
    assert has_tokenizer(str(file))
    (tmp_path / "config.json").write_text("{}")
    assert gguf_file(str(tmp_path)) is None, (
        "beside another form of the model, the file must be named"
    )
    assert source_of("Qwen/Qwen3-0.6B") == ("Qwen/Qwen3-0.6B", {})


def test_what_cannot_be_read_is_refused_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, part = tmp_path / "m.gguf", tmp_path / "m-00001-of-00002.gguf"
    file.write_bytes(b"PK..")
    part.write_bytes(b"GGUF")
    for path, message in (
        (file, "does not begin as a GGUF file"),
        (part, "is a part of a GGUF model"),
    ):
        with pytest.raises(RecipeError, match=message):
            check_model_path(Model(name_or_path=str(path)))
    file.write_bytes(b"GGUF")
    with pytest.raises(RecipeError, match="is a GGUF file, which is read as it is"):
        as_trained(Model(name_or_path=str(file), lora=Lora(), quantization="nf4"))
    monkeypatch.setattr(gguf, "find_spec", lambda _: None)
    with pytest.raises(
        RecipeError, match=r'm.gguf is a GGUF file(.|\n)*pip install "aligner-toolkit\[gguf\]"'
    ):
        check_model_path(Model(name_or_path=str(file)))


def write_gguf(file: Path) -> Any:
    """Write a tiny Llama with the byte tokenizer, and return it."""
    import gguf

    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer)
    config, writer = model.config, gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    tokens[-1] = "ab"  # one merge, since the reader wants a list that is not empty
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b"])
    writer.add_token_types([3] * 4 + [1] * (len(tokens) - 4))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, weight in model.state_dict().items():
        writer.add_tensor(*_as_llama_cpp(name.removesuffix(".weight"), weight.numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _as_llama_cpp(name: str, weight: Any, config: Any) -> tuple[str, Any]:
    """Its names; and the halves of each head interleaved, as its rotation wants them."""
    if name in NAMES:
        return f"{NAMES[name]}.weight", weight
    number, part = name.removeprefix("model.layers.").split(".", 1)
    heads = {
        "self_attn.q_proj": config.num_attention_heads,
        "self_attn.k_proj": config.num_key_value_heads,
    }.get(part)
    if heads is not None:
        halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
        weight = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
    return f"blk.{number}.{PARTS[part]}.weight", weight


def test_a_file_is_an_ordinary_model_with_its_tokenizer_and_template(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM

    from aligner.models.fingerprint import model_fingerprint
    from aligner.models.loading import load_policy
    from aligner.models.tokenizers import load_tokenizer

    original = write_gguf(tmp_path / "m.gguf")
    section = Model(name_or_path=str(tmp_path / "m.gguf"))
    tokenizer = load_tokenizer(section)
    assert tokenizer.chat_template == TEMPLATE
    policy = load_policy(section, tokenizer, trainable=True)
    assert policy.name_or_path == str(tmp_path / "m.gguf"), "an adapter finds its base by it"
    assert all(weight.requires_grad for weight in policy.parameters())
    assert model_fingerprint(section)
    policy.save_pretrained(tmp_path / "saved")
    ids = torch.tensor([[9, 20, 31, 42]])
    with torch.no_grad():
        expected = original(ids).logits
        for model in (policy.eval(), AutoModelForCausalLM.from_pretrained(tmp_path / "saved")):
            found = model(ids).logits[
                ..., : original.config.vocab_size
            ]  # transformers adds an unknown token
            assert torch.allclose(found, expected, atol=1e-4)
