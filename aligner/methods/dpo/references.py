"""What serves as the reference of a recipe: nothing, the base under the adapter, or numbers that
are computed before the first step. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from aligner.config.loss_names import REFERENCE_FREE_LOSSES, REWARD_LOSSES
from aligner.errors import RecipeError
from aligner.methods.dpo.recipe import DISTILL_FORWARD_KL, DpoRecipe
from aligner.models.files import ADAPTER_FILE


def losses_of(recipe: DpoRecipe) -> set[str]:
    """Names and files of the objectives that the recipe asks for."""
    loss = recipe.dpo.loss
    return {loss} if isinstance(loss, str) else set(loss)


def distils(recipe: DpoRecipe) -> bool:
    """Say whether the objective follows reward models."""
    return bool(losses_of(recipe) & set(REWARD_LOSSES))


def forward_kl_weight(recipe: DpoRecipe) -> float:
    """Return the weight of the forward KL to the reference."""
    given = recipe.dpo.forward_kl
    return given if given is not None else DISTILL_FORWARD_KL if distils(recipe) else 0.0


def needs_reference(recipe: DpoRecipe) -> bool:
    """Say whether any objective of the recipe reads the reference."""
    return not losses_of(recipe) <= set(REFERENCE_FREE_LOSSES)


def uses_adapter_off(recipe: DpoRecipe) -> bool:
    """Say whether the reference is the base under a fresh adapter.

    Raises: RecipeError when that is asked for, but the base is not what training starts from.
    """
    if (
        recipe.model.lora is None
        or recipe.dpo.reference == "precomputed"
        or recipe.dpo.reference_model is not None
    ):
        return False
    why = _why_base_is_no_reference(recipe)
    if why and recipe.dpo.reference == "adapter_off":
        raise RecipeError(
            f"dpo.reference is adapter_off, but {why}", "use dpo.reference=auto or precomputed"
        )
    return not why


def _why_base_is_no_reference(recipe: DpoRecipe) -> str:
    """Return what makes the base, its adapter off, another model than the one that training starts
    from; or nothing."""
    lora = recipe.model.lora
    assert lora is not None
    if (Path(recipe.model.name_or_path).expanduser() / ADAPTER_FILE).is_file():
        return (
            f"the adapter in {recipe.model.name_or_path} is trained further, and without it the "
            "model is another"
        )
    if lora.bias != "none":
        return (
            f"model.lora.bias={lora.bias} trains biases of the base itself, which stay when the "
            "adapter is off"
        )
    if lora.init_lora_weights in ("pissa", "olora"):
        return (
            f"model.lora.init_lora_weights={lora.init_lora_weights} moves a part of the base into "
            "the adapter"
        )
    if lora.init_lora_weights is False:
        return "model.lora.init_lora_weights=false starts from a random adapter"
    return ""
