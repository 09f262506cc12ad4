"""Write a loaded model as a GGUF file, a tensor at a time, with the tables and the quantization of
the `gguf` package.

Matrices get the type that is asked for, norms and biases stay in float32, as llama.cpp's own
converter has it; a matrix whose rows are not whole blocks of `q8_0` stays in float16. Each weight
of the model in memory becomes what the file says it is, so that what is read back can be told from
what rounding did.

Legend: N outputs and K inputs of a layer, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from aligner.errors import UsageError
from aligner.export.gguf.families import Family, add_metadata, rope_factors
from aligner.models.loading import without_messages

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter
    from transformers import PreTrainedModel

    from aligner.export.gguf.vocabulary import Vocabulary

LARGEST_F16 = 65504.0


def write_file(
    file: Path,
    model: PreTrainedModel,
    family: Family,
    vocabulary: Vocabulary,
    tokenizer_folder: Path,
    kind: str,
    *,
    title: str,
    further_stop: int | None,
    adds: Mapping[str, bool],
) -> None:
    """Write a model, which afterwards holds what the file says.

    `tokenizer_folder`: where the tokenizer is saved, for the ids of its special tokens and its
    template. `kind`: f32, f16, bf16 or q8_0. `further_stop`: the id that ends a turn, where that is
    not the end of a text. `adds`: whether the tokenizer puts `bos` before, and `eos` behind every
    text.

    Raises: UsageError for a weight that has no name in the file's family, or no place in its type.
    """
    from gguf import GGUFWriter, LlamaFileType

    writer = GGUFWriter(str(file), family.arch)
    writer.add_name(title)
    writer.add_file_type(LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"])
    if kind == "q8_0":
        writer.add_quantization_version(2)
    add_metadata(writer, model.config, family, model.get_input_embeddings().num_embeddings)
    _add_tokenizer(writer, vocabulary, tokenizer_folder, further_stop, adds)
    try:
        _write_tensors(writer, model, family, kind)
    finally:
        writer.close()


def _add_tokenizer(
    writer: GGUFWriter,
    vocabulary: Vocabulary,
    folder: Path,
    further_stop: int | None,
    adds: Mapping[str, bool],
) -> None:
    from gguf import SpecialVocab

    vocabulary.write(writer)
    with without_messages("", "vocab", library="gguf"):  # about pairs of texts, which nobody has
        special = SpecialVocab(folder, load_merges=False, n_vocab=len(vocabulary.tokens))
    special.merges = vocabulary.merges
    special.add_special_token = dict(adds)
    if further_stop is not None:
        special.special_token_ids["eot"] = further_stop
    special.add_to_gguf(writer, quiet=True)


def _write_tensors(writer: GGUFWriter, model: PreTrainedModel, family: Family, kind: str) -> None:
    """Announce every tensor, then write them one after the other."""
    from gguf import quant_shape_to_byte_shape

    named = list(_named_weights(model, family))
    for name, weight in named:
        qtype = _type_of(weight, kind)
        shape = quant_shape_to_byte_shape(tuple(weight.shape), qtype)
        writer.add_tensor_info(
            name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=qtype
        )
    factors = rope_factors(model.config)
    if factors is not None:
        array = np.array(factors, dtype=np.float32)
        writer.add_tensor_info("rope_freqs.weight", array.shape, array.dtype, array.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, weight in named:
        writer.write_tensor_data(_stored(name, weight, model.config, family, kind))
    if factors is not None:
        writer.write_tensor_data(array)


def _named_weights(
    model: PreTrainedModel, family: Family
) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Each weight once, under its name in the file."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == family.arch)
    names = get_tensor_name_map(arch, model.config.num_hidden_layers)
    for key, weight in model.named_parameters():
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UsageError(
                f"the weight {key} has no name in GGUF files of the family {family.arch}",
                "is it a part that only transformers computes? Serve the safetensors instead",
            )
        yield name, weight


def _type_of(weight: torch.nn.Parameter, kind: str) -> GGMLQuantizationType:
    from gguf import GGMLQuantizationType as Type

    if weight.dim() < 2:
        return Type.F32
    if kind == "q8_0" and weight.shape[-1] % 32:
        return Type.F16
    return Type[kind.upper()]


def _stored(
    name: str, weight: torch.nn.Parameter, config: Any, family: Family, kind: str
) -> np.ndarray:
    """The bytes of a tensor; the weight itself is rounded to what they say."""
    from gguf import dequantize, quantize

    qtype = _type_of(weight, kind)
    values = weight.detach().float().cpu().numpy()
    if qtype.name == "F16" and not np.abs(values).max(initial=0.0) <= LARGEST_F16:
        raise UsageError(
            f"the weight {name} has values beyond the largest of float16 (65504)",
            "export it as bf16",
        )
    if family.shifts_norms and name.endswith("norm.weight"):
        values = values + np.float32(1)
    data = quantize(values, qtype)
    if weight.dim() >= 2:
        weight.data.copy_(torch.from_numpy(dequantize(data, qtype).reshape(values.shape)))
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    part = name.split(".")[-2]
    if family.permutes and part in heads:
        data = interleaved(data, heads[part])
    return np.ascontiguousarray(data).view(np.uint8)


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Put the two halves of each head's rows (N, ...) in turns: 0, n/2, 1, n/2 + 1, ..."""
    width = len(rows) // heads
    halves = rows.reshape(heads, 2, width // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)
