"""Choose the transformers class that loads a model from its config, and refuse what does not
generate text.

transformers itself makes a writer of every encoder that has a causal sibling (BERT), which then
sees the tokens that it is asked for.
"""

from __future__ import annotations

from typing import Any

from aligner.errors import RecipeError

NO_WRITER = "name a model that writes text from left to right (`...ForCausalLM` in its config.json)"


def refuse_what_writes_nothing(config: Any, name: str, key: str = "model.name_or_path") -> None:
    """Refuse encoders, models of an encoder and a decoder, and what is made for something else than
    text.

    Raises: RecipeError saying what the model is.
    """
    from transformers.models.auto import modeling_auto as names

    kind = config.model_type
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return
    writes, sees = (
        names.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        names.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )
    is_encoder = kind in names.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(
        config, "is_decoder", False
    )
    if getattr(config, "is_encoder_decoder", False):
        what = f"an encoder with a decoder ({kind}), which answers by another way than it reads"
    elif kind not in writes and kind not in sees:
        what = f"a model of the kind {kind}, which writes no text"
    elif is_encoder and "CausalLM" not in str(config.architectures):
        what = f"an encoder ({kind}), which fills gaps and does not continue a text"
    else:
        return
    raise RecipeError(f"{key}: {name} is {what}", NO_WRITER)
