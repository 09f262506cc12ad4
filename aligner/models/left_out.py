"""Weights of a folder that a model has no place for, and would be left out in silence.

Inside a part that the model has (further layers, biases, norms, outputs) they say that the folder
was made for another config: what is loaded would compute something else, and is refused. Whole
parts beside it (a value head, a vision tower, layers that predict further tokens) may be meant to
be left out, and are warned of. Not told: what the model's class leaves out on purpose, buffers that
old checkpoints hold, and the head that writes where one that gives numbers takes its place.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from aligner.errors import RecipeError
from aligner.models.adapters import LAYER

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

SHOWN = 3

OLD_BUFFERS = re.compile(
    r"\.(attn|attention)\.(masked_bias|bias|causal_mask)$|\binv_freq$|\bposition_ids$"
)
"""Masks and angles, which are computed now and were saved once."""


def check_left_out(
    policy: PreTrainedModel,
    unexpected: Iterable[str],
    name: str,
    *,
    has_other_head: bool,
    is_converted: bool,
) -> None:
    """Refuse weights without a place inside a part of the model; warn of whole parts.

    `has_other_head`: the model gives numbers, so a head that writes is not missed. `is_converted`:
    the weights are in a form of their own (4 bits, GGUF), so that names within a layer mean
    nothing, and are warned of.

    Raises: RecipeError that names the first of them.
    """
    left = sorted(key for key in unexpected if not OLD_BUFFERS.search(key))
    modules = dict(policy.named_modules())
    inside = [key for key in left if _is_inside(policy, modules, key)]
    _refuse_layers(policy, inside, name)
    if inside and not is_converted:
        raise RecipeError(
            f"model.name_or_path: {name!r} holds {_counted(inside)} that the model of its "
            "config.json has no place for, and they would be left out",
            "correct its config.json (a bias, a norm, the kind of model), or download the folder "
            "again; weights that no model needs can be taken out of its file",
        )
    others = [] if has_other_head else [key for key in left if key not in inside]
    told = [*inside, *others]
    if told:
        warnings.warn(
            f"{name} holds {_counted(told)} for parts that this model does not have; they are "
            "not loaded",
            stacklevel=2,
        )


def _refuse_layers(policy: PreTrainedModel, left: Sequence[str], name: str) -> None:
    count = getattr(policy.config.get_text_config(), "num_hidden_layers", None)
    beyond = [
        key
        for key in left
        for number in LAYER.findall(key)
        if count is not None and int(number) >= count
    ]
    if beyond:
        raise RecipeError(
            f"model.name_or_path: {name!r} holds weights of more layers than the {count} that its "
            f"config.json counts: {_counted(beyond)} would be left out",
            "correct num_hidden_layers there, or download the folder again",
        )


def _is_inside(policy: PreTrainedModel, modules: dict[str, nn.Module], key: str) -> bool:
    """Whether a weight belongs to a module that is there, and is no further part beside those of a
    whole model."""
    from transformers import PreTrainedModel

    names = [key]
    if policy.base_model is not policy:
        names.append(f"{policy.base_model_prefix}.{key}")
    for parent in names:
        while parent and parent not in modules:
            parent = parent.rpartition(".")[0]
        if parent and not isinstance(modules[parent], PreTrainedModel):
            return True
    return False


def _counted(keys: Sequence[str]) -> str:
    more = ", ..." if len(keys) > SHOWN else ""
    weights = "1 weight" if len(keys) == 1 else f"{len(keys)} weights"
    return f"{weights} ({', '.join(keys[:SHOWN])}{more})"
