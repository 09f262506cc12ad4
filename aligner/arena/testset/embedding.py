"""Vectors of prompts: by a model in a local folder, or by the words that prompts share.

`auto` and `tfidf` need no model, and then say loudly what that means: topics are words in common,
and so is nearness. What is embedded is what the user says, all turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from aligner.acquisition.embeddings import pack, unpack
from aligner.acquisition.ngrams import unit
from aligner.arena.testset.word_vectors import WordVectors, principal
from aligner.config.recipe import Model
from aligner.models.encoders import Encoder, check_encoder
from aligner.models.fingerprint import model_fingerprint

if TYPE_CHECKING:
    from aligner.runs.journal import Journal

Array = np.ndarray

WITHOUT_MODEL = ("auto", "tfidf")
DIRECTIONS = 256
AT_ONCE = 256
"""Texts of a part that is kept."""

LEXICAL = (
    "prompts are embedded by their words (TF-IDF), not by their meaning: topics and nearness are "
    "words in common; --embedding FOLDER takes a model's"
)

OnProgress = Callable[[int, int], None]


class Embedding(Protocol):
    """How prompts become vectors."""

    name: str
    fingerprint: str

    @property
    def remarks(self) -> list[str]:
        """What to know of the vectors that it made."""
        ...

    def spread(self, texts: Sequence[str], journal: Journal, on_progress: OnProgress) -> Array:
        """Return unit vectors around their mean, shape (N, D), for clusters."""

    def measure(self, every: Iterable[str]) -> Callable[[Sequence[str]], Array]:
        """Return what gives unit vectors, shape (N, D), whose scalar products say how near texts
        are. `every`: all texts that will be compared."""


def embedding_of(spec: str) -> Embedding:
    """Return the embedding that an option names; a model is loaded at its first text. Raises:
    RecipeError."""
    return _Words() if spec in WITHOUT_MODEL else _Encoded(spec)


class _Words:
    def __init__(self) -> None:
        self.name = "tfidf"
        self.fingerprint = f"words 1 {DIRECTIONS}"
        self.remarks: list[str] = [LEXICAL]

    def spread(self, texts: Sequence[str], journal: Journal, on_progress: OnProgress) -> Array:
        found = principal(WordVectors(texts), texts, DIRECTIONS)
        on_progress(len(texts), len(texts))
        return unit(found - found.mean(axis=0)).astype(np.float32)

    def measure(self, every: Iterable[str]) -> Callable[[Sequence[str]], Array]:
        return WordVectors(every).of


class _Encoded:
    def __init__(self, folder: str) -> None:
        check_encoder(folder)
        self.name = folder
        self.fingerprint = model_fingerprint(Model(name_or_path=folder))
        self._encoder: Encoder | None = None

    @property
    def remarks(self) -> list[str]:
        """How many texts were longer than the model reads."""
        encoder = self._encoder
        if encoder is None or not encoder.cut:
            return []
        return [f"{encoder.cut:,} prompts were embedded by their first {encoder.limit:,} tokens"]

    def spread(self, texts: Sequence[str], journal: Journal, on_progress: OnProgress) -> Array:
        parts = [texts[start : start + AT_ONCE] for start in range(0, len(texts), AT_ONCE)]
        rows: list[str] = []
        for packed, is_new in journal.results(
            parts, lambda part: [*map(pack, self._vectors(part))]
        ):
            rows += packed
            if is_new:
                on_progress(len(rows), len(texts))
        vectors = np.stack([unpack(row) for row in rows])
        return unit(vectors - vectors.mean(axis=0)).astype(np.float32)

    def measure(self, every: Iterable[str]) -> Callable[[Sequence[str]], Array]:
        return self._vectors

    def _vectors(self, texts: Sequence[str]) -> Array:
        if self._encoder is None:
            self._encoder = Encoder(self.name)
        return self._encoder.vectors(texts)
