"""What llama.cpp wants of each family of models: metadata, and weights that it stores in its own
way. Imports nothing heavy.

Names of tensors are not here: the tables of the `gguf` package have them. What a family differs in:

* Llama and Mistral rotate pairs of neighbours, where transformers rotates the two halves of a head,
  so rows of the query and key projections are reordered. A `llama3` scaling of the rotary
  frequencies becomes a tensor of factors.
* Gemma adds 1 to the weights of its norms when it computes, and llama.cpp when it stores.

A setting that llama.cpp has no place for (another activation, `longrope`, ...) is refused: the file
would be another model. A window of attention that it ignores (Mistral's, Qwen2's) is said: the file
is the model up to so many tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aligner.errors import UsageError

if TYPE_CHECKING:
    from gguf import GGUFWriter


@dataclass(frozen=True)
class Family:
    """A family: its name in llama.cpp, and what it does to weights.

    `permutes`: rows of queries and keys are reordered. `shifts_norms`: 1 is added to the weights of
    norms. `metadata` writes what is not common to all.
    """

    arch: str
    permutes: bool = False
    shifts_norms: bool = False
    metadata: Callable[[GGUFWriter, Any], None] | None = None
    is_read: bool = True
    """Whether transformers reads files of it."""
    full_attention_every: int | None = None
    """Of layers with a window of attention, each so many-th has none: what llama.cpp computes."""
    layers_of_27b: int | None = None
    """With so many layers llama.cpp scales queries by the model's width per head, as the largest of
    the family does."""


def _gemma2(writer: GGUFWriter, config: Any) -> None:
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def _gemma3(writer: GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)


FAMILIES = {
    "llama": Family("llama", permutes=True),
    "mistral": Family("llama", permutes=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gemma": Family("gemma", shifts_norms=True, is_read=False),
    "gemma2": Family(*("gemma2", False, True, _gemma2), full_attention_every=2, layers_of_27b=46),
    "gemma3_text": Family(
        *("gemma3", False, True, _gemma3), full_attention_every=6, layers_of_27b=62
    ),
}
"""`model_type` of transformers -> family."""

ACTIVATIONS = {"gemma": "gelu_pytorch_tanh"}
"""Start of the architecture's name -> activation; silu elsewhere."""


def family_of(config: Any, name: str) -> Family:
    """Return the family of a model.

    Raises: UsageError for another family, and for settings that llama.cpp has no place for.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UsageError(
            f"{name} is a model of the family {config.model_type}, which is not exported to GGUF",
            f"export one of {', '.join(FAMILIES)}; llama.cpp's convert_hf_to_gguf.py knows more",
        )
    wanted = ACTIVATIONS.get(family.arch[:5], "silu")
    found = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", wanted)
    if found not in (wanted, {"gelu_pytorch_tanh": "gelu"}.get(wanted)):
        raise _no_place(name, f"its activation is {found}, and llama.cpp computes {wanted}")
    for key, rope in ropes_of(config).items():
        kind = rope.get("rope_type", "default")
        if kind not in ("default", "linear", "llama3", "yarn"):
            raise _no_place(name, f"its rotary embedding is of the type {kind} ({key})")
        if kind == "llama3" and family.arch != "llama":
            raise _no_place(name, f"llama3 rotary scaling in the family {config.model_type}")
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise _no_place(name, "only a part of each head is rotated")
    if family.arch == "gemma2" and None in (
        config.attn_logit_softcapping,
        config.final_logit_softcapping,
    ):
        raise _no_place(name, "its logits are not soft-capped, which llama.cpp always does")
    if family.full_attention_every is not None:
        _check_gemma(config, family, name)
    return family


def _check_gemma(config: Any, family: Family, name: str) -> None:
    """Refuse what llama.cpp takes for granted in Gemma 2 and 3, and no file can say."""
    layers, every = config.num_hidden_layers, family.full_attention_every
    assert every is not None
    kinds = ["sliding" if (index + 1) % every else "full" for index in range(layers)]
    if config.layer_types != [f"{kind}_attention" for kind in kinds]:
        raise _no_place(
            name, f"layer_types, where llama.cpp gives a window to all layers but one in {every}"
        )
    is_27b = layers == family.layers_of_27b
    width = config.hidden_size // config.num_attention_heads if is_27b else head_width(config)
    if config.query_pre_attn_scalar != width:
        scalar = config.query_pre_attn_scalar
        raise _no_place(name, f"query_pre_attn_scalar is {scalar}, and llama.cpp takes {width}")


def ignored_window(config: Any, family: Family) -> int | None:
    """Return to how many tokens layers of a model attend, where llama.cpp attends to all of them;
    None where it computes the same.

    Source: ggml-org/llama.cpp, issue 3377, closed without a window for the family of Llama.
    """
    window: int | None = getattr(config, "sliding_window", None)
    if family.full_attention_every is not None or window is None:
        return None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if "sliding_attention" not in kinds or window >= config.max_position_embeddings:
        return None
    return window


def _no_place(name: str, what: str) -> UsageError:
    return UsageError(
        f"{name} has a setting that GGUF files of its family have no place for: {what}",
        "serve the safetensors instead (vLLM, `transformers serve`)",
    )


def ropes_of(config: Any) -> dict[str, dict[str, Any]]:
    """Return the rotary settings of a config by kind of layer; under "" where all are the same."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = {key: value for key, value in rope.items() if isinstance(value, dict)}
    return nested or {"": rope}


def head_width(config: Any) -> int:
    """Return the width of an attention head."""
    own = getattr(config, "head_dim", None)
    return own or config.hidden_size // config.num_attention_heads


def add_metadata(writer: GGUFWriter, config: Any, family: Family, rows: int) -> None:
    """Write the sizes and settings of a model. `rows`: of its embeddings."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_width(config))
    writer.add_value_length(head_width(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(rows)
    writer.add_rope_dimension_count(head_width(config))
    _add_rope(writer, config)
    if family.metadata is not None:
        family.metadata(writer, config)


def _add_rope(writer: GGUFWriter, config: Any) -> None:
    from gguf import RopeScalingType

    ropes = ropes_of(config)
    rope = ropes.get("") or ropes["full_attention"]
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if "sliding_attention" in ropes:
        writer.add_rope_freq_base_swa(float(ropes["sliding_attention"]["rope_theta"]))
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        before = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(int(before))


def rope_factors(config: Any) -> list[float] | None:
    """Return by what the rotary frequencies of a `llama3` scaling are divided, a number for each
    pair; None for other models.

    Source: the description of Llama 3.1, as in transformers' `_compute_llama3_parameters`.
    """
    import math

    rope = ropes_of(config).get("", {})
    if rope.get("rope_type") != "llama3":
        return None
    width, before = head_width(config), rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    found = []
    for pair in range(0, width, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (pair / width)
        smooth = min(1.0, max(0.0, (before / wavelength - low) / (high - low)))
        found.append(1.0 / ((1 - smooth) / factor + smooth))
    return found
