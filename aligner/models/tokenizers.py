"""Load tokenizers: as their files have them, then with the recipe's template and tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligner.config.recipe import Model
from aligner.errors import RecipeError
from aligner.models.configs import read_config
from aligner.models.files import (
    base_of,
    check_model_path,
    check_tokenizer_path,
    has_tokenizer,
    read_chat_template,
)
from aligner.models.gguf import gguf_file, source_of
from aligner.models.load_errors import reading
from aligner.models.special_tokens import name_padding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


ODD_TEXT = "a \u00e9 \u4e2d\U0001f600"


def load_tokenizer(model: Model, *, needs_model: bool = True) -> PreTrainedTokenizerBase:
    """Load the tokenizer with the recipe's template, new tokens, stop and padding tokens.

    Without `needs_model`, a folder may hold the tokenizer alone. An adapter's folder without a
    tokenizer has its base's.

    Raises: RecipeError when a token or template that the recipe names is not there.
    """
    if needs_model:
        check_model_path(model)
        if gguf_file(base_of(model)[0]) is None:  # where it takes seconds, and is read again below
            read_config(model)
    else:
        check_tokenizer_path(model, "model.name_or_path")
    tokenizer = load_tokenizer_files(model)
    if model.chat_template is not None:
        tokenizer.chat_template = read_chat_template(model.chat_template)
    if model.new_tokens:
        tokenizer.add_tokens(
            [token for token in model.new_tokens if token not in tokenizer.get_vocab()]
        )
    for key in ("eos_token", "pad_token"):
        _set_token(tokenizer, key, getattr(model, key))
    name_padding(tokenizer)
    return tokenizer


def load_tokenizer_files(model: Model) -> PreTrainedTokenizerBase:
    """Load the tokenizer as its files have it, whatever else the recipe says; an adapter's folder
    without one has its base's."""
    from transformers import AutoTokenizer

    name, revision = model.name_or_path, model.revision
    if not has_tokenizer(name):
        name, revision = base_of(model)
    source, form = source_of(name)
    with reading(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=model.trust_remote_code, **form
        )
        tokenizer(ODD_TEXT)  # a class that does not fit its files is found out by use alone
    return tokenizer


def _set_token(tokenizer: PreTrainedTokenizerBase, key: str, token: str | None) -> None:
    if token is None:
        return
    if token not in tokenizer.get_vocab():
        raise RecipeError(
            f"model.{key}: the tokenizer has no token {token!r}",
            f"list it in model.new_tokens too: [{token!r}]",
        )
    tokenizer.add_special_tokens(
        {key: token}
    )  # an attribute alone would not keep it in one piece in a text
