"""Models and tokenizers: what is trained, what is kept, what comes back from disk, and what is
refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from aligner.config.recipe import Lora, Model
from aligner.errors import RecipeError
from aligner.models.files import check_model_path, read_chat_template
from aligner.models.fingerprint import model_fingerprint
from aligner.models.loading import load_policy
from aligner.models.tokenizers import load_tokenizer
from aligner.tokenization.encode import check_tokenizer, stop_token_ids
from tests.fakes import BOS, EOS, START, byte_tokenizer, save_model

VOCABULARY = 264  # four more than the tokenizer has, as in models that pad theirs
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=True),
    "gemma": lambda: GemmaConfig(**SHAPE, head_dim=8),
    "mistral": lambda: MistralConfig(**SHAPE),
    "phi": lambda: PhiConfig(**SHAPE),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=2, eos_token_id=2
    ),
}
TIED = ("qwen3", "gemma", "gpt2")
NEW = [f"<new{number}>" for number in range(8)]
LINEAR = "all-linear"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models of every architecture, each in a folder with the byte tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), byte_tokenizer()
    for name, config in ARCHITECTURES.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config()).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in ARCHITECTURES}


def spec(folder: Path | str, **settings: Any) -> Model:
    return Model(name_or_path=str(folder), **settings)


def load(model: Model, *, trainable: bool = True) -> tuple[Any, Any]:
    tokenizer = load_tokenizer(model)
    return load_policy(model, tokenizer, trainable=trainable), tokenizer


def ids_for(tokenizer: Any, *tokens: str) -> torch.Tensor:
    return torch.tensor(
        [[*tokenizer("hello")["input_ids"], *tokenizer.convert_tokens_to_ids([*tokens, EOS])]]
    )


def train(policy: Any, ids: torch.Tensor, steps: int = 2) -> None:
    policy.train()
    optimizer = torch.optim.SGD(
        [part for part in policy.parameters() if part.requires_grad], lr=0.5
    )
    for _ in range(steps):
        policy(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    policy.eval()


def logits(policy: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return policy.eval()(input_ids=ids).logits.float()


def save(policy: Any, tokenizer: Any, folder: Path) -> Path:
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def names_of_trained(policy: Any) -> set[str]:
    return {name for name, part in policy.named_parameters() if part.requires_grad}


# --- training, saving, loading --------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_full_model_trains_and_comes_back(
    name: str, models: dict[str, Path], tmp_path: Path
) -> None:
    policy, tokenizer = load(spec(models[name]))
    assert all(part.requires_grad and part.dtype == torch.float32 for part in policy.parameters())
    ids = ids_for(tokenizer)
    before = logits(policy, ids)
    train(policy, ids)
    again, _ = load(spec(save(policy, tokenizer, tmp_path / "out")), trainable=False)
    assert torch.equal(logits(again, ids), logits(policy, ids))
    assert not torch.equal(logits(again, ids), before)
    assert (
        policy.get_input_embeddings().num_embeddings == VOCABULARY
    )  # never shrunk to the tokenizer's 260


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "head": {"modules_to_save": ["lm_head"]},
    "new tokens": {"new_tokens": NEW},
    "new tokens and head": {"modules_to_save": ["lm_head"], "new_tokens": NEW},
}
QUICK = [(name, kind) for name in ("llama", "qwen3") for kind in KINDS] + [
    ("phi", "new tokens"),
    ("gpt2", "plain"),
]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if (name, kind) in QUICK else [pytest.mark.slow])
        for name in ARCHITECTURES
        for kind in KINDS
    ],
)
def test_an_adapter_comes_back_from_any_working_directory(
    name: str, kind: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models[name].parent)
    new = KINDS[kind].get("new_tokens", [])
    lora = Lora(r=4, modules_to_save=KINDS[kind].get("modules_to_save"))
    model = spec(name, lora=lora, new_tokens=new)  # a relative path
    policy, tokenizer = load(model)
    ids = ids_for(tokenizer, *new)
    base, adapter_off = (
        logits(load(spec(name))[0], ids_for(tokenizer)),
        logits(policy, ids_for(tokenizer)),
    )
    assert torch.allclose(adapter_off[..., :VOCABULARY], base, atol=1e-6)
    train(policy, ids)
    folder = save(policy, tokenizer, tmp_path / "adapter")
    assert not list(folder.glob("*.bin"))
    monkeypatch.chdir("/")
    torch.manual_seed(7)  # new rows are drawn again, and must not matter
    merged, again = load(spec(folder), trainable=False)
    assert again.convert_tokens_to_ids(new) == tokenizer.convert_tokens_to_ids(new)
    assert not hasattr(merged, "peft_config")
    assert torch.allclose(logits(merged, ids), logits(policy, ids), atol=1e-4)
    resaved, _ = load(spec(save(merged, tokenizer, tmp_path / "merged")), trainable=False)
    assert torch.allclose(logits(resaved, ids), logits(policy, ids), atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_new_token_is_trained_where_it_is_read_and_where_it_is_written(
    name: str, models: dict[str, Path]
) -> None:
    policy, tokenizer = load(spec(models[name], lora=Lora(r=4), new_tokens=NEW))
    assert len(tokenizer) == policy.get_input_embeddings().weight.shape[0] == 268
    tokens = tokenizer.convert_tokens_to_ids(NEW)
    read, written = (
        part.weight.detach().clone()
        for part in (policy.get_input_embeddings(), policy.get_output_embeddings())
    )
    train(policy, ids_for(tokenizer, *NEW))
    for before, part in (
        (read, policy.get_input_embeddings()),
        (written, policy.get_output_embeddings()),
    ):
        moved = (part.weight.detach() != before).any(dim=1).nonzero().flatten().tolist()
        assert moved == tokens
    assert torch.equal(
        policy.get_input_embeddings().weight, policy.get_output_embeddings().weight
    ) == (name in TIED)


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi"])
def test_a_new_token_reaches_the_fused_head_of_the_trainers(
    name: str, models: dict[str, Path], tmp_path: Path
) -> None:
    from aligner.models.fused_head import fuse_head

    policy, tokenizer = load(spec(models[name], lora=Lora(r=4), new_tokens=NEW))
    further, _ = load(
        spec(save(policy, tokenizer, tmp_path / "adapter"), lora=Lora(r=4), new_tokens=NEW)
    )
    ids = ids_for(tokenizer, *NEW)
    for adapted in (policy, further):
        plain = logits(adapted, ids).log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        fuse_head(adapted)
        fused = adapted(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
        assert torch.allclose(fused.flatten()[: len(plain)], plain, atol=1e-5)
        fused.sum().backward()
        rows = [
            part
            for part_name, part in adapted.named_parameters()
            if "trainable_tokens" in part_name
        ]
        assert len(rows) == (1 if name in TIED else 2)
        assert all(
            part.requires_grad and part.grad is not None and part.grad.abs().sum() > 0
            for part in rows
        )


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_an_adapter_over_a_quantized_base_trains_and_comes_back(
    name: str, quantization: str, models: dict[str, Path], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"quantization": quantization, "lora": Lora(r=4)}
    policy, tokenizer = load(spec(models[name], **settings))
    ids = ids_for(tokenizer)
    kinds = {type(module).__name__ for module in policy.modules()}
    assert ("Linear8bitLt" if quantization == "int8" else "Linear4bit") in kinds
    trained = names_of_trained(policy)
    assert trained
    assert all("lora_" in part for part in trained)
    before = logits(policy, ids)
    train(policy, ids)
    after = logits(policy, ids)
    assert not torch.equal(before, after)
    folder = save(policy, tokenizer, tmp_path / "adapter")
    answering, _ = load(spec(folder, quantization=quantization), trainable=False)
    assert torch.allclose(logits(answering, ids), after, atol=1e-4)
    assert not answering.training
    further, _ = load(spec(folder, **settings))
    assert names_of_trained(further) == trained
    assert torch.allclose(logits(further, ids), after, atol=1e-4)
    plain, _ = load(spec(folder), trainable=False)
    assert torch.allclose(logits(plain, ids), after, atol=0.5)


def test_new_tokens_over_a_quantized_base_come_back(
    models: dict[str, Path], tmp_path: Path
) -> None:
    policy, tokenizer = load(
        spec(models["llama"], quantization="nf4", lora=Lora(r=4), new_tokens=NEW)
    )
    ids = ids_for(tokenizer, *NEW)
    train(policy, ids)
    folder = save(policy, tokenizer, tmp_path / "adapter")
    again, _ = load(spec(folder, quantization="nf4"), trainable=False)
    assert torch.allclose(logits(again, ids), logits(policy, ids), atol=1e-4)


def test_a_quantized_base_keeps_its_other_weights_in_the_data_type_it_was_loaded_in(
    models: dict[str, Path],
) -> None:
    policy, _ = load(spec(models["llama"], quantization="nf4", dtype="bfloat16", lora=Lora(r=4)))
    base = policy.get_base_model()
    assert (
        base.get_input_embeddings().weight.dtype
        == base.get_output_embeddings().weight.dtype
        == torch.bfloat16
    )
    assert {part.dtype for part in policy.parameters() if part.requires_grad} == {torch.float32}
    assert base.model.layers[
        0
    ].mlp.up_proj.base_layer.quant_state.nested  # double quantization is the default


@pytest.mark.parametrize(
    ("settings", "trainable", "dtype"),
    [
        ({}, True, torch.float32),
        ({"lora": Lora()}, True, torch.float32),
        ({}, False, torch.float32),
        ({"dtype": "bfloat16"}, True, torch.bfloat16),
        ({"dtype": "float16", "lora": Lora()}, True, torch.float16),
    ],
)
def test_weights_have_the_data_type_asked_for(
    settings: dict[str, Any], trainable: bool, dtype: torch.dtype, models: dict[str, Path]
) -> None:
    policy, _ = load(spec(models["llama"], **settings), trainable=trainable)
    assert policy.get_input_embeddings().weight.dtype == dtype


def test_an_adapter_is_trained_further_or_merged_as_the_recipe_says(
    models: dict[str, Path], tmp_path: Path
) -> None:
    lora = Lora(r=4, target_modules=["q_proj", "v_proj"])
    policy, tokenizer = load(spec(models["llama"], lora=lora))
    ids = ids_for(tokenizer)
    train(policy, ids)
    folder = save(policy, tokenizer, tmp_path / "adapter")

    further, _ = load(spec(folder, lora=lora))
    assert names_of_trained(further) == names_of_trained(policy)
    assert torch.equal(logits(further, ids), logits(policy, ids))
    assert names_of_trained(load(spec(folder, lora=Lora(r=4)))[0]) == names_of_trained(
        policy
    )  # all-linear: its own

    merged, _ = load(spec(folder))
    assert all(part.requires_grad for part in merged.parameters())
    train(merged, ids)
    assert not torch.allclose(logits(merged, ids), logits(policy, ids), atol=1e-4)

    others = {
        "r": Lora(r=8),
        "lora_dropout": Lora(r=4, lora_dropout=0.1),
        "use_dora": Lora(r=4, use_dora=True),
        "target_modules": Lora(r=4, target_modules=["k_proj"]),
        "modules_to_save": Lora(r=4, modules_to_save=["lm_head"]),
    }
    for key, other in others.items():
        with pytest.raises(RecipeError, match=rf"model\.lora\.{key} is .* but the adapter"):
            load(spec(folder, lora=other))


def test_a_token_added_to_an_adapter_that_has_no_row_for_it_is_refused(
    models: dict[str, Path], tmp_path: Path
) -> None:
    policy, tokenizer = load(spec(models["llama"], lora=Lora(r=4), new_tokens=NEW[:2]))
    folder = save(policy, tokenizer, tmp_path / "adapter")
    load(spec(folder, lora=Lora(r=4), new_tokens=NEW[:2]))
    with pytest.raises(RecipeError, match="has no row for '<new2>'"):
        load(spec(folder, lora=Lora(r=4), new_tokens=NEW[:3]))


def test_embeddings_are_not_adapted_and_given_new_rows_at_once(models: dict[str, Path]) -> None:
    lora = Lora(target_modules=["embed_tokens"])
    with pytest.raises(RecipeError, match="gets rows of its own"):
        load(spec(models["qwen3"], lora=lora, new_tokens=NEW))


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (Lora(target_modules=["nothing"]), "model.lora: .*nothing"),
        (Lora(target_modules=["q_proj", "lm_head"]), "an adapter on the head"),
        (Lora(target_modules=".*head"), "an adapter on the head"),
        (
            Lora(modules_to_save=["head"]),
            r"modules_to_save: the model has no module 'head'(.|\n)*lm_head",
        ),
    ],
)
def test_an_adapter_that_fits_no_module_is_refused(
    lora: Lora, message: str, models: dict[str, Path]
) -> None:
    with pytest.raises(RecipeError, match=message):
        load(spec(models["llama"], lora=lora))


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"bias": "all"},
    ],
    ids=str,
)
def test_every_kind_of_adapter_comes_back(
    settings: dict[str, Any], models: dict[str, Path], tmp_path: Path
) -> None:
    policy, tokenizer = load(spec(models["phi"], lora=Lora(r=4, **settings)))
    ids = ids_for(tokenizer)
    train(policy, ids)
    merged, _ = load(spec(save(policy, tokenizer, tmp_path / "adapter")), trainable=False)
    assert torch.allclose(logits(merged, ids), logits(policy, ids), atol=1e-3)


# --- tokens ---------------------------------------------------------------------------------------


def with_tokenizer(folder: Path, tokenizer: Any, **generation: Any) -> Path:
    save_model(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **generation}))
    return folder


def test_padding_may_end_answers_and_changes_no_token_no_matrix_and_no_configuration(
    tmp_path: Path,
) -> None:
    bare = byte_tokenizer()
    bare.pad_token = EOS  # GPT-2 style
    folder = with_tokenizer(tmp_path / "model", bare, eos_token_id=[2, 0], pad_token_id=2)
    policy, tokenizer = load(spec(folder))
    assert (tokenizer.pad_token, len(tokenizer)) == (EOS, 260)
    assert policy.get_input_embeddings().num_embeddings == 260
    assert check_tokenizer(tokenizer, policy) == []
    policy.save_pretrained(tmp_path / "out")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads(
            (folder / name).read_text()
        )
    assert load_tokenizer(spec(folder, pad_token=START)).pad_token == START


def test_a_tokenizer_without_padding_pads_with_a_token_that_is_there(tmp_path: Path) -> None:
    core = Tokenizer.from_str(byte_tokenizer().backend_tokenizer.to_str())
    bare = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=EOS)
    policy, tokenizer = load(spec(with_tokenizer(tmp_path / "model", bare)))
    assert (tokenizer.pad_token_id, len(tokenizer)) == (2, 260)
    assert policy.get_input_embeddings().num_embeddings == 260


def test_padding_beyond_the_models_rows_is_not_used_and_other_tokens_there_get_rows(
    tmp_path: Path,
) -> None:
    beyond = byte_tokenizer()
    beyond.add_special_tokens({"pad_token": "<far>"})
    folder = with_tokenizer(tmp_path / "model", beyond)
    tokenizer = load_tokenizer(spec(folder))
    for _ in range(2):  # a second model under the same tokenizer
        policy = load_policy(spec(folder), tokenizer, trainable=True)
        assert policy.get_input_embeddings().num_embeddings == 260
        assert tokenizer.pad_token_id == 2
    beyond.add_tokens(["<further>"])
    policy, _ = load(spec(with_tokenizer(tmp_path / "further", beyond)))
    assert policy.get_input_embeddings().num_embeddings == 262


def test_a_token_that_also_pads_is_trained_where_it_stands_in_a_text(tmp_path: Path) -> None:
    bare = byte_tokenizer()
    bare.pad_token = EOS
    save_model(tmp_path)
    bare.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "pad_token_id": 2}))
    policy, _ = load(spec(tmp_path))
    ids = torch.tensor([[1, 50, 2, 51]])
    policy(input_ids=ids, labels=ids).loss.backward()
    gradient = policy.get_input_embeddings().weight.grad
    assert gradient[2].norm() > 0.1 * gradient[50].norm()


def test_tokens_that_the_recipe_names_are_kept_by_saving(tmp_path: Path) -> None:
    model = spec(
        save_model(tmp_path / "model"),
        new_tokens=["<think>", "<over>"],
        eos_token="<over>",
        chat_template="qwen3",
    )
    tokenizer = load_tokenizer(model)
    assert tokenizer.eos_token == "<over>"
    assert tokenizer("a<over>", add_special_tokens=False)["input_ids"][-1] == tokenizer.eos_token_id
    tokenizer.save_pretrained(tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.chat_template == tokenizer.chat_template == read_chat_template("qwen3")
    assert again.convert_tokens_to_ids(["<think>", "<over>"]) == tokenizer.convert_tokens_to_ids(
        ["<think>", "<over>"]
    )
    assert (again.eos_token, again.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)
    for key in ("eos_token", "pad_token"):
        with pytest.raises(RecipeError, match=f"model.{key}: the tokenizer has no token '<none>'"):
            load_tokenizer(spec(tmp_path / "model", **{key: "<none>"}))


def test_a_stop_token_that_is_an_ordinary_word_stays_in_one_piece(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(spec(save_model(tmp_path / "model"), eos_token="~"))
    assert tokenizer("a~b", add_special_tokens=False)["input_ids"][1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id in stop_token_ids(tokenizer)


def test_a_chat_template_is_a_file_or_a_name_that_trl_ships(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages }}", encoding="utf-8")
    assert read_chat_template(str(file)) == "{{ messages }}"
    assert "<|im_start|>" in read_chat_template("qwen3")
    with pytest.raises(RecipeError, match=r"'quen3' is neither a file nor a template(.|\n)*qwen3"):
        check_model_path(spec(save_model(tmp_path / "model"), chat_template="quen3"))
    file.write_bytes(b"{{ \xff }}")
    with pytest.raises(RecipeError, match=r"mine.jinja is not text: byte 3 is not UTF-8"):
        read_chat_template(str(file))


def test_settings_that_transformers_would_not_save_are_mended(tmp_path: Path) -> None:
    folder = with_tokenizer(
        tmp_path / "model", byte_tokenizer(), temperature=0.6, top_p=0.9, do_sample=False
    )
    policy, _ = load(spec(folder))
    policy.save_pretrained(tmp_path / "out")
    assert (
        json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.6
    )


# --- what is refused ------------------------------------------------------------------------------


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_a_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: part for name, part in weights.items() if "layers.1." not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def with_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    own = {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    (folder / "code.py").write_text("raise SystemExit('code of the model was run')")


def with_kernel(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "attn_implementation": "some/kernel"})
    )


def wider(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 72}))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pickle": (pickled, r"weights as pickles only \(pytorch_model.bin\)"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        r"holds no weights \(\*.safetensors\)",
    ),
    "cut off": (
        lambda folder: os.truncate(folder / "model.safetensors", 500),
        "is cut off: 500 bytes",
    ),
    "a layer short": (without_a_layer, r"9 weights of .* are missing .*model.layers.1"),
    "another shape": (wider, "6 weights of .* another shape .*mlp"),
    "code": (with_code, r"custom code(.|\n)*set model.trust_remote_code=true"),
    "a kernel": (with_kernel, r"attn_implementation some/kernel, which is code from the hub"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "unknown": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "nosuch"}'),
        "nosuch",
    ),
    "no tokenizer": (
        lambda folder: [file.unlink() for file in folder.glob("token*")],
        "the tokenizer of .* cannot",
    ),
    "broken tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        "the tokenizer of .* cannot",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_with_its_reason(damage: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    DAMAGE[damage][0](folder)
    with pytest.raises(RecipeError, match=DAMAGE[damage][1]):
        load(spec(folder), trainable=False)


def test_a_path_that_leads_nowhere_is_refused_with_what_to_do(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "resolved.json").write_text("{}")
    (tmp_path / "file").write_text("")
    for name, message in (
        (run / "final", r"there is no folder .*; the run .*/run has not finished"),
        (run, r"holds neither config.json nor adapter_config.json(.|\n)*has not finished"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "none", f"there is no folder(.|\n)*taken from {Path.cwd()}"),
        ("./none", "there is no folder"),
    ):
        with pytest.raises(RecipeError, match=message):
            check_model_path(spec(name))
    (run / "final").mkdir()
    with pytest.raises(RecipeError, match=r"did you mean .*/run/final"):
        check_model_path(spec(run))
    check_model_path(spec("Qwen/Qwen3-0.6B"))


def test_an_adapter_whose_base_is_gone_or_unnamed_is_refused(tmp_path: Path) -> None:
    policy, tokenizer = load(spec(save_model(tmp_path / "base"), lora=Lora(r=4)))
    folder = save(policy, tokenizer, tmp_path / "adapter")
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(
        RecipeError, match=r"the base of the adapter in .*adapter: there is no folder .*base"
    ):
        check_model_path(spec(folder))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": None})
    )
    with pytest.raises(RecipeError, match="does not name its base"):
        load(spec(folder), trainable=False)
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(tmp_path / "moved")})
    )
    load(spec(folder), trainable=False)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(RecipeError, match="pickles only"):
        check_model_path(spec(folder))


def test_a_path_is_checked_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from aligner.models.files import check_model_path\n"
        "from aligner.config.recipe import Model\n"
        f"check_model_path(Model(name_or_path={str(save_model(tmp_path / 'model'))!r}, "
        "chat_template='qwen3'))\n"
        "heavy = {'torch', 'transformers', 'peft', 'trl', 'tokenizers', 'safetensors'} & "
        "set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- fingerprints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "config.json", "generation_config.json", "tokenizer.json"),
        *("tokenizer_config.json", "chat_template.jinja", "modeling_own.py"),
    ],
)
def test_a_fingerprint_follows_every_file_that_a_model_is_read_from(
    name: str, tmp_path: Path
) -> None:
    base = save_model(tmp_path / "base")
    before = model_fingerprint(spec(base))
    (base / "README.md").write_text("about the model")
    assert model_fingerprint(spec(base)) == before
    with (base / name).open("ab") as file:
        file.write(b" ")
    assert model_fingerprint(spec(base)) != before


def test_a_fingerprint_follows_the_chat_template_and_the_tokens_of_a_recipe(tmp_path: Path) -> None:
    base, template = save_model(tmp_path / "base"), tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    found = {model_fingerprint(spec(base)), model_fingerprint(spec(base, eos_token="a"))}
    found.add(model_fingerprint(spec(base, chat_template=str(template))))
    template.write_text("{{ messages }} ")
    found.add(model_fingerprint(spec(base, chat_template=str(template))))
    assert len(found) == 4


def test_a_fingerprint_follows_weights_base_and_quantization(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    policy, tokenizer = load(spec(base, lora=Lora(r=4)))
    adapter = save(policy, tokenizer, tmp_path / "adapter")
    shutil.copytree(base, tmp_path / "copy")
    first = model_fingerprint(spec(adapter))
    assert model_fingerprint(spec(base)) == model_fingerprint(spec(tmp_path / "copy"))
    assert (
        len(
            {
                first,
                model_fingerprint(spec(base)),
                model_fingerprint(spec(base, quantization="nf4")),
            }
        )
        == 3
    )
    assert model_fingerprint(spec(save_model(tmp_path / "other", seed=1))) != model_fingerprint(
        spec(base)
    )
    save_model(base, seed=1)
    assert model_fingerprint(spec(adapter)) != first
    assert BOS in tokenizer.all_special_tokens
