"""Which weights of a model are trained: how many, of how many, where, and what is left as it is.

Places are read from the names of the weights: what follows the number of the layer, without the
parts that adapters add. So they are those of the model's own code, and what a recipe would list.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from aligner.config.recipe import Lora
from aligner.models.lora_targets import ALL_LINEAR, SMALL, last_parts, out_of_reach, stacks

ADAPTER_PARTS = re.compile(
    r"\.(base_layer|original_module|token_adapter|modules_to_save|default"
    r"|lora_(embedding_)?[AB]|lora_magnitude_vector|trainable_tokens_(delta|original))(?=\.|$)"
)
SAMPLE = 1 << 16
"""Weights of a tensor that are looked at, about, where looking at all would take long."""
WORTH_A_WARNING = 0.05
SHOWN = 6
"""Places that a line names; the smaller ones are added up."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The weights of a model: how many there are with those of adapters, how many are trained, and
    where.

    `left`: stacked weights without an adapter where others have one. `out_of_reach`: layers that
    `all-linear` means and PEFT does not adapt. `plain`: under quantization, weights that are not
    quantized, by place, with their data types.
    """

    total: int
    trained: int
    places: dict[str, int]
    left: dict[str, int] = field(default_factory=dict)
    out_of_reach: dict[str, int] = field(default_factory=dict)
    quantized: int = 0
    plain: dict[str, int] = field(default_factory=dict)
    plain_dtypes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it for a record."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


def trained_of(model: Any, lora: Lora | None = None) -> Trained:
    """Count the weights of a model that is ready to be trained, each once, also where two places
    share one."""
    total, trained, quantized = 0, Counter[str](), 0
    plain, dtypes = Counter[str](), set()
    for name, weight, owner in _weights(model):
        number = _number(weight, owner)
        total += number
        if weight.requires_grad:
            trained[place_of(name, owner)] += number
        elif weight.is_floating_point():
            plain[place_of(name, owner)] += number
            dtypes.add(str(weight.dtype).removeprefix("torch."))
        else:
            quantized += number
    unreached = Counter[str]()
    if lora is not None and lora.target_modules == ALL_LINEAR:
        base = model.get_base_model()
        for name in out_of_reach(base, lora):
            layer = base.get_submodule(name)
            unreached[place_of(name)] += _number(layer.weight, layer)
    return Trained(
        total,
        sum(trained.values()),
        dict(trained),
        _left(model, trained) if lora is not None else {},
        dict(unreached),
        quantized,
        dict(plain) if quantized else {},
        tuple(sorted(dtypes)) if quantized else (),
    )


def _weights(model: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name of each weight, the weight, and the module that holds it."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        # An adapter of a single weight, and not its factors, says what it adapts.
        adapter_name = module_name.rpartition(".lora_")[0]
        adapter = model.get_submodule(adapter_name) if adapter_name else module
        owner = adapter if hasattr(adapter, "parameter_name") else module
        for key, weight in module.named_parameters(recurse=False):
            if id(weight) not in seen:
                seen.add(id(weight))
                yield f"{module_name}.{key}", weight, owner


def _number(weight: Any, owner: Any) -> int:
    """Return how many weights there are, also where they are packed or spread over ranks."""
    if getattr(weight, "quant_state", None) is not None:
        return int(weight.quant_state.shape.numel())
    return int(getattr(weight, "ds_numel", weight.numel()))


def place_of(name: str, owner: Any = None) -> str:
    """Return where a weight stands, whatever the layer: `model.layers.3.self_attn.q_proj.lora_A...`
    is `self_attn.q_proj`."""
    name = ADAPTER_PARTS.sub("", name.removeprefix("base_model.model."))
    parts = re.sub(r"\.(weight|bias)$", "", name).split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    parts = [part for part in parts[numbers[0] :] if not part.isdigit()] if numbers else parts[-1:]
    parameter = getattr(owner, "parameter_name", None)
    if parameter not in (None, "weight"):
        parts.append(parameter)
    return ".".join(parts)


def _left(model: Any, trained: Mapping[str, int]) -> dict[str, int]:
    """Return stacked weights that make up a good part of the model and have no adapter, as a recipe
    would name them."""
    left: Counter[str] = Counter()
    for name, weight in stacks(model).items():
        if not weight.requires_grad and place_of(name) not in trained:
            left[last_parts(ADAPTER_PARTS.sub("", name))] += _number(weight, None)
    everything = sum(_number(weight, owner) for _, weight, owner in _weights(model))
    return {name: number for name, number in left.items() if number >= SMALL * everything}


def unmoved_share(model: Any, rate: float) -> float:
    """Return the share of the trained weights that a step of size `rate` leaves as they are, since
    it is lost in rounding.

    Adam moves each weight by about the learning rate at first, and by less later.
    """
    import torch

    lost = total = 0.0
    for weight in model.parameters():
        if not weight.requires_grad:
            continue
        total += weight.numel()
        if weight.dtype in (torch.bfloat16, torch.float16):
            some = weight.detach().flatten()[:: max(1, weight.numel() // SAMPLE)]
            moved = torch.stack(
                [(some.float() + step).to(some.dtype) != some for step in (rate, -rate)]
            )
            lost += (1.0 - float(moved.float().mean())) * weight.numel()
    return lost / max(1.0, total)


def unmoved(model: Any, rate: float) -> str:
    """Say that training in half precision would leave weights as they are; nothing where it would
    not."""
    share = unmoved_share(model, rate)
    if share < WORTH_A_WARNING:
        return ""
    dtype = next(
        str(w.dtype) for w in model.parameters() if w.requires_grad and w.itemsize == 2
    ).removeprefix("torch.")
    return (
        f"weights are trained in {dtype}, where a step of {rate:g} (trainer.learning_rate) is "
        "lost in rounding for "
        f"{share:.0%} of them. Set model.dtype=float32 (trainer.bf16=true still computes in "
        "bfloat16), "
        "or train adapters with model.lora={}"
    )


def without_gradient(model: Any) -> dict[str, int]:
    """Return the places of trained weights that the last backward pass did not reach, with their
    numbers of weights."""
    found: Counter[str] = Counter()
    for name, weight, owner in _weights(model):
        if weight.requires_grad and weight.grad is None:
            found[place_of(name, owner)] += _number(weight, owner)
    return dict(found)


# --- in words -------------------------------------------------------------------------------------


def describe_trained(trained: Trained, quantization: str = "none") -> Iterator[str]:
    """Say how many weights are trained and where, what is left out, and what stays unquantized."""
    share = trained.trained / max(1, trained.total)
    whole = trained.trained == trained.total
    number = f"all {trained.total:,}" if whole else f"{trained.trained:,} of {trained.total:,}"
    of_all = "" if whole else f" ({_share(share)})"
    yield f"training {number} weights{of_all}: {listed(trained.places)}"
    if trained.left:
        part = sum(trained.left.values()) / trained.total
        names = ", ".join(sorted(trained.left))
        yield (
            f"no adapter for {listed(trained.left)}, {_share(part)} of the weights; "
            f"model.lora.target_parameters=[{names}] gives these one"
        )
    if trained.out_of_reach:
        parts = listed(trained.out_of_reach)
        yield f"PEFT adapts no {parts} in this architecture, at least not with these settings"
    if trained.plain:
        inside = trained.quantized / max(1, trained.quantized + sum(trained.plain.values()))
        yield (
            f"in {quantization} are {trained.quantized:,} weights of the base ({_share(inside)}); "
            f"in {' and '.join(trained.plain_dtypes)} stay {listed(trained.plain)}"
        )


def listed(places: Mapping[str, int]) -> str:
    """Return places with their numbers of weights, the largest first, those of one block
    together."""
    blocks: dict[str, Counter[str]] = {}
    for place, number in places.items():
        block, _, part = place.rpartition(".")
        blocks.setdefault(block or part, Counter())[part if block else ""] += number
    ordered = sorted(blocks.items(), key=lambda item: -item[1].total())
    shown = []
    for name, parts in ordered[:SHOWN]:
        inner = ", ".join(part for part in parts if part)
        block = f"{name} ({inner})" if inner else name
        shown.append(f"{block} {parts.total():,}")
    rest = sum(parts.total() for _, parts in ordered[SHOWN:])
    return ", ".join([*shown, *([f"the rest {rest:,}"] if rest else [])])


def _share(value: float) -> str:
    return f"{value:.2%}" if value < 0.01 else f"{value:.1%}"
