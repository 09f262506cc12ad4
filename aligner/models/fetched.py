"""The fingerprint of a model that may have to be fetched first."""

from __future__ import annotations

from aligner.config.recipe import Model
from aligner.models.fingerprint import model_fingerprint
from aligner.models.loading import load_policy
from aligner.models.tokenizers import load_tokenizer


def fetched_fingerprint(model: Model) -> str:
    """Return the fingerprint of a model; one that is not on this machine yet is loaded once, so
    that it is fetched.

    Raises: RecipeError, as when it is loaded, where it is nowhere.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return model_fingerprint(model)
    except LocalEntryNotFoundError:
        load_policy(model, load_tokenizer(model), trainable=False)
        return model_fingerprint(model)
