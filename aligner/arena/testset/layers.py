"""Layers of decontamination: what a training row has in common with a test set.

    exact      a turn, or all turns of the user together, are a test's prompt after normalisation
    ngram      13 words in a row of a test's prompt or right answer, anywhere in the row
    short      a test's prompt of fewer words, whole, or 8 words of it in a row
    near       all turns of the user, or one, are nearly a test's prompt: the Jaccard similarity of
               their word 3-grams, found by MinHash and compared exactly
    nearest    among the nearest rows of a test's prompt, however near: the paper's rule (arXiv
               2407.10627 drops the five nearest of every test)
    cosine     as near to a test's prompt as a threshold says, or nearer

Each layer looks at every row, so that a report can say what one finds that no other does. The last
two need vectors and stand apart (`Nearest`). Answers are looked at by `ngram` and `short` alone: an
answer recites a test, and is none. Tests in other words or another language are found by the last
two at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from aligner.arena.testset.frozen import TestItem
from aligner.arena.testset.pool import user_turns
from aligner.data.duplicates import SeenTexts
from aligner.data.overlaps import TestTexts
from aligner.data.row_texts import RowTexts

Array = np.ndarray

Layer = Literal["exact", "ngram", "short", "near", "nearest", "cosine"]
LAYERS: tuple[Layer, ...] = get_args(Layer)

Part = dict[str, Any]
"""What `Nearest` found in some rows."""

LONG_TURN = 8
"""Words from which a turn of a test of several turns is a prompt by itself: "go on" is none."""


@dataclass(frozen=True, slots=True)
class Hit:
    """What a layer found: the id of a test, and what is the same."""

    item: str
    what: str


class SharedWords:
    """The layers that compare words. `ngram`: words in a row that are an overlap; `near`:
    similarity from which a prompt is nearly another, None for not looking."""

    def __init__(
        self, items: Sequence[TestItem], ngram: int = 13, near: float | None = 0.8
    ) -> None:
        self._texts, self._seen = TestTexts(ngram), SeenTexts(near)
        for item in items:
            turns = user_turns(item.prompt)
            longer = [turn for turn in turns if len(turn.split()) >= LONG_TURN]
            self._texts.add(item.id, "\n".join(turns), item.answer or "")
            for text in dict.fromkeys(["\n".join(turns), *longer]):
                self._seen.add(text, item.id)
                if len(turns) > 1:
                    self._texts.add(item.id, text)

    def hits(self, row: RowTexts) -> dict[Layer, Hit]:
        """Return what each layer finds in a row."""
        found: dict[Layer, Hit] = {}
        for text in dict.fromkeys([row.whole, *row.asked]):
            match = self._seen.match(text) if text.strip() else None
            if match is not None and match.exact:
                found.setdefault("exact", Hit(match.name, "the same prompt"))
            if match is not None:
                found.setdefault("near", Hit(match.name, f"{match.similarity:.0%} the same"))
        for layer, overlap in self._texts.layers(row.asked, row.told).items():
            found[layer] = Hit(overlap.test, overlap.words)
        return found


class Nearest:
    """The layers that compare vectors. `items`: (M, D), unit vectors of the tests' prompts; `keep`:
    how many rows are among the nearest of a test; `threshold`: of the cosine similarity, None for
    not looking."""

    def __init__(
        self, ids: Sequence[str], items: Array, keep: int = 0, threshold: float | None = None
    ) -> None:
        self.ids, self.items, self.keep, self.threshold = ids, items, keep, threshold
        self._best = np.full((len(ids), keep), -np.inf, dtype=np.float32)
        self._rows = np.full((len(ids), keep), -1, dtype=np.int64)
        self._near: dict[int, Hit] = {}

    def look(self, rows: Sequence[int], vectors: Array) -> Part:
        """Return what is found in further rows, as JSON can hold it: rows above the threshold as
        (row, item, similarity), and for each item its nearest rows with their similarities.
        `vectors`: (N, D), unit."""
        similarity = (self.items @ vectors.T).astype(np.float32)
        above: list[tuple[int, int, float]] = []
        if self.threshold is not None:
            nearest = similarity.argmax(axis=0)
            for place in np.flatnonzero(similarity.max(axis=0) >= self.threshold).tolist():
                item = int(nearest[place])
                above.append((rows[place], item, float(similarity[item, place])))
        order = np.argsort(-similarity, axis=1, kind="stable")[:, : self.keep]
        best = np.take_along_axis(similarity, order, axis=1)
        return {"above": above, "rows": np.asarray(rows)[order].tolist(), "best": best.tolist()}

    def take(self, part: Part) -> None:
        """Take over what was found in some rows; parts come in the order of the rows."""
        for row, item, similarity in part["above"]:
            self._near[row] = self._hit(item, similarity)
        if self.keep:
            both = np.concatenate([self._best, np.array(part["best"], np.float32)], axis=1)
            numbers = np.concatenate([self._rows, np.array(part["rows"], np.int64)], axis=1)
            order = np.argsort(-both, axis=1, kind="stable")[:, : self.keep]
            self._best = np.take_along_axis(both, order, axis=1)
            self._rows = np.take_along_axis(numbers, order, axis=1)

    def hits(self) -> dict[int, dict[Layer, Hit]]:
        """Return what was found, by row."""
        found: dict[int, dict[Layer, Hit]] = {}
        for row, hit in self._near.items():
            found.setdefault(row, {})["cosine"] = hit
        for item, (rows, best) in enumerate(zip(self._rows.tolist(), self._best.tolist())):
            for row, similarity in zip(rows, best):
                if row >= 0:
                    found.setdefault(row, {}).setdefault("nearest", self._hit(item, similarity))
        return found

    def _hit(self, item: int, similarity: float) -> Hit:
        return Hit(self.ids[item], f"cosine {similarity:.3f}")
