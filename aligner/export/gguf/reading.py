"""Read a GGUF file back: its logits on probes, and the ids that its tokenizer gives."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aligner.config.recipe import Model
from aligner.export.gguf.families import head_width
from aligner.export.probes import TEXTS, logits_of
from aligner.models.load_errors import reading
from aligner.models.loading import without_messages
from aligner.models.tokenizers import load_tokenizer_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from aligner.export.gguf.families import Family

HARD_TEXTS = (
    *TEXTS,
    "  two spaces,\ttab,\n\nlines  ",
    "I'll, we've, IT'S; 3.14159 and 1,234,567",
    "naïve façade ﬁ ½ ⅓ … — “quotes”",
    "def f(x):\n\treturn {'a': x ** 2}  # ok",
    "नमस्ते दुनिया 안녕하세요 שלום مرحبا",
)


@dataclass(frozen=True)
class Read:
    """Logits (T, V) of each probe, who read the file, and the settings of the model that the reader
    does not find in it."""

    logits: list[torch.Tensor]
    reader: str
    lacking: tuple[str, ...]


def read_logits(
    file: Path,
    original: PreTrainedModel,
    family: Family,
    probes: Sequence[Sequence[int]],
    settings: Sequence[str],
) -> Read:
    """Read a file, through transformers where it can, and compute its logits on probes.

    `settings`: of the config, which decide what is computed; where transformers finds another
    value than the original's, or none, the model is read with the original's config.

    Raises: RecipeError when transformers cannot read it.
    """
    if not family.is_read:
        return Read(logits_of(_read_tensors(file, original, family), probes), "aligner", ())
    model, lacking = _read(file, original, settings)
    return Read(logits_of(model, probes), "transformers", lacking)


def _read(
    file: Path, original: PreTrainedModel, settings: Sequence[str]
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    with reading(str(file), "GGUF file", key="export"):
        found = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
        lacking = tuple(name for name in settings if _differs(found, original.config, name))
        further: dict[str, Any] = {}
        if lacking:
            further["config"] = _with_settings(found, original.config, lacking)
        with without_messages("LOAD REPORT", "modeling_utils", "utils.loading_report"):
            model = AutoModelForCausalLM.from_pretrained(
                str(file.parent),
                gguf_file=file.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                **further,
            )
    return model.eval(), lacking


def _with_settings(found: Any, original: Any, lacking: Sequence[str]) -> Any:
    """The config of the original; that of the file with what it lacks, where a file has no name for
    the family (a Mistral is a Llama there)."""
    if found.model_type == original.model_type:
        return deepcopy(original)
    for name in lacking:
        setattr(found, name, getattr(original, name, None))
    return found


def _differs(found: Any, original: Any, name: str) -> bool:
    """Whether a setting is another one; floats in a file have 32 bits."""
    if name == "head_dim":
        return head_width(found) != head_width(original)
    return not _same(getattr(found, name, None), getattr(original, name, None))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return all(_same(a.get(key), b.get(key)) for key in {**a, **b})
    if isinstance(a, float | int) and isinstance(b, float | int):
        return abs(a - b) <= 1e-6 * max(abs(a), abs(b))
    return bool(a == b) or (not a and not b)


def _read_tensors(file: Path, original: PreTrainedModel, family: Family) -> PreTrainedModel:
    """A model with the tensors of the file, by its own names; for families that transformers does
    not read."""
    from gguf import MODEL_ARCH_NAMES, GGUFReader, dequantize, get_tensor_name_map

    model = deepcopy(original)
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == family.arch)
    names = get_tensor_name_map(arch, model.config.num_hidden_layers)
    held = {tensor.name: tensor for tensor in GGUFReader(str(file)).tensors}
    assert not family.permutes, "no family is read in this way whose rows are reordered"
    for key, weight in model.named_parameters():
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert name is not None, f"{key} was written"
        values = torch.from_numpy(dequantize(held[name].data, held[name].tensor_type).copy())
        shift = 1.0 if family.shifts_norms and name.endswith("norm.weight") else 0.0
        weight.data.copy_(values.reshape(weight.shape) - shift)
    return model


def same_ids(file: Path, tokenizer: PreTrainedTokenizerBase, kind: str) -> str | None:
    """Return the first text that the tokenizer of a file turns into other ids than the original;
    None where all are the same.

    `kind`: llama.cpp's name of the algorithm. For `llama` transformers puts no space before a text
    that begins with one, where the models' own tokenizers and llama.cpp do: such a text says
    nothing.
    """
    read = load_tokenizer_files(Model(name_or_path=str(file)))
    for text in HARD_TEXTS:
        if kind == "llama" and text.startswith(" "):
            continue
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        if read(text, add_special_tokens=False)["input_ids"] != ours:
            return text
    return None
