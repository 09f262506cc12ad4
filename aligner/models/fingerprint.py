"""Fingerprints of a model's weights and of a tokenizer: hashes that change when anything read from
them changes."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from aligner.config.recipe import Model
from aligner.models.files import (
    adapter_config,
    base_of,
)
from aligner.models.gguf import gguf_file


def model_fingerprint(model: Model) -> str:
    """Return a hash of the weights that a recipe starts from: of the files of a folder, or of the
    hub's commit."""
    digest = sha256(f"{model.dtype} {model.quantization} {model.double_quant}".encode())
    path = Path(model.name_or_path).expanduser()
    gguf = gguf_file(model.name_or_path)
    if not path.is_dir() and gguf is None:
        from huggingface_hub import snapshot_download

        path = Path(
            snapshot_download(model.name_or_path, revision=model.revision, local_files_only=True)
        )
        digest.update(path.name.encode())
        return digest.hexdigest()
    files = [file for form in ("*.safetensors", "*config.json", "*.py") for file in path.glob(form)]
    for file in sorted(files) if gguf is None else [gguf]:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    if adapter_config(model.name_or_path):
        name, revision = base_of(model)
        base = model.model_copy(update={"name_or_path": name, "revision": revision})
        digest.update(model_fingerprint(base).encode())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of what decides over token ids: vocabulary, rules and chat template."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.dumps(sorted(tokenizer.get_vocab().items())) if fast is None else fast.to_str()
    return sha256(json.dumps([tokenizer.chat_template, rules], sort_keys=True).encode()).hexdigest()
