"""Padding and stop ids: which token pads, and what a model's configs say about both.

Masks know what is padding, so any id will do for it: the tokenizer's own, whether or not it also
ends answers, or another that is there already. No token is added for it and no matrix grows, and
the choice stays in memory: the files of the tokenizer are its base's. Sequence classification
models of transformers are the exception, since they know no mask where they read the head: at the
last token that is not the padding id. So their padding is an id that ends no answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligner.tokenization.encode import as_ids, stop_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RESERVED = ("pad", "reserved", "unused")
"""What is in the names of tokens that models keep free."""


def name_padding(tokenizer: PreTrainedTokenizerBase, rows: int | None = None) -> None:
    """Let a tokenizer without padding, or whose padding has none of the model's `rows`, pad with an
    id that is there."""
    held = tokenizer.pad_token_id
    if held is not None and (rows is None or held < rows):
        return
    ids = [*stop_token_ids(tokenizer), 0]
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(
        next(i for i in ids if rows is None or i < rows)
    )


def name_padding_that_ends_nothing(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Let tokenizer and configuration of a model with a head agree on an id that no answer ends
    with.

    That is the tokenizer's or the model's own, where it is fit; else a reserved token, the first of
    a sequence, or another special one.
    """
    config, rows = policy.config.get_text_config(), policy.get_input_embeddings().num_embeddings
    stops = {*stop_token_ids(tokenizer), *as_ids(getattr(config, "eos_token_id", None))}
    added = {
        index: token.content.lower()
        for index, token in sorted(tokenizer.added_tokens_decoder.items())
    }
    reserved = [index for index, name in added.items() if _is_reserved(name)]
    held = [tokenizer.pad_token_id, getattr(config, "pad_token_id", None)]
    wished = [*held, *reserved, tokenizer.bos_token_id, *added, *range(rows)]
    fit = next(
        index for index in wished if index is not None and 0 <= index < rows and index not in stops
    )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(fit)
    config.pad_token_id = fit


def _is_reserved(name: str) -> bool:
    return any(part in name for part in RESERVED)


def tell_stops(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, eos_token: str | None
) -> None:
    """Let generation end at every token that ends an answer in training; nothing else in a
    configuration changes.

    `eos_token` is what the recipe named, which the model's own configuration then says too.
    """
    if eos_token is not None:
        policy.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    generation = getattr(policy, "generation_config", None)
    if generation is None:
        return
    stops = stop_token_ids(tokenizer, policy)
    if set(stops) != set(as_ids(generation.eos_token_id)):
        generation.eos_token_id = stops
