"""Embeddings of texts without a model: TF-IDF over n-grams of bytes, hashed into a fixed width.

N-grams of bytes know no language and no tokenizer. A gram's weight is (1 + ln count) * (1 + ln((1 +
N) / (1 + number of texts that have it))); grams are counted in 2^20 slots and then added into
`WIDTH` columns with a sign, both from a hash, so that scalar products stay what they were on
average (feature hashing, arXiv 0902.2206). Nothing is random: the same texts give the same vectors
anywhere.

The vector of a pair is the sum of two unit vectors, that of its prompt and that of its two
responses together, brought to length one: a long response does not drown the prompt, and which
response stands first does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aligner.reward_models.base import Prompt

Array = np.ndarray

SIZES = (3, 4, 5)
"""Bytes in a gram."""
WIDTH = 1024
SLOTS = 1 << 20
_START, _END = (
    b"\x02\x02",
    b"\x03\x03",
)  # so that a text of one letter has grams too, and ends count
_FACTORS = np.array(
    [
        0x9E3779B97F4A7C15,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0xD6E8FEB86659FD93,
        0xA0761D6478BD642F,
    ],
    dtype=np.uint64,
)
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_SHIFT = np.uint64(33)


def ngram_vectors(pairs: Sequence[tuple[Prompt, str, str]]) -> Array:
    """Return unit vectors of (prompt, response, response), shape (N, WIDTH), float32."""
    documents = [(text_of(prompt),) for prompt, _, _ in pairs] + [(a, b) for _, a, b in pairs]
    having = np.zeros(SLOTS, dtype=np.int64)
    for texts in documents:
        having[np.unique(_slot(_grams(texts)))] += 1
    # of each slot, by the number of documents that have it
    weights = (1.0 + np.log((1.0 + len(documents)) / (1.0 + having))).astype(np.float32)
    rows = np.zeros((len(pairs), WIDTH), dtype=np.float32)
    for number, texts in enumerate(documents):
        rows[number % len(pairs)] += _folded(texts, weights)
    return unit(rows)


def text_of(prompt: Prompt) -> str:
    """Return what is said in a prompt, its turns joined by line ends."""
    return (
        prompt
        if isinstance(prompt, str)
        else "\n".join(str(turn.get("content") or "") for turn in prompt)
    )


def unit(rows: Array) -> Array:
    """Bring rows to length one; a row of zeros stays one."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0.0, lengths, 1.0)


def _folded(texts: tuple[str, ...], weights: Array) -> Array:
    """Return the unit vector of a document."""
    grams, counts = np.unique(_grams(texts), return_counts=True)
    value = (1.0 + np.log(counts)) * weights[_slot(grams)]
    signed = np.where((grams >> np.uint64(63)).astype(bool), value, -value)
    row = np.bincount(
        (grams >> np.uint64(40)).astype(np.int64) % WIDTH, weights=signed, minlength=WIDTH
    )
    return unit(row[None])[0].astype(np.float32)


def _slot(grams: Array) -> Array:
    return (grams % np.uint64(SLOTS)).astype(np.int64)


def _grams(texts: tuple[str, ...]) -> Array:
    """Return the hashes of all grams of the texts; none reaches from one text into the next."""
    hashes = []
    for text in texts:
        data = np.frombuffer(
            _START + text.encode("utf-8", "surrogatepass") + _END, dtype=np.uint8
        ).astype(np.uint64)
        for size in SIZES:
            count = len(data) - size + 1
            if count < 1:
                continue
            mixed = np.full(count, size, dtype=np.uint64)
            for i in range(size):
                mixed = (mixed ^ data[i : i + count]) * _FACTORS[i]
                mixed ^= mixed >> _SHIFT
            mixed *= _MIX
            hashes.append(mixed ^ (mixed >> _SHIFT))
    return np.concatenate(hashes)
