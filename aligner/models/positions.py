"""How long a row a model can read, and how wide it is, from its config.json before anything is
loaded.

One rule for every command: no row is longer than the model's positions. Learned positions have an
end, beyond which there is nothing to look up; rotary ones would go on, with numbers that the model
has never seen, and evaluations refuse them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligner.config.recipe import Model, TrainRecipe
from aligner.errors import RecipeError
from aligner.models.adapter_kinds import virtual_tokens
from aligner.models.files import base_of
from aligner.models.folder_kinds import POSITIONS

WIDTH = ("hidden_size", "n_embd", "d_model")


def sizes_of(model: Model) -> Mapping[str, Any]:
    """Return what the config.json of a model's folder, or of its adapter's base, says; nothing for
    a name on the hub."""
    file = Path(base_of(model)[0]).expanduser() / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def _first(sizes: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    found = next((sizes[name] for name in names if isinstance(sizes.get(name), int)), None)
    return found if found is None or found > 0 else None


def max_positions(model: Any) -> int | None:
    """Return how many positions a loaded model has for a row, or None where it sets no limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if positions is None else positions - virtual_tokens(model)


def positions_in(sizes: Mapping[str, Any]) -> int | None:
    """Return how many positions a model has; None where its config sets no limit."""
    return _first(sizes, POSITIONS)


def within_model(recipe: TrainRecipe, sizes: Mapping[str, Any]) -> tuple[TrainRecipe, str]:
    """Return the recipe with its longest row within the model's positions, and a remark where that
    changes it.

    Raises: RecipeError for a length, or the rank of an adapter, that the recipe sets beyond what
    the model has.
    """
    width, lora = _first(sizes, WIDTH), recipe.model.lora
    if lora is not None and width is not None and lora.r > width:
        raise RecipeError(
            f"model.lora.r is {lora.r:,}, and the model is {width:,} wide: no change of a layer "
            "has a higher rank",
            "8 to 64 is common; leave model.lora out to train the whole model",
        )
    positions, data = positions_in(sizes), recipe.data
    if positions is None:
        return recipe, ""
    mosaic = data.mosaic.max_tokens if data.mosaic is not None else None
    given = {"data.max_length": data.max_length if "max_length" in data.model_fields_set else None}
    for key, length in {**given, "data.mosaic.max_tokens": mosaic}.items():
        if length is not None and length > positions:
            raise RecipeError(
                f"{key} is {length:,}, and the model has {positions:,} positions",
                f"set {key}={positions} at most",
            )
    longest, multiple = min(data.max_length, positions), recipe.trainer.get("pad_to_multiple_of")
    if isinstance(multiple, int) and (padded := -(-longest // multiple) * multiple) > positions:
        raise RecipeError(
            f"trainer.pad_to_multiple_of is {multiple:,}, so rows are padded to {padded:,} "
            "tokens, and the model has "
            f"{positions:,} positions",
            "lower it, or data.max_length",
        )
    if data.max_length <= positions:
        return recipe, ""
    shorter = data.model_copy(update={"max_length": positions})
    remark = f"data.max_length is {positions:,}: more positions the model does not have"
    return recipe.model_copy(update={"data": shorter}), remark
