"""A GGUF file is the model that it was made from: every tensor, the tokenizer, the stop tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import save_model, save_reward_model, small_recipe
from runner import aligner
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedTokenizerFast,
)

from aligner.errors import DataError, RecipeError, UsageError
from aligner.export import probes
from aligner.export.gguf import writing
from aligner.export.gguf.export import export_gguf
from aligner.export.gguf.families import rope_factors
from aligner.export.gguf.modelfile import modelfile, pieces_of
from aligner.export.gguf.reading import HARD_TEXTS
from aligner.methods.pipeline import run_recipe

gguf = pytest.importorskip("gguf")

IDS = torch.tensor([[9, 20, 31, 42, 4, 5, 77, 200]])
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
NARROW = {"num_hidden_layers": 46, "hidden_size": 32, "intermediate_size": 32}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", {}, ""),
    "llama tied": ("llama", {"tie_word_embeddings": True}, ""),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}, "attention_bias"),
    "llama 3 rotation": ("llama", {"rope_parameters": LLAMA3}, "rope_parameters"),
    "llama yarn": ("llama", {"rope_parameters": YARN}, "rope_parameters"),
    "mistral": ("mistral", {"sliding_window": None}, ""),
    "mistral with a window": ("mistral", {"sliding_window": 128}, ""),
    "mistral yarn": ("mistral", {"rope_parameters": YARN}, "rope_parameters"),
    "qwen2": ("qwen2", {}, ""),
    "qwen3": ("qwen3", {"head_dim": 128}, ""),
    "qwen3 narrow": ("qwen3", {}, "head_dim"),
    "gemma": ("gemma", {}, ""),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar"),
    "gemma2 27B": ("gemma2", {"query_pre_attn_scalar": 8, **NARROW}, "query_pre_attn_scalar"),
    "gemma3": ("gemma3_text", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar"),
}
"""Name -> model_type, its settings, and one that transformers does not read out of the file."""


SPLITS = {
    "gpt-2": [{"type": "ByteLevel", "use_regex": True}],
    "llama-bpe": [{"type": "Split"}, {"type": "ByteLevel", "use_regex": False}],
    "qwen2": [{"type": "Split"}, {"type": "ByteLevel", "use_regex": False}],
    "tekken": [{"type": "Split"}, {"type": "ByteLevel", "use_regex": False}],
    "smollm": [{"type": "Digits"}, {"type": "ByteLevel", "use_regex": True}],
}
"""llama.cpp's name for how text is split -> the steps of tokenizers."""


def split_of(name: str) -> Any:
    """A way to split text."""
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    steps = []
    for step in SPLITS[name]:
        if step["type"] == "Split":
            pattern = Regex(GGUF_PRE_TOKENIZER_SPLITS[name])
            steps.append(pre_tokenizers.Split(pattern, behavior="isolated"))
        elif step["type"] == "Digits":
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        else:
            use_regex = step["use_regex"]
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex))
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


SPECIAL = ["<pad>", "<s>", "</s>", "<start>"]


def with_merges(split: str = "gpt-2") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with merges, trained on the probes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = split_of(split)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([*HARD_TEXTS, *HARD_TEXTS], trainer)
    return fast(core)


def with_bytes_below() -> PreTrainedTokenizerFast:
    """A BPE tokenizer on characters, with bytes to fall back on, as Llama 2 has it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    space = "\u2581"
    steps = [normalizers.Prepend(space), normalizers.Replace(" ", space)]
    draft = Tokenizer(models.BPE())
    draft.normalizer = normalizers.Sequence(steps)
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    draft.train_from_iterator(HARD_TEXTS, trainer)
    learned = json.loads(draft.to_str())["model"]
    tokens = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [token for token in learned["vocab"] if token not in tokens]
    merges = [tuple(merge) for merge in learned["merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    core = Tokenizer(
        models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    core.normalizer = normalizers.Sequence(steps)
    core.decoder = decoders.Sequence(
        [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return fast(core, unk_token="<unk>")


def fast(core: Any, **further: str) -> PreTrainedTokenizerFast:
    """The tokenizer of transformers around one of tokenizers."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", **further
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


TEMPLATE = (
    "{% for m in messages %}{{ '<start>' + m.role + '\\n' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start>assistant\\n' }}{% endif %}"
)


def save(folder: Path, kind: str, tokenizer: Any = None, **settings: Any) -> Path:
    """A random model of a family, with norms and biases that are not trivial, and a tokenizer."""
    from transformers import AutoConfig

    tokenizer = tokenizer or with_merges("qwen2" if kind.startswith("qwen") else "gpt-2")
    config = AutoConfig.for_model(
        kind,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **{"vocab_size": len(tokenizer), **SHAPE, **settings},
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.data = weight.data + 0.1 * torch.randn(weight.shape)
        else:
            weight.data = weight.data * 4
        assert name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logits(folder: Path, **settings: Any) -> torch.Tensor:
    """What plain transformers computes with a folder, or a file in it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings).eval()
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_read_back_as_it_was(tmp_path: Path, name: str) -> None:
    kind, settings, unread = MODELS[name]
    source = save(tmp_path / "model", kind, **settings)
    record = export_gguf(str(source), tmp_path / "m.gguf").record
    found = record["conversion"]
    assert found["largest_difference"] <= 1e-4 * found["spread"]
    assert (unread in record["settings_not_read"]) if unread else not record["settings_not_read"]
    assert record["read_by"] == ("aligner" if kind == "gemma" else "transformers")


@pytest.mark.parametrize(
    ("kind", "at_most"), [("f32", 1e-5), ("f16", 1e-2), ("bf16", 0.1), ("q8_0", 0.1)]
)
def test_plain_transformers_reads_the_file(tmp_path: Path, kind: Any, at_most: float) -> None:
    source = save(tmp_path / "model", "llama")
    exported = export_gguf(str(source), tmp_path / "m.gguf", kind=kind)
    again = logits(tmp_path, gguf_file="m.gguf", quantization_config=GgufConfig(dequantize=True))
    apart = float((again - logits(source)).abs().max())
    assert apart <= at_most * exported.record["conversion"]["spread"]
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert types == {"F32", kind.upper()}


def test_rows_that_are_no_whole_blocks_stay_in_float16(tmp_path: Path) -> None:
    source = save(tmp_path / "model", "qwen2", intermediate_size=72)
    export_gguf(str(source), tmp_path / "m.gguf", kind="q8_0")
    kinds = {
        tensor.name: tensor.tensor_type.name
        for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors
    }
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert kinds["output_norm.weight"] == "F32"


def test_a_run_is_exported_with_its_adapter(small_world: Path, tmp_path: Path) -> None:
    run = tmp_path / "sft"
    run_recipe(small_recipe("sft", small_world, run, model__lora={"r": 4}))
    exported = export_gguf(str(run), tmp_path / "sft.gguf")
    rounding = exported.record["rounding"]
    assert rounding["top1_agreement"] > 0.99
    assert exported.record["adapter_effect"]["mean_difference"] > 10 * rounding["mean_difference"]
    from aligner import load_model

    with torch.no_grad():
        expected = load_model(run / "final")(IDS).logits
    again = logits(tmp_path, gguf_file="sft.gguf", quantization_config=GgufConfig(dequantize=True))
    torch.testing.assert_close(again, expected, atol=1e-2, rtol=0)
    answer = aligner("generate", tmp_path / "sft.gguf", "sort: cab", "--max-new-tokens", "3")
    assert answer.exit_code == 0, answer.output


def test_rounding_that_takes_from_an_adapter_is_said(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "sft"
    run_recipe(small_recipe("sft", small_world, run, model__lora={"r": 4}))
    monkeypatch.setattr(probes, "WORTH_TELLING", 0.0)
    for kind, other in (("f16", "f32 does not"), ("bf16", "f16 is nearer")):
        result = aligner("export", run, "--gguf", kind, "-o", tmp_path / f"{kind}.gguf")
        assert result.exit_code == 0, result.output
        said = " ".join(result.stderr.split())
        assert f"warning: rounding to {kind} moves the logits by" in said
        assert f"of what the adapter moves them, on the mean; {other}" in said
        assert "moved by the adapter, mean" in result.stdout
    exact = export_gguf(str(run), tmp_path / "exact.gguf", kind="f32").record
    assert exact["rounding"]["largest_difference"] <= 1e-4 * exact["rounding"]["spread"]


# --- the tokenizer --------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["gpt-2", "llama-bpe", "qwen2", "tekken"])
def test_ways_to_split_text_are_found_and_read_back(tmp_path: Path, split: str) -> None:
    source = save(tmp_path / "model", "llama", with_merges(split))
    record = export_gguf(str(source), tmp_path / "m.gguf").record
    assert record["tokenizer"] == {"model": "gpt2", "pre": split, "compared": True}
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert read.chat_template == TEMPLATE
    assert (read.bos_token, read.eos_token) == ("<s>", "</s>")


def test_a_way_to_split_text_that_only_llama_cpp_reads_is_said(tmp_path: Path) -> None:
    source = save(tmp_path / "model", "llama", with_merges("smollm"))
    told: list[Any] = []
    record = export_gguf(str(source), tmp_path / "m.gguf", on_event=told.append).record
    assert record["tokenizer"] == {"model": "gpt2", "pre": "smollm", "compared": False}
    assert "only llama.cpp reads it" in str(told)


def test_bytes_to_fall_back_on_have_their_type_and_scores(tmp_path: Path) -> None:
    tokenizer = with_bytes_below()
    source = save(tmp_path / "model", "llama", tokenizer)
    record = export_gguf(str(source), tmp_path / "m.gguf").record
    assert record["tokenizer"] == {"model": "llama", "pre": "default", "compared": True}
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    types = fields["tokenizer.ggml.token_type"].contents()
    assert types[tokenizer.convert_tokens_to_ids("<0x41>")] == gguf.TokenType.BYTE
    assert types[tokenizer.convert_tokens_to_ids("<unk>")] == gguf.TokenType.UNKNOWN
    assert types[tokenizer.convert_tokens_to_ids("<start>")] == gguf.TokenType.CONTROL
    scores = fields["tokenizer.ggml.scores"].contents()
    left, right = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"][1]
    assert scores[tokenizer.convert_tokens_to_ids(left + right)] == -1.0
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is True


@pytest.mark.parametrize("adds", [True, False])
def test_whether_texts_begin_with_a_token_is_said_outright(tmp_path: Path, adds: bool) -> None:
    from tokenizers import processors

    tokenizer = with_merges("llama-bpe")  # for which llama.cpp would add one unasked
    if adds:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    export_gguf(str(save(tmp_path / "model", "llama", tokenizer)), tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is adds
    assert fields["tokenizer.ggml.add_eos_token"].contents() is False


def test_rows_that_no_token_has_are_unused_tokens(tmp_path: Path) -> None:
    tokenizer = with_merges()
    source = save(tmp_path / "model", "llama", tokenizer, vocab_size=len(tokenizer) + 3)
    export_gguf(str(source), tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    tokens, types = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type"))
    assert tokens[len(tokenizer) :] == [f"[PAD{len(tokenizer) + n}]" for n in range(3)]
    assert set(types[len(tokenizer) :]) == {gguf.TokenType.UNUSED}


def test_the_token_that_ends_a_turn_stands_beside_the_end_of_a_text(tmp_path: Path) -> None:
    tokenizer = with_merges()
    tokenizer.chat_template = TEMPLATE.replace("eos_token", "'<pad>'")
    exported = export_gguf(str(save(tmp_path / "m", "llama", tokenizer)), tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    assert fields["tokenizer.ggml.eot_token_id"].contents() == 0
    assert exported.record["stops"] == ["</s>", "<pad>"]
    text = exported.modelfile.read_text("utf-8")
    assert 'PARAMETER stop "</s>"' in text
    assert 'PARAMETER stop "<pad>"' in text


def test_a_toy_model_is_exported_for_transformers_alone(tmp_path: Path) -> None:
    told: list[Any] = []
    source = save_model(tmp_path / "model")
    export_gguf(str(source), tmp_path / "m.gguf", on_event=told.append)
    assert "llama.cpp and Ollama do not" in str(told)
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert read("ab")["input_ids"] == AutoTokenizer.from_pretrained(source)("ab")["input_ids"]


# --- what is refused ------------------------------------------------------------------------------


def refused(source: Path, **settings: Any) -> Any:
    """The error of an export, after which nothing is left."""
    place = source.parent / "out"
    place.mkdir()
    with pytest.raises((UsageError, DataError, RecipeError)) as found:
        export_gguf(str(source), place / "m.gguf", **settings)
    assert list(place.iterdir()) == []
    return found.value


def test_another_family_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=420)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    with_merges().save_pretrained(tmp_path / "model")
    error = refused(tmp_path / "model")
    assert "is a model of the family gpt2, which is not exported to GGUF" in error.message
    assert "qwen3" in error.hint


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"hidden_act": "gelu"}, "its activation is gelu, and llama.cpp computes silu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "its rotary embedding is of the type dynamic",
        ),
    ],
)
def test_a_setting_without_a_place_is_refused(
    tmp_path: Path, settings: dict[str, Any], what: str
) -> None:
    assert what in refused(save(tmp_path / "model", "llama", **settings)).message


@pytest.mark.parametrize(
    ("kind", "settings", "what"),
    [
        ("gemma3_text", {"query_pre_attn_scalar": 256}, "is 256, and llama.cpp takes 16"),
        ("gemma2", {"query_pre_attn_scalar": 256}, "is 256, and llama.cpp takes 16"),
        ("gemma2", {"layer_types": ["full_attention"] * 3}, "to all layers but one in 2"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 3}, "to all layers but one in 6"),
    ],
)
def test_what_llama_cpp_takes_for_granted_of_gemma_is_checked(
    tmp_path: Path, kind: str, settings: dict[str, Any], what: str
) -> None:
    settings = {"query_pre_attn_scalar": 16, **settings}
    assert what in refused(save(tmp_path / "model", kind, **settings)).message


@pytest.mark.parametrize(
    ("kind", "settings", "window"),
    [
        ("mistral", {"sliding_window": 128}, 128),
        ("mistral", {"sliding_window": 512}, None),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 1}, 128),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 128}, None),
    ],
)
def test_a_window_that_llama_cpp_ignores_is_said(
    tmp_path: Path, kind: str, settings: dict[str, Any], window: int | None
) -> None:
    said: list[str] = []
    source = save(tmp_path / "model", kind, **settings)
    export_gguf(str(source), tmp_path / "m.gguf", on_event=lambda event: said.append(str(event)))
    text = " ".join(said)
    assert ("attends to the last 128 tokens" in text) == (window is not None)
    assert "does not read sliding_window" not in text
    assert "does not read layer_types" not in text


def test_a_reward_model_is_refused(tmp_path: Path) -> None:
    assert "is a reward model" in refused(save_reward_model(tmp_path / "rm")).message


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "model", "llama")
    model = AutoModelForCausalLM.from_pretrained(source)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e5
    model.save_pretrained(source)
    error = refused(source)
    assert "blk.0.ffn_up.weight has values beyond the largest of float16" in error.message
    assert error.hint == "export it as bf16"


def test_a_file_that_is_not_the_model_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "interleaved", lambda rows, heads: rows)  # a planted fault
    error = refused(save(tmp_path / "model", "llama"))
    assert "the file is not the model: read back, logits differ by up to" in error.message


def test_a_tokenizer_that_is_not_the_models_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner.export.gguf import vocabulary

    monkeypatch.setattr(vocabulary, "_split", lambda held: "qwen2")  # a planted fault
    error = refused(save(tmp_path / "model", "llama", with_merges("gpt-2")))
    assert "the tokenizer of the file gives other ids than the model's" in error.message


def test_a_way_to_split_text_without_a_name_can_be_named(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    tokenizer = with_merges()
    steps = [
        pre_tokenizers.Punctuation(),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    source = save(tmp_path / "model", "llama", tokenizer)
    assert "whose name in llama.cpp is not known here" in refused(source).message
    named = export_gguf(str(source), tmp_path / "m.gguf", pre_tokenizer="bloom").record
    assert named["tokenizer"]["pre"] == "bloom"


def test_places_are_checked_first(tmp_path: Path) -> None:
    (tmp_path / "there.gguf").write_bytes(b"x")
    for place, what in (
        ("m.bin", r"does not end in \.gguf"),
        ("there.gguf", "exists"),
    ):
        with pytest.raises(UsageError, match=what):
            export_gguf("no-model", tmp_path / place)


# --- rotary factors, and Ollama -------------------------------------------------------------------


def test_rotary_factors_are_those_of_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(**{**SHAPE, "rope_parameters": LLAMA3})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 10000.0 ** (torch.arange(0, 16, 2) / 16)
    factors = torch.tensor(rope_factors(config))
    torch.testing.assert_close(plain / factors, scaled)
    assert factors.min() == 1.0
    assert factors.max() == pytest.approx(8.0)


def test_a_modelfile_has_the_template_of_ollama_and_the_stops() -> None:
    tokenizer = with_merges()
    assert modelfile("m.gguf", tokenizer, [2]) == (
        "FROM ./m.gguf\n"
        'TEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<start>system\n'
        '{{ .Content }}</s>{{ else if eq .Role "user" }}<start>user\n'
        '{{ .Content }}</s>{{ else if eq .Role "assistant" }}<start>assistant\n'
        '{{ .Content }}</s>{{ end }}{{ end }}<start>assistant\n"""\n'
        'PARAMETER stop "</s>"\n'
    )


def test_a_system_message_that_a_template_writes_by_itself_stays() -> None:
    tokenizer = with_merges()
    tokenizer.chat_template = (
        "{% if messages[0].role != 'system' %}{{ '<start>system\nBe kind.' + eos_token }}"
        "{% endif %}" + TEMPLATE
    )
    pieces = pieces_of(tokenizer)
    assert pieces is not None
    assert pieces.without_system == "<start>system\nBe kind.</s>"
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    turns += [{"role": "user", "content": "bye"}]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert pieces.rendered(turns) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index ~ m.role ~ m.content }}{% endfor %}",
        "{{ strftime_now('%d %B') }}" + TEMPLATE,
        TEMPLATE.replace("<start>", "{{'{{'}}").replace("'{{'{{'}}'", "'{' + '{'"),
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_that_does_more_is_left_out_and_it_is_said(template: str) -> None:
    tokenizer = with_merges()
    tokenizer.chat_template = template
    assert pieces_of(tokenizer) is None


def test_the_modelfile_of_a_template_that_does_more_says_so(tmp_path: Path) -> None:
    tokenizer = with_merges()
    tokenizer.chat_template = "{{ strftime_now('%d %B') }}" + TEMPLATE
    text = modelfile("m.gguf", tokenizer, [2])
    assert "TEMPLATE" not in text.replace("No TEMPLATE", "")
    assert "# No TEMPLATE: the chat template does more" in text


# --- the command ----------------------------------------------------------------------------------


def test_the_command_writes_file_record_and_modelfile(tmp_path: Path) -> None:
    source = save(tmp_path / "model", "qwen2")
    file = tmp_path / "q.gguf"
    result = aligner("export", source, "--gguf", "q8_0", "-o", file)
    assert result.exit_code == 0, result.output
    assert "conversion: largest difference" in result.stdout
    assert re.search(
        r"rounding to q8_0 moved\s+them by \d+\.\d+% of it on the\s+mean", result.stdout
    )
    assert f"ollama create q -f {tmp_path / 'q.Modelfile'}" in result.stdout
    record = json.loads((tmp_path / "q.gguf.json").read_text())
    assert record["type"] == "q8_0"
    assert record["bytes"] == file.stat().st_size
    assert sorted(item.name for item in tmp_path.iterdir()) == [
        "model",
        "q.Modelfile",
        "q.gguf",
        "q.gguf.json",
    ]
    again = aligner("export", source, "-o", file, "--overwrite", "--json")
    assert json.loads(again.stdout)["type"] == "f16"
