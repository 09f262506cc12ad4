"""What PEFT does to an adapter beside training it: what of it is saved, in which order, and what merging does to ties."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


def save_what_is_trained(adapted: Any) -> None:
    """Let an adapter be saved with what it trains and nothing else, and with its lists in order.

    PEFT would add whole embeddings where they are adapted, or where the vocabulary is larger than the base's. It keeps
    names of modules in sets, whose order differs between processes, and with it the bytes of adapter_config.json.
    """
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    for config in adapted.peft_config.values():
        for key, value in vars(config).items():
            if isinstance(value, set):
                setattr(config, key, sorted(value))


@contextmanager
def told_of_ties() -> Iterator[None]:
    """Keep PEFT from warning of an adapter on tied embeddings, which `untie_adapted` takes care of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        yield


def untie_adapted(adapted: Any) -> None:
    """Give head and embeddings a matrix each, where they share one and an adapter sits on one or both of them.

    Merged into a shared matrix, what was learned for one would change the other.
    """
    from torch.nn import Parameter

    base = adapted.get_base_model()
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is None or not (is_adapted(embeddings) or is_adapted(head)):
        return
    inside, outside = _layer_of(embeddings), _layer_of(head)
    if outside.weight is not inside.weight:
        return
    shared = inside.weight
    outside.weight = Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
    for config in {id(c): c for c in (base.config, base.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    base.all_tied_weights_keys = base.get_expanded_tied_weights_keys(all_submodels=True)


def is_adapted(module: Any) -> bool:
    """Say whether an adapter's weights sit on a module."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def _layer_of(module: Any) -> Any:
    """The layer below an adapter's, or below a copy that is trained whole."""
    module = getattr(module, "base_layer", module)
    return getattr(module, "original_module", module)
