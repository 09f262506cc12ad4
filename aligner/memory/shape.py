"""The sizes of a decoder from its config: every linear layer, norms, embeddings and head.

Numbers of weights are exact for the families in `FAMILIES` (tests count them in models without
weights). Any other model is read as one that is built like Llama, and `is_familiar` is false.
Layers are taken to be alike; of models that see, the part that writes is counted alone.

Legend: D hidden size, I width within the feed-forward part, V vocabulary, E experts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aligner.config.recipe import Lora

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer that each decoder layer has, by the name that it has there. `experts`: how
    many such are stacked in one weight, which is no layer to PEFT and bitsandbytes then."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    experts: int = 0

    @property
    def weights(self) -> int:
        """The numbers that it holds."""
        one = self.outputs * (self.inputs + self.bias)
        return one * max(1, self.experts)

    def is_meant_by(self, wanted: str | list[str]) -> bool:
        """Say whether `target_modules` of an adapter, or `exclude_modules`, name this layer."""
        if self.experts:
            return False
        if isinstance(wanted, str):
            return wanted == ALL_LINEAR or self._fits(wanted)
        return any(self.name == name or self.name.endswith(f".{name}") for name in wanted)

    def _fits(self, pattern: str) -> bool:
        return re.fullmatch(pattern, f"model.layers.0.{self.name}") is not None


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder.

    `norms`: how many norms of the width D a layer has, `norms_in_layer` the weights of all its
    norms; `activated`: saved arrays of width I between the two linear maps of the feed-forward
    part, beside the product that goes into the last of them; `caps_scores`: attention's scores go
    through a tanh, where it computes them by itself (`eager`); `experts_per_token`: how often that
    part is computed for a token.
    """

    family: str
    is_familiar: bool
    width: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    is_tied: bool
    linears: tuple[Linear, ...]
    norms: int
    norms_in_layer: int
    other_weights: int
    is_gated: bool
    activated: int
    has_layer_norm: bool
    normed_heads: bool
    caps_scores: bool
    experts_per_token: float
    window: int | None

    @property
    def queries(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all keys of a token, and of all values."""
        return self.key_heads * self.head_dim

    @property
    def embeddings(self) -> int:
        """Weights of the embeddings, and of the head: V D."""
        return self.vocabulary * self.width

    @property
    def in_linears(self) -> int:
        """Weights of the linear layers of all decoder layers."""
        return self.layers * sum(linear.weights for linear in self.linears)

    @property
    def backbone(self) -> int:
        """All weights but those of a head of its own."""
        norms = self.layers * self.norms_in_layer
        return self.embeddings + self.in_linears + norms + self.other_weights

    def weights(self, outputs: int | None = None) -> int:
        """All weights; `outputs`: of a head that gives numbers, in place of the one that writes."""
        if outputs is not None:
            return self.backbone + outputs * self.width
        return self.backbone + (0 if self.is_tied else self.embeddings)

    def adapted(self, lora: Lora) -> tuple[Linear, ...]:
        """Return the linear layers of a decoder layer that get an adapter."""
        kept = lora.modules_to_save or []
        found = []
        for linear in self.linears:
            excluded = lora.exclude_modules
            left = bool(excluded) and linear.is_meant_by(excluded or [])
            whole = bool(kept) and linear.is_meant_by(kept)
            if linear.is_meant_by(lora.target_modules) and not left and not whole:
                found.append(linear)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Family:
    """What the models of a family have in common; names of keys are those of their configs."""

    query_bias: bool | str = False
    """Whether queries, keys and values have a bias, or the key that says so."""
    output_bias: bool | str = False
    inner_bias: bool | str = False
    norms: int = 2
    normed_heads: str = ""
    """`head`: queries and keys have a norm of the width of a head; `all`: of all heads."""
    is_gated: bool = True
    layer_norm: str = ""
    """`bias` or `plain` for LayerNorm with or without a bias; else RMSNorm."""
    names: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    output: str = "self_attn.o_proj"
    inner_names: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    positions: int | None = None
    """Learned positions beyond `max_position_embeddings`; None where there are none."""
    head_bias: bool = False
    final_norm: bool = True


_FUSED = {
    "names": ("self_attn.qkv_proj",),
    "inner_names": ("mlp.gate_up_proj", "mlp.down_proj"),
}
_OF_GPT = {"query_bias": True, "output_bias": True, "inner_bias": True, "is_gated": False}

FAMILIES: dict[str, Family] = {
    "llama": Family("attention_bias", "attention_bias", "mlp_bias"),
    "mistral": Family(),
    "qwen2": Family(query_bias=True),
    "qwen3": Family("attention_bias", "attention_bias", normed_heads="head"),
    "gemma": Family("attention_bias", "attention_bias"),
    "gemma2": Family("attention_bias", "attention_bias", norms=4),
    "gemma3_text": Family("attention_bias", "attention_bias", norms=4, normed_heads="head"),
    "granite": Family("attention_bias", "attention_bias", "mlp_bias"),
    "smollm3": Family("attention_bias", "attention_bias", "mlp_bias"),
    "olmo2": Family("attention_bias", "attention_bias", normed_heads="all"),
    "phi3": Family(**_FUSED),  # type: ignore[arg-type]
    "mixtral": Family(),
    "qwen3_moe": Family("attention_bias", "attention_bias", normed_heads="head"),
    "gpt2": Family(
        **_OF_GPT,  # type: ignore[arg-type]
        layer_norm="bias",
        names=("attn.c_attn",),
        output="attn.c_proj",
        inner_names=("mlp.c_fc", "mlp.c_proj"),
        positions=0,
    ),
    "gpt_neox": Family(
        **_OF_GPT,  # type: ignore[arg-type]
        layer_norm="bias",
        names=("attention.query_key_value",),
        output="attention.dense",
        inner_names=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ),
    "opt": Family(
        **_OF_GPT,  # type: ignore[arg-type]
        layer_norm="bias",
        output="self_attn.out_proj",
        inner_names=("fc1", "fc2"),
        positions=2,
    ),
    "starcoder2": Family(
        "use_bias",
        "use_bias",
        "use_bias",
        is_gated=False,
        layer_norm="bias",
        inner_names=("mlp.c_fc", "mlp.c_proj"),
    ),
}
"""Type of a model in its config -> how it is built."""

OF_TANH = ("gelu_new", "gelu_fast")
"""Activations that transformers computes step by step, each of which keeps its result."""


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Return the sizes of a model from the values of its (text) config."""
    kind = str(config.get("model_type", ""))
    family = FAMILIES.get(kind, FAMILIES["llama"])
    width = _first(config, "hidden_size", "n_embd", "d_model")
    heads = _first(config, "num_attention_heads", "n_head")
    layers = _first(config, "num_hidden_layers", "n_layer")
    assert width, "a model has a width"
    assert layers, "a model has layers"
    heads = heads or 1
    key_heads = _first(config, "num_key_value_heads") or heads
    head_dim = _first(config, "head_dim") or width // heads
    inner = _first(config, "moe_intermediate_size", "intermediate_size", "ffn_dim", "n_inner")
    inner = inner or 4 * width
    experts = _first(config, "num_local_experts", "num_experts", "n_routed_experts") or 0
    linears = (
        *_attention(family, config, (width, heads * head_dim, key_heads * head_dim)),
        *_feed_forward(family, config, (width, inner, experts)),
    )
    per_norm = width * (2 if family.layer_norm == "bias" else 1)
    in_layer = family.norms * per_norm
    if family.normed_heads:
        times = {"head": (1, 1), "all": (heads, key_heads)}[family.normed_heads]
        in_layer += head_dim * sum(times)
    vocabulary = _first(config, "vocab_size") or 0
    others = per_norm * family.final_norm
    if family.positions is not None:
        others += width * ((_first(config, *_POSITIONS) or 0) + family.positions)
    activation = str(config.get("hidden_act") or config.get("activation_function") or "")
    if family.is_gated:
        activated = 3
    else:
        activated = 4 if activation in OF_TANH else 0 if activation == "relu" else 1
    window = _first(config, "sliding_window") if config.get("use_sliding_window", True) else None
    return Shape(
        family=kind,
        is_familiar=kind in FAMILIES and not _has_unlike_layers(config),
        width=width,
        layers=layers,
        heads=heads,
        key_heads=key_heads,
        head_dim=head_dim,
        inner=inner,
        vocabulary=vocabulary,
        is_tied=bool(config.get("tie_word_embeddings", False)),
        linears=linears,
        norms=family.norms,
        norms_in_layer=in_layer,
        other_weights=others,
        is_gated=family.is_gated,
        activated=activated,
        has_layer_norm=bool(family.layer_norm),
        normed_heads=bool(family.normed_heads),
        caps_scores=bool(config.get("attn_logit_softcapping")),
        experts_per_token=float(_first(config, "num_experts_per_tok") or 1) if experts else 1.0,
        window=window,
    )


_POSITIONS = ("max_position_embeddings", "n_positions")


def _attention(
    family: Family, config: Mapping[str, Any], sizes: tuple[int, int, int]
) -> list[Linear]:
    """The linear layers around attention: `sizes` are those of hidden states, queries, keys."""
    width, queries, keys = sizes
    bias = _says(family.query_bias, config)
    outputs = [queries, keys, keys] if len(family.names) == 3 else [queries + 2 * keys]
    found = [Linear(name, width, size, bias) for name, size in zip(family.names, outputs)]
    found.append(Linear(family.output, queries, width, _says(family.output_bias, config)))
    return found


def _feed_forward(
    family: Family, config: Mapping[str, Any], sizes: tuple[int, int, int]
) -> list[Linear]:
    """The linear layers of the feed-forward part: `sizes` are D, I, E."""
    width, inner, experts = sizes
    bias = _says(family.inner_bias, config)
    if experts:
        router = Linear("mlp.gate", width, experts, experts=1)  # it decides, and is left as it is
        first = Linear("mlp.experts.gate_up_proj", width, 2 * inner, experts=experts)
        return [router, first, Linear("mlp.experts.down_proj", inner, width, experts=experts)]
    *first_names, last = family.inner_names
    doubled = 2 if family.is_gated and len(first_names) == 1 else 1
    found = [Linear(name, width, doubled * inner, bias) for name in first_names]
    return [*found, Linear(last, inner, width, bias)]


def _says(flag: bool | str, config: Mapping[str, Any]) -> bool:
    return bool(config.get(flag, False)) if isinstance(flag, str) else flag


def _has_unlike_layers(config: Mapping[str, Any]) -> bool:
    """Say whether some layers are of another kind than others."""
    step = config.get("decoder_sparse_step") or 1
    return bool(config.get("mlp_only_layers") or config.get("first_k_dense_replace") or step != 1)


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return math.floor(value)
    return None
