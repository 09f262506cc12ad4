"""Models that also see: their language part is trained on text, and the vision part is saved as it
was."""

from __future__ import annotations

from typing import Any

PROCESSOR_FILES = (
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("image_processor_config.json", "chat_template.json"),
)
"""Files beside the tokenizer's that say how pictures are read."""


def sees(config: Any) -> bool:
    """Say whether a config is that of a model with a part for pictures."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES,
    )

    return config.model_type in NAMES and config.get_text_config() is not config


def auto_class_for(config: Any) -> Any:
    """Return the class of transformers that loads a model that writes text, whether or not it also
    sees."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as WRITERS

    return (
        AutoModelForImageTextToText
        if sees(config) and config.model_type not in WRITERS
        else AutoModelForCausalLM
    )


def language_modules(policy: Any) -> set[int] | None:
    """Return the ids of the modules that read and write text; None for a model that has no
    others."""
    if not sees(policy.config):
        return None
    ends = (policy.get_input_embeddings(), policy.get_output_embeddings())
    parts = (policy.get_decoder(), *(end for end in ends if end is not None))
    return {id(module) for part in parts for module in part.modules()}


def freeze_sight(policy: Any) -> None:
    """Leave weights that no text reaches out of the training."""
    language = language_modules(policy)
    if language is None:
        return
    for module in policy.modules():
        if id(module) not in language:
            for weight in module.parameters(recurse=False):
                weight.requires_grad_(False)


def remark_on(config: Any, name: str) -> str | None:
    """What is said of a model that sees before it is trained."""
    if not sees(config):
        return None
    return (
        f"{name} reads pictures too ({config.model_type}): its language part alone is trained, on "
        "text"
    )
