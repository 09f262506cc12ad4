"""What `aligner` hands out of this room: models and tokenizers, by folder or hub id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aligner.config.recipe import Model
from aligner.models import tokenizers
from aligner.models.loading import load_policy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(model: str | Path | Model) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model: a folder, a hub id, or a `Model` with its template and tokens.

    Raises: RecipeError when there is none.
    """
    return tokenizers.load_tokenizer(_section(model))


def load_model(
    model: str | Path | Model,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    trainable: bool = False,
) -> PreTrainedModel:
    """Load a model that writes text: a folder (an adapter's too), a hub id, or a `Model`.

    Without `trainable` it is in eval mode on the best device, an adapter merged into its base. With
    it, it is as a training run begins: weights that train, a fresh adapter where `Model.lora` asks
    for one, on the CPU. Without `tokenizer`, the model's own is loaded to fit the embeddings to it.

    Raises: RecipeError when it cannot be loaded, with transformers' reason.
    """
    section = _section(model)
    fitting = tokenizers.load_tokenizer(section) if tokenizer is None else tokenizer
    return load_policy(section, fitting, trainable=trainable)


def _section(model: str | Path | Model) -> Model:
    return model if isinstance(model, Model) else Model(name_or_path=str(model))
