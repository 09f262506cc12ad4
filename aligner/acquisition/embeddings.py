"""Embeddings of pairs by a policy: the mean of its last hidden states over prompt and response,
averaged over both responses.

What all vectors have in common (the hidden states of language models share a large part) is taken
away, and each is brought to length one. A conversation longer than the model's positions loses its
beginning.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aligner.acquisition.ngrams import unit
from aligner.acquisition.selection import Triple
from aligner.config.recipe import Model
from aligner.data.rows import CompletionRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Array = np.ndarray


def load_embedder(section: Model) -> tuple[str, Callable[[Sequence[Triple]], list[str]]]:
    """Return the policy's fingerprint, and what gives the vectors of a batch of pairs, each packed
    into a text."""
    from aligner.models.fingerprint import model_fingerprint
    from aligner.models.libraries import disable_progress_bars
    from aligner.models.loading import load_policy
    from aligner.models.tokenizers import load_tokenizer

    disable_progress_bars()
    tokenizer = load_tokenizer(section)
    policy = load_policy(section, tokenizer, trainable=False)
    return model_fingerprint(section), lambda pairs: [
        pack(row) for row in mean_states(policy, tokenizer, pairs)
    ]


def mean_states(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Triple]
) -> Array:
    """Return the mean hidden state of each pair, shape (N, D), float32."""
    from aligner.models.adapter_kinds import base_under_adapter
    from aligner.models.forward import batched_forward
    from aligner.models.positions import max_positions
    from aligner.tokenization.encode import encode_sft

    limit = max_positions(policy)
    rows = [
        CompletionRow(prompt, completion, "a pair")
        for prompt, a, b in pairs
        for completion in (a, b)
    ]
    ids = [encode_sft(tokenizer, row, "completion").input_ids for row in rows]
    if limit is not None:
        ids = [tokens[-limit:] for tokens in ids]

    def read(batch: dict[str, Any], _: Sequence[int]) -> list[Array]:
        # without the head: the logits of every token would fill the memory for nothing
        body: Any = base_under_adapter(policy).base_model
        states_BTD = body(**batch, use_cache=False).last_hidden_state.float()
        mask_BT1 = batch["attention_mask"][..., None]
        mean_BD = (states_BTD * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1)
        return list(mean_BD.cpu().numpy())

    vectors = batched_forward(policy, ids, read, pad_token_id=tokenizer.pad_token_id)
    return np.stack(vectors).reshape(len(pairs), 2, -1).mean(axis=1)


def unit_vectors(rows: Sequence[str]) -> Array:
    """Return packed vectors as unit vectors around their mean, shape (N, D)."""
    vectors = np.stack([unpack(row) for row in rows])
    return unit(vectors - vectors.mean(axis=0)).astype(np.float32)


def pack(vector: Array) -> str:
    """A vector as a text that holds its very bits."""
    return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")


def unpack(text: str) -> Array:
    return np.frombuffer(base64.b64decode(text), dtype="<f4")
