"""Load a model that was just written as anybody would: with transformers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligner.config.recipe import Model
from aligner.errors import RecipeError
from aligner.launch.devices import best_device
from aligner.models.configs import read_config
from aligner.models.files import saved_outputs
from aligner.models.load_errors import reading
from aligner.models.vision import auto_class_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_back(folder: str, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a folder that was just written as anybody would, with transformers alone, in float32.

    Raises: RecipeError when it cannot be loaded, or lacks a weight.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    model = Model(name_or_path=folder, trust_remote_code=trust_remote_code)
    has_head = saved_outputs(folder) is not None
    auto_class = auto_class_for(read_config(model))
    auto_class = AutoModelForSequenceClassification if has_head else auto_class
    with reading(folder, "model"):
        policy, loaded = auto_class.from_pretrained(
            folder,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    wrong = [*loaded["missing_keys"], *loaded["unexpected_keys"]]
    if wrong:
        raise RecipeError(
            f"model.name_or_path: {folder} was written, and transformers does not read {wrong[0]}",
            "is its family known to this version of transformers?",
        )
    return policy.to(best_device()).eval()
