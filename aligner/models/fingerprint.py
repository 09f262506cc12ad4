"""Fingerprints of a model and of a tokenizer: hashes that change when anything read from them
changes.

Of a folder they are over the content of its files: weights, configuration, tokenizer, chat
templates, code, and for an adapter those of its base. Each file is read whole once
(`aligner.runs.digests` says how long that holds). Of a model on the hub they are over its commit.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from aligner.config.recipe import Model
from aligner.models.files import (
    adapter_config,
    base_of,
    read_chat_template,
)
from aligner.models.gguf import gguf_file
from aligner.runs.digests import digests_of

WEIGHTS = "*.safetensors"
BESIDE_WEIGHTS = (
    *("*.json", "*.py", "*.jinja", "*.model", "*.txt", "*.tiktoken"),
    "additional_chat_templates/*.jinja",
)
"""What may be read from a folder beside its weights."""

NOT_READ = ("trainer_state.json", "checksums.json")


def model_fingerprint(model: Model) -> str:
    """Return a hash of all that a recipe's model is made of, and of how its weights are loaded;
    where a folder lies does not count.

    Raises: LocalEntryNotFoundError of huggingface_hub for a model that is not on this machine.
    """
    said = [model.dtype, model.quantization, model.double_quant]
    tokens = [model.eos_token, model.pad_token, *model.new_tokens]
    template = None if model.chat_template is None else read_chat_template(model.chat_template)
    parts = model_parts(model.name_or_path, model.revision)
    found = [[Path(name).name, digest] for name, digest in parts.items()]
    return sha256(json.dumps([said, tokens, template, found]).encode()).hexdigest()


def model_parts(
    name: str, revision: str | None = None, *, has_weights: bool = True
) -> dict[str, str]:
    """Return each file of a model, with its path, and its SHA-256; of a model on the hub its name
    and its commit. `has_weights` False: what is read beside them alone.

    Raises: LocalEntryNotFoundError of huggingface_hub for a model that is not on this machine.
    """
    path, gguf = Path(name).expanduser(), gguf_file(name)
    if not path.is_dir() and gguf is None:
        from huggingface_hub import snapshot_download

        return {name: Path(snapshot_download(name, revision=revision, local_files_only=True)).name}
    patterns = (*((WEIGHTS,) if has_weights else ()), *BESIDE_WEIGHTS)
    listed = (file for pattern in patterns for file in path.glob(pattern))
    files = [file for file in listed if file.is_file() and file.name not in NOT_READ]
    digests = digests_of(sorted(files) if gguf is None else [gguf])
    parts = {str(file): digest for file, digest in digests.items()}
    if adapter_config(name):
        base, of_base = base_of(Model(name_or_path=name, revision=revision))
        parts |= model_parts(base, of_base, has_weights=has_weights)
    return parts


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of what decides over token ids: vocabulary, rules and chat template."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.dumps(sorted(tokenizer.get_vocab().items())) if fast is None else fast.to_str()
    return sha256(json.dumps([tokenizer.chat_template, rules], sort_keys=True).encode()).hexdigest()
