"""Tokenizers and models: the only place that calls `from_pretrained`.

`load_policy(..., trainable=True)` gives what is trained: the whole model, or a frozen base (also in 4 or 8 bits) under
LoRA adapters. A folder that holds an adapter is loaded onto the base that it names: it is trained further when the
recipe has `model.lora`, and merged into its base otherwise. `trainable=False` gives a model for answering.

Only safetensors are read and written, and code that ships with a model runs only when `trust_remote_code` says so.
"""

from __future__ import annotations

import json
import os
import re
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner.chat import stop_token_ids
from aligner.config.schema import Lora, Model
from aligner.errors import RecipeError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
ADAPTER_FILE = "adapter_config.json"
PAD_NAMES = ("pad", "reserved", "unused")
NEW_PAD_TOKEN = "<|pad|>"
QUANTIZED = ("nf4", "fp4", "int8")


def check_model_path(model: Model) -> None:
    """Refuse a model folder that is not there or holds no model, without loading anything.

    Raises: RecipeError naming the path. A name that can be a hub id is left to the hub.
    """
    path = Path(model.name_or_path).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", ADAPTER_FILE)):
            raise RecipeError(
                f"model.name_or_path: {path} holds neither config.json nor {ADAPTER_FILE}",
                "name the folder of a model, for example the final/ of a run",
            )
    elif path.exists():
        raise RecipeError(f"model.name_or_path: {path} is a file", "name the folder that holds the model")
    elif not HUB_ID.match(model.name_or_path) or (path.parent.is_dir() and "/" in model.name_or_path):
        raise RecipeError(
            f"model.name_or_path: there is no folder {path}{_is_unfinished_run(path)}",
            f"check the path (it is taken from {Path.cwd()}), or name a hub id such as Qwen/Qwen3-0.6B",
        )


def _is_unfinished_run(path: Path) -> str:
    run = path.parent
    return f"; the run {run} has not finished" if path.name == "final" and (run / "resolved.json").exists() else ""


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """Load the tokenizer with the recipe's template, new tokens, stop and padding tokens.

    A padding token that also ends answers is replaced by a reserved token, or a new one, so that padding can never be
    taken for an end. Raises: RecipeError when a token or template that the recipe names is not there.
    """
    from transformers import AutoTokenizer

    check_model_path(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            _local(model.name_or_path), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _cannot_load(model, "tokenizer", error) from error
    if model.chat_template is not None:
        tokenizer.chat_template = read_chat_template(model.chat_template)
    if model.new_tokens:
        tokenizer.add_tokens([token for token in model.new_tokens if token not in tokenizer.get_vocab()])
    for key in ("eos_token", "pad_token"):
        _set_token(tokenizer, key, getattr(model, key))
    _ensure_padding(tokenizer, model)
    return tokenizer


def _set_token(tokenizer: PreTrainedTokenizerBase, key: str, token: str | None) -> None:
    if token is None:
        return
    if token not in tokenizer.get_vocab():
        raise RecipeError(
            f"model.{key}: the tokenizer has no token {token!r}", f"list it in model.new_tokens too: [{token!r}]"
        )
    setattr(tokenizer, key, token)


def _ensure_padding(tokenizer: PreTrainedTokenizerBase, model: Model) -> None:
    stops = {*stop_token_ids(tokenizer), *_configured_stops(model)}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in stops:
        return
    if model.pad_token is not None:
        raise RecipeError(
            f"model.pad_token: {model.pad_token!r} also ends an answer, so padding could be taken for an end",
            "name another token, or leave the key out",
        )
    reserved = [
        token.content
        for index, token in sorted(tokenizer.added_tokens_decoder.items())
        if index not in stops and any(name in token.content.lower() for name in PAD_NAMES)
    ]
    if reserved:
        tokenizer.pad_token = reserved[0]
    else:
        tokenizer.add_special_tokens({"pad_token": NEW_PAD_TOKEN})


def _configured_stops(model: Model) -> list[int]:
    """Return the end-of-sequence ids in the model's generation_config.json, where there is one."""
    from transformers import GenerationConfig

    try:
        ids = GenerationConfig.from_pretrained(_local(model.name_or_path), revision=model.revision).eos_token_id
    except OSError:
        return []
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def read_chat_template(name: str) -> str:
    """Return a chat template: the content of a Jinja file, or the one that TRL ships under this name.

    Raises: RecipeError with the names that exist.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path.read_text(encoding="utf-8")
    spec = find_spec("trl")
    assert spec is not None, "TRL is a dependency of ours"
    assert spec.submodule_search_locations, "TRL is a package"
    folder = Path(next(iter(spec.submodule_search_locations))) / "chat_templates"
    shipped = folder / f"{name}.jinja"
    if not shipped.is_file():
        from difflib import get_close_matches

        names = sorted(file.stem for file in folder.glob("*.jinja"))
        close = get_close_matches(name, names, n=3) or names[:8]
        raise RecipeError(
            f"model.chat_template: {name!r} is neither a file nor a template that TRL ships",
            f"did you mean {', '.join(close)}?",
        )
    return shipped.read_text(encoding="utf-8")


def load_policy(model: Model, tokenizer: PreTrainedTokenizerBase, *, trainable: bool) -> PreTrainedModel:
    """Load the model of a recipe: to be trained, or (with `trainable=False`) merged, in eval mode, on the best device.

    Raises: RecipeError when it cannot be loaded, with transformers' reason.
    """
    adapter = _adapter_config(model.name_or_path)
    base_name = adapter["base_model_name_or_path"] if adapter else model.name_or_path
    policy = _load_base(model, base_name, trainable)
    grow_embeddings(policy, tokenizer)
    if adapter:
        policy = _with_saved_adapter(policy, model, adapter, trainable)
    elif trainable and model.lora is not None:
        policy = _with_new_adapter(policy, model.lora, model, tokenizer)
    _mirror_special_tokens(policy, tokenizer)
    if not trainable:
        return policy.eval() if model.quantization in QUANTIZED else policy.to(best_device()).eval()
    return policy


def _load_base(model: Model, name: str, trainable: bool) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": resolve_dtype(model, trainable)}
    if model.attn_implementation:
        options["attn_implementation"] = model.attn_implementation
    if model.quantization in QUANTIZED:
        options["quantization_config"] = _quantization_config(model)
        options["device_map"] = {"": _rank_device()}
    try:
        return AutoModelForCausalLM.from_pretrained(
            _local(name),
            revision=model.revision if name == model.name_or_path else None,
            trust_remote_code=model.trust_remote_code,
            use_safetensors=True,
            **options,
        )
    except (OSError, ValueError, ImportError) as error:
        raise _cannot_load(model, "model", error) from error


def _quantization_config(model: Model) -> Any:
    from transformers import BitsAndBytesConfig

    if model.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model.quantization,
        bnb_4bit_use_double_quant=model.double_quant,
        bnb_4bit_compute_dtype=resolve_dtype(model, trainable=True),
    )


def _with_saved_adapter(policy: PreTrainedModel, model: Model, adapter: dict[str, Any], trainable: bool) -> Any:
    """Put the adapter of a folder onto its base: trained further under `model.lora`, merged otherwise."""
    from peft import PeftModel

    further = trainable and model.lora is not None
    if further:
        assert model.lora is not None
        for key in ("r", "lora_alpha"):
            if adapter[key] != getattr(model.lora, key):
                raise RecipeError(
                    f"model.lora.{key} is {getattr(model.lora, key)}, but the adapter in {model.name_or_path} has {adapter[key]}",
                    f"set model.lora.{key}={adapter[key]}, or merge the adapter first and start a new one",
                )
    policy = PeftModel.from_pretrained(policy, model.name_or_path, is_trainable=further)
    if further or model.quantization in QUANTIZED:
        return policy
    return policy.merge_and_unload()


def _with_new_adapter(policy: PreTrainedModel, lora: Lora, model: Model, tokenizer: PreTrainedTokenizerBase) -> Any:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if model.quantization in QUANTIZED:
        policy = prepare_model_for_kbit_training(policy, use_gradient_checkpointing=False)
    new_ids = tokenizer.convert_tokens_to_ids(model.new_tokens) if model.new_tokens else None
    saved_whole = lora.modules_to_save or []
    try:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            trainable_token_indices=None if new_ids is None or "embed_tokens" in saved_whole else new_ids,
            **lora.model_dump(),
        )
        return get_peft_model(policy, config)
    except ValueError as error:
        raise RecipeError(
            f"model.lora: {error}", "check model.lora.target_modules against the model's layers"
        ) from error


def grow_embeddings(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give every id of the tokenizer an embedding; never shrink, since many models pad their vocabulary."""
    if len(tokenizer) > policy.get_input_embeddings().num_embeddings:
        policy.resize_token_embeddings(len(tokenizer), mean_resizing=True)


def _mirror_special_tokens(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the model's configurations agree with the tokenizer on padding and on what ends an answer."""
    config = policy.config.get_text_config()
    config.pad_token_id = tokenizer.pad_token_id
    config.eos_token_id = tokenizer.eos_token_id
    if policy.generation_config is not None:
        policy.generation_config.pad_token_id = tokenizer.pad_token_id
        policy.generation_config.eos_token_id = stop_token_ids(tokenizer, policy)


def resolve_dtype(model: Model, trainable: bool) -> torch.dtype:
    """Return the data type of the weights; `auto` is bfloat16 where weights are frozen on a GPU that has it."""
    import torch

    if model.dtype != "auto":
        return getattr(torch, model.dtype)
    frozen = model.lora is not None or not trainable
    return torch.bfloat16 if frozen and has_bf16_gpu() else torch.float32


def has_bf16_gpu() -> bool:
    """Say whether there is a CUDA device that computes in bfloat16."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def best_device() -> str:
    """Return the device that one process works on: its CUDA device, Apple's, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{_local_rank()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _rank_device() -> str | int:
    import torch

    return _local_rank() if torch.cuda.is_available() else "cpu"


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def model_fingerprint(model: Model) -> str:
    """Return a hash of the weights that a recipe starts from: of the files of a folder, or of the hub's commit."""
    digest = sha256(f"{model.dtype} {model.quantization} {model.double_quant}".encode())
    path = Path(model.name_or_path).expanduser()
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        path = Path(snapshot_download(model.name_or_path, revision=model.revision, local_files_only=True))
        digest.update(path.name.encode())
        return digest.hexdigest()
    for file in sorted([*path.glob("*.safetensors"), *path.glob("*config.json")]):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    if adapter := _adapter_config(model.name_or_path):
        base = model.model_copy(update={"name_or_path": adapter["base_model_name_or_path"], "revision": None})
        digest.update(model_fingerprint(base).encode())
    return digest.hexdigest()


def _adapter_config(name: str) -> dict[str, Any] | None:
    file = Path(name).expanduser() / ADAPTER_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _local(name: str) -> str:
    """Return folders as absolute paths, so that a saved adapter finds its base from any working directory."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name


def _cannot_load(model: Model, what: str, error: Exception) -> RecipeError:
    reason = str(error).strip().splitlines()
    return RecipeError(
        f"model.name_or_path: the {what} of {model.name_or_path!r} cannot be loaded: {reason[0] if reason else type(error).__name__}",
        "check the name and the network (HF_HUB_OFFLINE), or name a folder that holds the model as safetensors",
    )
