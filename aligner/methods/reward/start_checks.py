"""Checks of a reward model's start before its rows are read: an existing head, the reference of
segments.

Imports nothing heavy, so that a recipe that could never be trained is refused at once, by a dry run
too.
"""

from __future__ import annotations

from pathlib import Path

from aligner.errors import RecipeError
from aligner.methods.reward.recipe import RewardRecipe, RewardSegments
from aligner.models.files import ADAPTER_FILE, adapter_config, check_model_path, saved_outputs
from aligner.reward_models.card import find_card


def check_start(recipe: RewardRecipe) -> None:
    """Refuse a model, or a reference of segments, that this kind cannot start from.

    Raises: RecipeError.
    """
    saved = saved_outputs(recipe.model.name_or_path)
    if saved is not None:
        _refuse_other_head(recipe, saved)
    else:
        _refuse_writing_adapter(recipe)
    segments = recipe.reward.segments or RewardSegments()
    if recipe.reward.kind == "segment" and segments.rule == "entropy":
        _check_reference(recipe, segments)


def _check_reference(recipe: RewardRecipe, segments: RewardSegments) -> None:
    name = segments.reference or recipe.model.name_or_path
    check_model_path(
        recipe.model.model_copy(update={"name_or_path": name}), "reward.segments.reference"
    )
    if saved_outputs(name) is not None:
        whose = (
            "names a reward model"
            if segments.reference
            else "is missing, and training starts from a reward model"
        )
        raise RecipeError(
            f"reward.segments.reference {whose}, which foresees no tokens",
            "name the model that writes text whose entropies cut the answers",
        )


def _refuse_writing_adapter(recipe: RewardRecipe) -> None:
    """Refuse an adapter of a model that writes text, where a head is to replace what writes: PEFT
    wraps such an adapter around a model that can generate."""
    start = recipe.model.name_or_path
    if recipe.reward.kind != "pairwise" and adapter_config(start) is not None:
        raise RecipeError(
            f"model.name_or_path: {start} is the adapter of a model that writes text, and "
            f"{recipe.reward.kind} gives its model a head instead",
            f"merge it first: aligner merge {start} -o merged; and start from `merged`",
        )


def _refuse_other_head(recipe: RewardRecipe, saved: int) -> None:
    """Refuse a start whose head means something else than the outputs of this kind."""
    start, kind = recipe.model.name_or_path, recipe.reward.kind
    if kind in ("odin", "pairwise"):
        does = "trains two new outputs" if kind == "odin" else "asks a model that writes text"
        raise RecipeError(
            f"model.name_or_path: {start} is a reward model already, and {kind} {does}",
            "start from a model that writes text",
        )
    if kind == "regression":
        card = find_card(start, trust_remote_code=recipe.model.trust_remote_code)
        rated = card.attributes if card is not None else []
        if saved != len(recipe.reward.attributes) or (rated and rated != recipe.reward.attributes):
            raise RecipeError(
                f"model.name_or_path: {start} rates {', '.join(rated) or f'{saved} attributes'}, "
                "reward.attributes are "
                f"{', '.join(recipe.reward.attributes)}",
                "give the same attributes in the same order, or start from a model that writes "
                "text",
            )
    elif (
        saved != 1
        and recipe.model.lora is not None
        and (Path(start).expanduser() / ADAPTER_FILE).is_file()
    ):
        raise RecipeError(
            f"model.name_or_path: the adapter in {start} has {saved} outputs, and {kind} has one",
            "leave out model.lora to train the merged model",
        )
