"""A small random model of the same kind as a recipe's: its code and habits, without its weights.

What a forward does with positions, masks and rows that share a sequence is a matter of its class
and of its config, and not of its size. So a twin of a few hundred thousand weights answers such
questions before anything is tokenized, in a fraction of a second, wherever the real model takes
minutes to load.

Widths and numbers of heads are all divided by the same number, so that what belongs together still
fits; sizes of heads, patterns, windows and switches stay as they are. Of layers, one of each kind
is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from aligner.models.load_errors import MODEL_ERRORS, first_line

if TYPE_CHECKING:
    from aligner.config.recipe import Model

VOCABULARY = 256
FIRST_FREE_ID = 8
"""Ids below it may have a meaning: padding, begin, end."""
HEADS = 4
WIDTH = 128
"""Of models without heads."""
MOST_INNER = 512
MOST_WEIGHTS = 100_000_000
"""A twin that comes out larger could not be made small."""

_WIDTH = ("hidden_size", "n_embd", "d_model", "embed_dim", "dim")
_ATTENTION_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_INNER = re.compile(r"\w*intermediate_size(_mlp)?|ffn_(dim|hidden_size)|n_inner")
_SCALED = re.compile(
    r"\w*(hidden|intermediate|ffn|mlp)_size(_mlp|_per_layer_input)?|n_embd|d_model|dim|embed_dim|word_embed_proj_dim"
    r"|ffn_dim|n_inner|d_ff|inner_dim|block(_ff)?_dim|conv_dim|lru_width|mamba_d_ssm"
)
_HEADS = re.compile(
    r"n_heads?|\w*num(_attention|_linear)?_heads|mamba_n_heads|n_mamba_heads|linear_num_(key|value)_heads"
)
_KEY_HEADS = re.compile(
    r"\w*num_key_value_heads|n_head_kv|kv_n_heads|num_kv_heads|num_attention_groups|num_query_groups"
)
_AT_MOST = {
    re.compile(r"num_(local_)?experts|n_routed_experts|moe_num_experts"): 4,
    re.compile(r"num_experts_per_tok(en)?|top_k|moe_(top_?)?k"): 2,
    re.compile(r"\w*_lora_rank"): 64,
    re.compile(r"n_group|topk_group|(mamba_)?n_?groups"): 1,
}
_PATTERN = re.compile(r"\w*_(period|interval|pattern|freq|step|every_n\w*)")


def small_config(config: Any, **settings: Any) -> Any:
    """Return a config of the same class for a small model; `settings` have the last word.

    Raises: whatever the class says of values that do not fit together.
    """
    values = config.to_dict()
    _shrink(values)
    for part in values.values():
        if isinstance(part, dict) and _first(part, _WIDTH) and _first(part, _LAYERS):
            _shrink(part)
    values.update(settings)
    values.pop("transformers_version", None)
    return type(config).from_dict(values)


def _shrink(values: dict[str, Any]) -> None:
    """Make the values of one config small, in place."""
    width = _first(values, _WIDTH)
    if width is None:
        return
    sizes = {name: value for name, value in values.items() if _is_size(value)}
    heads = _first(values, _ATTENTION_HEADS) or next(
        (v for name, v in sizes.items() if _HEADS.fullmatch(name)), None
    )
    keys = next((value for name, value in sizes.items() if _KEY_HEADS.fullmatch(name)), heads)
    part = (
        min(1.0, WIDTH / width)
        if heads is None or keys is None
        else _kept_heads(heads, keys) / heads
    )
    multiples = [value * width for name, value in sizes.items() if "expand" in name]
    for name, size in sizes.items():
        if any(kind.fullmatch(name) for kind in (_SCALED, _HEADS, _KEY_HEADS)):
            values[name] = max(1, round(size * part))
            if _INNER.fullmatch(name) and size not in multiples:
                values[name] = min(
                    -8 * (-values[name] // 8), MOST_INNER
                )  # in eights, as kernels for experts want it
        for kind, most in _AT_MOST.items():
            if kind.fullmatch(name):
                values[name] = min(size, most)
    _fewer_layers(values)
    values["vocab_size"] = VOCABULARY
    for number, name in enumerate(("pad_token_id", "bos_token_id", "eos_token_id")):
        if values.get(name) is not None:
            values[name] = number


def _kept_heads(heads: int, keys: int) -> int:
    """The least number of heads, of at least `HEADS`, that keeps the proportion of heads to those
    of keys and values."""
    if heads % keys:
        return heads
    group = heads // keys
    return group * min(keys, -(-HEADS // group))


def _fewer_layers(values: dict[str, Any]) -> None:
    """Keep one layer of each kind, where lists say the kinds; else as many as a pattern takes to
    come round."""
    depth = _first(values, _LAYERS)
    if depth is None:
        return
    by_layer = {
        name: table
        for name, value in values.items()
        if "label" not in name and (table := _by_layer(value, depth))
    }
    if by_layer:
        kinds = []
        for i in range(depth):
            kinds.append(repr([table.get(i) for table in by_layer.values()]))
        kept = sorted({kinds.index(kind) for kind in kinds})
        others = [i for i in range(depth) if i not in kept]
        kept = sorted([*kept, *others[: max(0, 2 - len(kept))]])
    else:
        patterns = [
            value for name, value in values.items() if _PATTERN.fullmatch(name) and _is_size(value)
        ]
        patterns += [
            len(value)
            for name, value in values.items()
            if name == "block_types" and isinstance(value, list)
        ]
        kept = list(
            range(min(depth, max([2, *(pattern for pattern in patterns if pattern <= 12)])))
        )
    for name, table in by_layer.items():
        if isinstance(values[name], list):
            values[name] = [table[i] for i in kept]
        else:
            values[name] = {new: table[old] for new, old in enumerate(kept) if old in table}
    for name in _LAYERS:
        if _is_size(values.get(name)):
            values[name] = len(kept)
    if _is_size(values.get("first_k_dense_replace")):
        values["first_k_dense_replace"] = 1


def _by_layer(value: Any, depth: int) -> dict[int, Any]:
    """What a value says of each layer: a list with an entry for each, or a mapping from their
    numbers; else nothing.

    A list of growing numbers names layers, and says of each no more than that.
    """
    if isinstance(value, list) and len(value) == depth:
        numbers = [
            entry for entry in value if isinstance(entry, int) and not isinstance(entry, bool)
        ]
        growing = len(numbers) == depth > 1 and all(a < b for a, b in pairwise(numbers))
        return {} if growing else dict(enumerate(value))
    if isinstance(value, dict) and value and all(str(key).isdigit() for key in value):
        return {int(key): entry for key, entry in value.items()}
    return {}


def _first(values: dict[str, Any], names: Iterable[str]) -> int | None:
    return next((values[name] for name in names if _is_size(values.get(name))), None)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def random_twin(model: Model) -> Any:
    """Return a small random model of the kind that a recipe names, in train mode, on the device
    that would train it.

    Raises: RecipeError when its config cannot be read; `NoTwin` when no small model can be made
    from it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from aligner.launch.devices import best_device
    from aligner.models.configs import read_config

    config = read_config(model)
    options: dict[str, Any] = {"trust_remote_code": model.trust_remote_code, "dtype": torch.float32}
    if model.attn_implementation:
        options["attn_implementation"] = model.attn_implementation
        if "flash" in model.attn_implementation:  # those kernels compute in 16 bits only
            options["dtype"] = torch.bfloat16
    device = best_device()
    try:
        small = small_config(config)
        with torch.device("meta"):
            weights = AutoModelForCausalLM.from_config(small, **options).num_parameters()
        if weights > MOST_WEIGHTS:
            raise NoTwin(f"it would still have {weights:,} weights")
        with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(small, **options).to(device).train()
    except MODEL_ERRORS as error:
        raise NoTwin(first_line(error)) from error


class NoTwin(Exception):
    """No small model could be made of a config, and why."""
