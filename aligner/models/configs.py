"""The config of a model: its sizes and its family, without its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligner.config.recipe import Model
from aligner.errors import RecipeError
from aligner.models.files import base_of
from aligner.models.folder_kinds import CONFIG_FILE
from aligner.models.gguf import source_of
from aligner.models.libraries import quick_imports
from aligner.models.load_errors import reading

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def read_config(model: Model) -> PreTrainedConfig:
    """Return the config of a model, or of the base of its adapter.

    Raises: RecipeError when it cannot be read, or chooses a kernel of the hub by itself.
    """
    with quick_imports():
        from transformers import AutoConfig

    name, revision = base_of(model)
    source, form = source_of(name)
    # With the config comes the code of its family.
    with quick_imports(), reading(name, CONFIG_FILE):
        config = AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=model.trust_remote_code, **form
        )
    if model.attn_implementation is None:
        _refuse_kernel(config, name)
    return config


def _refuse_kernel(config: PreTrainedConfig, name: str) -> None:
    """Refuse attention that a config takes from the hub: it is code, which transformers would
    download and run."""
    for part in (config, *vars(config).values()):
        kernel = getattr(part, "_attn_implementation", None)
        if isinstance(kernel, str) and "/" in kernel:
            raise RecipeError(
                f"model.name_or_path: {CONFIG_FILE} of {name} asks for attn_implementation "
                f"{kernel}, which is code from the hub",
                "choose with model.attn_implementation of a recipe, or take the key out of the "
                "file",
            )
