"""Folders that are not what they seem: each is refused in words that name its file, and none runs
away."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import byte_tokenizer, save_model, save_reward_model, tiny_llama

from aligner.config.recipe import Lora, Model
from aligner.errors import RecipeError
from aligner.models.files import as_trained, check_model_path, check_tokenizer_path, saved_outputs
from aligner.models.loading import check_policy, load_policy
from aligner.models.tokenizers import load_tokenizer

Change = Callable[[Path], Any]


def settings(file: str = "config.json", **changed: Any) -> Change:
    def change(folder: Path) -> None:
        held = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**held, **changed}))

    return change


def text(file: str, content: str | bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(
        content.encode() if isinstance(content, str) else content
    )


NO_OBJECTS = {
    "a list": "[]",
    "a number": "3",
    "null": "null",
    "a text": '"x"',
    "cut off": '{"a": ',
    "empty": "",
    "bytes": b"\xff\xfe\x00",
    "nested": "[" * 100_000,
}
FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")

SIZES: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"hidden_size": "32"}, "config.json: hidden_size '32' is not a whole number"),
    "fraction": ({"hidden_size": 32.5}, "config.json: hidden_size '32.5' is not a whole number"),
    "null": ({"hidden_size": None}, "config.json of .* cannot be loaded: .*hidden_size"),
    "list": ({"hidden_size": [32]}, "config.json of .* cannot be loaded: .*hidden_size"),
    "other": ({"hidden_size": 48}, "config.json: hidden_size '48' is not a side of any weight"),
    "negative": ({"vocab_size": -1}, "config.json: vocab_size '-1' is negative"),
    "huge": (
        {"intermediate_size": 10**10},
        "config.json: intermediate_size '10000000000' is more than the 21 weights",
    ),
    "many layers": (
        {"num_hidden_layers": 10**9},
        "config.json: num_hidden_layers '1000000000' is more than",
    ),
    "few layers": (
        {"num_hidden_layers": 1},
        "weights of more layers than the 1 that its config.json counts",
    ),
    "no heads": (
        {"num_attention_heads": 0},
        r"cannot be loaded: ZeroDivisionError(.|\n)*num_attention_heads: 0",
    ),
    "odd heads": (
        {"num_attention_heads": 5, "head_dim": None},
        "not a multiple of the number of attention heads",
    ),
    "no head": ({"head_dim": 0}, r"cannot be loaded: ZeroDivisionError(.|\n)*head_dim: 0"),
    "no positions": (
        {"max_position_embeddings": 0},
        "config.json: max_position_embeddings '0' leaves no room",
    ),
    "groups": ({"num_key_value_heads": 3}, "4 weights of .* another shape"),
}
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown kind": ({"model_type": "wobble"}, "config.json of .* cannot be loaded: .*wobble"),
    "kind in a list": ({"model_type": ["llama"]}, "config.json of .* cannot be loaded"),
    "activation": ({"hidden_act": "wobble"}, "the model of .* cannot be loaded: .*wobble"),
    "rope": ({"rope_parameters": "x"}, "config.json of .* cannot be loaded: .*rope_parameters"),
    "dtype": ({"dtype": "float7"}, "config.json of .* cannot be loaded: .*float7"),
    "padding": ({"pad_token_id": 10**6}, "the model of .* cannot be loaded: .*[Pp]adding"),
    "labels": ({"id2label": [1]}, "config.json of .* cannot be loaded"),
    "quantized by a word": ({"quantization_config": "gptq"}, "config.json of .* cannot be loaded"),
}
TOKENIZERS: dict[str, tuple[Change, str]] = {
    "class": (
        settings("tokenizer_config.json", tokenizer_class=4),
        "the tokenizer of .* cannot be loaded",
    ),
    "other class": (
        settings("tokenizer_config.json", tokenizer_class="BertTokenizer"),
        "the tokenizer of .*UNK",
    ),
    "end": (
        settings("tokenizer_config.json", eos_token=5),
        "the tokenizer of .* cannot be loaded: .*eos_token",
    ),
    "length": (
        settings("tokenizer_config.json", model_max_length="x"),
        "the tokenizer of .* cannot be loaded",
    ),
    "without tokens": (text("tokenizer.json", "{}"), "the tokenizer of .* cannot be loaded"),
    "template": (text("chat_template.jinja", b"\xff\xfe"), "the tokenizer of .* cannot be loaded"),
}


def refused(folder: Path, message: str, **section: Any) -> None:
    model = Model(name_or_path=str(folder), **section)
    with pytest.raises(RecipeError, match=message):
        load_policy(model, load_tokenizer(model), trainable=False)


@pytest.mark.parametrize("content", NO_OBJECTS)
@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_no_object_is_named(file: str, content: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    text(file, NO_OBJECTS[content])(folder)
    refused(
        folder,
        "the tokenizer of .* cannot"
        if (file, content) == ("tokenizer.json", "cut off")
        else f"/{file} ",
    )


@pytest.mark.parametrize("what", [*SIZES, *SETTINGS])
def test_a_config_that_fits_no_model_is_refused(what: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    changed, message = {**SIZES, **SETTINGS}[what]
    settings(**changed)(folder)
    refused(folder, message)


@pytest.mark.parametrize("what", TOKENIZERS)
def test_a_tokenizer_that_does_not_fit_is_refused(what: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    TOKENIZERS[what][0](folder)
    refused(folder, TOKENIZERS[what][1])
    shutil.rmtree(folder)


def made(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("{}")
    return folder


OTHER_THINGS: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing": ((), "an empty folder"),
    "pipeline": (("model_index.json",), "a diffusers pipeline"),
    "vectors": (("modules.json",), "a sentence-transformers model"),
    "run": (
        ("resolved.json", "final/config.json"),
        "the directory of a run(.|\n)*did you mean .*/final",
    ),
    "unfinished": (("resolved.json",), "a run that has not finished(.|\n)*--resume"),
    "built": (("resolved.json", "manifest.json"), "a run that is finished and made no model"),
    "checkpoints": (
        ("checkpoint-9/config.json", "checkpoint-10/config.json"),
        "did you mean .*/checkpoint-10",
    ),
    "hub": (("snapshots/abc/config.json", "refs/main"), "a cache of the hub(.|\n)*/snapshots/abc"),
    "authors": (("params.json", "consolidated.00.pth"), "in the form of its authors"),
    "onnx": (("model.onnx",), "an ONNX model"),
    "models": (
        ("first/config.json", "second/config.json"),
        "a folder of models(.|\n)*did you mean .*/first",
    ),
    "parts": (("a.gguf", "b.gguf"), "several GGUF files"),
}


@pytest.mark.parametrize("what", OTHER_THINGS)
def test_another_thing_than_a_model_is_named_with_what_is_meant(what: str, tmp_path: Path) -> None:
    files, message = OTHER_THINGS[what]
    with pytest.raises(RecipeError, match=message):
        check_model_path(Model(name_or_path=str(made(tmp_path / "folder", *files))))


def encoder(kind: str) -> Any:
    import transformers as hf

    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    if kind == "bert":
        return hf.BertForMaskedLM(hf.BertConfig(vocab_size=260, **small))
    if kind == "t5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
        return hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=260, **sizes))
    return hf.ViTModel(hf.ViTConfig(**small, image_size=16, patch_size=8))


@pytest.mark.parametrize(
    ("kind", "what"),
    [("bert", "an encoder"), ("t5", "an encoder with a decoder"), ("vit", "no text")],
)
def test_what_does_not_go_on_with_a_text_is_told_before_it_is_loaded(
    kind: str, what: str, tmp_path: Path
) -> None:
    encoder(kind).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=f"{what}.*"):
        check_policy(Model(name_or_path=str(tmp_path)), trainable=True)


QUANTIZED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "gptq": (
        {"quant_method": "gptq"},
        {"lora": Lora()},
        r"quantized already \(gptq\), and those cannot be trained",
    ),
    "mxfp4": (
        {"quant_method": "mxfp4"},
        {},
        r"\(mxfp4\), and those cannot be trained(.|\n)*made from",
    ),
    "full": (
        {"load_in_8bit": True},
        {},
        r"\(int8\), so they cannot be trained themselves(.|\n)*model.lora",
    ),
    "twice": (
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"lora": Lora(), "quantization": "int8"},
        r"\(nf4\), so model.quantization=int8 cannot be",
    ),
}


@pytest.mark.parametrize("what", QUANTIZED)
def test_weights_that_are_quantized_already_are_trained_under_an_adapter_or_not(
    what: str, tmp_path: Path
) -> None:
    said, section, message = QUANTIZED[what]
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": said}))
    with pytest.raises(RecipeError, match=message):
        as_trained(Model(name_or_path=str(tmp_path), **section))
    (tmp_path / "config.json").write_text("{}")
    plain = Model(name_or_path=str(tmp_path), lora=Lora())
    assert as_trained(plain) == plain


def test_a_folder_in_4_bits_is_trained_under_an_adapter(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    save_model(tmp_path / "plain", hidden_size=64, intermediate_size=128)
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=bits
    ).save_pretrained(tmp_path / "nf4")
    byte_tokenizer().save_pretrained(tmp_path / "nf4")
    section = as_trained(Model(name_or_path=str(tmp_path / "nf4"), lora=Lora()))
    assert section.quantization == "nf4"
    policy = load_policy(section, load_tokenizer(section), trainable=True)
    assert policy.is_quantized
    assert {
        name.split(".")[-3] for name, weight in policy.named_parameters() if weight.requires_grad
    } == {
        "lora_A",
        "lora_B",
    }


def test_a_reward_head_without_a_number_is_refused(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "model")
    settings(id2label=[1])(folder)
    with pytest.raises(RecipeError, match=r"config.json: num_labels is not a number of labels"):
        saved_outputs(str(folder))


def test_a_folder_with_a_tokenizer_alone_is_looked_at_too(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    check_tokenizer_path(Model(name_or_path=str(tmp_path)), "mosaic.tokenizer")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(
        RecipeError, match=r"mosaic.tokenizer: .*tokenizer_config.json holds a list"
    ):
        check_tokenizer_path(Model(name_or_path=str(tmp_path)), "mosaic.tokenizer")


def test_a_model_in_many_files_is_loaded(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tiny_llama(tokenizer).save_pretrained(tmp_path, max_shard_size="50KB")
    tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    section = Model(name_or_path=str(tmp_path))
    load_policy(section, load_tokenizer(section), trainable=False)
