"""Which weights get an adapter: what `all-linear` means, and what it leaves out.

PEFT's own `all-linear` depends on the family of a mixture of experts: it adapts stacked experts and
the router of one, neither of another, and the router alone of a third; shared experts and dense
layers are then left out. Here it means the same for every model: each linear layer, except for the
head and for routers, which decide over experts and are best left alone. Experts that are stacked in
one weight are not layers; `model.lora.target_parameters` adapts them, and a notice says so.

Nothing here knows a family by its name. Experts and routers are found by their shapes, and what
PEFT would make of a layer's name is asked of PEFT.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aligner.config.choices import PLAIN_STARTS
from aligner.errors import RecipeError
from aligner.models.vision import language_modules

if TYPE_CHECKING:
    from torch import nn

    from aligner.config.recipe import Lora

ALL_LINEAR = "all-linear"
ROUTER = "router"
SMALL = 0.01
"""Share of a model's weights below which a stack of them is not worth a word."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What PEFT gets: modules, as names or a pattern, and parameters that are adapted without
    being layers."""

    modules: str | list[str]
    parameters: list[str] | None


def targets_of(model: Any, lora: Lora) -> Targets:
    """Return the modules and parameters of a model that get an adapter.

    Raises: RecipeError for a name that the model does not have.
    """
    _check_names(model, lora)
    parameters = list(lora.target_parameters or [])
    if lora.target_modules != ALL_LINEAR:
        return Targets(_within_language(model, lora.target_modules), parameters or None)
    names = [
        name
        for name in linear_layers(model)
        if not (_is_kept(name, lora) or _is_excluded(name, lora))
    ]
    renamed = _renamed_by_peft(model, names)
    if renamed and can_adapt_parameters(model, lora):
        parameters += [f"{name}.weight" for name in renamed if f"{name}.weight" not in parameters]
    return Targets(sorted(set(names) - set(renamed)), parameters or None)


def _within_language(model: Any, wanted: str | list[str]) -> str | list[str]:
    """Names as PEFT would find them, but for those in the part of a model that sees; a pattern says
    itself what it means."""
    language = language_modules(model)
    if language is None or isinstance(wanted, str):
        return wanted

    def is_wanted(name: str) -> bool:
        return any(_fits(ending, name) for ending in wanted)

    named = [name for name, module in model.named_modules() if id(module) in language]
    return sorted(filter(is_wanted, named))


def linear_layers(model: Any) -> list[str]:
    """Return the names of the linear layers that `all-linear` adapts: all but the head, routers,
    and what PEFT refuses."""
    from aligner.models.reward_head import HEADS

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    left, language = routers(model), language_modules(model)
    return [
        name
        for name, module in model.named_modules()
        if is_linear(module)
        and (language is None or id(module) in language)
        and module is not head
        and name.split(".")[0] not in HEADS
        and name not in left
        and not _is_refused(model, name)
    ]


def out_of_reach(model: Any, lora: Lora) -> list[str]:
    """Return the linear layers that have no adapter since PEFT refuses them, or takes their names
    for those of experts.

    `model` is the base in which adapters sit already.
    """
    left = routers(model)
    names = [
        name for name, module in model.named_modules() if is_linear(module) and ".lora_" not in name
    ]
    names = [name for name in names if name not in left and not name.endswith(".base_layer")]
    names = [name for name in names if not _is_excluded(name, lora)]
    renamed = _renamed_by_peft(model, names)
    return [name for name in names if name in renamed or _is_refused(model, name)]


def is_linear(module: Any) -> bool:
    """Say whether a module is a linear layer, as PEFT sees it; those of GPT-2 are called Conv1D."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def can_adapt_parameters(model: Any, lora: Lora) -> bool:
    """Say whether PEFT can adapt a weight by itself here; it knows no dropout, DoRA, or 4-bit
    layers there."""
    plain = lora.init_lora_weights in PLAIN_STARTS
    return plain and not (
        lora.lora_dropout or lora.use_dora or getattr(model, "is_quantized", False)
    )


def _is_kept(name: str, lora: Lora) -> bool:
    """Say whether a module is trained whole, so that it needs no adapter."""
    return any(part in name.split(".") or name == part for part in lora.modules_to_save or [])


def _is_excluded(name: str, lora: Lora) -> bool:
    """Say whether the recipe excludes a module, as PEFT reads it: by its last parts, or by a
    pattern for its whole name."""
    if isinstance(lora.exclude_modules, str):
        return re.fullmatch(lora.exclude_modules, name) is not None
    return any(_fits(ending, name) for ending in lora.exclude_modules or [])


def _is_refused(model: Any, name: str) -> bool:
    """Say whether PEFT refuses to adapt a layer, as some of state space models, whose kernels read
    the weight itself."""
    from peft import LoraConfig
    from peft.tuners import tuners_utils

    leaf = name.rpartition(".")[2]
    try:
        tuners_utils._check_lora_target_modules_mamba(
            LoraConfig(target_modules=[leaf]), model, leaf
        )
    except ValueError:
        return True
    return False


def _renamed_by_peft(model: Any, names: list[str]) -> list[str]:
    """Return the layers whose names PEFT would take for those of experts in older versions of
    transformers."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    leaves = sorted({name.rpartition(".")[2] for name in names})
    config = LoraConfig(target_modules=list(leaves))
    try:
        convert_peft_config_for_transformers(config, model=model, conversions=None)
        kept = set(config.target_modules)
    except ValueError:  # some, but not all, of the names that belong together
        kept = {leaf for leaf in leaves if _survives(model, leaf)}
    return [name for name in names if name.rpartition(".")[2] not in kept]


def _survives(model: Any, leaf: str) -> bool:
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[leaf])
    try:
        convert_peft_config_for_transformers(config, model=model, conversions=None)
    except ValueError:
        return False
    return leaf in config.target_modules


# --- experts and routers --------------------------------------------------------------------------


def stacks(model: Any) -> dict[str, nn.Parameter]:
    """Return the weights that hold several matrices in one, as the experts of most mixtures do, by
    name."""
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    return {
        f"{name}.{key}": weight
        for name, module in model.named_modules()
        if not isinstance(module, _ConvNd)
        and not is_linear(module)
        and not isinstance(module, nn.Embedding)
        for key, weight in module.named_parameters(recurse=False)
        if weight.ndim == 3 and min(weight.shape) > 1
    }


def routers(model: Any) -> set[str]:
    """Return the names of the linear layers that weigh experts.

    They stand beside the experts, read what these read, and give one number for each of them, or a
    single one.
    """
    found = {
        name
        for name, module in model.named_modules()
        if is_linear(module) and _is_called_router(name)
    }
    for block, inner, sizes, widths in _expert_blocks(model):
        found |= {
            f"{block}.{name}".lstrip(".")
            for name, module in model.get_submodule(block).named_modules()
            if is_linear(module)
            and not name.startswith(f"{inner}.")
            and getattr(module, "out_features", None) in {*sizes, 1}
            and module.in_features in widths
        }
    return found


def _is_called_router(name: str) -> bool:
    return any(ROUTER in part for part in name.split(".")[-2:])


def _expert_blocks(model: Any) -> Iterator[tuple[str, str, set[int], set[int]]]:
    """Yield each block that holds experts: its name, that of the experts in it, how many they are,
    widths they may read."""
    from torch import nn

    stacked: dict[str, list[Any]] = {}
    for name, weight in stacks(model).items():
        stacked.setdefault(name.rpartition(".")[0], []).append(weight)
    for name, weights in stacked.items():
        block, _, inner = name.rpartition(".")
        yield (
            block,
            inner,
            {len(weight) for weight in weights},
            {n for weight in weights for n in weight.shape[1:]},
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            first: list[Any] = [
                layer for layer in module[0].modules() if hasattr(layer, "in_features")
            ]
            block, _, inner = name.rpartition(".")
            yield block, inner, {len(module)}, {layer.in_features for layer in first[:1]}


# --- what the recipe names ------------------------------------------------------------------------


def _check_names(model: Any, lora: Lora) -> None:
    """Refuse names that fit nothing, which PEFT would pass over or only warn of."""
    parameters = dict(model.named_parameters())
    for name in lora.target_parameters or []:
        found = [weight for whole, weight in parameters.items() if _fits(name, whole)]
        if not found:
            raise RecipeError(
                f"model.lora.target_parameters: the model has no weight {name!r}", _offer(model)
            )
        if not all(weight.is_floating_point() for weight in found):
            raise RecipeError(
                f"model.lora.target_parameters: {name} is quantized, and PEFT adapts such weights "
                "as layers only",
                "list the layer in model.lora.target_modules",
            )
    patterns = (
        [lora.exclude_modules]
        if isinstance(lora.exclude_modules, str)
        else lora.exclude_modules or []
    )
    for pattern in patterns:
        alone = lora.model_copy(
            update={"exclude_modules": pattern if lora.exclude_modules == pattern else [pattern]}
        )
        if not any(_is_excluded(name, alone) for name, _ in model.named_modules()):
            example = linear_layers(model)[-1]
            raise RecipeError(
                f"model.lora.exclude_modules: {pattern!r} fits no module of the model",
                f"list names, or their last parts, such as [{last_parts(example)}]; a text that "
                "is not a list is a pattern for "
                f"whole names such as {example}",
            )


def _fits(name: str, whole: str) -> bool:
    return whole == name or whole.endswith(f".{name}")


def _offer(model: Any) -> str:
    found = sorted({last_parts(name) for name in stacks(model)})
    if found:
        return f"its stacked weights: [{', '.join(found)}]"
    return (
        "name a weight as the model does, such as mlp.experts.down_proj; this one holds none that "
        "are stacked"
    )


def last_parts(name: str) -> str:
    """Return what follows the last number in a name: what a recipe lists for all layers."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else name
