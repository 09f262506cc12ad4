"""The config of a model: its sizes and its family, without its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligner.config.recipe import Model
from aligner.models.files import base_of
from aligner.models.folder_kinds import CONFIG_FILE
from aligner.models.gguf import source_of
from aligner.models.libraries import quick_imports
from aligner.models.load_errors import reading

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def read_config(model: Model) -> PreTrainedConfig:
    """Return the config of a model, or of the base of its adapter. Raises: RecipeError when it
    cannot be read."""
    with quick_imports():
        from transformers import AutoConfig

    name, revision = base_of(model)
    source, form = source_of(name)
    # With the config comes the code of its family.
    with quick_imports(), reading(name, CONFIG_FILE):
        return AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=model.trust_remote_code, **form
        )
